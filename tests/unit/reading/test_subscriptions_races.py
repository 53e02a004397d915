"""Subscriptions at the edges: unconfirmed patterns, too many pending changes, message floods."""
from __future__ import annotations

import itertools

import pytest

from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.reading import subscription, subscriptions
from tests.support.proxy import LISTENER, Proxy
from tests.support.publishing import publish
from tests.support.subscriber import INVALIDATED, Subscriber
from tests.support.waiting import eventually


@pytest.fixture
def slow(make_memsync, server, monkeypatch):
    """A proxy, and a manager behind it that does not wait for long until a pattern is confirmed."""
    monkeypatch.setattr(subscriptions, "CONFIRM_TIMEOUT", 0.1)
    with Proxy(server.port) as proxy:
        yield proxy, make_memsync(url=proxy.url)
        proxy.release()


def subscription_of(memsync, subscriber):
    return memsync.runtime.subscriptions._subscriptions[subscriber.id]


def until_all_was_read(memsync, pattern):
    """Return when a manager has read what there is for all subscriptions, the newest included."""
    subscriber = Subscriber(memsync, pattern)
    eventually(lambda: subscription_of(memsync, subscriber).found_at < float("inf"))


# -- patterns that Redis has not confirmed

def test_change_before_redis_confirms_a_pattern_is_delivered(slow, other, server):
    proxy, memsync = slow
    Subscriber(memsync, "x")
    memsync.read("x")

    proxy.hold_questions(LISTENER)
    subscriber = Subscriber(memsync, "a")
    until_all_was_read(memsync, "x")
    publish(other, {"a": 1})
    proxy.release()

    subscriber.wait_for("a", 1)


def test_an_earlier_confirmation_of_the_same_pattern_is_none(slow, other, redis):
    proxy, memsync = slow
    Subscriber(memsync, "x")
    proxy.hold(LISTENER)
    early = Subscriber(memsync, "a")
    eventually(lambda: len(redis.pubsub_channels("*/[ax]")) == 2)

    memsync.unsubscribe(early.id)
    eventually(lambda: len(redis.pubsub_channels("*/[ax]")) == 1)
    proxy.hold_questions(LISTENER)
    subscriber = Subscriber(memsync, "a")
    proxy.release_answers()
    until_all_was_read(memsync, "x")
    publish(other, {"a": 1})
    proxy.release()

    subscriber.wait_for("a", 1)


def test_delete_found_before_its_message_is_delivered_once(slow, other):
    proxy, memsync = slow
    subscriber = Subscriber(memsync, "*")
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    proxy.hold(LISTENER)
    other.delete("a")
    other.force_sync()
    memsync.runtime.subscriptions.on_emptied()
    subscriber.wait_for("a", INVALIDATED)
    proxy.release()
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    assert subscriber.of("a") == [1, INVALIDATED]


# -- more than may be pending

@pytest.fixture
def busy(memsync, other, monkeypatch):
    """A subscriber that has received some keys and is busy now; little may be pending for it."""
    monkeypatch.setattr(subscription, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(subscription, "MIN_PENDING_BYTES", 3 * subscription.CHANGE_SIZE + 500)
    publish(other, {"found": 1, "found-too": 1})
    subscriber = Subscriber(memsync)
    for value in (0, 1):
        publish(other, {f"known/{number}": value for number in range(6)})
    for number in range(6):
        subscriber.wait_for(f"known/{number}", 1)
    subscriber.keep_busy(other)
    subscriber.received.clear()
    return subscriber


def test_nothing_is_lost_when_too_much_is_pending(busy, memsync, other, redis):
    quick = Subscriber(memsync)
    publish(other, {f"new/{number}": 1 for number in range(10)})
    for key in ("known/0", "known/1", "found"):
        other.delete(key)
    other.force_sync()
    redis.delete("task-sentinel/known/2")
    publish(other, {"known/2": "reborn", "known/3": 2, "known/4": 2})
    publish(other, {"known/3": 3, "known/1": "again", "found-too": 2})
    quick.wait_for("found-too", 2)
    busy.free.set()

    for number in range(10):
        busy.wait_for(f"new/{number}", 1)
    for key, values in {
        "known/0": [INVALIDATED], "known/1": ["again"], "found": [INVALIDATED],
        "known/2": [INVALIDATED, "reborn"], "known/3": [3], "known/4": [2], "found-too": [2],
        "known/5": [],
    }.items():
        eventually(lambda: busy.of(key) == values, message=key)


@pytest.mark.slow
def test_expired_and_lost_keys_are_invalidated_when_too_much_is_pending(
    busy, memsync, other, redis,
):
    quick = Subscriber(memsync)
    publish(other, {f"new/{number}": 1 for number in range(10)})
    publish(other, {"known/0": 2, "known/1": 2}, ttl=0.5)
    publish(other, {"known/2": 2})
    redis.delete("task-sentinel/known/2")
    quick.wait_for("known/0", INVALIDATED)
    quick.wait_for("known/1", INVALIDATED)
    busy.free.set()

    for key in ("known/0", "known/1", "known/2"):
        busy.wait_for(key, INVALIDATED)
    busy.wait_for("new/9", 1)


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
    (subscription.PendingChange(None, unread=True, alive=True), change(1, b"1"), False),
])
def test_a_change_after_a_deletion_is_of_a_new_life_if_versions_begin_anew(before, after, is_new):
    assert after.is_new_life_after(before) == is_new


def test_what_waits_for_a_handler_that_hangs_is_bounded(busy, memsync, other):
    waiting = subscription_of(memsync, busy)
    quick = Subscriber(memsync)
    for number in range(50):
        publish(other, {f"short-lived/{number}": "x" * 1000})
        other.delete(f"short-lived/{number}")
        other.force_sync()
    publish(other, {"last": 1})
    quick.wait_for("last", 1)  # a key that lives too shortly for a busy machine may not be delivered

    assert waiting.waiting <= 5
    assert memsync.get_metrics()["skipped"] >= 40
    busy.free.set()
    publish(other, {"end": 1})
    busy.wait_for("end", 1)


def test_what_was_skipped_is_counted_beyond_the_end_of_a_subscription(memsync, other):
    subscriber, quick = Subscriber(memsync), Subscriber(memsync)
    subscriber.keep_busy(other)
    for number in range(10):
        publish(other, {"a": number})
        quick.wait_for("a", number)
    before = memsync.get_metrics()["skipped"]

    memsync.unsubscribe(subscriber.id)
    subscriber.free.set()

    assert before == memsync.get_metrics()["skipped"] == 9


# -- floods

def test_flood_of_messages_does_not_delay_a_new_subscription(memsync, other, redis):
    subscriber, listening = Subscriber(memsync, "flood"), memsync.runtime.link
    take, flooding, taken = listening.on_message, [True], itertools.count()

    def on_message(pattern, path, data):
        take(pattern, path, data)
        if flooding and path.endswith("flood"):
            next(taken)
            redis.publish("0:task-sentinel/flood", b"another")

    listening.on_message = on_message
    for _ in range(50):
        redis.publish("0:task-sentinel/flood", b"first")
    late = Subscriber(memsync, "a")
    confirmed = listening.subscription_line("task-sentinel/a")
    flooding.clear()
    publish(other, {"a": 1, "flood": 1})

    late.wait_for("a", 1)
    subscriber.wait_for("flood", 1)
    assert confirmed is not None
    assert next(taken) > 50
