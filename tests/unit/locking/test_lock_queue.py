"""Waiting for a lock: first come, first served; dead waiters delay no one."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from celery_memsync import LockNotAcquired
from celery_memsync.locking.lease import LockLease, Owner
from celery_memsync.store import LockRequest
from tests.support.redis_calls import calls_of
from tests.support.waiting import eventually

WAITER = """
import sys, time
from celery_memsync import MemorySyncManager
name, ttl, wait, hold = sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
with MemorySyncManager(url=sys.argv[1]) as memsync:
    print("ready", flush=True)
    with memsync.lock(name, ttl=ttl, wait=wait) as lock:
        print(f"taken {lock.fence}", flush=True)
        time.sleep(hold)
    print("left", flush=True)
"""


@pytest.fixture
def start_waiter(redis_url, memsync):
    """Starts processes that wait for a lock; returns when one stands in the queue."""
    processes = []

    def start(name="a", ttl=30.0, wait=30.0, hold=0.0):
        waiters = waiting(memsync, name)
        process = subprocess.Popen(
            [sys.executable, "-c", WAITER, redis_url, name, str(ttl), str(wait), str(hold)],
            stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        eventually(lambda: waiting(memsync, name) > waiters)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def kill(process, manager):
    """Kill a process; return when Redis has closed its connections, which it may do late."""
    process.kill()
    process.wait()
    manager.runtime.store.ping()


def waiting(manager, name):
    return next((record.waiters for record in manager.locks() if record.name == name), 0)


def wait_in_thread(manager, name, order, number, **options):
    """Let a thread wait for a lock, and note its number when it has it; return it when it stands in the queue."""
    def run():
        with manager.lock(name, wait=30, **options) as lock:
            order.append((number, lock.fence))

    before = waiting(manager, name)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    eventually(lambda: waiting(manager, name) > before)
    return thread


def test_twenty_waiters_are_served_in_the_order_in_which_they_came(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()
    order = []
    threads = [wait_in_thread((memsync, other)[number % 2], "a", order, number) for number in range(20)]

    lock.release()
    for thread in threads:
        thread.join(10)

    assert [number for number, _ in order] == list(range(20))
    assert [fence for _, fence in order] == sorted({fence for _, fence in order})


@pytest.mark.slow
def test_later_caller_does_not_overtake_a_waiter(memsync, other, start_waiter):
    lock = memsync.lock("a")
    lock.acquire()
    waiter = start_waiter(hold=0.5)

    lock.release()
    barged = other.lock("a").acquire()

    assert not barged
    assert waiter.stdout.readline().startswith("taken")
    assert other.lock("a", wait=10).acquire()


def test_waiter_that_timed_out_leaves_the_queue(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()

    began = time.monotonic()
    with pytest.raises(LockNotAcquired, match="after 0.3.* s of waiting"):
        other.lock("a", wait=0.3).__enter__()

    assert 0.3 <= time.monotonic() - began < 2
    assert waiting(memsync, "a") == 0
    lock.release()
    assert memsync.lock("a").acquire()


@pytest.mark.slow
def test_waiters_that_were_killed_cost_the_next_no_time(memsync, start_waiter):
    lock = memsync.lock("a")
    lock.acquire()
    dead = [start_waiter() for _ in range(3)]
    alive = start_waiter()
    for process in dead:
        kill(process, memsync)

    began = time.monotonic()
    lock.release()
    line = alive.stdout.readline()

    assert line.startswith("taken")
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_waiter_that_was_paused_loses_its_turn_and_comes_to_it_later(memsync, start_waiter):
    lock = memsync.lock("a", ttl=2)
    lock.acquire()
    paused, alive = start_waiter(ttl=2, hold=1), start_waiter(ttl=2)
    paused.send_signal(signal.SIGSTOP)

    lock.release()
    first = alive.stdout.readline()
    paused.send_signal(signal.SIGCONT)
    second = paused.stdout.readline()

    assert first.startswith("taken") and second.startswith("taken")
    assert int(first.split()[1]) < int(second.split()[1])
    assert paused.stdout.readline() == "left\n"


@pytest.mark.slow
def test_lock_of_a_dead_holder_passes_to_a_waiter_at_the_lease_end(
    memsync, start_waiter, redis_url,
):
    dying = subprocess.Popen(
        [sys.executable, "-c", WAITER, redis_url, "a", "1.0", "0", "60"], stdout=subprocess.PIPE, text=True)
    with dying:
        dying.stdout.readline(), dying.stdout.readline()
        waiter = start_waiter()
        os.kill(dying.pid, signal.SIGKILL)

        began = time.monotonic()
        line = waiter.stdout.readline()

    assert line.startswith("taken")
    assert time.monotonic() - began < 3


def test_the_connections_of_waiters_are_killed_and_they_still_get_it(memsync, other, redis):
    lock = memsync.lock("a")
    lock.acquire()
    order = []
    threads = [wait_in_thread(other, "a", order, number) for number in range(3)]

    redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    eventually(lambda: waiting(memsync, "a") == 3)
    lock.release()
    for thread in threads:
        thread.join(10)

    assert sorted(number for number, _ in order) == [0, 1, 2]


def test_outdated_turn_message_is_ignored(memsync, other, redis):
    lock = memsync.lock("a", ttl=60)
    lock.acquire()
    order = []
    thread = wait_in_thread(other, "a", order, 1)
    holder, _, channel = redis.lindex("task-sentinel/locks/{a}/queue/", 0).decode().split()[:3]

    receivers = (
        redis.publish(channel, f"{holder} {lock.fence - 1} 3000"),
        redis.publish(channel, f"other.1 {10 ** 17} 3000"))
    time.sleep(0.3)
    before = list(order)
    lock.release()
    thread.join(10)

    assert receivers == (1, 1) and before == []
    assert order[0][1] > lock.fence


@pytest.mark.slow
def test_waiting_does_not_poll(memsync, other, redis):
    lock = memsync.lock("a")
    lock.acquire()
    order = []
    thread = wait_in_thread(other, "a", order, 1)
    time.sleep(0.1)
    redis.config_resetstat()

    time.sleep(1.5)
    calls = calls_of(redis).get("evalsha", 0)
    lock.release()
    thread.join(10)

    assert calls <= 1
    assert order


def test_what_is_left_of_the_lease_of_a_turn_that_was_missed_is_renewed_before_it_ends(memsync):
    request = LockRequest(memsync.runtime.store.keys.lock_location("a"), "holder.1", 30.0, "-", b"{}")
    lease, now = LockLease("a", request, Owner(), float("inf")), time.monotonic()

    lease.extend(now, 1.2)

    assert now < lease.renew_at < lease.until == now + 1.2


def test_a_lock_that_is_handed_over_is_confirmed_and_then_has_its_whole_lease(memsync, other):
    lock, theirs = memsync.lock("a", ttl=60), other.lock("a", ttl=50, wait=30, thread_local=False)
    lock.acquire()
    thread = threading.Thread(target=theirs.acquire)
    thread.start()
    eventually(lambda: waiting(memsync, "a") == 1)

    lock.release()
    thread.join(10)

    assert theirs.owned
    eventually(lambda: memsync.locks()[0].ttl > 40)
    assert theirs.owned


def test_subscriber_to_everything_is_not_taken_for_a_waiter(make_memsync, memsync, start_waiter):
    seen = []
    make_memsync().subscribe("*", lambda key, value: seen.append(key))
    lock = memsync.lock("a")
    lock.acquire()
    kill(start_waiter(), memsync)

    began = time.monotonic()
    lock.release()

    assert memsync.lock("a", wait=5).acquire()
    assert time.monotonic() - began < 2
    eventually(lambda: "task-sentinel/locks/a" in seen)
    assert not [key for key in seen if "//" in key]


def test_waiter_whose_connections_break_while_it_joins_the_queue_gets_the_lock(memsync, proxied, proxy):
    lock = memsync.lock("a")
    lock.acquire()
    channel = proxied.runtime.store.turn_channel
    proxy.cut(f"}}\r\n${len(channel)}\r\n{channel}".encode(), times=2)  # the end of a request that names the channel
    order = []
    thread = wait_in_thread(proxied, "a", order, 1)

    lock.release()
    thread.join(10)

    assert proxy.cuts == 0
    assert [number for number, _ in order] == [1]
