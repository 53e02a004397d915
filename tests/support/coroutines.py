"""Run coroutines, and cancel them wherever they wait."""
from __future__ import annotations

import asyncio
import contextlib

from celery_memsync.aio.executor import executors_of

#: Seconds after which a coroutine of a test hangs.
TIMEOUT = 60


def run(coroutine, timeout=TIMEOUT):
    """Run a coroutine in an event loop of its own; return what it returns."""
    async def main():
        return await asyncio.wait_for(coroutine, timeout)

    return asyncio.run(main())


def threads_of(memsync):
    """Return how many threads make calls for coroutines."""
    return len(executors_of(memsync).calls._threads)


def watch_calls(memsync):
    """Return a set of what stands for each call that a thread makes for a coroutine, which may have been cancelled."""
    executor, under_way = executors_of(memsync).calls, set()
    submit = executor.submit

    def watched(work):
        call = object()
        under_way.add(call)

        def run():
            try:
                work()
            finally:
                under_way.discard(call)

        return submit(run)

    executor.submit = watched
    return under_way


async def cancel_after(steps, coroutine):
    """Cancel a coroutine after some steps of the event loop; return whether it ended before."""
    task = asyncio.create_task(coroutine)
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    ended = task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return ended


class CancelAt:
    """Awaits a coroutine and cancels the running task at one of its suspensions.

    Args:
        number: Of the suspension; 0: none is.
        with_answer: Whether it is cancelled when what it waits for is there, and it does not run yet.

    Attributes:
        count: How many suspensions there were.
    """

    def __init__(self, coroutine, number, with_answer):
        self.coroutine = coroutine
        self.number = number
        self.with_answer = with_answer
        self.count = 0

    def __await__(self):
        inner = self.coroutine.__await__()
        send, value = inner.send, None
        while True:
            try:
                future = send(value)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count == self.number:
                task = asyncio.current_task()
                if self.with_answer:
                    # The task's own callback comes later, so it is woken with the answer and the cancel.
                    future.add_done_callback(lambda _, task=task: task.cancel())
                else:
                    asyncio.get_running_loop().call_soon(task.cancel)
            try:
                send, value = inner.send, (yield future)
            except BaseException as exc:
                send, value = inner.throw, exc


async def cancelled_everywhere(make, check):
    """Cancel an operation at each of its suspensions, before and with the answer; return at most how many.

    Args:
        make: Returns the coroutine of the operation.
        check: Called after each; raises if something is left.
    """
    most = 0
    for with_answer in (False, True):
        number, ended = 0, False
        while not ended:
            number += 1
            attempt = CancelAt(make(), number, with_answer)
            task = asyncio.ensure_future(_awaited(attempt))
            with contextlib.suppress(asyncio.CancelledError):
                await task
            ended = attempt.count < number
            await check()
        most = max(most, number - 1)
    return most


async def _awaited(awaitable):
    return await awaitable


async def soon(check, timeout=10.0):
    """Return what ``check()`` answers as soon as that is true; the event loop runs meanwhile."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while not (answer := check()):
        assert loop.time() < end, f"{answer!r} after {timeout} s"
        await asyncio.sleep(0.01)
    return answer


async def everything(aio, name):
    """Use all kinds of calls; return what they return."""
    key = f"{name}/k"
    async with aio.watch(f"{name}/*") as changes, aio.lock(f"{name}", wait=5) as lock:
        aio.write(key, 1, fence=lock)
        await aio.force_sync()
        change = await changes.get(10)
        waiting = asyncio.create_task(aio.wait(name, timeout=20))
        other = asyncio.create_task(aio.lock(name, wait=20).acquire())
        await asyncio.sleep(0.05)
        await lock.release()
        aio.sync_task_state(name, {"status": "SUCCESS"})
        await aio.force_sync()
        return change.value, await aio.read(key), await other, (await waiting)["status"]
