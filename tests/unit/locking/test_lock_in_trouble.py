"""Locks while Redis is away, answers are lost, processes fork, and limits strike."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from celery_memsync import StoreError
from celery_memsync.locking.lease import Owner
from celery_memsync.store.scripts import LOCK_ACQUIRE, LOCK_RELEASE
from tests.support.stress import stressed
from tests.support.waiting import eventually

NOWHERE = "redis://127.0.0.1:1/0"


def lose_answer(manager, monkeypatch, script):
    """Lose the next answer of a script, after Redis has run it."""
    pool = manager.runtime.store.redis.connection_pool
    use, send, sent, left = pool._use, pool.connection_class.send_packed_command, [], [1]

    def noting(connection, command, *args, **kwargs):
        sent.extend(command)
        send(connection, command, *args, **kwargs)

    def losing(connection, talk):
        sent.clear()
        answer = use(connection, talk)
        if any(script.sha.encode() in command for command in sent) and left and left.pop():
            from redis import ConnectionError
            raise ConnectionError("lost")
        return answer

    monkeypatch.setattr(pool.connection_class, "send_packed_command", noting)
    monkeypatch.setattr(pool, "_use", losing)


def test_locks_raise_while_redis_is_away(make_memsync):
    memsync = make_memsync(url=NOWHERE)

    for act in (memsync.lock("a").acquire, memsync.lock("a", wait=5).acquire, memsync.locks,
                lambda: memsync.acquire_task_lock("t1")):
        with pytest.raises(StoreError, match="lock"):
            act()


def test_a_block_whose_lock_can_not_be_given_back_ends_as_it_does(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)

    with memsync.lock("a"):
        own_server.kill()

    with pytest.raises(StoreError):
        memsync.lock("a").acquire()


@pytest.mark.slow
def test_a_lock_that_could_not_be_given_back_is_free_soon_after_redis_is_back(make_memsync, own_server):
    memsync, other = make_memsync(url=own_server.url), make_memsync(url=own_server.url)
    lock = memsync.lock("a", ttl=60)
    lock.acquire()
    other.locks()

    own_server.pause()
    with pytest.raises(StoreError):
        lock.release()
    own_server.resume()

    assert not lock.owned
    eventually(lambda: other.lock("a").acquire())


@pytest.mark.slow
def test_a_lock_that_was_perhaps_taken_is_given_back(make_memsync, own_server):
    memsync, other = make_memsync(url=own_server.url), make_memsync(url=own_server.url)
    memsync.lock("warm").acquire()
    own_server.pause()

    with pytest.raises(StoreError):
        memsync.lock("a", ttl=60).acquire()
    own_server.resume()

    eventually(lambda: other.lock("a").acquire())


@pytest.mark.parametrize("wait", [0.0, 5.0])
def test_a_lock_is_taken_once_though_the_answer_was_lost(memsync, other, monkeypatch, wait):
    lose_answer(memsync, monkeypatch, LOCK_ACQUIRE)
    lock = memsync.lock("a", wait=wait)

    assert lock.acquire() and lock.owned
    assert [record.fence for record in other.locks()] == [lock.fence]
    assert lock.release()


def test_a_lock_is_given_back_once_though_the_answer_was_lost(memsync, other, monkeypatch):
    lock = memsync.lock("a")
    lock.acquire()
    lose_answer(memsync, monkeypatch, LOCK_RELEASE)

    assert lock.release()
    assert other.lock("a").acquire()


def test_a_lock_is_handed_over_once_though_the_answer_was_lost(memsync, other, monkeypatch):
    lock, theirs = memsync.lock("a"), other.lock("a", wait=10, thread_local=False)
    lock.acquire()
    thread = threading.Thread(target=theirs.acquire)
    thread.start()
    eventually(lambda: memsync.locks()[0].waiters)
    lose_answer(memsync, monkeypatch, LOCK_RELEASE)

    released = lock.release()
    thread.join(10)

    assert released and theirs.owned and theirs.fence > lock.fence


@pytest.mark.slow
def test_locks_survive_connections_that_are_killed(memsync, other, redis):
    lock = memsync.lock("a", ttl=0.6)
    lock.acquire()

    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert lock.owned and not other.lock("a").acquire()
        time.sleep(0.05)

    assert lock.release()


@pytest.mark.slow
def test_a_paused_redis_makes_no_lock_owned_for_longer_than_its_lease(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    lock = memsync.lock("a", ttl=0.6)
    began = time.monotonic()
    lock.acquire()

    own_server.pause()
    eventually(lambda: not lock.owned)
    ended = time.monotonic()
    own_server.resume()

    assert ended - began < 2


@pytest.mark.slow
def test_lease_is_valid_from_the_moment_it_was_requested(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    memsync.lock("warm").acquire()
    lock = memsync.lock("a", ttl=1.0)
    own_server.pause()
    threading.Timer(0.6, own_server.resume).start()

    began = time.monotonic()
    lock.acquire()
    answered = time.monotonic() - began
    own_server.pause()
    eventually(lambda: not lock.owned)
    owned = time.monotonic() - began
    own_server.resume()

    assert 0.5 < answered < 0.95
    assert owned < 1.4


def test_attempts_in_an_outage_do_not_pile_up(make_memsync, monkeypatch):
    monkeypatch.setattr("celery_memsync.locking.lock_service.SLACK", 0.1)
    memsync = make_memsync(url=NOWHERE)

    for _ in range(50):
        with pytest.raises(StoreError):
            memsync.lock("a", ttl=0.1).acquire()

    eventually(lambda: memsync.runtime.locks._leases == {})


@pytest.mark.slow
def test_locks_are_held_though_one_of_them_is_overwritten_by_junk(memsync, redis):
    lock, other = memsync.lock("a", ttl=0.6), memsync.lock("b", ttl=0.6)
    lock.acquire()
    other.acquire()

    redis.set("task-sentinel/locks/{b}", "something else")
    time.sleep(1.2)

    assert (lock.owned, other.owned) == (True, False)


def test_what_a_run_still_holds_at_its_end_is_given_back(memsync, other):
    locks = memsync.runtime.locks
    locks.acquire("mine", 30.0, 0.0, Owner("t1", "run-1"))
    locks.acquire("another", 30.0, 0.0, Owner("t2", "run-2"))

    locks.end_run("run-1")

    eventually(lambda: [record.name for record in other.locks()] == ["another"])


def test_task_locks_that_are_never_released_are_forgotten(memsync):
    locks = memsync.runtime.locks
    for number in range(20):
        locks.acquire_task(f"tasks/t{number}", 30.0, 0.0, Owner(f"t{number}", f"run-{number}"))
        locks.end_run(f"run-{number}")

    eventually(lambda: not locks._leases and not locks._of_tasks)


def test_lock_of_an_ended_process_is_released(memsync, other):
    memsync.runtime.locks.acquire("a", 30.0, 0.0, Owner("t1", "run-1"))
    memsync.runtime.locks.acquire("b", 30.0, 0.0, Owner("t2", "run-2"))
    ended = []

    other.runtime.locks.release_if_ended("run-1", lambda: bool(ended))
    time.sleep(0.2)
    before = [record.name for record in memsync.locks()]
    ended.append(True)

    assert before == ["a", "b"]
    eventually(lambda: [record.name for record in memsync.locks()] == ["b"])


@pytest.mark.slow
def test_a_child_forked_in_the_middle_of_taking_and_renewing_can_take_locks(memsync):
    stop = threading.Event()

    def busy(number):
        while not stop.is_set():
            with memsync.lock(f"busy-{number}", ttl=0.05, wait=10):
                pass

    threads = [threading.Thread(target=busy, args=(number % 2,)) for number in range(4)]
    for thread in threads:
        thread.start()
    codes = []
    for number in range(20):
        child = os.fork()
        if not child:
            with memsync.lock(f"child-{number}", wait=5) as lock:
                os._exit(not lock.owned)
        codes.append(os.waitpid(child, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()

    assert codes == [0] * 20


def test_a_program_with_a_lock_ends_at_once_and_frees_it(memsync, redis_url):
    script = """
import sys
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager(url=sys.argv[1])
assert (lock := memsync.lock("a", ttl=60)).acquire()
"""
    subprocess.run([sys.executable, "-c", script, redis_url], check=True, timeout=10)

    assert memsync.lock("a").acquire()


def test_shutdown_does_not_wait_for_a_redis_that_is_away(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    memsync.acquire_task_lock("t1")
    own_server.kill()

    began = time.monotonic()
    memsync.shutdown()

    assert time.monotonic() - began < 3


INTERRUPTED = """
import random, signal, sys, time
from celery_memsync import LockNotAcquired, MemorySyncManager
from celery_memsync.locking.lease import Owner

class Limit(Exception):
    pass

def strike(*_):
    raise Limit

chance = random.Random(int(sys.argv[2]))
memsync = MemorySyncManager(worker_id="w", url=sys.argv[1], lock_ttl=5)
run = "none"
memsync.environment.lock_owner = lambda locks: Owner("t", run)
with memsync.lock("warm"), memsync.lock("warm-2", wait=1):
    memsync.lock("warm", wait=0.01).acquire()
signal.signal(signal.SIGALRM, strike)
struck = taken = 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    run = f"run-{struck}"
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + chance.random() * 0.003)
            for _ in range(20):
                with memsync.lock("a", wait=5), memsync.lock("b"):
                    taken += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Limit:
        struck += 1
    except LockNotAcquired:
        pass
    memsync.runtime.locks.end_run(run)  # as the end of a task does
signal.setitimer(signal.ITIMER_REAL, 0)
deadline = time.monotonic() + 10
while (memsync.locks() or memsync.runtime.locks._leases) and time.monotonic() < deadline:
    time.sleep(0.05)
print(struck, taken, len(memsync.locks()), len(memsync.runtime.locks._leases))
with memsync.lock("a", wait=1), memsync.lock("b", wait=1):
    pass
memsync.shutdown()
"""


@pytest.mark.slow
def test_exceptions_at_any_bytecode_leave_no_lock_taken(redis_url):
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, redis_url, "20261122", str(stressed(10.0))], timeout=60,
        capture_output=True, text=True)

    struck, taken, held, remembered = map(int, run.stdout.split() or [0, 0, -1, -1])
    assert run.returncode == 0, run.stderr
    assert struck > 50 and taken > 50
    assert (held, remembered) == (0, 0)
