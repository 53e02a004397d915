"""Redis loses a lock that is held: the holder has it again under its fence, unless another process has taken it."""
from __future__ import annotations

import pytest

from celery_memsync import LockLost
from tests.support.waiting import eventually


@pytest.fixture
def lost():
    """Names of locks whose loss was reported."""
    return []


@pytest.fixture
def memsync(make_memsync, lost):
    memsync = make_memsync("holder")
    memsync.on("lock-lost", lambda name: lost.append(name))
    return memsync


def test_a_lock_that_redis_has_lost_is_held_again_under_its_fence(memsync, other, redis, lost):
    with memsync.lock("a") as lock:
        fence = lock.fence
        redis.flushall()
        memsync._open().locks.renew_now()
        eventually(lambda: [one.fence for one in other.locks()] == [fence])

        assert not other.lock("a").acquire()
        lock.check()
    assert (lost, other.locks()) == ([], [])
    with other.lock("a") as later:
        assert later.fence > fence


def test_a_lock_that_another_process_has_taken_meanwhile_is_lost(memsync, other, redis, lost):
    lock = memsync.lock("a")
    lock.acquire()
    redis.flushall()
    with other.lock("a") as theirs:
        memsync._open().locks.renew_now()
        eventually(lambda: lost == ["a"])
        theirs.check()

    with pytest.raises(LockLost):
        lock.check()


def test_a_lock_that_another_process_took_and_gave_back_is_lost(memsync, other, redis, lost):
    lock = memsync.lock("a")
    lock.acquire()
    redis.flushall()
    with other.lock("a"):
        pass
    memsync._open().locks.renew_now()

    eventually(lambda: lost == ["a"])
    assert not lock.owned


def test_a_lock_goes_back_to_its_holder_over_an_older_acquisition(memsync, other, redis, lost):
    key = "task-sentinel/locks/{a}"
    with other.lock("a", ttl=0.2):
        older = redis.get(key)
    with memsync.lock("a") as lock:
        redis.set(key, older)
        eventually(lambda: other.locks() == [])
        memsync._open().locks.renew_now()
        eventually(lambda: [(one.worker_id, one.fence) for one in other.locks()] == [("holder", lock.fence)])

    assert lost == []


def test_a_lock_that_was_freed_by_hand_is_not_restored(memsync, other, lost):
    lock = memsync.lock("a")
    lock.acquire()
    other.free_lock("a", lock.fence)
    memsync._open().locks.renew_now()

    eventually(lambda: lost == ["a"])
    assert other.locks() == []


def test_a_lock_that_redis_has_lost_can_be_extended(memsync, other, redis, lost):
    with memsync.lock("a") as lock:
        redis.flushall()
        lock.extend(60)

        (held,) = other.locks()
        assert (held.fence, round(held.ttl), lost) == (lock.fence, 60, [])
