"""However many coroutines wait, there are few threads and connections."""
from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from celery_memsync import AsyncMemSync, MemorySyncManager
from tests.support.coroutines import everything, run, soon, threads_of

#: Threads for calls, those of the manager, and handlers.
MOST_THREADS = 8 + 4 + 8

#: One for each thread that makes calls, those whose reads may be kept, of changes, of turns, and of the writer.
MOST_CONNECTIONS = 8 + 8 + 8


def names_of_ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memsync-")]


@pytest.mark.slow
def test_hundreds_of_waits_watches_and_lock_waiters_need_a_bounded_number_of_threads_and_connections(
    make_memsync, redis,
):
    memsync, other = make_memsync(), make_memsync()
    aio = AsyncMemSync(memsync)
    held = other.lock("a", thread_local=False)
    assert held.acquire()
    before_threads, before_connections = len(names_of_ours()), len(redis.client_list())

    async def watched(number):
        async with AsyncMemSync(memsync).watch(f"k/{number}") as changes:
            return (await changes.get(60)).value

    async def main():
        waits = [asyncio.create_task(AsyncMemSync(memsync).wait(f"t{number}", timeout=60)) for number in range(250)]
        watches = [asyncio.create_task(watched(number)) for number in range(250)]
        locks = [asyncio.create_task(aio.lock("a", wait=60).acquire()) for _ in range(200)]
        await soon(lambda: redis.llen("task-sentinel/locks/{a}/queue/") == 200, 50)
        await soon(lambda: len(memsync.runtime.feeds) == 500, 50)
        threads = len(names_of_ours()) - before_threads
        connections = len(redis.client_list()) - before_connections
        await asyncio.sleep(0.5)
        for number in range(250):
            other.sync_task_state(f"t{number}", {"status": "SUCCESS"})
            other.write(f"k/{number}", number)
        other.force_sync()
        states, values = await asyncio.gather(*waits), await asyncio.gather(*watches)
        for lock in locks:
            lock.cancel()
        await asyncio.wait(locks)
        await soon(lambda: not redis.exists("task-sentinel/locks/{a}/queue/"), 50)
        return threads, connections, {state["status"] for state in states}, values

    threads, connections, statuses, values = run(main(), 110)
    assert threads <= MOST_THREADS
    assert connections <= MOST_CONNECTIONS
    assert (statuses, values) == ({"SUCCESS"}, list(range(250)))
    assert len(memsync.runtime.feeds) == len(memsync.runtime.subscriptions) == 0


def test_all_clients_of_one_manager_share_their_threads(memsync):
    async def main():
        await asyncio.gather(*(AsyncMemSync(memsync).read(f"k{number}") for number in range(100)))
        return threads_of(memsync)

    assert 1 <= run(main()) <= 8


def test_threads_end_when_they_are_idle_and_begin_anew(memsync, monkeypatch):
    monkeypatch.setattr("celery_memsync.aio.executor.IDLE_TIMEOUT", 0.05)
    aio = AsyncMemSync(memsync)

    async def main():
        for _ in range(3):
            await asyncio.gather(*(aio.read("a", consistent=True) for _ in range(20)))
            await soon(lambda: not threads_of(memsync))

    run(main())


def test_no_call_is_lost_when_threads_end_while_work_comes(memsync, monkeypatch):
    monkeypatch.setattr("celery_memsync.aio.executor.IDLE_TIMEOUT", 0.0005)
    aio = AsyncMemSync(memsync)

    async def main():
        for number in range(1000):
            assert await asyncio.wait_for(aio._call(lambda number=number: number), 10) == number
            await asyncio.sleep(0.0005 * (number % 3))

    run(main())


def test_manager_that_coroutines_have_used_is_collected(redis_url):
    memsync = MemorySyncManager("m", redis_url)
    find = weakref.ref(memsync)
    run(everything(AsyncMemSync(memsync), "a"))

    del memsync
    gc.collect()

    assert find() is None
