"""Locks, and atomic operations."""
from __future__ import annotations

from typing_extensions import assert_type

from celery_memsync import Entry, Lock, LockFacts, LockLost, LockNotAcquired, LockRecord, MemorySyncManager

manager = MemorySyncManager(worker_id="w1")


def lock_is_a_context_manager() -> None:
    with manager.lock("printer", ttl=60.0, wait=None, max_hold=300.0) as lock:
        assert_type(lock, Lock)
        assert_type(lock.fence, int)
        assert_type(lock.owned, bool)
        manager.write("printer/page", 1, fence=lock)
        manager.write("printer/page", 1, fence=lock.fence)
        lock.extend(30.0)
        lock.check()
    with manager.task_lock("t1") as lock:
        assert_type(lock, Lock)
    manager.lock("printer", "60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.write("printer/page", 1, fence="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_block_does_not_hide_that_a_name_is_bound() -> int:
    with manager.lock("printer"):
        page = 1
    return page


def lock_is_acquired_and_released() -> None:
    lock = manager.lock("printer")
    assert_type(lock.acquire(), bool)
    assert_type(lock.release(), bool)
    assert_type(manager.acquire_task_lock("t1", wait=5.0), bool)
    assert_type(manager.release_task_lock("t1"), bool)
    assert_type(manager.free_lock("printer", 3), bool)


def locks_are_described() -> None:
    assert_type(manager.locks(), list[LockRecord])
    assert_type(manager.get_awaited_lock("t1"), LockRecord | None)
    record = manager.get_lock("printer")
    if record is not None:
        assert_type(record.task_id, str | None)
    print(record.fence)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


def errors_say_what_happened(taken: LockNotAcquired, lost: LockLost) -> None:
    assert_type(taken.facts, LockFacts)
    assert_type(taken.facts["name"], str)
    assert_type(taken.facts.get("task_id"), str | None)
    assert_type(lost.name, str)


def atomic_operations_return_what_they_did() -> None:
    assert_type(manager.write("a", 1, expected_version=0), Entry | None)
    assert_type(manager.enqueue("t1"), bool)
    assert_type(manager.dequeue(), str | None)
    assert_type(manager.complete("t1"), bool)
    assert_type(manager.cancel("t1", "no need", terminate=True), str | None)
    manager.cancel("t1", "no need", True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
