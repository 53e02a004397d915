"""Everything this package raises.

* MemSyncError
    * StoreError
        * StoreUnavailable Redis can't do it just now; the same call may work later
        * StoreRefused     Redis refuses it, and nothing was changed
    * ConflictError        another writer wrote the key first
    * LockError
        * LockNotAcquired  another holder has the lock
        * LockLost         the lease ended while the lock was in use
    * NotInTask            no task is running here
    * TaskCancelled        the running task is cancelled (Celery's Ignore too)
    * InvalidKey           a key, id or pattern that can't be used (a ValueError too)
    * InvalidValue         a value that JSON can't hold (a ValueError and a TypeError too)
        * ValueTooLarge    a value above ``memsync_max_value_size``
    * InvalidToken         a token of a task that is not valid, or not any more (a ValueError too)

A wrong setting raises :exc:`celery.exceptions.ImproperlyConfigured`.  A task that is
skipped raises :exc:`Skipped`, which Celery takes as its own :exc:`~celery.exceptions.Ignore`.
"""
from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery.exceptions import Ignore

from .types import LockFacts

__all__ = [
    "MemSyncError", "StoreError", "StoreUnavailable", "StoreRefused", "ConflictError", "LockError", "LockNotAcquired",
    "LockLost", "NotInTask", "TaskCancelled", "InvalidKey", "InvalidValue", "ValueTooLarge", "InvalidToken",
]


class MemSyncError(Exception):
    """Base of everything this package raises."""

    def __reduce__(self) -> Any:
        # Errors cross processes, as results do; their constructors do not take a message.
        return _rebuild, (type(self), self.args, self.__dict__)


class StoreError(MemSyncError):
    """Base of what can go wrong with Redis.

    ``__cause__`` is redis-py's own error, if there was one.

    Attributes:
        code: First word of the error that Redis answered, such as ``OOM``; "" if it answered none.
        address: Where Redis is, such as ``localhost:6379/0``, without credentials; "" if that is not known.
    """

    code = ""
    address = ""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StoreUnavailable(StoreError):
    """Redis can't do it just now: it is away, too slow, full, a replica, or lacks a right.  The same call may work later.

    Args:
        message: What was tried, where, what is wrong and what to do.
        maybe_done: Whether what was to be changed may be changed all the same, for the answer was lost.  Then the same call
            by the same process is recognised, and does nothing twice; a lock that was taken all the same is given back.
        code: As in :class:`StoreError`.
    """

    def __init__(self, message: str, maybe_done: bool = False, code: str = "") -> None:
        # Result backends keep the arguments, as JSON, and make the error anew from them.
        super().__init__(message, maybe_done, code)
        self.maybe_done = maybe_done
        self.code = code


class StoreRefused(StoreError):
    """Redis has answered, and refuses: nothing was changed, and the same call does not work later by itself.

    Args:
        message: What was tried, where, what is wrong and what to do.
        code: As in :class:`StoreError`.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, code)
        self.code = code


class ConflictError(MemSyncError):
    """Another writer wrote a key first.

    Args:
        key: The key that was to be written.
        version: The version that is stored now.
    """

    def __init__(self, key: str, version: int) -> None:
        super().__init__(
            f"{key} was written by another writer first (it is at version {version} now); "
            "read it again and decide anew"
        )
        self.key = key
        self.version = version


class LockError(MemSyncError):
    """Base of what can go wrong with a lock."""


class LockNotAcquired(LockError):
    """Another holder has the lock.

    Args:
        name: Of the lock.
        holder: A :class:`~celery_memsync.LockRecord` of who holds it, None if that is not known.
        waited: Seconds that it was waited for.
        message: What to say, if that is known.
    """

    def __init__(self, name: str, holder: Any = None, waited: float = 0.0, message: str = "") -> None:
        if not message:
            task = f" for task {holder.task_id}" if holder is not None and holder.task_id else ""
            whose = "another holder" if holder is None else f"{holder.worker_id}{task}"
            waiting = f" after {waited:.3g} s of waiting" if waited else ""
            message = f"the lock {name} is held by {whose}{waiting}; try again later"
        # Result backends keep the arguments, as JSON, and make the error anew from them.
        super().__init__(name, None, waited, message)
        self.name = name
        self.holder = holder

    @property
    def facts(self) -> LockFacts:
        """What to report of the lock and its holder."""
        holder = self.holder
        if holder is None:
            return {"name": self.name}
        return {"name": self.name, "worker_id": holder.worker_id, "task_id": holder.task_id, "since": holder.since,
                "fence": holder.fence}

    def __str__(self) -> str:
        return str(self.args[3])


class LockLost(LockError):
    """The lease ended while the lock was in use.

    Args:
        name: Of the lock.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"the lock {self.name} is not held here (any more): its lease has run out, or it was released or deleted; "
            "stop what needs it, another holder may be at it already"
        )


class NotInTask(MemSyncError):
    """No task is running here.

    Args:
        call: What was called, such as ``"progress()"``.
    """

    def __init__(self, call: str) -> None:
        instead = {"progress()": "sync_task_progress(task_id, ...)",
                   "agent()": "sync_agent_coordination(task_id, ...)"}.get(call)
        advice = f"; outside of a task call {instead}" if instead else ""
        super().__init__(f"{call} acts on the task that is running, and none is running here{advice}")


class TaskCancelled(MemSyncError, Ignore):  # type: ignore[misc]
    """The running task is cancelled; a body that lets this pass ends as ``REVOKED``.

    It is Celery's own :exc:`~celery.exceptions.Ignore`, so the task is not retried, and no traceback is logged.

    Args:
        worker_id: The process that cancelled it.
        task_id: The task whose body cancelled it, or None.
        at: When, in seconds since the epoch on Redis's clock.
        reason: Why, or None.
    """

    def __init__(
        self, worker_id: str = "", task_id: str | None = None, at: float = 0.0, reason: str | None = None,
    ) -> None:
        # Result backends keep the arguments, as JSON, and make the error anew from them.
        super().__init__(worker_id, task_id, at, reason)
        self.worker_id = worker_id
        self.task_id = task_id
        self.at = at
        self.reason = reason

    def __str__(self) -> str:
        task = f" in task {self.task_id}" if self.task_id else ""
        moment = datetime.fromtimestamp(self.at, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
        return f"cancelled by {self.worker_id}{task} at {moment}" + (f": {self.reason}" if self.reason else "")


class InvalidKey(MemSyncError, ValueError):
    """A key, an id or a pattern that can't be used."""


class InvalidValue(MemSyncError, ValueError, TypeError):
    """A value that JSON can't hold, or a figure out of its range."""


class ValueTooLarge(InvalidValue):
    """A value above ``memsync_max_value_size``.

    Args:
        what: Whose value it is, such as a key.
        size: Its size as JSON, in bytes.
        limit: The largest size allowed, in bytes.
    """

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"the value of {what} is {size} bytes as JSON, more than memsync_max_value_size ({limit}); "
            "keep large data elsewhere and share where it is"
        )
        self.size = size
        self.limit = limit


class InvalidToken(MemSyncError, ValueError):
    """A token of a task is not valid; why is not said, because strangers may read it.

    Args:
        expired: Whether it was valid once.
    """

    def __init__(self, expired: bool = False) -> None:
        super().__init__(expired)
        self.expired = expired

    def __str__(self) -> str:
        return "the token has expired; a new one is needed" if self.expired else "the token is not valid"


class Skipped(Ignore):  # type: ignore[misc]
    """A task does not run, for another holder has its lock.

    Args:
        lock: What to report, as :attr:`LockNotAcquired.facts`.
    """

    def __init__(self, lock: LockFacts) -> None:
        super().__init__(lock)
        self.lock = lock

    def __str__(self) -> str:
        return f"skipped: the lock {self.lock.get('name')} is held by {self.lock.get('worker_id')}"


def _rebuild(kind: type[MemSyncError], args: tuple[Any, ...], state: dict[str, Any]) -> MemSyncError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
