"""Blocks of a lock: ended by an exception anywhere, in the generators of one thread, entered by hand."""
from __future__ import annotations

import contextlib
import gc
import sys

import pytest

from celery_memsync import LockLost, LockNotAcquired, background_loop
from celery_memsync.locking import lease as lease_module
from celery_memsync.locking import lock as lock_module
from celery_memsync.locking import lock_service, waiting
from celery_memsync.locking.lock import Lock
from tests.support.strikes import strike


def use_block(lock):
    with lock:
        lock.check()


def use_stack(lock):
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock)
        lock.check()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no tables of exceptions from which to read its blocks")
@pytest.mark.parametrize("thread_local", [True, False])
@pytest.mark.parametrize(
    "module, least", [(lock_module, 30), (lock_service, 30), (waiting, 5), (background_loop, 1), (lease_module, 10)],
    ids=["lock", "service", "waiting", "steps", "lease"])
def test_an_exception_at_any_bytecode_of_a_block_leaves_no_lease_that_is_renewed(
    memsync, redis, module, least, thread_local,
):
    lock, locks = memsync.lock("a", thread_local=thread_local), memsync.runtime.locks
    use_block(lock)
    locks._thread.stop(5)
    count = strike(lambda: use_block(lock), None, module)

    for at in range(1, count + 1):
        strike(lambda: use_block(lock), at, module)
        renewed = [lease for lease in locks._leases.values()
                   if lease.state == "held" and lease.claim is not None and not lease.is_abandoned]
        locks._leases.clear()
        redis.delete("task-sentinel/locks/{a}")

        assert renewed == [], at
    assert count > least


def test_a_lock_whose_block_was_left_by_an_exception_at_its_very_end_is_released(memsync, other, caplog):
    lock, locks = memsync.lock("a"), memsync.runtime.locks
    block = Lock.__dict__["__exit__"].__get__(lock, Lock)
    lock.__enter__()
    inside = lock.owned, other.lock("a").acquire()

    del block
    locks.renew()

    assert inside == (True, False) and not lock.owned
    assert other.lock("a").acquire()
    assert "Releasing the lock a" in caplog.text


@pytest.mark.parametrize("thread_local", [True, False])
@pytest.mark.parametrize("use", [use_block, use_stack])
def test_a_lock_is_free_after_its_block_and_can_be_entered_anew(memsync, other, use, thread_local):
    lock = memsync.lock("a", thread_local=thread_local)

    for _ in range(2):
        use(lock)
        theirs = other.lock("a")

        assert not lock.owned
        assert theirs.acquire() and theirs.release()


def test_a_lock_that_is_entered_and_left_by_hand_is_held_meanwhile(memsync, other):
    lock = memsync.lock("a")
    lock.__enter__()
    gc.collect()
    memsync.runtime.locks.renew()

    held = lock.owned, other.lock("a").acquire()
    lock.__exit__(None, None, None)

    assert held == (True, False)
    assert not lock.owned and other.lock("a").acquire()


def blocks_of(lock, seen):
    """A generator that is in a block of a lock between two steps, and notes what it has of it."""
    with lock:
        yield lock.fence
        seen.append(lock.owned)
        yield


def test_generators_that_share_a_lock_object_do_not_hold_it_both(memsync, other):
    lock, seen = memsync.lock("a"), []
    first, second = blocks_of(lock, seen), blocks_of(lock, seen)
    fence = next(first)

    with pytest.raises(LockNotAcquired):
        next(second)
    memsync.free_lock("a", fence)
    with pytest.raises(LockLost):
        next(blocks_of(lock, seen))
    next(first)
    first.close()
    third = blocks_of(lock, seen)
    next(third)
    next(third)

    assert seen == [False, True]
    assert not other.lock("a").acquire()


def test_a_generator_releases_its_own_acquisition_only(memsync, other):
    lock = memsync.lock("a")
    first, second = blocks_of(lock, []), blocks_of(memsync.lock("a"), [])
    memsync.free_lock("a", next(first))
    next(second)

    first.close()

    assert not other.lock("a").acquire()
    second.close()
    assert other.lock("a").acquire()


def test_in_a_block_that_has_lost_its_lock_it_is_not_acquired_again(memsync, other):
    lock = memsync.lock("a", wait=5)
    with lock:
        memsync.free_lock("a", lock.fence)

        with pytest.raises(LockLost):
            lock.acquire()
        with pytest.raises(LockLost):
            lock.__enter__()

        assert not lock.owned
    assert lock.acquire() and lock.owned


def test_in_a_block_that_has_released_its_lock_it_is_acquired_again(memsync, other):
    lock = memsync.lock("a")
    with lock:
        lock.release()
        again = lock.acquire(), lock.owned

    assert again == (True, True)
    assert lock.owned and lock.release()
