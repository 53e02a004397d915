"""Subscribers receive the last value even if the clock of Redis was set back."""
from __future__ import annotations

import pytest

from celery_memsync.keys import Keys
from tests.support.publishing import publish
from tests.support.subscriber import INVALIDATED, Subscriber, caught_up, cut_off
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

keys = Keys("task-sentinel")


@pytest.fixture
def set_back(redis):
    """Makes an entry that was written before Redis's clock was set back by so many seconds."""
    def act(path, seconds):
        key = keys.location(f"task-sentinel/{path}").key
        text = redis.get(key)
        at = text.split(b" ")[4]
        redis.set(key, text.replace(at, b"%d" % (int(at) + seconds * 1000)), keepttl=True)

    return act


@pytest.mark.parametrize("seconds", [2, 30, 7200])
def test_what_is_written_after_the_clock_was_set_back_is_delivered(memsync, other, redis, set_back, seconds):
    publish(other, {"a": "first"})
    set_back("a", seconds)
    subscriber = Subscriber(memsync)

    for value in ("second", "final"):
        publish(other, {"a": value})

    subscriber.wait_for("a", "final")
    assert subscriber.never_goes_back()


@pytest.mark.parametrize("seconds", [2, 30, 7200])
def test_a_message_of_before_the_clock_was_set_back_hides_nothing(memsync, other, redis, seconds):
    subscriber = Subscriber(memsync)
    publish(other, {"a": "first"})
    subscriber.wait_for("a", "first")
    with redis.pubsub() as pubsub:
        pubsub.psubscribe("*")
        publish(other, {"a": "second"})
        data = eventually(lambda: (message := pubsub.get_message()) and message["type"] == "pmessage" and message["data"])
    at = data.split(b" ")[4]

    redis.publish("0:task-sentinel/a", data.replace(b"2 ", b"3 ", 1).replace(at, b"%d" % (int(at) + seconds * 1000)))
    publish(other, {"a": "third", "b": 1})

    subscriber.wait_for("b", 1)
    subscriber.wait_for("a", "third")


@pytest.mark.parametrize("seconds", [2, 30, 7200])
def test_after_a_lost_connection_what_was_written_by_a_clock_set_back_is_delivered(memsync, other, redis, set_back, seconds):
    publish(other, {"a": "first", "deleted": 1})
    set_back("a", seconds)
    set_back("deleted", seconds)
    subscriber = Subscriber(memsync)
    caught_up(memsync)

    def go_on():
        other.delete("deleted")
        publish(other, {"a": "final"})

    cut_off(memsync, redis, meanwhile=go_on)

    subscriber.wait_for("a", "final")
    subscriber.wait_for("deleted", INVALIDATED)


def test_key_does_not_expire_early_when_the_clock_was_set_back(memsync, other):
    subscriber = Subscriber(memsync, "a")
    clock = memsync.runtime.store.clock
    memsync.read("a")
    clock.offset += 30.0

    publish(other, {"a": 1}, ttl=20)
    subscriber.wait_for("a", 1)
    publish(other, {"a": 2}, ttl=20)

    subscriber.wait_for("a", 2)
    eventually(lambda: abs(clock.at(0) - other.runtime.store.clock.at(0)) < 1)
    assert INVALIDATED not in subscriber.of("a")
