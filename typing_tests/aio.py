"""The manager for coroutines has the signatures and results of the manager."""
from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celery_memsync import (
    AsyncMemSync,
    Entry,
    Group,
    ListedTask,
    LockRecord,
    MemSync,
    ProcessMetrics,
    QueueLists,
    TaskProgress,
    TaskRecord,
    TaskState,
    WorkerRecord,
    Workflow,
)
from celery_memsync.aio.lock import AsyncLock
from celery_memsync.aio.watch import AsyncWatch
from celery_memsync.reading.subscription import KeyChange

aio = AsyncMemSync(MemSync())


async def reads_are_awaited() -> None:
    assert_type(await aio.get_task_state("t1"), TaskState | None)
    assert_type(await aio.get_task_progress("t1"), TaskProgress | None)
    assert_type(await aio.get_task("t1"), TaskRecord | None)
    assert_type(await aio.get_tasks(limit=3), list[ListedTask])
    assert_type(await aio.get_group("g1"), Group | None)
    assert_type(await aio.get_workflow("g1"), Workflow | None)
    assert_type(await aio.get_queue(), QueueLists)
    assert_type(await aio.get_workers(), list[WorkerRecord])
    assert_type(await aio.get_lock("printer"), LockRecord | None)
    assert_type(await aio.read("a", max_age=1.0), Any)
    assert_type(await aio.read_entry("a"), Entry | None)
    assert_type(await aio.read_many(["a"]), dict[str, Any])
    assert_type(await aio.wait("t1", timeout=5.0), TaskState)
    assert_type(aio.get_metrics(), ProcessMetrics)
    aio.get_task("t1")["state"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    await aio.get_task(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await aio.get_tasks(size=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def iterators_are_asynchronous() -> None:
    async for task in aio.iter_tasks(since=0.0):
        assert_type(task, ListedTask)
    async for entry in aio.iter_entries("a/*"):
        assert_type(entry, Entry)
    async with aio.watch("a/*", timeout=5.0) as changes:
        assert_type(changes, AsyncWatch)
        async for change in changes:
            assert_type(change, KeyChange)
    list(aio.watch("a/*"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def writes_are_plain_calls() -> None:
    assert_type(aio.sync_task_state("t1", {"frames": 3}), None)
    assert_type(aio.increment_metrics(frames=3), None)
    assert_type(aio.write("a", 1), None)
    assert_type(await aio.write("a", 1, expected_version=0), Entry)
    await aio.write("a", 1)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


async def atomic_operations_are_awaited() -> None:
    assert_type(await aio.enqueue("t1"), bool)
    assert_type(await aio.dequeue(), str | None)
    assert_type(await aio.cancel("t1", "no need", terminate=True), str | None)
    assert_type(await aio.acquire_task_lock("t1", wait=5.0), bool)
    await aio.force_sync(timeout=5.0)


async def lock_is_a_context_manager() -> None:
    async with aio.lock("printer", ttl=60.0) as lock:
        assert_type(lock, AsyncLock)
        assert_type(lock.fence, int)
        aio.write("printer/page", 1, fence=lock)
        await lock.extend(30.0)
    assert_type(await aio.lock("printer").acquire(), bool)
    with aio.lock("printer"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def client_is_a_context_manager() -> None:
    async with AsyncMemSync(MemSync()) as one:
        assert_type(one, AsyncMemSync)
        assert_type(await one.subscribe("a/*", lambda key, value: print(key, value)), str)
