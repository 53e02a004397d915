"""A run of a task that acquires a lock which an earlier run of it holds."""
from __future__ import annotations

import time

import pytest

from celery_memsync import LockNotAcquired
from celery_memsync.locking.lease import Owner

FOREVER = float("inf")


def hold(manager, ttl, dead=True, task_id="t1"):
    """Let a run hold the lock "a"; a dead one does not renew it."""
    locks = manager.runtime.locks
    lease = locks.acquire("a", ttl, 0.0, Owner(task_id, f"{manager.runtime.store.token}-1"))
    lease.claim = lambda: lease
    if dead:
        locks._thread.stop(5)
    return lease


def acquire(manager, ttl=30.0, own_wait=FOREVER, wait=0.0, run="other-2"):
    return manager.runtime.locks.acquire("a", ttl, wait, Owner("t1", run), own_wait=own_wait)


def seconds_of(call):
    began = time.monotonic()
    result = call()
    return result, time.monotonic() - began


def test_a_run_gets_the_lock_of_a_dead_one_when_its_lease_is_over_however_short_the_timeout(make_memsync):
    dead, other = make_memsync(), make_memsync(timeout=0.5)
    hold(dead, 2.0)

    lease, seconds = seconds_of(lambda: acquire(other, ttl=2.0))

    assert lease.owned
    assert 1.5 < seconds < 4


def test_a_run_is_refused_when_the_one_before_renews(memsync, other):
    lease = hold(memsync, 6.0, dead=False)

    def refused():
        with pytest.raises(LockNotAcquired) as caught:
            acquire(other, ttl=6.0)
        return caught.value

    error, seconds = seconds_of(refused)

    assert error.holder.task_id == "t1" and "of waiting" in str(error)
    assert seconds < 5.5
    assert lease.owned


def test_the_lock_of_a_run_whose_worker_is_lost_is_taken_over_before_its_lease_is_over(memsync, other):
    memsync.runtime.store.write_heartbeat(memsync.runtime.store.worker_id, b"{}", 60.0, leaving=True)
    hold(memsync, 20.0)

    lease, seconds = seconds_of(lambda: acquire(other, ttl=60.0))

    assert lease.owned and seconds < 10
    assert [record.worker_id for record in other.locks()] == ["worker-2"]


@pytest.mark.parametrize("lost, ttl", [(False, 60.0), (True, 2.0)])
def test_a_lock_is_not_taken_over_early_whose_worker_lives_or_whose_renewal_is_not_due(memsync, other, lost, ttl):
    memsync.runtime.store.write_heartbeat(memsync.runtime.store.worker_id, b"{}", 60.0, leaving=lost)
    hold(memsync, 2.0)

    lease, seconds = seconds_of(lambda: acquire(other, ttl=ttl))

    assert lease.owned and seconds > 1.5


@pytest.mark.parametrize("task_id, run, own_wait", [
    ("t2", "other-2", FOREVER), ("t1", None, FOREVER), ("t1", "other-2", 0.0),
])
def test_the_lock_of_another_task_or_of_the_same_run_is_not_waited_for(memsync, other, task_id, run, own_wait):
    hold(memsync, 20.0, task_id=task_id)

    def refused():
        with pytest.raises(LockNotAcquired):
            acquire(other, own_wait=own_wait, run=run or f"{memsync.runtime.store.token}-1")

    _, seconds = seconds_of(refused)

    assert seconds < 1.5


def test_retry_waits_for_the_run_that_requested_it(memsync, other):
    hold(memsync, 20.0, dead=False)

    def refused():
        with pytest.raises(LockNotAcquired):
            acquire(other, own_wait=0.5)

    _, seconds = seconds_of(refused)

    assert 0.5 <= seconds < 3
