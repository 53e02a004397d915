"""A cancel, wherever it strikes: it leaves no lock, no waiter, no subscription, and nothing half done."""
from __future__ import annotations

import asyncio
import contextlib

import pytest

from celery_memsync import AsyncMemSync, ConflictError
from tests.support.coroutines import CancelAt, cancel_after, cancelled_everywhere, run, soon, threads_of, watch_calls
from tests.support.stress import stressed


@pytest.fixture
def aio(memsync):
    aio = AsyncMemSync(memsync)
    aio.under_way = watch_calls(memsync)
    return aio


@pytest.fixture
def held(other):
    """A lock "a" that another process holds."""
    lock = other.lock("a", thread_local=False)
    assert lock.acquire()
    return lock


async def nothing_is_left(aio, redis, holder=None):
    """Return when nothing is left of operations that were cancelled."""
    runtime = aio.memsync.runtime

    def is_clean():
        # A request that was cut short may arrive within 2 seconds, so its release is sent again then.
        leases = [lease for lease in list(runtime.locks._leases.values()) if lease.state != "released"]
        # A call that a thread has begun for a coroutine that was cancelled takes its lock later, and gives it back.
        return (not aio.under_way and not leases and not len(runtime.feeds) and not len(runtime.subscriptions)
                and not redis.exists("task-sentinel/locks/{a}/queue/")
                and (aio.memsync.get_lock("a") is None) == (holder is None))

    await soon(is_clean)
    assert threads_of(aio.memsync) <= 8
    if holder is not None:
        assert holder.owned


async def block(aio, wait=0.0):
    async with aio.lock("a", wait=wait) as lock:
        lock.check()


async def acquire(aio, wait=0.0):
    lock = aio.lock("a", wait=wait)
    if await lock.acquire():
        await lock.release()


async def follow(aio, other):
    async with aio.watch("k/*") as changes:
        other.write("k/a", 1)
        asyncio.get_running_loop().call_later(0.01, other.force_sync)
        return await changes.get(10)


async def compare_and_set(aio):
    entry = await aio.read_entry("c")
    with contextlib.suppress(ConflictError):  # what was cancelled may still be under way
        await aio.write("c", 1, expected_version=0 if entry is None else entry.version)


async def wait_for_one(aio, other):
    asyncio.get_running_loop().call_later(0.005, other.runtime.writer.flush)
    other.sync_task_state("t1", {"status": "SUCCESS"})
    return await aio.wait("t1")


OPERATIONS = {
    "task": lambda aio, other: aio.get_task("t1"),
    "read": lambda aio, other: aio.read("a", consistent=True),
    "tasks": lambda aio, other: aio.get_tasks(),
    "wait": wait_for_one,
    "watch": follow,
    "block": lambda aio, other: block(aio),
    "acquire": lambda aio, other: acquire(aio),
    "extend": lambda aio, other: extend(aio),
    "compare-and-set": lambda aio, other: compare_and_set(aio),
    "force": lambda aio, other: aio.force_sync(),
}


async def extend(aio):
    async with aio.lock("a") as lock:
        await lock.extend(20)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_cancelled_at_any_suspension_leaves_nothing(aio, other, redis, name):
    async def main():
        await aio.read("a")
        return await cancelled_everywhere(
            lambda: OPERATIONS[name](aio, other), lambda: nothing_is_left(aio, redis))

    assert run(main()) >= 1


@pytest.mark.parametrize("name", ["block", "acquire", "watch", "wait", "compare-and-set", "read"])
def test_operation_cancelled_after_any_step_of_the_loop_leaves_nothing(aio, other, redis, name):
    async def main():
        await aio.read("a")
        steps, ended = 0, False
        while not ended:
            ended = await cancel_after(steps, OPERATIONS[name](aio, other))
            steps += 1 + steps // stressed(50, 10)
            await nothing_is_left(aio, redis)
        return steps

    assert run(main(), 100) > 3


def test_waiter_cancelled_at_any_suspension_leaves_the_queue(aio, redis, held):
    async def main():
        count = await cancelled_everywhere(
            lambda: aio.lock("a", wait=0.05).acquire(), lambda: nothing_is_left(aio, redis, held))
        assert count >= 3
        # Cancelled while it waits for its turn.
        for pause in (0, 0.001, 0.003, 0.01, 0.03, 0.1):
            task = asyncio.create_task(aio.lock("a", wait=5).acquire())
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait([task])
            await nothing_is_left(aio, redis, held)

    run(main())


def test_waiter_cancelled_around_its_turn_passes_the_lock_on(aio, other, redis):
    async def main():
        for steps in range(0, 400, stressed(1, 9)):
            held = other.lock("a", thread_local=False)
            assert held.acquire()
            first = asyncio.create_task(aio.lock("a", wait=20).acquire())
            await soon(lambda: redis.llen("task-sentinel/locks/{a}/queue/") == 1)
            second = asyncio.create_task(block(aio, wait=20))
            await soon(lambda: redis.llen("task-sentinel/locks/{a}/queue/") == 2)
            held.release()
            for _ in range(steps):
                await asyncio.sleep(0)
            first.cancel()  # if it has ended, its lock goes with its object
            await asyncio.wait([first])
            del first
            await asyncio.wait_for(second, 20)
            await nothing_is_left(aio, redis)

    run(main(), 100)


def test_lock_of_a_task_cancelled_at_any_suspension_is_free(aio, other):
    async def main():
        async def check():
            await soon(lambda: not aio.memsync.runtime.locks._leases)

        async def operation():
            if await aio.acquire_task_lock("t1"):
                await aio.release_task_lock("t1")

        return await cancelled_everywhere(operation, check)

    assert run(main()) >= 2
    assert other.acquire_task_lock("t1")


def test_dequeue_that_is_cancelled_gives_its_task_to_the_next(aio):
    async def main():
        for number in range(20):
            await aio.enqueue(f"t{number}")
        taken = []

        async def take():
            taken.append(await aio.dequeue())

        await cancelled_everywhere(take, lambda: asyncio.sleep(0.01))
        while taken[-1] is not None:
            await take()
        return taken[:-1]

    assert run(main()) == [f"t{number}" for number in range(20)]


@pytest.mark.parametrize("with_answer", [False, True])
def test_same_compare_and_set_after_a_cancel_is_done_once(aio, redis, with_answer):
    async def main():
        await aio.read("c")
        write = CancelAt(aio.write("c", 1, expected_version=0), 1, with_answer)
        task = asyncio.ensure_future(awaited(write))
        await asyncio.wait([task])
        await asyncio.sleep(0.1)
        entry = await aio.write("c", 1, expected_version=0)
        return task.cancelled(), entry.version, (await aio.read_entry("c")).version

    assert run(main()) == (True, 1, 1)


@pytest.mark.parametrize(("call", "answers"), [
    (lambda aio: aio.write("c", 1, expected_version=0), ["Entry", "ConflictError"]),
    (lambda aio: aio.enqueue("t1"), [True, False]),
    (lambda aio: aio.complete("t0"), [True, False]),
    (lambda aio: aio.dequeue(), ["t0", None]),
])
def test_same_call_while_the_cancelled_one_is_under_way_is_done_once(aio, redis, call, answers):
    async def answer():
        try:
            value = await call(aio)
        except ConflictError:
            return "ConflictError"
        return value if value is None or isinstance(value, (str, bool)) else type(value).__name__

    async def main():
        for pause in (0.0002 * number for number in range(0, 100, stressed(1, 5))):
            aio.delete("c")
            await asyncio.gather(aio.force_sync(), aio.complete("t0"), aio.complete("t1"))
            await aio.enqueue("t0")
            redis.client_pause(30)
            task = asyncio.create_task(call(aio))
            await asyncio.sleep(pause)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                assert [await answer(), await answer()] == answers, pause

    run(main())


def test_many_same_calls_after_a_cancel_do_it_once(aio, redis):
    async def main():
        await aio.read("c")
        redis.client_pause(200)
        task = asyncio.create_task(aio.enqueue("t1"))
        await asyncio.sleep(0.05)
        task.cancel()
        return await asyncio.gather(*(aio.enqueue("t1") for _ in range(20)))

    assert sorted(run(main())) == [False] * 19 + [True]


def test_same_call_that_is_cancelled_again_and_again_is_done_once_when_it_is_not(aio, redis):
    async def main():
        await aio.read("a")
        for number in range(stressed(60, 15)):
            redis.client_pause(20)
            for pause in (0.0005, 0.001, 0.002, 0.003, 0.0005, 0.001):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(aio.enqueue(f"t{number}"), pause)
            began = asyncio.get_running_loop().time()
            answers = [await aio.enqueue(f"t{number}"), await aio.enqueue(f"t{number}")]
            assert (answers, asyncio.get_running_loop().time() - began < 2.5) == ([True, False], True)

    run(main())


async def awaited(awaitable):
    return await awaitable


def test_release_that_is_cancelled_before_it_begins_is_done(aio, other):
    async def main():
        lock = aio.lock("a")
        await lock.acquire()
        task = asyncio.create_task(lock.release())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await soon(lambda: not aio.memsync.runtime.locks._leases)

    run(main())
    assert other.lock("a").acquire()


def test_shutdown_that_is_cancelled_goes_on(aio, other):
    async def main():
        aio.write("a", 1)
        task = asyncio.create_task(aio.shutdown())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await soon(lambda: other.read("a", consistent=True) == 1)
        return task.cancelled()

    assert run(main())
