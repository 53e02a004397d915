"""A cancelled id, and what it looks like in Redis."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from .. import encoding
from ..exceptions import TaskCancelled
from ..keys import is_id
from .task import MAX_MESSAGE, TOO_LATE

#: Most ids that are taken from one field of a message.
MAX_IDS = 50


class Cancellation(NamedTuple):
    """An id of a task, a root or a group that was cancelled.

    Redis keeps, by id, the other fields as a JSON list, in this order; new fields go to the end.

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
        """Return all but the id, as it is kept."""
        return encoding.dumps(list(self[1:]))

    @classmethod
    def parse(cls, name: bytes, cause: bytes | None) -> Cancellation | None:
        """Read an id and what :meth:`encode` has made of the rest, or return None for anything else."""
        try:
            cancelled_id, row = name.decode(), encoding.decode(cause or b"null")
        except encoding.UNREADABLE:
            return None
        if not isinstance(row, list) or len(row) < len(cls._fields) - 1:
            return None
        found = cls(cancelled_id, *row[:len(cls._fields) - 1])
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


def ids_of(task_id: Any, facts: Mapping[str, Any], sent: Mapping[str, Any], waits: bool = False) -> Iterable[Any]:
    """Return the ids by which a run is cancelled; what came with its message may be anything.

    Its own, its root's and its workflow's; those of the groups that it is a part of, of which a message has only some:
    of a chain that is a member the last task names the group, and the first ones come with its size.

    Args:
        facts: What travels with its request.
        sent: The part of that which this package put there.
        waits: Whether it has not begun: then also those of what comes before it.  What follows a cancelled task, or group,
            does not start.
    """
    sizes, before = sent.get("sizes"), sent.get("depends_on") if waits else None
    return (task_id, facts.get("root_id"), facts.get("group"), sent.get("workflow"), sent.get("group"),
            *islice(sizes if isinstance(sizes, dict) else (), MAX_IDS),
            *islice(before if isinstance(before, list) else (), MAX_IDS))
