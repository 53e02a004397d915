"""All threads for calls are busy: what has to be done all the same."""
from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from celery_memsync import AsyncMemSync, StoreUnavailable
from celery_memsync.aio.executor import MAX_THREADS
from tests.support.coroutines import run, soon

#: ``memsync_timeout``, in seconds.
TIMEOUT = 0.3


@pytest.fixture
def aio(make_memsync):
    return AsyncMemSync(make_memsync(timeout=TIMEOUT))


@contextlib.asynccontextmanager
async def starved(aio):
    """Keep all threads busy during a block."""
    go_on, begun = threading.Event(), []

    def keep_busy():
        begun.append(None)
        go_on.wait(60)

    calls = [asyncio.create_task(aio._call(keep_busy)) for _ in range(MAX_THREADS)]
    await soon(lambda: len(begun) == MAX_THREADS)
    try:
        with pytest.raises(StoreUnavailable, match="was not begun"):
            await aio.get_task("t1")
        yield
    finally:
        go_on.set()
        await asyncio.wait(calls)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_lock_is_released_while_no_thread_is_free(aio, other, is_cancelled):
    async def main():
        lock = aio.lock("a")
        assert await lock.acquire()
        assert await aio.acquire_task_lock("t1")
        async with starved(aio):
            releases = [asyncio.create_task(one) for one in (lock.release(), aio.release_task_lock("t1"))]
            await asyncio.sleep(0.01)
            if is_cancelled:
                for one in releases:
                    one.cancel()
            await asyncio.wait(releases)
            held = asyncio.create_task(asyncio.to_thread(
                lambda: [other.lock("a", wait=10).acquire(), other.acquire_task_lock("t1", wait=10)]))
            return [one.cancelled() or type(one.exception()) for one in releases], await held

    assert run(main()) == ([True if is_cancelled else StoreUnavailable] * 2, [True, True])


def test_block_ends_and_its_lock_with_it_while_no_thread_is_free(aio, other):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            async with aio.lock("a") as lock:
                await stack.enter_async_context(starved(aio))
            assert not lock.owned
            return await asyncio.to_thread(other.lock("a", wait=10).acquire)

    assert run(main())


def test_shutdown_keeps_its_timeout_while_no_thread_is_free(aio, other):
    async def main():
        aio.write("a", 1)
        async with starved(aio):
            await asyncio.wait_for(aio.shutdown(), 10)
            return other.read("a", consistent=True)

    assert run(main()) == 1


def test_reads_are_answered_while_many_wait_with_long_timeouts_until_writes_are_stored(aio, redis):
    async def main():
        await aio.read("a")
        redis.client_pause(60_000, all=False)
        try:
            aio.write("b", 1)
            waiting = [asyncio.create_task(aio.force_sync(timeout=60)) for _ in range(MAX_THREADS)]
            await asyncio.sleep(2 * TIMEOUT)
            answer = await aio.get_task("t1")
            assert not any(one.done() for one in waiting)
        finally:
            redis.client_unpause()
        await asyncio.gather(*waiting)
        return answer, await aio.read("b")

    assert run(main()) == (None, 1)
