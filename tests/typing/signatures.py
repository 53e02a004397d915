"""What type checkers see of the public names: `make lint` checks this file, nothing runs it.

An ignored error is a part of it: mypy reports an ignore that is not needed.
"""
from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celery_memsync import AsyncMemSync, Entry, Lock, LockRecord, MemorySyncManager, MemSync, WorkerRecord
from celery_memsync.aio.lock import AsyncLock
from celery_memsync.reading.subscription import KeyChange

memsync = MemSync()


@memsync.locked("invoice:{invoice_id}", on_locked="retry")
def send(invoice_id: int, copy: bool = False) -> str:
    return f"{invoice_id}{copy}"


@memsync.exclusive
def render(video_id: int) -> bytes:
    return bytes(video_id)


@memsync.exclusive(ttl=60.0)
def render_again(video_id: int) -> bytes:
    return bytes(video_id)


def decorators_keep_signatures() -> None:
    assert_type(send(1, copy=True), str)
    assert_type(render(1), bytes)
    assert_type(render_again(video_id=1), bytes)
    send("one")  # type: ignore[arg-type]
    render()  # type: ignore[call-arg]
    render_again(1, 2)  # type: ignore[call-arg]


def track_keeps_the_type_of_items() -> None:
    for item in memsync.track(["a", "b"]):
        assert_type(item, str)


def tokens_are_texts() -> None:
    assert_type(memsync.token("t1"), str)
    assert_type(memsync.check_token(memsync.token("t1", max_age=60)), str)


def manager_returns_records() -> None:
    with MemorySyncManager(worker_id="w1") as manager:
        assert_type(manager, MemorySyncManager)
        assert_type(manager.read_entry("a"), Entry | None)
        assert_type(manager.get_task_state("t1"), dict[str, Any] | None)
        assert_type(manager.get_workers(), list[WorkerRecord])
        assert_type(manager.locks(), list[LockRecord])
        assert_type(manager.enqueue("t1"), bool)
        assert_type(manager.cancel("t1", "no need", terminate=True), str | None)
        assert_type(manager.dequeue(), str | None)
    with memsync.lock("printer", ttl=60.0) as lock:
        assert_type(lock, Lock)
        assert_type(lock.fence, int)


async def coroutines_return_what_the_manager_returns() -> None:
    async with AsyncMemSync(memsync) as aio:
        assert_type(aio, AsyncMemSync)
        assert_type(await aio.get_task_state("t1"), dict[str, Any] | None)
        assert_type(await aio.get_workers(), list[WorkerRecord])
        assert_type(await aio.enqueue("t1"), bool)
        assert_type(await aio.wait("t1", timeout=3), dict[str, Any])
        assert_type(await aio.write("a", 1, expected_version=0), Entry)
        await aio.get_task_state(1)  # type: ignore[arg-type]
        await aio.sync_task_state("t1", {})  # type: ignore[misc]
        async for entry in aio.iter_entries():
            assert_type(entry, Entry)
        async with aio.watch("a/*") as changes:
            async for change in changes:
                assert_type(change, KeyChange)
        async with aio.lock("printer", wait=3) as lock:
            assert_type(lock, AsyncLock)
            aio.write("a", 1, fence=lock)
