"""What is pending for slow handlers is bounded in bytes, for all subscriptions of a process together."""
from __future__ import annotations

import random
import time

import pytest

from celery_memsync.keys import Keys
from celery_memsync.models.entry import StoredEntry
from celery_memsync.reading import subscription as module
from celery_memsync.reading.subscription import KnownVersion, PendingBytes, Subscription
from tests.support.publishing import publish
from tests.support.subscriber import INVALIDATED, Subscriber
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

keys = Keys("task-sentinel")

LARGE = 50_000


@pytest.fixture
def narrow(monkeypatch):
    """A megabyte for all, and a value or two for each."""
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 1_000_000)
    monkeypatch.setattr(module, "MIN_PENDING_BYTES", 60_000)


def pending_bytes(memsync):
    return memsync.runtime.subscriptions._pending_bytes.used


def busy_subscribers(memsync, other, number):
    subscribers = [Subscriber(memsync) for _ in range(number)]
    for subscriber in subscribers:
        subscriber.free.clear()
    publish(other, {"busy": True})
    for subscriber in subscribers:
        subscriber.wait_for("busy", True)
    return subscribers


@pytest.mark.slow
def test_large_values_for_handlers_that_block_are_bounded_together_and_all_are_delivered(narrow, memsync, other):
    subscribers, most = busy_subscribers(memsync, other, 4), 0
    quick = Subscriber(memsync)

    for value in range(2):
        for number in range(60):
            publish(other, {f"k/{number}": f"{value}" * LARGE})
            most = max(most, pending_bytes(memsync))
    quick.wait_for("k/59", "1" * LARGE)
    for subscriber in subscribers:
        subscriber.free.set()

    assert 900_000 < most < 1_000_000 + 5 * 60_000
    for subscriber in subscribers:
        for number in range(60):
            subscriber.wait_for(f"k/{number}", "1" * LARGE)
        assert subscriber.never_goes_back()
    eventually(lambda: pending_bytes(memsync) == 0)


def test_a_handler_that_blocks_takes_no_room_from_others(narrow, memsync, other, monkeypatch):
    busy_subscribers(memsync, other, 2)
    for number in range(30):
        publish(other, {f"k/{number}": "x" * LARGE})
    eventually(lambda: pending_bytes(memsync) > 900_000)
    reader = memsync.runtime.reader
    subscriber = Subscriber(memsync, "small")
    reads = []
    monkeypatch.setattr(reader, "stored_parts", lambda locations: reads.append(locations) or {})

    for value in range(10):
        publish(other, {"small": value})
        subscriber.wait_for("small", value)

    assert not any(location.path.endswith("small") for locations in reads for location in locations)


def test_values_are_read_in_bulk_when_it_is_their_turn(memsync, other, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(module, "MIN_PENDING_BYTES", 0)
    (subscriber,) = busy_subscribers(memsync, other, 1)
    quick = Subscriber(memsync, "k/*", invalidate=False)
    publish(other, {f"k/{number}": number for number in range(100)})
    other.delete("k/0")
    other.force_sync()
    quick.wait_for("k/99", 99)
    monkeypatch.setattr(module, "MIN_PENDING_BYTES", 64 * 1024)
    read, reads = memsync.runtime.reader.stored_parts, []
    monkeypatch.setattr(memsync.runtime.reader, "stored_parts", lambda places: (reads.append(len(places)), read(places))[1])

    subscriber.free.set()

    for number in range(1, 100):
        subscriber.wait_for(f"k/{number}", number)
    assert subscriber.of("k/0") in ([], [INVALIDATED])
    assert len(reads) <= 4


def test_what_was_pending_for_a_subscription_that_ends_is_free_again(memsync, other):
    subscribers = busy_subscribers(memsync, other, 2)
    publish(other, {f"k/{number}": "x" * LARGE for number in range(20)})
    eventually(lambda: pending_bytes(memsync) > 2 * 20 * LARGE)

    for subscriber in subscribers:
        memsync.unsubscribe(subscriber.id)
        subscriber.free.set()

    assert pending_bytes(memsync) == 0


def stored(version, size, deleted=False):
    at = int(time.time() * 1000) + version
    body = "" if deleted else '"' + "x" * size + '"'
    return StoredEntry.parse(f"{version} - - 0 {at} 60000 0 x.1 w\n{body}".encode())


@pytest.mark.parametrize("seed", range(5))
def test_the_count_of_bytes_is_right_after_any_history(narrow, seed):
    draw, total = random.Random(seed), PendingBytes()
    some = [Subscription(str(number), "*", lambda: None, True, total) for number in range(3)]
    versions = dict.fromkeys("abcdefgh", 0)

    for _ in range(2000):
        one, path = draw.choice(some), draw.choice("abcdefgh")
        versions[path] += 1
        parts = {0: stored(versions[path], draw.choice([1, LARGE]), draw.random() < 0.2)}
        act = draw.choice(["note", "note", "find", "lose", "take", "back", "doubt", "fill"])
        if act == "note":
            one.note_change(path, parts, KnownVersion.of(parts))
        elif act == "find":
            one.find(path, parts, one.known.get(path), deliver=True)
        elif act == "lose":
            one.lose(path, {0: None}, one.known.get(path))
        elif act == "take":
            one.take()
        elif act == "back" and (item := one.take()) is not None and not item[1].unread:
            one.put_back(*item)
        elif act == "doubt":
            one.link_lost(time.monotonic())
            one.invalidate([path])
        elif act == "fill":
            for unread, known in one.unread(10).items():
                one.fill(unread, parts, known, draw.random() < 0.5)

        assert total.used == sum(news.held for one in some for news in one._news.values())
    for one in some:
        one.close()
    assert total.used == 0
