"""Redis loses a lock that is held: a task, or after a restart any holder, has it again unless another one has taken it."""
from __future__ import annotations

import pytest

from celery_memsync import LockLost
from celery_memsync.locking.lock_service import Owner
from tests.support.redis_server import RedisServer
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


@pytest.fixture
def locks(memsync):
    """The locks of the process that holds one."""
    return memsync.runtime.locks


@pytest.fixture
def lease(locks):
    """A lock that a running task has."""
    lease = locks.acquire("a", 30.0, 0.0, Owner("task", "run-1"))
    lease.claim = lambda: lease
    return lease


def test_a_lock_of_a_task_that_redis_has_lost_is_held_again_under_its_fence(locks, lease, other, redis, lost):
    redis.flushall()
    locks.renew_now()
    eventually(lambda: [one.fence for one in other.locks()] == [lease.fence])

    assert not other.lock("a").acquire()
    assert lease.owned
    locks.release(lease)
    assert (lost, other.locks()) == ([], [])
    with other.lock("a") as later:
        assert later.fence > lease.fence


@pytest.mark.parametrize("lose", [
    lambda redis: redis.delete("task-sentinel/locks/{a}"), lambda redis: redis.flushall(), lambda redis: redis.flushdb(),
])
def test_a_lock_that_was_deleted_is_lost_to_any_other_holder(memsync, locks, redis, lost, lose):
    lock = memsync.lock("a")
    lock.acquire()
    lose(redis)
    locks.renew_now()

    eventually(lambda: lost == ["a"])
    with pytest.raises(LockLost):
        lock.check()


def test_any_holder_has_its_lock_again_after_a_restart(make_memsync, tmp_path, lost):
    server = RedisServer(tmp_path / "server").start()
    try:
        holder, other = (make_memsync(name, url=server.url) for name in ("holder", "other"))
        holder.on("lock-lost", lambda name: lost.append(name))
        with holder.lock("a") as lock:
            server.kill()
            server.start()
            eventually(lambda: holder.runtime.locks.renew_now() or [one.fence for one in other.locks()] == [lock.fence])

            assert not other.lock("a").acquire()
            lock.check()
        assert lost == []
    finally:
        server.stop()


def test_a_lock_that_another_process_has_taken_meanwhile_is_lost(locks, lease, other, redis, lost):
    redis.flushall()
    with other.lock("a") as theirs:
        locks.renew_now()
        eventually(lambda: lost == ["a"])
        theirs.check()

    assert not lease.owned


def test_a_lock_that_another_process_took_and_gave_back_is_lost(locks, lease, other, redis, lost):
    redis.flushall()
    with other.lock("a"):
        pass
    locks.renew_now()

    eventually(lambda: lost == ["a"])
    assert not lease.owned


def test_a_lock_goes_back_to_its_holder_over_an_older_acquisition(locks, other, redis, lost):
    key = "task-sentinel/locks/{a}"
    with other.lock("a", ttl=0.2):
        older = redis.get(key)
    lease = locks.acquire("a", 30.0, 0.0, Owner("task", "run-1"))
    lease.claim = lambda: lease
    redis.set(key, older)
    eventually(lambda: other.locks() == [])
    locks.renew_now()

    eventually(lambda: [(one.worker_id, one.fence) for one in other.locks()] == [("holder", lease.fence)])
    assert lost == []


def test_a_lock_that_was_freed_by_hand_is_not_restored(locks, lease, other, lost):
    other.free_lock("a", lease.fence)
    locks.renew_now()

    eventually(lambda: lost == ["a"])
    assert other.locks() == []


def test_a_lock_of_a_task_that_redis_has_lost_can_be_extended(locks, lease, other, redis, lost):
    redis.flushall()
    locks.extend(lease, 60)

    (held,) = other.locks()
    assert (held.fence, round(held.ttl), lost) == (lease.fence, 60, [])
