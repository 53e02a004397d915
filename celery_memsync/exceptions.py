"""Everything this package raises.

* MemSyncError
    * StoreError           Redis could not be reached, or refused a command
    * ConflictError        somebody else wrote the key first
    * LockError
        * LockNotAcquired  somebody else holds the lock
        * LockLost         the lease ended while the lock was in use
    * NotInTask            no task is running here
    * InvalidKey           a key, id or pattern that can't be used (a ValueError too)
    * InvalidValue         a value that JSON can't hold (a ValueError and a TypeError too)
        * ValueTooLarge    a value above ``memsync_max_value_size``

A wrong setting raises :exc:`celery.exceptions.ImproperlyConfigured`.
"""
from __future__ import annotations

from typing import Any

__all__ = [
    "MemSyncError", "StoreError", "ConflictError", "LockError", "LockNotAcquired",
    "LockLost", "NotInTask", "InvalidKey", "InvalidValue", "ValueTooLarge",
]


class MemSyncError(Exception):
    """Base of everything this package raises."""

    def __reduce__(self) -> Any:
        # Errors cross processes, as results do; their constructors do not take a message.
        return _rebuild, (type(self), self.args, self.__dict__)


class StoreError(MemSyncError):
    """Redis could not be reached, or refused a command.

    ``__cause__`` is redis-py's own error.
    """

    @property
    def refused(self) -> bool:
        """Whether Redis did answer, and refused."""
        return type(self.__cause__).__name__ == "ResponseError"


class ConflictError(MemSyncError):
    """Somebody else wrote a key first.

    Arguments:
        key: The key that was to be written.
        version: The version that is stored now.
    """

    def __init__(self, key: str, version: int) -> None:
        super().__init__(
            f"{key} was written by somebody else first (it is at version {version} now); "
            "read it again and decide anew"
        )
        self.key = key
        self.version = version


class LockError(MemSyncError):
    """Base of what can go wrong with a lock."""


class LockNotAcquired(LockError):
    """Somebody else holds the lock."""


class LockLost(LockError):
    """The lease ended while the lock was in use."""


class NotInTask(MemSyncError):
    """No task is running here.

    Arguments:
        call: What was called, such as ``"progress()"``.
    """

    def __init__(self, call: str) -> None:
        super().__init__(
            f"{call} acts on the task that is running, and none is running here; "
            "outside of a task name it: sync_task_progress(task_id, ...) "
            "or sync_agent_coordination(task_id, ...)"
        )


class InvalidKey(MemSyncError, ValueError):
    """A key, an id or a pattern that can't be used."""


class InvalidValue(MemSyncError, ValueError, TypeError):
    """A value that JSON can't hold, or a figure out of its range."""


class ValueTooLarge(InvalidValue):
    """A value above ``memsync_max_value_size``.

    Arguments:
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


def _rebuild(kind: type[MemSyncError], args: tuple[Any, ...], state: dict[str, Any]) -> MemSyncError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
