"""A Redis whose memory is full: clear errors, and nothing is lost."""
from __future__ import annotations

import contextlib

import pytest

from celery_memsync import LockNotAcquired, StoreError
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually


@pytest.fixture
def full(tmp_path):
    """A Redis that takes no writes any more, because another program has filled it."""
    server = RedisServer(tmp_path, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction").start()
    with server.client() as client:
        with pytest.raises(Exception, match="maxmemory"):
            for number in range(100):
                client.set(f"other/{number}", "x" * 200_000)
        client.config_set("maxmemory", "2mb")
    yield server
    server.stop()


def make_room(server):
    with server.client() as client:
        client.config_set("maxmemory", "100mb")


def test_buffered_writes_wait_until_there_is_room(full, make_memsync):
    memsync, other = make_memsync(url=full.url, batch_interval=0.05), make_memsync(url=full.url)
    for number in range(200):
        memsync.write(f"a/{number}", number)
        memsync.sync_task_state(f"t{number}", {"x": number})
        memsync.sync_task_progress(f"t{number}", 50)

    with pytest.raises(StoreError, match="it is full"):
        memsync.force_sync()
    assert memsync.read("a/7") == 7 and memsync.get_task_state("t7") == {"x": 7}
    make_room(full)

    memsync.force_sync(timeout=20)
    assert [other.read(f"a/{number}") for number in range(200)] == list(range(200))
    assert [other.get_task_state(f"t{number}")["x"] for number in range(200)] == list(range(200))
    assert memsync.runtime.writer.pending == 0 and memsync.get_metrics()["dropped"] == 0


def test_atomic_operations_raise_while_redis_is_full(full, make_memsync):
    memsync = make_memsync(url=full.url)

    for act in (lambda: memsync.enqueue("t1"), lambda: memsync.write("a", 1, expected_version=0)):
        with pytest.raises(StoreError, match="it is full"):
            act()
    make_room(full)

    assert memsync.enqueue("t1")
    assert memsync.write("a", 1, expected_version=0).version == 1


def test_a_lock_is_had_or_refused_but_never_had_twice(full, make_memsync):
    had = []
    locks = [make_memsync(url=full.url).lock("a") for _ in range(3)]
    for lock in locks:
        with contextlib.suppress(StoreError):  # some servers let a script write that has taken something away before
            had.append(lock.acquire())

    assert had.count(True) <= 1


def test_a_lock_that_is_held_is_kept_and_given_back_although_it_is_full(tmp_path, make_memsync):
    server = RedisServer(tmp_path, "--maxmemory-policy", "noeviction").start()
    memsync, other = make_memsync(url=server.url), make_memsync(url=server.url)
    lock = memsync.lock("a", ttl=1.0)
    lock.acquire()

    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(LockNotAcquired):
            other.lock("a", wait=0).__enter__()
        held = eventually(lambda: lock.owned)
        lock.release()

    assert held
    make_room(server)
    assert eventually(lambda: other.lock("a").acquire())
    server.stop()
