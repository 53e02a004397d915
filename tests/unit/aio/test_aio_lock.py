"""`lock` for coroutines."""
from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from celery_memsync import AsyncMemSync, InvalidKey, LockLost, LockNotAcquired, StoreUnavailable
from tests.support.coroutines import run, soon, threads_of
from tests.support.waiting import eventually


@pytest.fixture
def aio(memsync):
    return AsyncMemSync(memsync)


async def queued(aio, number, name="a"):
    """Return when so many wait for a lock."""
    while True:
        record = await aio.get_lock(name)
        if record is not None and record.waiters == number:
            return
        await asyncio.sleep(0.01)


def test_block_holds_the_lock_and_releases_it(aio, other):
    async def main():
        async with aio.lock("a") as lock:
            inside = lock.owned, lock.fence > 0, other.lock("a").acquire()
            lock.check()
        return inside, lock.owned

    assert run(main()) == ((True, True, False), False)
    assert other.lock("a").acquire()


def test_acquire_returns_false_and_a_block_raises_while_another_holder_has_it(aio, other):
    other.lock("a").acquire()
    held = other.lock("b")
    held.acquire()

    async def main():
        with pytest.raises(LockNotAcquired, match="the lock b is held by worker-2"):
            async with aio.lock("b", wait=0.1):
                pass
        return await aio.lock("b").acquire(), await aio.lock("b", wait=0.1).acquire()

    assert run(main()) == (False, False)


def test_waiters_get_it_in_the_order_in_which_they_came_also_beside_threads(aio, other):
    async def main():
        order = []
        held = other.lock("a", thread_local=False)
        held.acquire()

        async def take(number):
            async with aio.lock("a", wait=20):
                order.append(number)

        def take_in_thread(number):
            with other.lock("a", wait=20):
                order.append(number)

        tasks, threads = [], []
        for number in range(8):
            if number % 3:
                tasks.append(asyncio.create_task(take(number)))
            else:
                threads.append(threading.Thread(target=take_in_thread, args=(number,)))
                threads[-1].start()
            await queued(aio, number + 1)
        await asyncio.to_thread(held.release)
        await asyncio.gather(*tasks)
        for thread in threads:
            await asyncio.to_thread(thread.join, 10)
        return order

    assert run(main()) == list(range(8))


def test_fence_of_a_lock_refuses_writes_of_earlier_holders(aio, other):
    async def main():
        async with aio.lock("a") as lock:
            aio.write("k", 1, fence=lock)
            entry = await aio.write("c", 1, expected_version=0, fence=lock)
            assert entry.version == 1
        with pytest.raises(LockLost):
            aio.write("k", 1, fence=aio.lock("b"))
        await aio.force_sync()
        async with aio.lock("a") as later:
            aio.write("k", 2, fence=later)
            await aio.force_sync()
        aio.write("k", 3, fence=lock.fence)
        with pytest.raises(LockLost):
            await aio.force_sync()
        return await aio.read("k", consistent=True), lock.fence < later.fence

    assert run(main()) == (2, True)


def test_lost_lock_is_not_taken_for_held(aio, other):
    async def main():
        async with aio.lock("a", ttl=0.5) as lock:
            await aio.free_lock("a", lock.fence)
            await soon(lambda: not lock.owned)
            with pytest.raises(LockLost):
                lock.check()
            with pytest.raises(LockLost):
                await lock.extend(5)
            with pytest.raises(LockLost):
                await lock.acquire()
            await soon(lambda: other.lock("a").acquire())  # what it got is released by a thread
        return await lock.release()

    assert run(main()) is False


def test_extend_lengthens_the_lease(aio):
    async def main():
        async with aio.lock("a", ttl=2) as lock:
            await lock.extend(60)
            return (await aio.get_lock("a")).ttl > 50

    assert run(main())


def test_lease_is_renewed_while_it_is_held_and_no_longer_than_max_hold(aio):
    async def main():
        async with aio.lock("a", ttl=0.3) as lock, aio.lock("b", ttl=0.3, max_hold=0.5) as bounded:
            await asyncio.sleep(1)
            return lock.owned, bounded.owned

    assert run(main()) == (True, False)


def test_acquisition_belongs_to_the_asyncio_task(aio):
    lock = []

    async def take(gate, done):
        async with lock[0]:
            done.append(lock[0].fence)
            await gate.wait()
            done.append((lock[0].fence, lock[0].owned))

    async def main():
        lock.append(aio.lock("a", wait=20))
        gate, first, second = asyncio.Event(), [], []
        tasks = [asyncio.create_task(take(gate, first))]
        await soon(lambda: first)
        tasks.append(asyncio.create_task(take(gate, second)))
        await queued(aio, 1)
        in_a_third = lock[0].owned, lock[0].fence == first[0]
        gate.set()
        await asyncio.gather(*tasks)
        return in_a_third, first[1] == (first[0], True), second[1] == (second[0], True), first[0] < second[0]

    assert run(main()) == ((True, True), True, True, True)


def test_lock_whose_object_is_collected_is_released(aio, other):
    async def main():
        lock = aio.lock("a", ttl=0.3)
        assert await lock.acquire()

    run(main())
    gc.collect()
    eventually(lambda: other.lock("a").acquire())


def test_block_that_another_task_leaves_releases_the_lock(aio, other):
    async def main():
        lock = aio.lock("a")
        await asyncio.create_task(lock.__aenter__())
        await lock.__aexit__(None, None, None)

    run(main())
    assert other.lock("a").acquire()


def test_lock_of_a_task_is_that_of_the_manager(aio, memsync, other):
    async def main():
        first = await aio.acquire_task_lock("t1"), await aio.acquire_task_lock("t1"), other.acquire_task_lock("t1")
        released = await aio.release_task_lock("t1"), await aio.release_task_lock("t1")
        async with aio.task_lock("t1"):
            return first, released, other.acquire_task_lock("t1")

    assert run(main()) == ((True, False, False), (True, False), False)


def test_waiting_for_the_lock_of_a_task_ends_when_it_is_released(aio, other):
    other.acquire_task_lock("t1")

    async def main():
        waiting = asyncio.create_task(aio.acquire_task_lock("t1", wait=20))
        await queued(aio, 1, "tasks/t1")
        other.release_task_lock("t1")
        return await waiting

    assert run(main())


def test_bad_arguments_raise_at_once(aio):
    async def main():
        with pytest.raises(InvalidKey):
            aio.lock("a/b")
        with pytest.raises(ValueError):
            aio.lock("a", ttl=-1)

    run(main())


def test_error_of_redis_is_that_of_the_manager_and_comes_in_time(make_memsync):
    aio = AsyncMemSync(make_memsync(url="redis://127.0.0.1:1", timeout=0.5))

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(StoreUnavailable):
            await aio.lock("a", wait=1).acquire()
        return loop.time() - began

    assert run(main()) < 0.5 + 1 + 0.5


def test_waiting_is_given_up_at_a_shutdown(aio, other):
    held = other.lock("a")
    held.acquire()

    async def main():
        waiting = asyncio.create_task(aio.lock("a", wait=30).acquire())
        await queued(aio, 1)
        await aio.shutdown()
        return await asyncio.wait_for(waiting, 5)

    assert run(main()) is False


def test_many_waiters_take_no_thread_each(aio, other):
    held = other.lock("a")
    held.acquire()

    async def main():
        waits = [asyncio.create_task(aio.lock("a", wait=60).acquire()) for _ in range(40)]
        await queued(aio, 40)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        await queued(aio, 0)
        return threads_of(aio.memsync)

    assert run(main()) <= 8
