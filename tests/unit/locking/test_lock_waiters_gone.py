"""Waiters that ended silently, or hang: they delay no live waiter, and cost one call little."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from celery_memsync.locking.lease import Owner
from tests.support.threads import in_background
from tests.support.waiting import eventually

WAITERS = """
import sys, threading, time
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager(url=sys.argv[1])
for _ in range(int(sys.argv[2])):
    threading.Thread(target=lambda: memsync.lock("a", wait=300).acquire(), daemon=True).start()
time.sleep(600)
"""

QUEUE, POLLED_AT = "task-sentinel/locks/{a}/queue/", "task-sentinel/locks/{a}/asked/"


@pytest.fixture
def start_waiters(redis_url, memsync):
    """Starts a process in which threads wait for a lock that is held."""
    processes = []

    def start(number):
        process = subprocess.Popen([sys.executable, "-c", WAITERS, redis_url, str(number)], stderr=subprocess.DEVNULL)
        processes.append(process)
        eventually(lambda: memsync.get_lock("a").waiters == number, timeout=30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def stand_in_queue(redis, number, polled_at):
    """Put waiters into the queue that last polled at a time, and subscribe for all of them."""
    listening = redis.pubsub()
    channel = "0:task-sentinel//{locks}/turns/ended/1"
    listening.subscribe(channel)
    listening.get_message(timeout=5)
    redis.hset(POLLED_AT, ":", f"10000 {round(time.time() * 1000)}")
    for at in range(number):
        redis.rpush(QUEUE, f"ended.{at} 30000 {channel} - w\n{{}}")
        redis.hset(POLLED_AT, f"ended.{at}", polled_at)
    return listening


@pytest.mark.slow
def test_waiters_that_stand_still_cost_the_one_that_is_alive_no_time(memsync, other, start_waiters):
    lock = memsync.lock("a")
    lock.acquire()
    process = start_waiters(20)
    os.kill(process.pid, signal.SIGSTOP)
    taken = in_background(lambda: other.lock("a", wait=30).acquire())
    time.sleep(6)

    began = time.monotonic()
    lock.release()

    assert taken()
    assert time.monotonic() - began < 1.5


@pytest.mark.acceptance
@pytest.mark.slow
def test_waiters_that_stand_still_when_no_other_waits_cost_two_claims_at_most(memsync, other, start_waiters):
    lock = memsync.lock("a")
    lock.acquire()
    process = start_waiters(20)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)

    began = time.monotonic()
    lock.release()

    assert other.lock("a", wait=30).acquire()
    assert time.monotonic() - began < 7


def test_a_call_passes_over_a_hundred_waiters_and_the_next_ones_the_others(memsync, other, redis):
    lock = memsync.lock("a")
    lock.acquire()
    listening = stand_in_queue(redis, 1000, 1)

    lock.release()
    left = redis.llen(QUEUE)
    acquired = other.lock("a", wait=10).acquire()

    assert left == 900
    assert acquired
    assert (redis.llen(QUEUE), redis.hkeys(POLLED_AT)) == (0, [b":"])
    listening.close()


def test_caller_without_wait_does_not_overtake_a_waiter(memsync, other, redis):
    lock = memsync.lock("a")
    lock.acquire()
    listening = stand_in_queue(redis, 300, 1)
    lock.release()

    locks = [other.lock("a") for _ in range(3)]
    acquired = [lock.acquire() for lock in locks]

    assert acquired == [False, True, False]
    listening.close()


@pytest.mark.parametrize("polled_at", ["garbage", "-5", "9" * 20])
def test_foreign_polling_time_stops_no_waiter(memsync, other, redis, polled_at):
    lock = memsync.lock("a")
    lock.acquire()
    listening = stand_in_queue(redis, 1, polled_at)

    lock.release()

    assert other.lock("a", wait=10).acquire()
    listening.close()


def test_waiters_in_a_namespace_with_a_blank_are_served_in_their_turn(make_memsync):
    memsync, other = (make_memsync(namespace="my app") for _ in range(2))
    lock = memsync.lock("a")
    lock.acquire()
    taken = in_background(lambda: other.lock("a", wait=20).acquire())
    eventually(lambda: memsync.get_lock("a").waiters == 1)

    began = time.monotonic()
    lock.release()

    assert taken()
    assert time.monotonic() - began < 1.5


def test_a_question_that_comes_again_when_the_lock_was_given_back_does_not_take_it(memsync, other):
    lock = memsync.lock("a")
    lock.acquire()
    (lease,) = memsync.runtime.locks._leases.values()
    lock.release()

    answer = memsync.runtime.store.take_lock(lease.request)

    assert answer.status == "busy"
    assert other.lock("a").acquire()


def test_a_lease_that_no_caller_has_got_ends(memsync, other):
    services = memsync.runtime
    services.locks.acquire("a", 0.5, 0.0, Owner())

    acquired = other.lock("a", wait=5).acquire()

    assert acquired


def test_waiters_that_gave_up_leave_nothing(memsync, other, redis):
    lock = memsync.lock("a")
    lock.acquire()

    acquired = other.lock("a", wait=0.2).acquire()

    assert not acquired
    assert (redis.llen(QUEUE), redis.hkeys(POLLED_AT)) == (0, [b":"])
    assert 0 < redis.pttl(POLLED_AT) <= 60_000


def test_lock_is_acquired_behind_more_than_one_call_passes_over(memsync, redis):
    redis.rpush("task-sentinel/locks/{a}/queue/", *["no waiter"] * 250)

    assert not memsync.lock("a").acquire()
    assert memsync.lock("a", wait=5).acquire()
