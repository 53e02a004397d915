"""What is pending for slow handlers is bounded in bytes, for all subscriptions of a process together."""
from __future__ import annotations

import random
import time

import pytest

from celery_memsync.keys import Keys
from celery_memsync.models.entry import EntryVersion, StoredEntry
from celery_memsync.reading import subscription as module
from celery_memsync.reading.subscription import PendingBytes, Subscription
from tests.support.ear import GONE, Ear
from tests.support.publishing import publish
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


def busy_ears(memsync, other, number):
    ears = [Ear(memsync) for _ in range(number)]
    for ear in ears:
        ear.free.clear()
    publish(other, {"busy": True})
    for ear in ears:
        ear.hears("busy", True)
    return ears


@pytest.mark.slow
def test_large_values_for_handlers_that_block_are_bounded_together_and_all_are_delivered(narrow, memsync, other):
    ears, most = busy_ears(memsync, other, 4), 0
    quick = Ear(memsync)

    for value in range(2):
        for number in range(60):
            publish(other, {f"k/{number}": f"{value}" * LARGE})
            most = max(most, pending_bytes(memsync))
    quick.hears("k/59", "1" * LARGE)
    for ear in ears:
        ear.free.set()

    assert 900_000 < most < 1_000_000 + 5 * 60_000
    for ear in ears:
        for number in range(60):
            ear.hears(f"k/{number}", "1" * LARGE)
        assert ear.never_goes_back()
    eventually(lambda: pending_bytes(memsync) == 0)


def test_a_handler_that_blocks_takes_no_room_from_others(narrow, memsync, other, monkeypatch):
    busy_ears(memsync, other, 2)
    for number in range(30):
        publish(other, {f"k/{number}": "x" * LARGE})
    eventually(lambda: pending_bytes(memsync) > 900_000)
    reader = memsync.runtime.reader
    ear = Ear(memsync, "small")
    reads = []
    monkeypatch.setattr(reader, "stored_parts", lambda locations: reads.append(locations) or {})

    for value in range(10):
        publish(other, {"small": value})
        ear.hears("small", value)

    assert not any(location.path.endswith("small") for locations in reads for location in locations)


def test_values_are_read_in_bulk_when_it_is_their_turn(memsync, other, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 0)
    monkeypatch.setattr(module, "MIN_PENDING_BYTES", 0)
    (ear,) = busy_ears(memsync, other, 1)
    quick = Ear(memsync, "k/*", invalidate=False)
    publish(other, {f"k/{number}": number for number in range(100)})
    other.delete("k/0")
    other.force_sync()
    quick.hears("k/99", 99)
    monkeypatch.setattr(module, "MIN_PENDING_BYTES", 64 * 1024)
    read, reads = memsync.runtime.reader.stored_parts, []
    monkeypatch.setattr(memsync.runtime.reader, "stored_parts", lambda places: (reads.append(len(places)), read(places))[1])

    ear.free.set()

    for number in range(1, 100):
        ear.hears(f"k/{number}", number)
    assert ear.of("k/0") in ([], [GONE])
    assert len(reads) <= 4


def test_what_was_pending_for_a_subscription_that_ends_is_free_again(memsync, other):
    ears = busy_ears(memsync, other, 2)
    publish(other, {f"k/{number}": "x" * LARGE for number in range(20)})
    eventually(lambda: pending_bytes(memsync) > 2 * 20 * LARGE)

    for ear in ears:
        memsync.unsubscribe(ear.id)
        ear.free.set()

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
            one.note_change(path, parts, EntryVersion(parts[0].header.stored_at, versions[path]))
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
