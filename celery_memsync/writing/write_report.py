"""What a process reports of its writing: counters, events, and one warning for each kind of trouble."""
from __future__ import annotations

import logging
from typing import Any

from ..events import Events
from ..exceptions import MemSyncError, StoreError
from ..keys import Location
from ..types import WriterCounts
from .pending import PendingChanges

logger = logging.getLogger(__name__)

#: Most entries of which it is remembered that a refusal was logged.
MAX_WARNED = 1000


class WriteReport:
    """Counts what was written, emits the events of it, and logs each trouble once.

    Attributes:
        connected: Whether Redis has answered the last batch.
        last_flush_seconds: How long the last batch took.
    """

    def __init__(self, events: Events, pending: PendingChanges) -> None:
        self.events = events
        self.connected = True
        self.last_flush_seconds = 0.0
        self._pending = pending
        self._counts: WriterCounts = {
            "writes": 0, "conflicts": 0, "syncs": 0, "flush_failures": 0, "dropped": 0, "coalesced": 0}
        #: Drops that were reported, and those of them because too many changes were pending.
        self._reported_drops = 0
        self._reported_as_too_many = 0
        self._warned_of_drops = False
        #: Whether it was logged that a node of a cluster takes no writes.
        self._warned_of_node = False
        self._warned: set[Location] = set()

    @property
    def counts(self) -> WriterCounts:
        """Counters since the start of this process."""
        pending, counts = self._pending, self._counts
        return {**counts, "dropped": counts["dropped"] + pending.all_dropped, "coalesced": pending.all_coalesced}

    # -- batches

    def batch_failed(self, error: MemSyncError, count: int, answers_pings: bool) -> None:
        """Report that a batch was not written.

        Args:
            count: Number of its changes.
            answers_pings: Whether Redis is there all the same.
        """
        self._counts["flush_failures"] += 1
        self.events.emit("batch-failed", count=count, error=error)
        if self.connected and isinstance(error, StoreError) and not error.code and not answers_pings:
            self.connected = False
            self.events.emit("connection-lost", error=error)

    def batch_flushed(self, count: int, seconds: float) -> None:
        """Report that changes were written."""
        self._counts["syncs"] += 1
        self.last_flush_seconds = seconds
        self._warned_of_drops = False
        self.events.emit("batch-flushed", count=count, seconds=seconds)
        self.connection_restored()

    def connection_restored(self) -> None:
        """Report that Redis answers, if it did not."""
        if not self.connected:
            self.connected = True
            self.events.emit("connection-restored")

    # -- changes

    def written(self, number: int = 1) -> None:
        """Count changes that were written."""
        self._counts["writes"] += number

    def conflict_resolved(self, conflict: dict[str, Any]) -> None:
        """Count a conflict that is settled; it is one, however many rounds that took."""
        self._counts["conflicts"] += 1
        self.events.emit("conflict-resolved", **conflict)

    def spoiled(self) -> None:
        """Count a change that can't be made into a write."""
        self._counts["dropped"] += 1

    def dropped(self) -> None:
        """Report a change that will not be written."""
        self._counts["dropped"] += 1
        self.events.emit("writes-dropped", count=1)

    def pending_dropped(self) -> None:
        """Report changes that were dropped while they were pending."""
        dropped = self._pending.dropped - self._reported_drops
        if not dropped:
            return
        self._reported_drops += dropped
        too_many = self._pending.dropped - self._pending.spoiled - self._reported_as_too_many
        self._reported_as_too_many += too_many
        if too_many and not self._warned_of_drops:
            self._warned_of_drops = True
            logger.warning("Dropped %d changes: more than %d entries were pending", too_many, self._pending.limit)
        self.events.emit("writes-dropped", count=dropped)

    # -- refusals

    def refused(self, location: Location, error: str) -> None:
        """Log that Redis refuses to write an entry."""
        if self._is_first_warning(location):
            logger.warning("Redis refuses to write %s: %s", location.path, error[:120])

    def fenced(self, location: Location) -> None:
        """Log that a newer fence has written an entry."""
        if self._is_first_warning(location):
            logger.warning("Rejected a write of %s: a newer fence has already written it", location.path)

    def node_refused(self, error: str) -> None:
        """Log that a node of the cluster takes no writes."""
        if not self._warned_of_node:
            logger.warning("Part of the cluster takes no writes, which stay pending: %s", error[:200])
        self._warned_of_node = True

    def nodes_restored(self) -> None:
        """Log that every node takes writes, if one did not."""
        if self._warned_of_node:
            self._warned_of_node = False
            logger.info("All nodes of the cluster take writes again")

    def _is_first_warning(self, location: Location) -> bool:
        """Return whether a refusal is to be logged: once for each entry."""
        if location in self._warned:
            return False
        if len(self._warned) >= MAX_WARNED:
            self._warned.clear()
        self._warned.add(location)
        return True
