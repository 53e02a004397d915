"""Every public call ends by its deadline, whatever Redis does."""
from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest
import redis as redis_py

from celery_memsync import ConflictError, MemorySyncManager, StoreError
from celery_memsync.store.client import connect
from celery_memsync.store.pool import _PURPOSE
from tests.support.embedded_processes import servers_of
from tests.support.proxy import Proxy
from tests.support.redis_server import free_port
from tests.support.stress import stressed
from tests.support.topologies import SentinelServer
from tests.support.waiting import eventually

#: ``memsync_timeout`` of these tests, and what a busy machine may add, in seconds.
TIMEOUT = 0.6

MARGIN = 0.5

#: Seconds that calls are given to wait.
WAIT = 0.5

#: Public calls that read, change something in one step, or end.
CALLS = {
    "get_task_state": lambda memsync: memsync.get_task_state("t"),
    "get_task_progress": lambda memsync: memsync.get_task_progress("t"),
    "get_task": lambda memsync: memsync.get_task("t"),
    "get_tasks": lambda memsync: memsync.get_tasks(),
    "iter_tasks": lambda memsync: next(memsync.iter_tasks(), None),
    "get_agent_coordination": lambda memsync: memsync.get_agent_coordination("t", "a"),
    "get_task_agents": lambda memsync: memsync.get_task_agents("t"),
    "get_queue": lambda memsync: memsync.get_queue(),
    "get_assignments": lambda memsync: memsync.get_assignments(),
    "get_coordination_metrics": lambda memsync: memsync.get_coordination_metrics(),
    "locks": lambda memsync: memsync.locks(),
    "get_lock": lambda memsync: memsync.get_lock("l"),
    "get_awaited_lock": lambda memsync: memsync.get_awaited_lock("t"),
    "get_queue_position": lambda memsync: memsync.get_queue_position("t"),
    "get_worker_status": lambda memsync: memsync.get_worker_status("w"),
    "get_worker_capacity": lambda memsync: memsync.get_worker_capacity("w"),
    "get_active_workers": lambda memsync: memsync.get_active_workers(),
    "get_workers": lambda memsync: memsync.get_workers(),
    "read": lambda memsync: memsync.read("unread"),
    "read consistent": lambda memsync: memsync.read("known", consistent=True),
    "read_entry": lambda memsync: memsync.read_entry("unread"),
    "read_many": lambda memsync: memsync.read_many(["known", "unread"]),
    "search": lambda memsync: memsync.search("*"),
    "iter_entries": lambda memsync: list(memsync.iter_entries()),
    "enqueue": lambda memsync: memsync.enqueue("t"),
    "cancel": lambda memsync: memsync.cancel("t", "no need"),
    "dequeue": lambda memsync: memsync.dequeue(),
    "complete": lambda memsync: memsync.complete("t"),
    "write expected": lambda memsync: memsync.write("k", 1, expected_version=0),
    "acquire": lambda memsync: memsync.lock("free").acquire(),
    "release": lambda memsync: memsync.held.release(),
    "extend": lambda memsync: memsync.held.extend(60.0),
    "free_lock": lambda memsync: memsync.free_lock("l", 1),
    "acquire_task_lock": lambda memsync: memsync.acquire_task_lock("t"),
    "release_task_lock": lambda memsync: memsync.release_task_lock("held"),
    "force_sync": lambda memsync: memsync.force_sync(),
    "subscribe": lambda memsync: memsync.subscribe("*", print),
    "watch": lambda memsync: memsync.watch("*"),
    "shutdown": lambda memsync: memsync.shutdown(),
}

#: Public calls that are given a wait of :data:`WAIT` seconds.
WAITING_CALLS = {
    "acquire": lambda memsync: memsync.lock("taken", wait=WAIT).acquire(),
    "force_sync": lambda memsync: memsync.force_sync(timeout=WAIT),
    "get": lambda memsync: memsync.changes.get(WAIT),
}

TROUBLES = {
    "hanging": lambda proxy: proxy.hold_all(),
    "dribbling": lambda proxy: setattr(proxy, "dribble", 0.2),
    "old connections hanging": lambda proxy: proxy.hold_open(),
    "cut and hanging": lambda proxy: (proxy.hold_all(), proxy.cut()),
}

#: Troubles that every call meets; the others, and in the normal run all but one, meet only a few calls.
OFTEN = stressed(("hanging", "dribbling"), ("hanging",))

#: Of each kind one.
FEW_CALLS = ("get_task", "read", "dequeue", "write expected", "acquire", "force_sync", "shutdown")


def seconds_of(call, *args):
    """Return how long a call takes, whether it returns or raises what it may."""
    began = time.monotonic()
    with suppress(StoreError, ConflictError):
        call(*args)
    return time.monotonic() - began


def done(call):
    """Whether a call has succeeded; on a busy machine it may take too long."""
    try:
        call()
    except StoreError:
        return False
    return True


@pytest.fixture
def proxy(server, redis):
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def warm(proxy, make_memsync, other):
    """A manager behind the proxy that has been used, with a lock, a watch and a write that waits."""
    memsync = make_memsync(url=proxy.url, batch_interval=60.0, timeout=TIMEOUT)
    memsync.taken = other.lock("taken")
    memsync.taken.acquire()
    memsync.held = memsync.lock("held")
    memsync.write("known", 1)
    for prepare in (memsync.force_sync, memsync.held.acquire, lambda: memsync.acquire_task_lock("held"),
                    lambda: memsync.read("known"), memsync.dequeue):
        eventually(lambda: done(prepare))
    memsync.changes = memsync.watch("*")
    memsync.write("waits", 1)
    yield memsync
    proxy.dribble = 0.0
    proxy.release()


@pytest.mark.parametrize("call, trouble", [
    (call, trouble) for call in CALLS for trouble in TROUBLES if call in FEW_CALLS or trouble in OFTEN])
def test_public_call_ends_in_time(warm, proxy, call, trouble):
    TROUBLES[trouble](proxy)

    seconds = seconds_of(CALLS[call], warm)

    assert seconds < TIMEOUT + MARGIN


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("call", WAITING_CALLS)
def test_public_call_that_waits_ends_in_time(warm, proxy, call, trouble):
    TROUBLES[trouble](proxy)

    seconds = seconds_of(WAITING_CALLS[call], warm)

    assert seconds < TIMEOUT + WAIT + MARGIN


@pytest.mark.parametrize("call", [*FEW_CALLS[:-1], "enqueue", "read_entry"])
def test_threads_fail_together(warm, proxy, call):
    proxy.hold_all()
    took = []
    threads = [threading.Thread(target=lambda: took.append(seconds_of(CALLS[call], warm)), daemon=True) for _ in range(20)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(took) == 20
    assert max(took) < TIMEOUT + 2 * MARGIN


@pytest.mark.parametrize("call", ["read", "acquire", "force_sync", "shutdown"])
def test_call_to_a_paused_server_ends_in_time(own_server, make_memsync, call):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0, timeout=TIMEOUT)
    memsync.write("a", 1)
    memsync.force_sync()
    memsync.write("b", 1)
    own_server.pause()

    seconds = seconds_of(CALLS[call], memsync)

    own_server.resume()
    assert seconds < TIMEOUT + MARGIN


@pytest.mark.parametrize("call", ["read", "acquire", "shutdown"])
def test_call_to_a_hanging_master_of_sentinels_ends_in_time(
    own_server, tmp_path, make_memsync, call,
):
    sentinels = [SentinelServer(tmp_path / f"sentinel-{number}", own_server.port, quorum=9).start() for number in range(2)]
    hosts = ";".join(f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    memsync = make_memsync(url=f"{hosts}/0?master_name=mymaster", timeout=TIMEOUT)
    own_server.pause()
    memsync.write("a", 1)

    seconds = seconds_of(CALLS[call], memsync)

    own_server.resume()
    for sentinel in sentinels:
        sentinel.stop()
    assert seconds < TIMEOUT + MARGIN


def test_call_to_a_paused_embedded_server_ends_in_time(tmp_path):
    memsync = MemorySyncManager("w", f"embedded://{tmp_path / 'store'}", timeout=TIMEOUT)
    memsync.write("a", 1)
    memsync.force_sync(timeout=10.0)
    (server,) = servers_of(tmp_path / "store")
    os.kill(server, signal.SIGSTOP)

    took = [seconds_of(CALLS[call], memsync) for call in ("read", "read", "acquire", "shutdown")]

    os.kill(server, signal.SIGCONT)
    assert max(took) < TIMEOUT + MARGIN


def test_buffered_writes_do_not_wait(warm, proxy):
    proxy.hold_all()
    seconds_of(warm.force_sync)

    seconds = seconds_of(lambda: [warm.write(f"k{number}", 1) for number in range(100)])

    assert seconds < TIMEOUT


def test_shutdown_takes_its_time_once_for_all_steps(warm, proxy):
    warm.subscribe("*", print)
    proxy.hold_all()

    seconds = seconds_of(warm.shutdown, 0.2)

    assert seconds < 0.2 + MARGIN


def test_error_names_the_time(warm, proxy):
    proxy.hold_all()

    with pytest.raises(StoreError, match=r"did not answer within 0\.[6-9] s"):
        warm.read("unread", consistent=True)


def test_redis_that_answers_again_is_used_again(warm, proxy):
    proxy.hold_all()
    seconds_of(warm.read, "unread")

    proxy.release()

    assert eventually(lambda: seconds_of(warm.read, "unread") < TIMEOUT and warm.read("known") == 1)


def test_hanging_connections_fail_one_call_only(proxy, make_memsync):
    memsync = make_memsync(url=proxy.url, cache_size=0, timeout=TIMEOUT)
    memsync.read("a")
    pool = memsync.runtime.store.redis.connection_pool
    lent = [pool.get_connection(*_PURPOSE) for _ in range(5)]
    for connection in lent:
        pool.release(connection)
    proxy.hold_open()

    with pytest.raises(StoreError):
        memsync.read("a")

    assert memsync.read("a") is None


def test_timeout_is_not_tried_again(proxy):
    client = connect(proxy.url, {}, timeout=TIMEOUT)
    proxy.hold_all()

    began = time.monotonic()
    with pytest.raises(redis_py.TimeoutError):
        client.ping()
    seconds = time.monotonic() - began

    assert seconds < TIMEOUT + MARGIN


def test_refused_connection_is_reported_at_once(make_memsync):
    memsync = make_memsync(url=f"redis://127.0.0.1:{free_port()}", timeout=30.0)

    seconds = seconds_of(memsync.read, "a")

    assert seconds < 2.0
