"""A shared memory in Redis for the processes of a Celery app.

What it is made of is imported when it is asked for: the `celery` command imports this package in all of its processes.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What comes back
    from .conflicts import Resolution
    # What is raised
    from .exceptions import (ConflictError, InvalidKey, InvalidValue, LockError, LockLost, LockNotAcquired,
                             MemSyncError, NotInTask, StoreError, ValueTooLarge)
    # What a user makes
    from .locks import Lock
    from .manager import MemorySyncManager
    from .plugin import MemSync
    from .records import Entry, LockRecord, WorkerRecord

__version__ = "0.1.0"

__all__ = [
    "MemorySyncManager", "MemSync", "Lock",
    "Resolution", "Entry", "LockRecord", "WorkerRecord",
    "ConflictError", "InvalidKey", "InvalidValue", "LockError", "LockLost", "LockNotAcquired", "MemSyncError",
    "NotInTask", "StoreError", "ValueTooLarge",
]

#: Modules of what is public, by name; errors have the same.
_HOMES = {
    "MemorySyncManager": "manager", "MemSync": "plugin", "Lock": "locks", "Resolution": "conflicts",
    "Entry": "records", "LockRecord": "records", "WorkerRecord": "records",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'exceptions')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
