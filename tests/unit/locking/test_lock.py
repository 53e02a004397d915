"""Locks: one holder, leases that are renewed, fences that grow."""
from __future__ import annotations

import os
import threading
import time

import pytest

from celery_memsync import InvalidKey, LockLost, LockNotAcquired
from tests.support.redis_calls import calls_of, round_trips
from tests.support.waiting import eventually


@pytest.fixture
def lost(memsync):
    """The names of the locks that this manager has lost, by its events."""
    names = []
    memsync.on("lock-lost", lambda name: names.append(name))
    return names


def steal_locks(redis):
    """Leave all locks as another holder does whose lease has run out."""
    for key in redis.keys("*locks/{*"):
        version, run, rank, fence, since, _, lag, _, rest = redis.get(key).split(b" ", 8)
        redis.set(key, b" ".join((version, run, rank, b"%d" % (int(fence) + 1000), since, b"1", lag, b"thief.1", rest)))


def test_a_lock_has_one_holder_at_a_time(memsync, other):
    mine, theirs = memsync.lock("a"), other.lock("a")

    taken = mine.acquire(), theirs.acquire(), mine.release(), theirs.acquire()

    assert taken == (True, False, True, True)
    assert (mine.owned, theirs.owned) == (False, True)


def test_locks_of_other_names_and_other_namespaces_are_others(make_memsync, memsync):
    elsewhere = make_memsync(namespace="elsewhere")

    with memsync.lock("a"), memsync.lock("b"), elsewhere.lock("a") as lock:
        assert lock.owned


def test_a_lock_that_is_held_is_refused_with_the_name_of_its_holder(memsync, other):
    lock = memsync.lock("a").__enter__()

    with pytest.raises(LockNotAcquired) as caught:
        other.lock("a").__enter__()

    assert (caught.value.name, caught.value.holder.worker_id, caught.value.holder.task_id) == ("a", "worker-1", None)
    assert "held by worker-1" in str(caught.value) and lock.owned


def test_a_lock_is_given_back_when_its_block_raises(memsync, other):
    with pytest.raises(ZeroDivisionError), memsync.lock("a"):
        1 / 0

    assert other.lock("a").acquire()


def test_lock_is_not_reentrant_and_a_second_acquire_changes_nothing(memsync):
    lock = memsync.lock("a")
    lock.acquire()

    again = lock.acquire(), memsync.lock("a").acquire()

    assert again == (False, False)
    assert lock.owned and lock.release()


def test_a_lock_object_can_be_used_again(memsync):
    lock = memsync.lock("a")
    fences = []

    for _ in range(3):
        with lock:
            fences.append(lock.fence)

    assert fences == sorted(set(fences))
    assert not lock.owned and not lock.release()


def test_lock_cannot_be_released_by_another_manager(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()

    assert not other.lock("a").release()
    assert not other.release_task_lock("a")
    assert lock.owned and not other.lock("a").acquire()


def test_the_lock_of_a_task_by_hand(memsync, other):
    assert memsync.acquire_task_lock("t1")

    assert not other.acquire_task_lock("t1") and not memsync.acquire_task_lock("t1")
    assert not other.release_task_lock("t1")
    assert memsync.release_task_lock("t1") and not memsync.release_task_lock("t1")
    assert other.acquire_task_lock("t1")


def test_the_lock_of_a_task_as_an_object_is_the_same(memsync, other):
    memsync.acquire_task_lock("t1")

    assert not other.task_lock("t1").acquire()
    assert other.lock("t1").acquire()


def test_a_task_lock_that_was_refused_does_not_make_one_forget_ones_own(memsync):
    memsync.acquire_task_lock("t1")
    memsync.acquire_task_lock("t1")

    assert memsync.release_task_lock("t1")


def test_fences_grow_for_any_holder_and_after_data_loss(memsync, other, redis):
    fences = []
    for number, manager in enumerate((memsync, other, memsync, other)):
        with manager.lock("a") as lock:
            fences.append(lock.fence)
        if number == 1:
            redis.flushall()
        if number == 2:
            redis.delete(*redis.keys("*"))

    assert fences == sorted(set(fences))


def test_a_fence_grows_even_if_the_clock_of_redis_was_set_back(memsync, redis):
    with memsync.lock("a") as lock:
        future = lock.fence + 10 ** 9
        text = redis.get("task-sentinel/locks/{a}").decode()
        redis.set("task-sentinel/locks/{a}", text.replace(str(lock.fence), str(future)))

    with memsync.lock("a") as lock:
        assert lock.fence == future + 1


@pytest.mark.slow
def test_a_lease_is_renewed_as_long_as_the_lock_is_held(memsync, other):
    lock = memsync.lock("a", ttl=0.3)
    lock.acquire()

    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert lock.owned and not other.lock("a").acquire()
        time.sleep(0.05)

    assert lock.release() and other.lock("a").acquire()


def renew_all(locks):
    """Renew all locks of a process as if it were time to."""
    for lease in locks._leases.values():
        lease.renew_at = time.monotonic()
    locks.renew()


def test_all_locks_of_a_process_are_renewed_in_one_round_trip(memsync, redis):
    held = [memsync.lock(f"a{number}", ttl=60).__enter__() for number in range(250)]
    locks = memsync.runtime.locks
    renew_all(locks)
    redis.config_resetstat()

    trips = round_trips(memsync, lambda: renew_all(locks))

    assert trips == 1
    assert calls_of(redis)["evalsha"] == 3
    assert all(lock.owned for lock in held)
    assert all(lease.renew_at > time.monotonic() + 15 for lease in locks._leases.values())


def test_a_free_lock_costs_one_round_trip_to_take_and_one_to_give_back(memsync):
    with memsync.lock("warm"):
        pass  # Redis has the scripts now
    lock = memsync.lock("a", wait=5)

    assert round_trips(memsync, lock.acquire) == 1
    assert round_trips(memsync, lambda: (lock.owned, lock.check(), lock.fence, repr(lock))) == 0
    assert round_trips(memsync, lock.release) == 1


def test_lock_that_was_taken_away_is_reported_as_lost(memsync, lost, redis):
    lock = memsync.lock("a", ttl=0.3)
    lock.acquire()

    steal_locks(redis)

    eventually(lambda: lost == ["a"])
    assert not lock.owned and not lock.release()
    with pytest.raises(LockLost):
        lock.check()
    assert lost == ["a"]


def test_a_lost_lock_does_not_take_it_from_the_next_holder(memsync, other, redis):
    lock = memsync.lock("a", ttl=0.3)
    lock.acquire()
    steal_locks(redis)
    theirs = other.lock("a")
    theirs.acquire()

    eventually(lambda: not lock.owned)

    assert not lock.release() and theirs.owned and theirs.release()


def test_a_lease_ends_by_the_local_clock_if_it_can_not_be_renewed(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    lost = []
    memsync.on("lock-lost", lambda name: lost.append((name, lock.owned)))
    lock = memsync.lock("a", ttl=0.5)
    lock.acquire()

    own_server.kill()

    eventually(lambda: not lock.owned)
    eventually(lambda: lost == [("a", False)])


def test_a_lock_can_be_extended(memsync, other):
    lock = memsync.lock("a", ttl=5)
    lock.acquire()

    lock.extend(100)

    (record,) = other.locks()
    assert 99 < record.ttl <= 100
    assert lock.owned


def test_a_lease_does_not_get_shorter_by_a_renewal_that_was_under_way(memsync, other):
    lock = memsync.lock("a", ttl=5)
    lock.acquire()
    under_way = next(iter(memsync.runtime.locks._leases.values())).request
    lock.extend(100)

    memsync.runtime.store.renew_locks([under_way])

    assert other.locks()[0].ttl > 99


def test_a_lost_lock_can_not_be_extended(memsync, lost, redis):
    lock = memsync.lock("a")
    lock.acquire()
    steal_locks(redis)

    with pytest.raises(LockLost):
        lock.extend(10)

    assert eventually(lambda: lost) == ["a"] and not lock.owned


def test_what_is_not_held_can_neither_be_extended_nor_checked(memsync):
    lock = memsync.lock("a")

    for act in (lock.check, lambda: lock.extend(5)):
        with pytest.raises(LockLost):
            act()


def test_locks_are_listed_with_holder_since_lease_and_waiters(memsync, other, redis):
    lock = memsync.lock("b", ttl=20)
    lock.acquire()
    other.acquire_task_lock("t1")
    waiter = threading.Thread(target=other.lock("b", wait=10).acquire)
    waiter.start()

    records = eventually(lambda: (rows := other.locks()) and rows[0].waiters and rows)
    lock.release()
    waiter.join()

    assert [(r.name, r.worker_id, r.task_id, r.waiters) for r in records] == [
        ("b", "worker-1", None, 1), ("tasks/t1", "worker-2", None, 0)]
    assert records[0].fence == lock.fence
    assert 18 < records[0].ttl <= 20
    assert abs(records[0].since - float(redis.time()[0])) < 5


def test_what_is_free_or_has_run_out_is_not_listed(memsync, other, redis):
    with memsync.lock("a"):
        pass
    text = redis.get("task-sentinel/locks/{a}")
    lock = memsync.lock("b").__enter__()
    steal_locks(redis)

    assert text.endswith(b"\n") and lock.fence and other.locks() == []


def test_holder_of_a_lock_can_be_read_and_subscribed_but_not_written(memsync, other):
    received = []
    other.subscribe(
        "tasks/*/lock", lambda key, value: received.append(value["worker_id"]),
        lambda key: received.append(None))

    memsync.acquire_task_lock("t1")

    eventually(lambda: received == ["worker-1"])
    assert other.read("tasks/t1/lock")["worker_id"] == "worker-1"
    memsync.release_task_lock("t1")
    eventually(lambda: received == ["worker-1", None])
    assert other.read("tasks/t1/lock") is None
    for act in (lambda: other.write("tasks/t1/lock", 1), lambda: other.delete("locks/a")):
        with pytest.raises(InvalidKey):
            act()


def test_shutdown_frees_what_is_held(memsync, other):
    lock = memsync.lock("a").__enter__()
    memsync.acquire_task_lock("t1")

    memsync.shutdown()

    assert not lock.owned and other.locks() == []
    assert other.lock("a").acquire() and other.acquire_task_lock("t1")


def test_a_forked_child_holds_no_lock_of_its_parent(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()
    memsync.acquire_task_lock("t1")

    child = os.fork()
    if not child:
        wrong = (lock.owned, lock.release(), memsync.release_task_lock("t1"), memsync.lock("a").acquire())
        memsync.shutdown()
        os._exit(any(wrong))
    status = os.waitpid(child, 0)[1]

    assert status == 0
    assert lock.owned and not other.lock("a").acquire()
    assert lock.release() and memsync.release_task_lock("t1")


def test_nothing_is_left_of_locks_in_redis_but_what_goes_by_itself(memsync, redis):
    with memsync.lock("a"), memsync.task_lock("t1"):
        pass

    assert [key for key in redis.keys() if redis.pttl(key) == -1] == [b"task-sentinel//{clock}"]
    assert max(redis.pttl(key) for key in redis.keys("*{a}*")) <= 60_000
