"""No mutex of the package is held while a handler runs or a call waits for Redis."""
from __future__ import annotations

import threading

import pytest

from celery_memsync import AsyncMemSync, MemorySyncManager, Resolution
from celery_memsync.events import EVENTS
from celery_memsync.keys import PROGRESS, Keys
from celery_memsync.reading.cache import EntryCache
from celery_memsync.writing.pending import PendingChanges
from celery_memsync.writing.progress import Progress
from tests.support.coroutines import everything, run
from tests.support.held_locks import HeldLocks, held
from tests.support.waiting import eventually

#: Puts the calls of the shared queue in order.
TURNS = ("writing.shared_queue.SharedQueue._mutex",)


@pytest.fixture
def locks(monkeypatch):
    return HeldLocks(monkeypatch, allowed=TURNS)


def write_and_read(memsync, other):
    """Do a bit of everything, twice: the second time there are conflicts and copies."""
    for number in range(2):
        for one in (memsync, other):
            one.write("a", number)
            one.delete("b")
            one.sync_task_state("t1", {"x": number})
            one.sync_task_progress("t1", 50 + number)
            one.sync_agent_coordination("t1", "coder", number)
            one.sync_metrics({"m": number})
            one.sync_queue({"pending": ["t2"]})
            one.read_many(["a", "b"])
            one.get_task("t1")
            one.search("*")
        memsync.force_sync(5)
        other.force_sync()
    other.complete(other.dequeue())
    memsync.clear_cache()


def take_locks_in_turn(memsync, other):
    with memsync.lock("a", ttl=0.5):
        waiter = threading.Thread(target=other.lock("a", wait=10).acquire)
        waiter.start()
        eventually(lambda: memsync.locks()[0].waiters == 1)
    waiter.join(10)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0.01, 60.0])
def test_no_mutex_is_held_where_a_handler_runs_or_redis_is_waited_for(locks, redis_url, redis, interval):
    def resolve(entries):
        return Resolution(entries[-1].value, "mine")

    resolver = locks.user_code(resolve)
    memsync, other = (
        MemorySyncManager(name, redis_url, batch_interval=interval, conflict_resolver=resolver) for name in "mo")
    received = []
    for name in EVENTS:
        memsync.on(name, locks.user_code(
            lambda event=name, **_: received.append((event, memsync.read("a")))))
    on_change = locks.user_code(lambda key, value: key.endswith("/a") and memsync.write("answer", value))
    subscription = memsync.subscribe("*", on_change, locks.user_code(lambda key: None))

    with other.watch("*") as changes:
        write_and_read(memsync, other)
        take_locks_in_turn(memsync, other)
        redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        write_and_read(other, memsync)
        assert run(everything(AsyncMemSync(other), "coroutines")) == (1, 1, True, "SUCCESS")
        assert changes.get(timeout=5)
    memsync.unsubscribe(subscription)
    memsync.shutdown()
    other.shutdown()

    assert locks.violations == set()
    assert {"write", "batch-flushed", "lock-released"} <= {name for name, _ in received}


def test_a_mutex_that_is_held_is_noticed(locks):
    cache = EntryCache(10, 60.0, lambda: False)
    handler = locks.user_code(lambda: None)

    with cache._mutex, cache._mutex:
        with pytest.raises(AssertionError, match="reading.cache.EntryCache._mutex"):
            handler()
    handler()

    assert held() == []
    assert locks.violations == {("user code", "reading.cache.EntryCache._mutex")}


def test_the_mutexes_of_pending_changes_are_watched(locks):
    pending = PendingChanges(10)
    cell = Progress(Keys("ns").task_location("t1", PROGRESS), 60.0)
    handler = locks.user_code(lambda: None)

    for mutex, name in ((pending._mutex, "pending.PendingChanges"), (cell._mutex, "progress.Progress")):
        with mutex, pytest.raises(AssertionError, match=f"writing.{name}._mutex"):
            handler()


def test_a_socket_that_is_used_under_a_mutex_is_noticed(locks, redis_url):
    cache = EntryCache(10, 60.0, lambda: False)
    memsync = MemorySyncManager("m", redis_url)

    with cache._mutex, pytest.raises(AssertionError, match="a socket is used"):
        memsync.runtime.store.ping()

    memsync.shutdown()
