"""What type checkers see of the public names: `make lint` checks this file, nothing runs it.

An ignored error is a part of it: mypy reports an ignore that is not needed.
"""
from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from celery_memsync import Entry, Lock, LockRecord, MemorySyncManager, MemSync, WorkerRecord

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
