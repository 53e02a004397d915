"""Locks, as callers acquire and read them."""
from __future__ import annotations

from collections.abc import Callable

from ..deadline import bounded
from ..keys import check_id
from ..locking.lock import Lock
from ..locking.lock_reader import LockReader
from ..locking.lock_service import LockService
from ..models.lock import LockRecord
from ..settings import Settings
from .checks import check_count, check_lock, check_seconds, check_ttl, check_wait


class LockRecords:
    """Makes lock objects, acquires the locks of tasks by id, and reads all locks that are held."""

    def __init__(self, settings: Settings, service: LockService, reader: LockReader) -> None:
        self.settings = settings
        self.timeout = settings.timeout
        self.service = service
        self.reader = reader
        self.store = service.store

    def lock(
        self, find: Callable[[], LockService], name: str, ttl: float | None, wait: float | None, max_hold: float | None,
        thread_local: bool,
    ) -> Lock:
        """Return a lock object, not acquired yet.

        Args:
            find: Returns the service that acquires it: another one after a shutdown.
            name: Taken as checked.
        """
        most = float("inf") if max_hold is None else check_seconds(max_hold, "max_hold", positive=True)
        return Lock(name, check_ttl(ttl, self.settings.lock_ttl), check_wait(wait), find, most, thread_local)

    def acquire_task(self, task_id: str, ttl: float | None, wait: float | None) -> bool:
        """Acquire the lock of a task; return whether that was possible."""
        return self.service.acquire_task(name_of(task_id), check_ttl(ttl, self.settings.lock_ttl), check_wait(wait))

    def release_task(self, task_id: str) -> bool:
        """Release the lock of a task; return whether this process still had it."""
        return self.service.release_task(name_of(task_id))

    @bounded
    def free(self, name: str, fence: int) -> bool:
        """Free a lock if it is held with a fence; return whether it was."""
        return self.store.free_lock(self.store.keys.lock_location(check_lock(name)), check_count(fence, "fence"))

    @bounded
    def held(self) -> list[LockRecord]:
        """Return all locks that are held, sorted by name."""
        return self.reader.held()

    @bounded
    def record(self, name: str) -> LockRecord | None:
        """Return the record of a held lock, or None if it is free."""
        return self.reader.record(check_lock(name))

    @bounded
    def awaited(self, task_id: str) -> LockRecord | None:
        """Return the record of the lock for which a task is waiting, or None if it waits for none."""
        return self.reader.awaited(check_id(task_id, "task"))


def name_of(task_id: str) -> str:
    """Return the name of the lock of a task."""
    return f"tasks/{check_id(task_id, 'task')}"
