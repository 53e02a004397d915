"""What readers see of groups."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """How far a group is, or the header of a chord.

    Attributes:
        id: The id of the group.
        total: How many members it has.
        done: How many have ended, in any way.
        succeeded: How many of them succeeded.
        failed: How many of them failed; members that never ran because of a failure have failed, too.
        running: How many were begun, and do not wait for another try.
        percent: How many in a hundred have ended; it does not fall.
        started_at: When it was sent, in seconds since the epoch on Redis's clock; None if that is not known.
        eta: Seconds until the last member ends, if they go on ending as they did; None if that is not known.
    """

    id: str
    total: int
    done: int
    succeeded: int
    failed: int
    running: int
    percent: float
    started_at: float | None = None
    eta: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the same as a dict."""
        return asdict(self)


def eta_of(percent: float, started_at: float | None, now: float) -> float | None:
    """Return how many seconds are left, or None if that is not known."""
    if percent >= 100:
        return 0.0
    if started_at is None or percent <= 0 or now <= started_at:
        return None
    return round((now - started_at) * (100 - percent) / percent, 3)
