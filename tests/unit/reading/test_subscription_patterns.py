"""Patterns of subscriptions: what matches, what is refused, what does no harm."""
from __future__ import annotations

import time

import pytest

from celery_memsync import InvalidKey
from tests.support.publishing import publish
from tests.support.subscriber import Subscriber, cut_off
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

PATTERNS = [
    ("a", ["b", "a/b", "aa"], ["a"]),
    ("*", [], ["a", "a/b/c"]),
    ("a/*", ["a", "b/a", "ab"], ["a/b", "a/b/c"]),
    ("*/c", ["a/b", "c"], ["a/c", "a/b/c"]),
    ("tasks/*/state", ["tasks/t1/progress", "tasks/state"], ["tasks/t1/state", "tasks/a.b/state"]),
    ("tasks/t1/*", ["tasks/t2/state"], ["tasks/t1/state", "tasks/t1/agents/a", "tasks/t1/x"]),
    ("workers/*/status", ["workers/w1/capacity"], ["workers/w1/status"]),
    ("task-sentinel/a", ["b"], ["a"]),
    ("task-sentinel/*/b", ["b"], ["a/b"]),
    ("[ab]/x", ["c/x", "ab/x"], ["a/x", "b/x"]),
    ("[^ab]/x", ["a/x", "b/x"], ["c/x"]),
    ("[a-c]?", ["d1", "a", "a12"], ["a1", "c2"]),
    (r"a\-[\a]", ["a-b", "a"], ["a-a"]),
    (r"\a\/*", ["b/a", "a"], ["a/b"]),
    ("a.b", ["axb", "a/b"], ["a.b"]),
    ("a(1)+$", ["a1", "a11"], ["a(1)+$"]),
    ("A", ["a"], ["A"]),
    ("é*", ["e", "x/é"], ["é", "étude"]),
]


@pytest.mark.parametrize("pattern, others, matching", PATTERNS)
def test_a_pattern_is_a_glob_of_redis_over_full_keys(memsync, other, pattern, others, matching):
    subscriber = Subscriber(memsync, pattern)

    for key in [*others, *matching]:
        publish(other, {key: {"x": 1}})

    subscriber.wait_for(matching[-1], {"x": 1})
    assert subscriber.received == [(key, {"x": 1}) for key in matching]


@pytest.mark.parametrize("pattern", ["?", "[^a]"])
def test_what_a_pattern_matches_does_not_depend_on_other_subscriptions(make_memsync, other, pattern):
    alone, beside = make_memsync(), make_memsync()
    everything = Subscriber(beside, "*")
    subscribers = [Subscriber(memsync, f"tasks/{pattern}/state") for memsync in (alone, beside)]

    for task_id in ("é", "b"):
        other.sync_task_state(task_id, {"x": 1})
        other.force_sync()

    for subscriber in (everything, *subscribers):
        subscriber.wait_for("tasks/b/state", {"x": 1})
    assert subscribers[0].received == subscribers[1].received


@pytest.mark.parametrize("pattern", [None, 5, b"a", ["a"], "", "a\nb", "a\0", "[a", "a/[^b", "x" * 3000, "\ud800"])
@pytest.mark.parametrize("method", ["subscribe", "watch"])
def test_a_bad_pattern_is_refused_at_once(memsync, method, pattern):
    with pytest.raises(InvalidKey):
        getattr(memsync, method)(pattern)

    assert memsync.get_metrics()["subscriptions"] == 0


def test_namespaces_and_databases_do_not_mix(memsync, make_memsync, redis_url):
    subscriber = Subscriber(memsync)
    foreigners = [
        make_memsync(namespace="another"), make_memsync(namespace="task-sentinel2"),
        make_memsync(url=redis_url.replace("/0", "/1")), make_memsync(url=redis_url.replace("/0", "/10")),
    ]
    subscribers = [Subscriber(foreigner, invalidate=False) for foreigner in foreigners[2:]]

    for number, foreigner in enumerate([*foreigners, memsync]):
        publish(foreigner, {"a": number})

    for one, number in zip([*subscribers, subscriber], (2, 3, 4)):
        one.wait_for("a", number)
    assert subscriber.received == [("a", 4)]
    assert [subscriber.received for subscriber in subscribers] == [[("a", 2)], [("a", 3)]]


@pytest.mark.parametrize("pattern", ["a//b", "a/", "/a", "a]b", "task-sentinel/", "x" * 600, r"a\\", "tasks//state"])
def test_a_pattern_that_no_key_can_match_harms_no_other(memsync, other, redis, pattern):
    publish(other, {"a": 1, "b": 1})
    try:
        memsync.subscribe(pattern, print)
    except InvalidKey:
        pass
    subscriber = Subscriber(memsync)

    cut_off(memsync, redis)
    publish(other, {"b": 2})

    subscriber.wait_for("b", 2)
    assert subscriber.received == [("b", 2)]


def test_a_pattern_of_many_stars_does_not_hold_up_the_process(memsync, other):
    hard, subscriber = Subscriber(memsync, "*-*-*-*-*-*-*x"), Subscriber(memsync)
    started = time.monotonic()

    publish(other, {"-".join(["ab"] * 75): 1, "end": 1})

    subscriber.wait_for("end", 1)
    assert time.monotonic() - started < 10
    assert hard.received == []


def test_key_is_a_channel_and_no_pattern_to_redis(memsync, other, redis):
    def channels():
        return [name.decode() for name in redis.pubsub_channels("*task-sentinel/*")]

    exact, glob = Subscriber(memsync, "a/b"), Subscriber(memsync, "a/*")
    assert (len(channels()), redis.pubsub_numpat()) == (1, 1)
    publish(other, {"a/b": 1, "a/c": 2})
    exact.wait_for("a/b", 1)
    glob.wait_for("a/c", 2)

    memsync.unsubscribe(exact.id)
    eventually(lambda: channels() == [])
    publish(other, {"a/b": 3})

    glob.wait_for("a/b", 3)
    assert exact.received == [("a/b", 1)]
