"""Event loops of every kind, in several threads, closed, interrupted, forked."""
from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from functools import partial

import anyio
import pytest
import trio

from celery_memsync import AsyncMemSync
from tests.support.coroutines import everything, run, soon
from tests.support.threads import in_background
from tests.support.waiting import eventually

if sys.platform != "win32" and sys.implementation.name == "cpython":
    import uvloop
else:
    uvloop = None


@pytest.fixture
def aio(memsync):
    return AsyncMemSync(memsync)


def run_with_uvloop(coroutine):
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def run_with_anyio(coroutine):
    async def main():
        return await coroutine

    return anyio.run(main, backend="asyncio")


RUNNERS = [run, run_with_anyio, *([run_with_uvloop] if uvloop else [])]


@pytest.mark.parametrize("runner", RUNNERS)
def test_everything_works_in_an_event_loop_of(aio, runner):
    assert runner(everything(aio, "a")) == (1, 1, True, "SUCCESS")


def test_event_loops_of_several_threads_use_one_manager_at_the_same_time(aio, memsync):
    answers = [in_background(lambda runner=runner, number=number: runner(everything(aio, f"n{number}-{at}")))
               for at, runner in enumerate(RUNNERS) for number in range(3)]

    assert [answer() for answer in answers] == [(1, 1, True, "SUCCESS")] * len(answers)
    eventually(lambda: len(memsync.runtime.feeds) == 0)


def test_change_reaches_the_watchers_of_all_event_loops(aio, other):
    entered = threading.Barrier(4)

    async def follow():
        async with aio.watch("k/*") as changes:
            await asyncio.to_thread(entered.wait, 10)
            return (await changes.get(10)).value

    answers = [in_background(lambda: run(follow())) for _ in range(3)]
    entered.wait(10)
    other.write("k/a", 5)
    other.force_sync()

    assert [answer() for answer in answers] == [5, 5, 5]


def test_cancel_scope_of_anyio_ends_every_kind_of_waiting(aio, other, memsync):
    other.lock("a").acquire()
    held = other.lock("b", thread_local=False)
    held.acquire()

    async def main():
        ended = []
        for wait in (lambda: aio.wait("t"), lambda: aio.watch("k/*").get(), lambda: aio.lock("b", wait=60).acquire(),
                     lambda: anyio.sleep(60)):
            with anyio.move_on_after(0.1) as scope:
                await wait()
            ended.append(scope.cancelled_caught)
        with anyio.move_on_after(0.1):
            async with aio.lock("c"):
                await anyio.sleep(60)
        async with anyio.create_task_group() as group:
            group.start_soon(aio.wait, "t")
            await anyio.sleep(0.1)
            group.cancel_scope.cancel()
        return ended

    assert run_with_anyio(main()) == [True] * 4
    eventually(lambda: other.lock("c").acquire())
    gc.collect()
    eventually(lambda: len(memsync.runtime.feeds) == 0 and memsync.get_lock("b").waiters == 0)


def test_trio_gets_a_clear_error_at_once(aio):
    async def main():
        for call in (aio.read, aio.get_task, aio.wait):
            with pytest.raises(RuntimeError, match="trio is not supported"):
                await call("a")
        with pytest.raises(RuntimeError, match="trio is not supported"):
            aio.watch("*")

    trio.run(main)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, *([uvloop.new_event_loop] if uvloop else [])])
def test_loop_that_is_closed_leaves_no_waiter(aio, other, memsync, make_loop):
    held = other.lock("a", thread_local=False)
    held.acquire()
    memsync.read("x")
    loop = make_loop()

    async def begin():
        tasks = [asyncio.ensure_future(one) for one in (
            aio.wait("t"), aio.watch("k/*").get(), aio.lock("a", wait=60).acquire())]
        await soon(lambda: len(memsync.runtime.feeds) == 2 and memsync.get_lock("a").waiters == 1)
        for task in tasks:
            task._log_destroy_pending = False

    loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.collect()

    eventually(lambda: len(memsync.runtime.feeds) == 0 and memsync.get_lock("a").waiters == 0)
    assert run(aio.read("x")) is None


def test_task_that_only_waits_is_not_collected(aio, other, memsync):
    async def main():
        ended = []

        async def wait():
            ended.append((await aio.wait("t"))["status"])

        asyncio.ensure_future(wait())  # noqa: RUF006
        await soon(lambda: memsync._lifetime.runtime and len(memsync.runtime.feeds))
        gc.collect()
        other.sync_task_state("t", {"status": "SUCCESS"})
        other.force_sync()
        return await soon(lambda: ended)

    assert run(main()) == ["SUCCESS"]


@pytest.mark.parametrize("steps", range(4))
def test_lock_that_is_granted_to_a_loop_that_is_closed_is_released(aio, other, memsync, steps):
    memsync.read("x")
    loop = asyncio.new_event_loop()

    async def begin():
        await aio.read("x")
        task = asyncio.ensure_future(aio.lock("a", ttl=2.0).acquire())
        task._log_destroy_pending = False
        for _ in range(steps):
            await asyncio.sleep(0)

    loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.collect()

    eventually(lambda: not [lease for lease in list(memsync.runtime.locks._leases.values()) if lease.state != "released"])
    eventually(lambda: other.lock("a").acquire())


def test_keyboard_interrupt_of_the_loop_releases_its_locks_and_subscriptions(aio, other, memsync):
    held = other.lock("b", thread_local=False)
    held.acquire()

    async def main():
        async with aio.lock("a"), aio.watch("k/*"):
            threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
            await asyncio.gather(aio.wait("t"), aio.lock("b", wait=60).acquire())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    eventually(lambda: other.lock("a").acquire())
    gc.collect()
    eventually(lambda: len(memsync.runtime.feeds) == 0 and memsync.get_lock("b").waiters == 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_has_a_new_loop_and_threads_of_its_own(aio, other):
    assert run(everything(aio, "parent")) == (1, 1, True, "SUCCESS")

    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if run(everything(aio, "child"), 30) == (1, 1, True, "SUCCESS") else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert run(everything(aio, "again")) == (1, 1, True, "SUCCESS")


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, *([uvloop.new_event_loop] if uvloop else [])])
def test_loop_that_is_closed_with_answers_and_changes_pending_is_collected(aio, other, memsync, make_loop):
    loop = make_loop()
    find = weakref.ref(loop)
    answered = threading.Event()

    async def begin():
        changes = await aio.watch("k/*").__aenter__()
        call = asyncio.ensure_future(aio._call(answered.wait))
        await asyncio.sleep(0.1)
        return changes, call

    pending = loop.run_until_complete(begin())
    answered.set()
    other.write("k/a", 1)
    other.force_sync()
    eventually(partial(len, pending[0]._changes))
    loop.close()
    del loop, pending

    eventually(lambda: gc.collect() is not None and find() is None)
    eventually(lambda: len(memsync.runtime.feeds) == 0)
