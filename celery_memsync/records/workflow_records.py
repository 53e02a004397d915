"""Groups and workflows: how far they are, and of which tasks they consist."""
from __future__ import annotations

from ..deadline import bounded
from ..keys import check_id
from ..models.workflow import Group, eta_of
from ..reading.reader import Reader
from ..store import GroupCounts


class WorkflowRecords:
    """Reads what is recorded of groups and workflows."""

    def __init__(self, reader: Reader, timeout: float) -> None:
        self.reader = reader
        self.store = reader.store
        self.timeout = timeout

    @bounded
    def group(self, group_id: str) -> Group | None:
        """Return how far a group is, or None if it is unknown."""
        group_id = check_id(group_id, "group")
        self.reader.send_pending()
        (counts,) = self.store.read_group_counts([group_id])
        return group_of(group_id, counts, self.store.clock.now()) if counts.total or counts.known else None


def group_of(group_id: str, counts: GroupCounts, now: float) -> Group:
    """Return how far a group is.

    Args:
        now: Redis's time, in seconds.
    """
    # A task may add members to its own group.
    total = max(counts.total, counts.known)
    percent = 100 * counts.done / total
    return Group(group_id, total, counts.done, counts.succeeded, counts.failed, counts.running, percent, counts.since,
                 eta_of(percent, counts.since, now))
