"""What of the pending changes is sent last, and what a reader can not rely on."""
from __future__ import annotations

from celery_memsync.keys import Keys
from celery_memsync.writing.changes import SetValue
from celery_memsync.writing.pending import PendingChanges

FAR = float("inf")


def value(key, body):
    return SetValue(Keys("ns").location(key), b"%d" % body, 60.0)


def test_what_was_refused_comes_behind_what_was_not_and_keeps_its_number_if_it_may_be_stored():
    pending = PendingChanges(100)
    for name in "abc":
        pending.put(name, value(name, 1))
    pending.drain(FAR)
    first, second, _ = pending.due(FAR)
    first.serial, second.serial = 7, 8

    pending.refuse(first)
    pending.refuse(second, maybe_done=True)

    assert [change.location.path for change in pending.due(FAR)] == ["ns/c", "ns/a", "ns/b"]
    assert (first.serial, second.serial) == (None, 8)


def test_what_was_sent_and_is_not_settled_is_stuck_until_it_is():
    pending = PendingChanges(100)
    pending.put("k", value("a", 1))
    pending.drain(FAR)

    (change,) = pending.due(FAR)
    pending.end_batch()
    was_stuck = pending.is_stuck(change.location.key)
    pending.settle(*pending.due(FAR))
    pending.end_batch()

    assert was_stuck
    assert not pending.is_stuck(change.location.key)


def test_changes_of_one_entry_that_are_not_joined_are_bounded():
    changes = PendingChanges(10)
    for number in range(3000):
        change = value("a", number)
        change.fence = number % 2
        changes.put("a", change)

    changes.empty_inbox()

    assert (len(changes), changes.dropped) == (1000, 2000)
    assert [change.body for change in changes.due(FAR)[-2:]] == [b"2998", b"2999"]
