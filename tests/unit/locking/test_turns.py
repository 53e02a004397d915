"""The one connection on which a process receives the turns of all its lock waiters."""
from __future__ import annotations

import gc
import threading
import time

import pytest

from celery_memsync import StoreError
from celery_memsync.locking import turns
from tests.support.proxy import Proxy
from tests.support.threads import in_background
from tests.support.waiting import eventually


@pytest.fixture
def held(memsync):
    """A lock "a" that is held."""
    lock = memsync.lock("a")
    assert lock.acquire()
    return lock


def listening(redis):
    return len(redis.client_list(_type="pubsub"))


def waiting(manager, name):
    record = manager.get_lock(name)
    return record.waiters if record is not None else 0


def test_waiters_for_many_locks_share_one_connection_and_one_thread(memsync, other, redis):
    locks = [memsync.lock(f"a{number}") for number in range(5)]
    assert all(lock.acquire() for lock in locks)
    took = [in_background(lambda name=lock.name: other.lock(name, wait=20).acquire()) for lock in locks for _ in range(4)]
    eventually(lambda: all(waiting(memsync, lock.name) == 4 for lock in locks))

    connections = listening(redis)
    threads = [thread for thread in threading.enumerate() if thread.name == "memsync-turns"]
    for lock in locks:
        lock.release()

    assert connections == 1 and len(threads) == 1
    assert [take() for take in took] == [True] * 20


def test_connection_is_closed_when_it_was_idle_for_a_while(
    held, memsync, other, redis, monkeypatch,
):
    monkeypatch.setattr(turns, "REST_AFTER", 0.3)

    assert not other.lock("a", wait=0.1).acquire()
    opened = listening(redis)
    eventually(lambda: listening(redis) == 0)
    took = in_background(lambda: other.lock("a", wait=20).acquire())
    eventually(lambda: waiting(memsync, "a") == 1)
    time.sleep(0.8)
    began = time.monotonic()
    held.release()

    assert opened == 1
    assert took()
    assert time.monotonic() - began < 1


def test_no_connection_is_left_after_a_shutdown(held, memsync, other, redis):
    assert not other.lock("a", wait=0.1).acquire()

    other.shutdown()

    eventually(lambda: listening(redis) == 0)


def test_a_shutdown_ends_the_waiting_of_other_threads(held, memsync, other):
    took = in_background(lambda: other.lock("a", wait=60).acquire())
    eventually(lambda: waiting(memsync, "a") == 1)

    began = time.monotonic()
    other.shutdown()

    assert not took()
    assert time.monotonic() - began < 2
    assert waiting(memsync, "a") == 0


def test_turn_given_while_disconnected_is_queried(held, server, memsync, make_memsync):
    with Proxy(server.port) as proxy:
        other = make_memsync(url=proxy.url)
        took = [in_background(lambda: other.lock("a", wait=20, ttl=5).acquire()) for _ in range(3)]
        eventually(lambda: waiting(memsync, "a") == 3)

        proxy.cut()
        began = time.monotonic()
        held.release()

        eventually(lambda: any(take.answers for take in took))
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("message", [
    b"", b"x", b"\xff\xfe 1 1", b"unknown 1 1", b"unknown 1", b"a b c d", b"1" * 100_000,
    b"unknown 99999999999999999 1"])
def test_foreign_message_on_the_turn_channel_harms_no_waiter(held, memsync, other, redis, message):
    took = in_background(lambda: other.lock("a", wait=20).acquire())
    eventually(lambda: waiting(memsync, "a") == 1)

    receivers = redis.publish(other.runtime.store.turn_channel, message)
    held.release()

    assert receivers == 1
    assert took()


def test_waiter_without_the_right_to_subscribe_fails_at_once(
    held, memsync, redis, make_memsync, server,
):
    redis.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "+@all", "resetchannels")
    try:
        limited = make_memsync(url=f"redis://limited:pw@127.0.0.1:{server.port}/0")

        began = time.monotonic()
        with pytest.raises(StoreError, match="NOPERM|may not do that"):
            limited.lock("a", wait=30).acquire()

        assert time.monotonic() - began < 2
    finally:
        redis.execute_command("ACL", "DELUSER", "limited")


def test_waiters_that_ended_are_forgotten(held, memsync, other):
    for _ in range(3):
        assert not other.lock("a", wait=0.05).acquire()

    gc.collect()
    (line,) = other.runtime.locks._requester._turns._lines.values()

    assert len(line._turns) == 0
