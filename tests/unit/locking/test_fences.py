"""Fenced writes: a holder paused beyond its lease can't overwrite a later holder."""
from __future__ import annotations

import pytest

from celery_memsync import ConflictError, InvalidValue, LockLost
from tests.support.waiting import eventually


@pytest.fixture
def stale(memsync, other, redis):
    """A lock of ``memsync`` that is lost, and that of ``other``, which holds it now."""
    mine, theirs = memsync.lock("a"), other.lock("a")
    mine.acquire()
    redis.delete("task-sentinel/locks/{a}")
    theirs.acquire()
    return mine, theirs


@pytest.mark.parametrize("as_number", [False, True])
def test_a_write_under_a_lost_lock_is_refused_when_a_later_holder_has_written(memsync, other, stale, as_number):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.force_sync()

    memsync.write("balance", 1, fence=mine.fence if as_number else mine)
    with pytest.raises(LockLost, match="task-sentinel/balance was written"):
        memsync.force_sync()
    memsync.force_sync()  # it is raised once

    assert other.read("balance", consistent=True) == 2
    assert memsync.read("balance") == 2


def test_write_refused_in_the_background_is_raised_by_force_sync(make_memsync, other, stale, redis):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.force_sync()
    memsync = make_memsync(batch_interval=0.01)

    memsync.write("balance", 1, fence=mine.fence)
    eventually(lambda: memsync.get_metrics()["dropped"])
    memsync.write("fine", 1)
    memsync.runtime.writer.flush()

    assert memsync.read("balance") == 2
    with pytest.raises(LockLost):
        memsync.force_sync()
    memsync.force_sync()
    assert other.read("fine") == 1


def test_refused_write_is_counted_and_emitted(memsync, other, stale):
    mine, theirs = stale
    dropped = []
    memsync.on("writes-dropped", lambda count: dropped.append(count))
    other.write("balance", 2, fence=theirs)
    other.force_sync()

    memsync.write("balance", 1, fence=mine)
    with pytest.raises(LockLost):
        memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert dropped == [1] and memsync.get_metrics()["dropped"] == 1


def test_a_write_under_a_lock_follows_that_of_an_earlier_holder(memsync, other, stale):
    mine, theirs = stale
    memsync.write("balance", 1, fence=mine)
    memsync.force_sync()

    other.write("balance", 2, fence=theirs)
    other.force_sync()

    assert memsync.read("balance", consistent=True) == 2


def test_a_write_of_an_expected_version_under_a_lost_lock_raises(memsync, other, stale):
    mine, theirs = stale
    entry = other.write("balance", 2, expected_version=0, fence=theirs)

    with pytest.raises(LockLost):
        memsync.write("balance", 3, expected_version=entry.version, fence=mine)
    with pytest.raises(ConflictError):
        memsync.write("balance", 3, expected_version=7)

    assert other.read("balance", consistent=True) == 2


def test_writes_without_a_fence_are_not_ruled_by_locks(memsync, other, stale):
    _, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.force_sync()

    memsync.read("balance")
    memsync.write("balance", 3)
    memsync.force_sync()

    assert other.read("balance", consistent=True) == 3


def test_the_fence_of_a_later_write_without_one_is_kept(memsync, other, stale):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.force_sync()
    other.write("balance", 3)
    other.force_sync()

    memsync.write("balance", 1, fence=mine)
    with pytest.raises(LockLost):
        memsync.force_sync()

    assert other.read("balance", consistent=True) == 3


@pytest.mark.parametrize("fence", ["1", 1.5, True, -1])
def test_what_is_no_fence_is_refused(memsync, fence):
    with pytest.raises(InvalidValue):
        memsync.write("balance", 1, fence=fence)


def test_a_lock_that_was_never_held_has_no_fence(memsync):
    with pytest.raises(LockLost):
        memsync.write("balance", 1, fence=memsync.lock("a"))


def test_many_stale_writes_in_one_batch_are_refused_and_the_others_are_written(memsync, other, stale):
    mine, theirs = stale
    for number in range(0, 100, 2):
        other.write(f"row-{number}", "theirs", fence=theirs)
    other.force_sync()

    for number in range(100):
        memsync.write(f"row-{number}", "mine", fence=mine)
    with pytest.raises(LockLost, match="task-sentinel/row-0 and 49 others"):
        memsync.force_sync()

    rows = [other.read(f"row-{number}", consistent=True) for number in range(100)]
    assert rows == ["theirs", "mine"] * 50
    eventually(lambda: memsync.get_metrics()["pending_writes"] == 0)


def test_a_write_of_a_stale_holder_is_refused_with_another_behind_it(memsync, other, stale):
    mine, theirs = stale
    other.write("tasks/t/state", {"by": "other"}, fence=theirs)
    other.force_sync()

    memsync.write("tasks/t/state", {"by": "stale"}, fence=mine.fence)
    memsync.sync_task_state("t", {"more": 1})
    with pytest.raises(LockLost):
        memsync.force_sync()

    assert other.get_task_state("t") == {"by": "other", "more": 1}


@pytest.mark.parametrize("write", [
    lambda memsync, fence: memsync.write("balance", 3, fence=fence),
    lambda memsync, fence: memsync.write("balance", 4, fence=fence) or memsync.write("balance", 3, fence=fence),
])
def test_a_write_without_a_fence_is_stored_with_a_refused_one_behind_it(memsync, other, stale, write):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.force_sync()

    assert memsync.read("balance") == 2  # so what it writes next follows that
    memsync.write("balance", 5)
    write(memsync, mine.fence)
    with pytest.raises(LockLost):
        memsync.force_sync()

    assert other.read("balance", consistent=True) == 5


def test_a_fence_counts_with_a_write_without_one_behind_it(memsync, other, stale):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)
    other.write("balance", 3)
    other.force_sync()

    memsync.write("balance", 1, fence=mine.fence)
    with pytest.raises(LockLost):
        memsync.force_sync()

    assert other.read("balance", consistent=True) == 3


@pytest.mark.parametrize("as_stale", [True, False])
def test_a_write_of_the_holder_wins_over_one_that_was_flushed_before_it(memsync, other, stale, as_stale):
    mine, theirs = stale
    other.write("balance", 2, fence=theirs)

    memsync.write("balance", 1, fence=mine.fence if as_stale else None)
    memsync.force_sync()
    other.force_sync()

    assert memsync.read("balance", consistent=True) == 2
    memsync.write("balance", 3, fence=mine.fence)
    with pytest.raises(LockLost):
        memsync.force_sync()
