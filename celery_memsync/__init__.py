"""A shared memory in Redis for the processes of a Celery app."""
from __future__ import annotations

__version__ = "0.1.0"

# What comes back
from .conflicts import Resolution
# What is raised
from .exceptions import (ConflictError, InvalidKey, InvalidValue, LockError, LockLost, LockNotAcquired, MemSyncError,
                         NotInTask, StoreError, ValueTooLarge)
# What a user makes
from .locks import Lock
from .manager import MemorySyncManager
from .plugin import MemSync
from .records import Entry, LockRecord, WorkerRecord

__all__ = [
    "MemorySyncManager", "MemSync", "Lock",
    "Resolution", "Entry", "LockRecord", "WorkerRecord",
    "ConflictError", "InvalidKey", "InvalidValue", "LockError", "LockLost", "LockNotAcquired", "MemSyncError",
    "NotInTask", "StoreError", "ValueTooLarge",
]
