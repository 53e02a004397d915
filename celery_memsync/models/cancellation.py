"""A cancelled id, and what it looks like in Redis."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .. import encoding
from ..exceptions import TaskCancelled
from ..keys import is_id
from .task import MAX_MESSAGE, TOO_LATE


class Cancellation(NamedTuple):
    """An id of a task, a root or a group that was cancelled.

    The members of the set in Redis are these fields as a JSON list, in this order; new fields go to the end.

    Attributes:
        at: When, in seconds of Redis's clock.
        worker_id: The process that cancelled it.
        task_id: The task whose body cancelled it, or None.
        terminate: Whether the processes that run such tasks are to be terminated.
    """

    id: str
    at: float
    worker_id: str
    task_id: str | None = None
    reason: str | None = None
    terminate: bool = False

    def encode(self) -> bytes:
        """Return it as a member of the set."""
        return encoding.dumps(list(self))

    @classmethod
    def parse(cls, member: bytes) -> Cancellation | None:
        """Read a member of the set, or return None for anything that :meth:`encode` does not write."""
        try:
            row = encoding.decode(member)
        except encoding.UNREADABLE:
            return None
        if not isinstance(row, list) or len(row) < len(cls._fields):
            return None
        found = cls(*row[:len(cls._fields)])
        return found if found._is_sound() else None

    def _is_sound(self) -> bool:
        return (
            is_id(self.id) and type(self.at) in (int, float) and 0 <= self.at < TOO_LATE
            and isinstance(self.worker_id, str) and (self.task_id is None or is_id(self.task_id))
            and (self.reason is None or isinstance(self.reason, str) and len(self.reason) <= MAX_MESSAGE)
            and type(self.terminate) is bool)

    def error(self) -> TaskCancelled:
        """Return what ends a task that is cancelled."""
        return TaskCancelled(self.worker_id, self.task_id, self.at, self.reason)


def ids_of(task_id: str, facts: Mapping[str, Any], sent: Mapping[str, Any]) -> Iterable[Any]:
    """Return the ids by which a run is cancelled; what came with its message may be anything.

    Args:
        facts: What travels with its request.
        sent: The part of that which this package put there.
    """
    return (task_id, facts.get("root_id"), facts.get("group"), sent.get("workflow"))
