"""Shared, live and consistent state in Redis for all processes of a Celery app.

Its parts are imported when they are used: the `celery` command imports this package in all of its
processes.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What a user makes
    from .aio.client import AsyncMemSync
    from .app import MemSync

    # What comes back
    from .conflicts import Resolution

    # What is raised
    from .exceptions import (
        ConflictError,
        InvalidKey,
        InvalidToken,
        InvalidValue,
        LockError,
        LockLost,
        LockNotAcquired,
        MemSyncError,
        NotInTask,
        StoreError,
        StoreRefused,
        StoreUnavailable,
        TaskCancelled,
        ValueTooLarge,
    )
    from .locking.lock import Lock
    from .manager import MemorySyncManager
    from .metrics.collector import MemsyncCollector
    from .models.entry import Entry
    from .models.lock import LockRecord
    from .models.worker import WorkerRecord
    from .models.workflow import Group, Workflow, WorkflowNode

    # What comes back as a dict
    from .types import (
        CacheMetrics,
        ExceptionRecord,
        GroupDict,
        HeldMessages,
        ListedTask,
        LockDict,
        LockFacts,
        ProcessMetrics,
        QueueLists,
        RunningTask,
        RunProgress,
        TaskCause,
        TaskProgress,
        TaskRecord,
        TaskState,
        WorkerCapacity,
        WorkerDict,
        WorkerWrites,
        WorkflowDict,
        WorkflowNodeDict,
        WriterCounts,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "MemorySyncManager", "MemSync", "AsyncMemSync", "Lock", "MemsyncCollector",
    "Resolution", "Entry", "Group", "LockRecord", "WorkerRecord", "Workflow", "WorkflowNode",
    "TaskState", "ExceptionRecord", "LockFacts", "TaskCause", "TaskProgress", "RunProgress", "TaskRecord", "ListedTask",
    "QueueLists", "ProcessMetrics", "WriterCounts", "CacheMetrics",
    "WorkerCapacity", "RunningTask", "WorkerWrites", "HeldMessages",
    "LockDict", "WorkerDict", "GroupDict", "WorkflowDict", "WorkflowNodeDict",
    "ConflictError", "InvalidKey", "InvalidToken", "InvalidValue", "LockError", "LockLost", "LockNotAcquired",
    "MemSyncError", "NotInTask", "StoreError", "StoreRefused", "StoreUnavailable", "TaskCancelled", "ValueTooLarge",
]

#: Modules of what is public, by name; errors have one.  That of MemSync also activates its app in a worker.
_HOMES = {
    "MemorySyncManager": "manager", "MemSync": "activation", "AsyncMemSync": "aio.client", "Lock": "locking.lock",
    "MemsyncCollector": "metrics.collector",
    "Resolution": "conflicts",
    "Entry": "models.entry", "LockRecord": "models.lock", "WorkerRecord": "models.worker",
    "Group": "models.workflow", "Workflow": "models.workflow", "WorkflowNode": "models.workflow",
    **dict.fromkeys((
        "TaskState", "ExceptionRecord", "LockFacts", "TaskCause", "TaskProgress", "RunProgress", "TaskRecord", "ListedTask",
        "QueueLists", "ProcessMetrics", "WriterCounts", "CacheMetrics", "WorkerCapacity", "RunningTask", "WorkerWrites",
        "HeldMessages", "LockDict", "WorkerDict", "GroupDict", "WorkflowDict", "WorkflowNodeDict"), "types"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'exceptions')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
