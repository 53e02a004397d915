"""Which queue a message goes to, whatever its exchange and routing key are called."""
from __future__ import annotations

import pytest
from kombu import Exchange, Queue

from celery_memsync.fleet.queue_names import QueueNames, queue_name_of

DELAY = ".".join("0" * 25 + "101") + "."

TOPICS, WORK = Exchange("topics", type="topic"), Exchange("work", type="direct")
QUEUES = {queue.name: queue for queue in (
    Queue("videos", TOPICS, routing_key="video.#"),
    Queue("default", TOPICS, routing_key="task.#"),
    Queue("mail", WORK, routing_key="letters"),
    Queue("celery"),
)}


@pytest.mark.parametrize("exchange, routing_key, name", [
    ("topics", "video.compress.fast", "videos"),
    ("topics", "task.default", "default"),
    ("work", "letters", "mail"),
    ("", "celery", "celery"),
    ("celery_delayed_27", DELAY + "video.compress", "videos"),
    ("celery_delayed_delivery", DELAY + "letters", "mail"),
    ("celery_delayed_2", DELAY + "unknown", "unknown"),
    ("elsewhere", "key", "key"),
    ("elsewhere", None, "elsewhere"),
    (None, None, None),
    (5, "key", None),
    ("topics", ["video.compress"], None),
])
def test_a_message_goes_to_a_queue_by_its_name(exchange, routing_key, name):
    names = QueueNames(lambda: QUEUES)

    assert names.of({"exchange": exchange, "routing_key": routing_key}) == name
    assert names.of({"exchange": exchange, "routing_key": routing_key}) == name


@pytest.mark.parametrize("delivery", [None, [], "text", 5, {}])
def test_what_is_no_delivery_has_no_queue(delivery):
    assert QueueNames(lambda: QUEUES).of(delivery) is None


def test_made_up_routing_keys_are_not_remembered_for_ever():
    names = QueueNames(lambda: QUEUES)

    for number in range(3 * QueueNames.MOST):
        names.of({"exchange": "x", "routing_key": f"key-{number}"})

    assert len(names._known) <= QueueNames.MOST


def test_the_queue_of_a_message_that_was_delayed_is_certain():
    assert queue_name_of(QUEUES, {"exchange": "celery_delayed_27", "routing_key": DELAY + "video.x"}) == "videos"
