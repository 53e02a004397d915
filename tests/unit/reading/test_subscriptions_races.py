"""Subscriptions at the edges: while a pattern is not confirmed, while more waits than may, while messages flood in."""
from __future__ import annotations

import itertools

import pytest

from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.reading import listener, subscription, subscriptions
from tests.support.ear import GONE, Ear
from tests.support.proxy import LISTENER, Proxy
from tests.support.publishing import publish
from tests.support.waiting import eventually


@pytest.fixture
def slow(make_memsync, server, monkeypatch):
    """A proxy, and a manager behind it that does not wait for long until a pattern is confirmed."""
    monkeypatch.setattr(subscriptions, "CONFIRM_TIMEOUT", 0.1)
    with Proxy(server.port) as proxy:
        yield proxy, make_memsync(url=proxy.url)
        proxy.release()


def subscription_of(memsync, ear):
    return memsync.runtime.subscriptions._subscriptions[ear.id]


def until_all_was_read(memsync, pattern):
    """Return when a manager has read what there is for all who want to know, by an ear that came last."""
    ear = Ear(memsync, pattern)
    eventually(lambda: subscription_of(memsync, ear).found_at < float("inf"))


# -- patterns that Redis has not confirmed

def test_what_changes_before_redis_hears_of_a_pattern_is_told(slow, other, server):
    proxy, memsync = slow
    Ear(memsync, "x")
    memsync.read("x")

    proxy.hold_questions(LISTENER)
    ear = Ear(memsync, "a")
    until_all_was_read(memsync, "x")
    publish(other, {"a": 1})
    proxy.release()

    ear.hears("a", 1)


def test_an_earlier_confirmation_of_the_same_pattern_is_none(slow, other, redis):
    proxy, memsync = slow
    Ear(memsync, "x")
    proxy.hold(LISTENER)
    early = Ear(memsync, "a")
    eventually(lambda: redis.pubsub_numpat() == 2)

    memsync.unsubscribe(early.id)
    eventually(lambda: redis.pubsub_numpat() == 1)
    proxy.hold_questions(LISTENER)
    ear = Ear(memsync, "a")
    proxy.release_answers()
    until_all_was_read(memsync, "x")
    publish(other, {"a": 1})
    proxy.release()

    ear.hears("a", 1)


def test_a_deletion_that_is_found_before_it_is_heard_of_is_told_once(slow, other):
    proxy, memsync = slow
    ear = Ear(memsync, "*")
    publish(other, {"a": 1})
    ear.hears("a", 1)

    proxy.hold(LISTENER)
    other.delete("a")
    other.force_sync()
    memsync.runtime.subscriptions.on_emptied()
    ear.hears("a", GONE)
    proxy.release()
    publish(other, {"end": 1})

    ear.hears("end", 1)
    assert ear.of("a") == [1, GONE]


# -- more than may wait

@pytest.fixture
def busy(memsync, other, monkeypatch):
    """An ear that has heard of some keys, and is at work now; little may wait for it."""
    monkeypatch.setattr(subscription, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(subscription, "MIN_PENDING_BYTES", 3 * subscription.CHANGE_SIZE + 500)
    publish(other, {"found": 1, "found-too": 1})
    ear = Ear(memsync)
    for value in (0, 1):
        publish(other, {f"told/{number}": value for number in range(6)})
    for number in range(6):
        ear.hears(f"told/{number}", 1)
    ear.keep_busy(other)
    ear.heard.clear()
    return ear


def test_nothing_is_lost_when_more_waits_than_may(busy, memsync, other, redis):
    quick = Ear(memsync)
    publish(other, {f"new/{number}": 1 for number in range(10)})
    for key in ("told/0", "told/1", "found"):
        other.delete(key)
    other.force_sync()
    redis.delete("task-sentinel/told/2")
    publish(other, {"told/2": "reborn", "told/3": 2, "told/4": 2})
    publish(other, {"told/3": 3, "told/1": "again", "found-too": 2})
    quick.hears("found-too", 2)
    busy.free.set()

    for number in range(10):
        busy.hears(f"new/{number}", 1)
    for key, told in {"told/0": [GONE], "told/1": ["again"], "found": [GONE], "told/2": [GONE, "reborn"],
                      "told/3": [3], "told/4": [2], "found-too": [2], "told/5": []}.items():
        eventually(lambda: busy.of(key) == told, message=key)


@pytest.mark.slow
def test_what_is_over_or_was_lost_while_more_waits_than_may_is_told_as_gone(busy, memsync, other, redis):
    quick = Ear(memsync)
    publish(other, {f"new/{number}": 1 for number in range(10)})
    publish(other, {"told/0": 2, "told/1": 2}, ttl=0.5)
    publish(other, {"told/2": 2})
    redis.delete("task-sentinel/told/2")
    quick.hears("told/0", GONE)
    quick.hears("told/1", GONE)
    busy.free.set()

    for key in ("told/0", "told/1", "told/2"):
        busy.hears(key, GONE)
    busy.hears("new/9", 1)


def change(version, body):
    header = Header(version, "-", "-", 0, 1_000, 60_000, 0, "writer.1", "w1")
    return subscription.PendingChange.of({1: StoredEntry(header, body)}, recreated=False)


@pytest.mark.parametrize("before, after, is_new", [
    (change(3, b""), change(1, b"1"), True),
    (change(3, b""), change(3, b"1"), True),
    (change(3, b""), change(4, b"1"), False),
    (change(3, b"1"), change(1, b"1"), False),
    (subscription.PendingChange(None), change(4, b"1"), True),
    (change(3, b""), subscription.PendingChange(None), False),
    (subscription.PendingChange(None, unread=True), change(1, b"1"), False),
])
def test_a_change_after_a_deletion_is_of_a_new_life_if_versions_begin_anew(before, after, is_new):
    assert after.is_new_life_after(before) == is_new


def test_what_waits_for_a_handler_that_hangs_is_bounded(busy, memsync, other):
    waiting = subscription_of(memsync, busy)
    quick = Ear(memsync)
    for number in range(50):
        publish(other, {f"short-lived/{number}": "x" * 1000})
        other.delete(f"short-lived/{number}")
        other.force_sync()
    quick.hears("short-lived/49", GONE)

    assert waiting.waiting <= 4
    assert memsync.get_metrics()["skipped"] >= 45
    busy.free.set()
    publish(other, {"end": 1})
    busy.hears("end", 1)


def test_what_was_skipped_is_counted_beyond_the_end_of_a_subscription(memsync, other):
    ear, quick = Ear(memsync), Ear(memsync)
    ear.keep_busy(other)
    for number in range(10):
        publish(other, {"a": number})
        quick.hears("a", number)
    before = memsync.get_metrics()["skipped"]

    memsync.unsubscribe(ear.id)
    ear.free.set()

    assert before == memsync.get_metrics()["skipped"] == 9


# -- floods

def test_a_flood_of_messages_keeps_nobody_from_subscribing(memsync, other, redis, monkeypatch):
    monkeypatch.setattr(listener, "TAKEN_AT_ONCE", 10)
    ear, listening = Ear(memsync, "flood"), memsync.runtime.link
    take, flooding, taken = listening.on_message, [True], itertools.count()

    def on_message(pattern, path, data):
        take(pattern, path, data)
        if flooding and path.endswith("flood"):
            next(taken)
            redis.publish("0:task-sentinel/flood", b"another")

    listening.on_message = on_message
    for _ in range(50):
        redis.publish("0:task-sentinel/flood", b"first")
    late = Ear(memsync, "a")
    heard = listening.subscription_line("task-sentinel/a")
    flooding.clear()
    publish(other, {"a": 1, "flood": 1})

    late.hears("a", 1)
    ear.hears("flood", 1)
    assert heard is not None
    assert next(taken) > 50
