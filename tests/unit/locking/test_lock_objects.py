"""One Lock object, used by several threads, by several calls, or dropped."""
from __future__ import annotations

import gc
import threading
import weakref

import pytest

from celery_memsync import LockLost, MemorySyncManager
from celery_memsync.locking.lock import Lock
from tests.support.waiting import eventually


def in_thread(call):
    """Return what a call returns in a thread that ends then."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(15)
    return results[0]


class Holder:
    """Another thread, which holds a lock by a ``with`` block until it is let go."""

    def __init__(self, lock):
        self.lock = lock
        self.inside, self.go = threading.Event(), threading.Event()
        self.fence = self.owned_at_end = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.inside.wait(10)

    def _run(self):
        with self.lock:
            self.fence = self.lock.fence
            self.inside.set()
            self.go.wait(10)
            self.owned_at_end = self.lock.owned

    def end(self):
        self.go.set()
        self.thread.join(10)
        return self.owned_at_end


@pytest.mark.parametrize("thread_local", [True, False])
def test_a_block_that_lost_its_lease_neither_checks_nor_releases_that_of_another_thread(memsync, other, thread_local):
    lock = memsync.lock("a", wait=10, thread_local=thread_local)

    with lock:
        first = lock.fence
        memsync.free_lock("a", first)
        holder = Holder(lock)
        inside = lock.owned, lock.fence
        with pytest.raises(LockLost):
            lock.check()
        with pytest.raises(LockLost):
            lock.extend(5)
    free = other.lock("a").acquire()

    assert inside == (False, first) and first < holder.fence
    assert not free
    assert holder.end() is True


@pytest.mark.parametrize("thread_local", [True, False])
def test_an_acquire_that_lost_its_lease_neither_checks_nor_releases_that_of_another_thread(memsync, other, thread_local):
    lock = memsync.lock("a", wait=10, thread_local=thread_local)
    lock.acquire()
    first = lock.fence
    memsync.free_lock("a", first)
    holder = Holder(lock)

    seen = lock.owned, lock.fence, lock.release(), other.lock("a").acquire()

    assert seen == (False, first, False, False)
    assert holder.end() is True


def test_a_write_with_a_lock_that_was_lost_is_refused_though_another_thread_has_the_object(memsync):
    lock = memsync.lock("a", wait=10)
    with lock:
        memsync.free_lock("a", lock.fence)
        holder = Holder(lock)
        memsync.write("balance", "new", fence=holder.fence)
        memsync.force_sync()

        memsync.write("balance", "stale", fence=lock)

        with pytest.raises(LockLost):
            memsync.force_sync()
    assert memsync.read("balance", consistent=True) == "new"
    assert holder.end() is True


def test_a_thread_that_has_not_acquired_a_lock_object_has_nothing_of_it(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()

    seen = in_thread(lambda: (lock.owned, lock.fence, lock.release(), lock.acquire()))

    assert seen == (False, 0, False, False)
    assert lock.owned and not other.lock("a").acquire()


def test_any_thread_checks_and_releases_an_object_that_is_not_thread_local(memsync, other):
    lock = memsync.lock("a", thread_local=False)
    lock.acquire()

    seen = in_thread(lambda: (lock.owned, lock.fence, lock.check(), lock.release()))

    assert seen == (True, lock.fence, None, True)
    assert not lock.owned and other.lock("a").acquire()


def test_after_another_thread_has_released_it_an_object_can_be_acquired_anew(memsync):
    lock = memsync.lock("a", thread_local=False)
    lock.acquire()
    in_thread(lock.release)

    again = in_thread(lock.acquire)

    assert again and not lock.owned
    assert lock.release() is False and lock.owned and lock.release()


def test_an_acquire_that_is_refused_leaves_the_acquisition_as_it_is(memsync):
    lock = memsync.lock("a", wait=0.05)
    with lock:
        fence = lock.fence

        again = lock.acquire(), in_thread(lock.acquire)

        assert again == (False, False)
        assert lock.owned and lock.fence == fence
        assert lock.release() is True


def test_a_block_whose_lock_was_released_in_it_does_not_release_the_next_one(memsync, other):
    lock = memsync.lock("a", wait=10, thread_local=False)

    with lock:
        lock.release()
        holder = Holder(lock)

    assert not other.lock("a").acquire()
    assert holder.end() is True


def test_an_extension_is_of_one_acquisition_only(memsync, other):
    lock = memsync.lock("a", ttl=20)

    with lock:
        lock.extend(90)
    with lock:
        ttl = other.locks()[0].ttl

    assert ttl <= 20


def test_the_lock_of_an_object_that_was_collected_is_released_at_the_next_renewal(memsync, other, caplog):
    lock = memsync.lock("a", ttl=1.5)
    lock.acquire()
    events = []
    memsync.on("lock-released", lambda name: events.append(name))

    del lock
    gc.collect()

    assert eventually(lambda: other.lock("a").acquire(), timeout=5)
    assert eventually(lambda: events) == ["a"]
    assert "Releasing the lock a" in caplog.text


def test_the_lock_of_a_thread_that_has_ended_is_released_at_the_next_renewal(memsync, other):
    lock = memsync.lock("a", ttl=1.5)

    acquired = in_thread(lock.acquire)

    assert acquired
    assert eventually(lambda: other.lock("a").acquire(), timeout=5)


def test_a_lock_whose_block_was_interrupted_before_it_began_is_released_at_the_next_renewal(memsync, other, monkeypatch):
    lock = memsync.lock("a", ttl=1.5)
    acquire = Lock._acquire
    monkeypatch.setattr(Lock, "_acquire", lambda self: acquire(self) and interrupted())

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lock.__enter__()
    gc.collect()

    assert not lock.owned
    assert eventually(lambda: not other.locks(), timeout=5)


def test_the_lock_of_an_object_that_is_not_thread_local_outlives_the_thread(memsync, other):
    lock = memsync.lock("a", ttl=0.6, thread_local=False)
    in_thread(lock.acquire)

    memsync.runtime.locks.renew()

    assert lock.owned and not other.lock("a").acquire()


def test_a_lock_that_was_released_is_not_released_again_when_its_object_is_collected(memsync, caplog):
    lock = memsync.lock("a")
    lock.acquire()
    lock.release()

    del lock
    gc.collect()

    memsync.runtime.locks.renew()
    assert "Releasing" not in caplog.text and not memsync.runtime.locks._leases


def test_a_lock_that_is_held_keeps_neither_object_nor_manager_alive(redis_url):
    memsync = MemorySyncManager(worker_id="w", url=redis_url)
    lock = memsync.lock("a")
    lock.acquire()
    lock_is_there, manager_is_there = weakref.ref(lock), weakref.ref(memsync)

    del lock
    gc.collect()
    del memsync
    gc.collect()

    assert lock_is_there() is None and manager_is_there() is None


def test_lock_events_are_emitted(memsync):
    emitted = []
    for name in ("lock-acquired", "lock-released"):
        memsync.on(name, lambda event=name, **details: emitted.append((event, details)))

    with memsync.lock("a") as lock:
        pass
    assert memsync.events.wait_idle(5)

    assert emitted == [
        ("lock-acquired", {"name": "a", "fence": lock.fence}), ("lock-released", {"name": "a"})]
