"""`AsyncMemSync` beside the manager: the same methods, arguments, answers and errors."""
from __future__ import annotations

import asyncio
import inspect

import pytest
from celery import Celery

from celery_memsync import (
    AsyncMemSync,
    ConflictError,
    InvalidKey,
    InvalidValue,
    LockLost,
    MemorySyncManager,
    StoreUnavailable,
)
from tests.support.coroutines import run

#: Methods of the manager that wait for nothing, so they are plain calls here.
PLAIN = {
    "clear_cache", "delete", "get_metrics", "increment_metrics", "off", "on", "sync_agent_coordination", "sync_assignments",
    "sync_metrics", "sync_queue", "sync_task_progress", "sync_task_state", "sync_worker_capacity", "sync_worker_status",
    "unsubscribe", "update_heartbeat", "write", "lock", "task_lock", "watch",
}

METHODS = {
    name for name, member in vars(MemorySyncManager).items()
    if inspect.isfunction(member) and not name.startswith("_") and name != "sync_task_run"}


@pytest.fixture
def aio(memsync):
    return AsyncMemSync(memsync)


def parameters_of(method):
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()
            if one.name != "thread_local"]  # acquisitions belong to asyncio's tasks


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_of_the_manager_is_there_with_its_arguments(name):
    assert parameters_of(getattr(AsyncMemSync, name)) == parameters_of(getattr(MemorySyncManager, name))


def test_client_of_something_else_than_a_manager_is_refused():
    with pytest.raises(TypeError, match="takes a MemSync or a MemorySyncManager, not Celery"):
        AsyncMemSync(Celery("proj", set_as_current=False))


def test_what_waits_for_redis_is_a_coroutine_and_nothing_else_is():
    coroutines = {name for name in METHODS if inspect.iscoroutinefunction(getattr(AsyncMemSync, name))}
    generators = {"iter_entries", "iter_tasks"}

    assert coroutines == METHODS - PLAIN - generators


def test_coroutine_reads_what_this_process_wrote_by_a_plain_call(aio, other):
    async def main():
        aio.sync_task_state("t1", {"status": "STARTED"})
        aio.sync_task_progress("t1", 40)
        aio.write("a/b", {"x": 1})
        progress = await aio.get_task_progress("t1")
        return await aio.get_task_state("t1"), progress["progress"], await aio.read("a/b")

    assert run(main()) == ({"status": "STARTED"}, 40, {"x": 1})
    assert other.read("a/b") == {"x": 1}


def test_coroutine_that_reads_a_valid_copy_never_suspends(aio, other):
    async def main():
        other.write("a", 1)
        other.sync_task_state("t1", {"x": 2})
        other.force_sync()
        await aio.read("a")
        await aio.get_task_state("t1")
        answers = []
        for read in (aio.read("a"), aio.get_task_state("t1")):
            with pytest.raises(StopIteration) as end:
                read.send(None)
            answers.append(end.value.value)
        return answers

    assert run(main()) == [1, {"x": 2}]


def test_reads_count_as_those_of_the_manager(aio, memsync):
    async def main():
        for _ in range(3):
            await aio.read("a")
        await aio.read("a", consistent=True)
        await aio.read("a", max_age=5)

    run(main())
    metrics = memsync.get_metrics()

    assert (metrics["reads"], metrics["cache_hits"], metrics["cache_misses"]) == (5, 3, 1)


def test_write_with_an_expected_version_is_awaited(aio):
    async def main():
        first = await aio.write("a", 1, expected_version=0)
        second = await aio.write("a", 2, expected_version=first.version)
        with pytest.raises(ConflictError):
            await aio.write("a", 3, expected_version=first.version)
        return second.version, await aio.read("a")

    assert run(main()) == (2, 2)


def test_iterators_yield_all_tasks_and_entries(aio, other):
    for number in range(450):
        other.sync_task_state(f"t{number}", {"n": number})
        other.write(f"k/{number}", number)
    other.force_sync()

    async def main():
        tasks = [task["id"] async for task in aio.iter_tasks(at_once=100)]
        return tasks, [entry.value async for entry in aio.iter_entries("k/*")]

    tasks, values = run(main())
    assert sorted(tasks) == sorted(f"t{number}" for number in range(450))
    assert sorted(values) == list(range(450))


def test_shared_queue_works_as_with_the_manager(aio):
    async def main():
        assert await aio.enqueue("t1") and not await aio.enqueue("t1")
        return await aio.dequeue(), await aio.get_queue(), await aio.complete("t1"), await aio.dequeue()

    assert run(main()) == ("t1", {"pending": [], "processing": ["t1"]}, True, None)


@pytest.mark.parametrize("call, error", [
    (lambda aio: aio.get_task_state("a/b"), InvalidKey),
    (lambda aio: aio.read("a", max_age=-1), InvalidValue),
    (lambda aio: aio.wait("a/b"), InvalidKey),
    (lambda aio: aio.wait("a", timeout="long"), InvalidValue),
    (lambda aio: aio.force_sync("long"), InvalidValue),
    (lambda aio: aio.get_tasks(at_once=3), TypeError),
], ids=["id", "max_age", "wait", "timeout", "force", "arguments"])
def test_error_of_the_caller_is_that_of_the_manager(aio, call, error):
    async def main():
        with pytest.raises(error):
            await call(aio)

    run(main())


def test_fault_of_a_plain_call_raises_at_once(aio):
    with pytest.raises(InvalidValue):
        aio.write("a", object())
    with pytest.raises(InvalidKey):
        aio.sync_task_state("a/b", {})


def test_error_of_redis_is_that_of_the_manager_and_comes_in_time(make_memsync):
    aio = AsyncMemSync(make_memsync(url="redis://127.0.0.1:1", timeout=0.5))

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        results = await asyncio.gather(*(aio.get_task(f"t{n}") for n in range(50)), return_exceptions=True)
        return {type(result) for result in results}, loop.time() - began

    kinds, seconds = run(main())
    assert kinds == {StoreUnavailable}
    assert seconds < 0.5 + 0.5


def test_calls_that_wait_for_a_stuck_redis_end_in_time_however_many_they_are(make_memsync, own_server):
    aio = AsyncMemSync(make_memsync(url=own_server.url, timeout=1.0))

    async def main():
        await aio.read("a")
        own_server.pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        results = await asyncio.gather(
            *(aio.read("a", consistent=True) for _ in range(100)), return_exceptions=True)
        return {type(result) for result in results}, loop.time() - began

    try:
        kinds, seconds = run(main())
    finally:
        own_server.resume()
    assert kinds == {StoreUnavailable}
    assert seconds < 1.0 + 0.5


def test_lost_fence_is_reported_to_the_coroutine_that_wrote(aio, other, make_memsync):
    async def main():
        async with aio.lock("a") as lock:
            other.free_lock("a", lock.fence)
            with other.lock("a") as later:
                other.write("k", "later", fence=later)
                other.force_sync()
                aio.write("k", "earlier", fence=lock)
                with pytest.raises(LockLost):
                    await aio.force_sync()
                await aio.force_sync()

    run(main())


def test_without_an_event_loop_there_is_a_clear_error_at_once(aio):
    for call in (lambda: aio.watch("*"), lambda: aio.lock("a").acquire().send(None), lambda: aio.read("a").send(None),
                 lambda: aio.wait("a").send(None), lambda: aio.force_sync().send(None)):
        with pytest.raises(RuntimeError, match=r"AsyncMemSync needs a running event loop of asyncio .* trio"):
            call()


def test_block_opens_the_manager_and_shuts_it_down(memsync, other):
    async def main():
        async with AsyncMemSync(memsync) as aio:
            aio.write("a", 1)

    run(main())
    assert memsync._lifetime.runtime is None
    assert other.read("a") == 1
