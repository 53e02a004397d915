"""A lock that is held."""
from __future__ import annotations

from dataclasses import dataclass

from ..keys import is_id
from ..types import LockDict
from .entry import StoredEntry

#: More digits than the longest lease has in ms.
MAX_DIGITS = 15


def lease_length(stored: StoredEntry) -> float:
    """Return how long the lease of a lock is from its last renewal, in seconds."""
    rank, header = stored.header.rank, stored.header
    return (int(rank) if rank.isdecimal() and len(rank) < MAX_DIGITS else header.ttl_ms) / 1000


@dataclass(frozen=True)
class LockRecord:
    """A lock that is held.

    Attributes:
        name: As given to ``lock``; ``tasks/<task_id>`` for the lock of a task.
        fence: The number of this acquisition; a later one has a higher one.
        worker_id: The process that holds it.
        task_id: The task that holds it; None: a program outside of tasks.
        since: When it was taken, seconds since the epoch on Redis's clock.
        ttl: Seconds until its lease ends, if it is not renewed.
        waiters: How many wait for it; None: that was not looked at.
    """

    name: str
    fence: int
    worker_id: str
    task_id: str | None
    since: float
    ttl: float
    waiters: int | None = None

    @classmethod
    def of(cls, name: str, stored: StoredEntry, now: float, waiters: int | None = None) -> LockRecord | None:
        """Read a lock's entry, or return None if it is free; it is held whatever its body says.

        Args:
            now: Redis's time, in seconds.
        """
        header, about = stored.header, stored.value
        if stored.ended(now):
            return None
        ttl = round(min(header.expires_at / 1000 - now, lease_length(stored)), 3)
        task_id = about.get("task_id") if isinstance(about, dict) else None
        task_id = task_id if is_id(task_id) else None
        return cls(name, header.fence, header.worker_id, task_id, header.time / 1000, ttl, waiters)

    def as_dict(self) -> LockDict:
        """Return all fields."""
        return dict(self.__dict__)  # type: ignore[return-value]
