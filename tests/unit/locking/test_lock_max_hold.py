"""How long a lock is held at most, and answers that come when a lease is over."""
from __future__ import annotations

import time

import pytest

from celery_memsync import InvalidValue, LockLost, StoreUnavailable
from celery_memsync.locking.lock_service import LockService
from tests.support.waiting import eventually


def late(answer, seconds):
    """Return a call whose first answer comes so much later; ``called_at`` has its times."""
    def call(*args, **kwargs):
        call.called_at.append(time.monotonic())
        result = answer(*args, **kwargs)
        if len(call.called_at) == 1:
            time.sleep(seconds)
        return result

    call.called_at = []
    return call


@pytest.mark.slow
def test_a_lock_is_lost_when_its_max_hold_is_over_and_is_free_then(memsync, other, caplog):
    lost, lock = [], memsync.lock("a", ttl=0.6, max_hold=1.2)
    memsync.on("lock-lost", lambda name: lost.append(name))
    began = time.monotonic()
    lock.acquire()

    time.sleep(0.9)
    renewed = lock.owned and not other.lock("a").acquire()
    eventually(lambda: not lock.owned)
    held = time.monotonic() - began

    assert renewed and 1.15 < held < 2
    with pytest.raises(LockLost):
        lock.check()
    assert other.lock("a", wait=0.5).acquire()
    assert eventually(lambda: lost) == ["a"]
    assert "max_hold of 1.2 s" in caplog.text


def test_a_lease_is_not_longer_than_max_hold(memsync, other):
    with memsync.lock("a", ttl=30, max_hold=5) as lock:
        at_first = other.locks()[0].ttl
        lock.extend(60)
        extended = other.locks()[0].ttl

        assert at_first <= 5 and extended <= 5
        assert lock.owned


def test_a_new_acquisition_has_all_of_its_max_hold(memsync):
    lock = memsync.lock("a", ttl=0.5, max_hold=0.3)
    lock.acquire()
    eventually(lambda: not lock.owned)

    again = eventually(lock.acquire, timeout=5)

    assert again and lock.owned


def test_a_lock_without_max_hold_is_held_for_as_long_as_it_takes(memsync):
    with memsync.lock("a", max_hold=None):
        (lease,) = memsync.runtime.locks._leases.values()

        assert lease.hold_until == float("inf")


@pytest.mark.parametrize("max_hold", [0, -1, "5", True, float("nan"), float("inf"), 1e12])
def test_a_max_hold_that_is_no_number_of_seconds_is_refused(memsync, max_hold):
    for make in (lambda: memsync.lock("a", max_hold=max_hold), lambda: memsync.task_lock("t1", max_hold=max_hold)):
        with pytest.raises(InvalidValue, match="max_hold"):
            make()


def test_lock_whose_lease_expired_before_the_answer_is_requested_again(memsync, monkeypatch):
    take = late(memsync.runtime.store.take_lock, 0.5)
    monkeypatch.setattr(memsync.runtime.store, "take_lock", take)
    lock = memsync.lock("a", ttl=0.3)

    acquired = lock.acquire(), lock.owned

    assert acquired == (True, True)
    assert len(take.called_at) == 2


def test_turn_whose_lease_expired_before_the_answer_is_requested_again(memsync, other, monkeypatch):
    theirs = other.lock("a")
    theirs.acquire()
    wait = late(lambda request: (theirs.release(), answer(request))[1], 0.5)
    answer = memsync.runtime.store.wait_for_lock
    monkeypatch.setattr(memsync.runtime.store, "wait_for_lock", wait)
    lock = memsync.lock("a", ttl=0.3, wait=10)

    acquired = lock.acquire(), lock.owned

    assert acquired == (True, True)
    assert len(wait.called_at) == 2


def test_a_redis_that_answers_too_late_each_time_gives_no_lock_and_it_is_given_back(make_memsync, other, monkeypatch):
    memsync = make_memsync(timeout=1.0)
    take = memsync.runtime.store.take_lock
    monkeypatch.setattr(memsync.runtime.store, "take_lock", lambda request: (take(request), time.sleep(0.3))[0])
    lock = memsync.lock("a", ttl=0.2)

    with pytest.raises(StoreUnavailable):
        lock.acquire()

    assert not lock.owned
    assert eventually(lambda: other.lock("a").acquire(), timeout=5)


def test_a_renewal_whose_answer_comes_too_late_does_not_make_a_lock_owned_again(memsync, other, monkeypatch):
    lost, lock = [], memsync.lock("a", ttl=0.6)
    memsync.on("lock-lost", lambda name: lost.append(name))
    renew = memsync.runtime.store.renew_locks
    monkeypatch.setattr(memsync.runtime.store, "renew_locks", lambda *args: (renew(*args), time.sleep(0.8))[0])
    lock.acquire()
    eventually(lambda: not lock.owned)

    seen = [lock.owned for _ in range(60) if time.sleep(0.02) is None]

    assert seen == [False] * 60
    assert lost == ["a"]
    assert eventually(lambda: other.lock("a").acquire(), timeout=5)


def test_an_extension_whose_answer_comes_after_the_lock_was_seen_to_be_lost_is_refused(memsync, monkeypatch):
    lock, seen = memsync.lock("a", ttl=0.4), []
    renew = memsync.runtime.store.renew_locks
    monkeypatch.setattr(LockService, "renew", lambda self: None)
    monkeypatch.setattr(
        memsync.runtime.store, "renew_locks", lambda *args: (renew(*args), time.sleep(0.5), seen.append(lock.owned))[0])
    lock.acquire()

    with pytest.raises(LockLost):
        lock.extend(30)

    assert seen == [False] and not lock.owned


def test_a_lock_that_redis_has_renewed_when_it_was_lost_already_is_given_back(memsync, other, monkeypatch):
    lock = memsync.lock("a", ttl=60).__enter__()
    locks, renew, seen = memsync.runtime.locks, memsync.runtime.store.renew_locks, []
    (lease,) = locks._leases.values()

    def renew_late(*args):
        answer = renew(*args)
        lease.until = time.monotonic()
        seen.append(lock.owned)
        return answer

    monkeypatch.setattr(memsync.runtime.store, "renew_locks", renew_late)
    lease.renew_at = time.monotonic()
    locks.renew()

    assert seen[0] is False and not lock.owned
    assert eventually(lambda: other.lock("a").acquire(), timeout=5)
