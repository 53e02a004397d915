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


@pytest.fixture
def restarted(tmp_path, make_memsync, lost):
    """A server of its own that keeps its data, and a holder there."""
    server = RedisServer(tmp_path / "server", keep=True).start()
    holder = make_memsync("holder", url=server.url)
    holder.on("lock-lost", lambda name: lost.append(name))
    yield server, holder
    holder.shutdown()
    server.stop()


def test_any_holder_has_its_locks_again_after_a_restart(restarted, make_memsync, lost):
    server, holder = restarted
    other = make_memsync("other", url=server.url)
    locks = [holder.lock(name) for name in "abc"]
    assert all(lock.acquire() for lock in locks)
    server.kill()
    server.start()
    eventually(lambda: holder.runtime.locks.renew_now()
               or [one.fence for one in other.locks()] == [lock.fence for lock in locks])

    assert not any(other.lock(name).acquire() for name in "abc")
    for lock in locks:
        lock.check()
        lock.release()
    assert lost == []


def test_a_lock_that_is_deleted_after_a_restart_is_lost(restarted, lost):
    server, holder = restarted
    with holder.lock("a") as lock:
        server.client().save()
        server.kill()
        server.start()
        renewed_at = lock._current().lease.until
        eventually(lambda: holder.runtime.locks.renew_now() or lock._current().lease.until > renewed_at)
        server.client().delete("task-sentinel/locks/{a}")
        holder.runtime.locks.renew_now()

        eventually(lambda: lost == ["a"])
        assert not lock.owned


def test_a_lease_that_has_run_out_is_lost_to_extend_while_redis_is_away(restarted):
    server, holder = restarted
    lock = holder.lock("a", ttl=0.2)
    lock.acquire()
    server.kill()
    eventually(lambda: not lock.owned)

    with pytest.raises(LockLost):
        lock.extend(1)


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


@pytest.mark.parametrize("ttl, is_over", [(0.2, True), (30.0, False)])
def test_a_lock_goes_back_to_its_holder_over_an_older_acquisition(locks, other, redis, lost, ttl, is_over):
    key = "task-sentinel/locks/{a}"
    with other.lock("a", ttl=ttl):
        older = redis.get(key)
    lease = locks.acquire("a", 30.0, 0.0, Owner("task", "run-1"))
    lease.claim = lambda: lease
    redis.set(key, older)
    eventually(lambda: not is_over or other.locks() == [])
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
