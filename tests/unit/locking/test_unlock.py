"""An operator takes a lock away from its holder."""
from __future__ import annotations

import threading

import pytest

from celery_memsync import InvalidKey, InvalidValue, LockLost
from tests.support.waiting import eventually


def test_unlocked_lock_passes_to_a_waiter_and_its_holder_is_notified(make_memsync):
    memsync, other = make_memsync(), make_memsync()
    lost, lock = [], memsync.lock("a", ttl=1.0)
    memsync.on("lock-lost", lambda **details: lost.append(details))
    lock.acquire()
    waiter, got = other.lock("a", wait=20, thread_local=False), []
    thread = threading.Thread(target=lambda: got.append(waiter.acquire()))
    thread.start()
    eventually(lambda: memsync.locks()[0].waiters == 1)

    assert other.free_lock("a", lock.fence)

    thread.join(10)
    assert got == [True] and waiter.owned and waiter.fence > lock.fence
    assert eventually(lambda: lost) == [{"name": "a"}]
    with pytest.raises(LockLost):
        lock.check()
    waiter.release()


def test_unlock_with_another_fence_changes_nothing(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()
    before = lock.fence
    lock.release()
    lock.acquire()

    assert not other.free_lock("a", before)
    assert not other.free_lock("a", lock.fence + 1)
    assert not other.free_lock("b", lock.fence)

    lock.extend(30)
    assert lock.owned and [record.fence for record in other.locks()] == [lock.fence]


def test_the_lock_of_a_task_is_taken_away_by_the_name_that_is_shown(memsync, other):
    memsync.acquire_task_lock("t1")
    (held,) = other.locks()

    assert other.free_lock(held.name, held.fence)

    assert other.locks() == []
    assert other.acquire_task_lock("t1")


@pytest.mark.parametrize("name, fence, error", [
    ("a/b", 1, InvalidKey), ("tasks/a/b", 1, InvalidKey), ("tasks/", 1, InvalidKey), ("", 1, InvalidKey), (7, 1, InvalidKey),
    ("a", -1, InvalidValue), ("a", "1", InvalidValue), ("a", True, InvalidValue), ("a", None, InvalidValue),
])
def test_what_is_no_name_or_no_fence_is_refused(memsync, name, fence, error):
    with pytest.raises(error):
        memsync.free_lock(name, fence)
