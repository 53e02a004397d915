"""What becomes of a change that was sent: it is done, written again in another form, set aside, or left to a resolver."""
from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..background_loop import BackgroundLoop
from ..conflicts import MAX_ROUNDS
from ..keys import Location
from ..models.entry import UNWRITTEN, EntryVersion, StoredEntry
from ..store import UNANSWERED, CoordinationResult, EntryWrite, Store, WriteResult
from .changes import Change, Coordinated, MergeFields, SetValue, SyncMetrics
from .conflict_settler import ConflictSettler, Dispute
from .pending import PendingChanges
from .refusals import Refusals
from .version_tracker import EMPTY_BASE, MergeBase, VersionTracker
from .write_events import WriteEvents
from .write_report import WriteReport

logger = logging.getLogger(__name__)


class Outcomes:
    """Settles changes by what Redis answered; all but the user's resolvers runs in the writer's thread.

    Args:
        settler: Settles conflicts.
        on_resolved: Called when a resolver of the user's has settled a conflict.
    """

    def __init__(
        self, store: Store, settler: ConflictSettler, pending: PendingChanges, versions: VersionTracker,
        report: WriteReport, refusals: Refusals, on_resolved: Callable[[], object],
    ) -> None:
        self.store = store
        self.settler = settler
        self.pending = pending
        self.versions = versions
        self.report = report
        self.refusals = refusals
        self._on_resolved = on_resolved
        self._write_events = WriteEvents(report.events)
        #: What resolvers have to settle, and what they have settled.
        self._disputes: deque[tuple[Change, Dispute]] = deque()
        self._settled: deque[tuple[Change, Change | dict[str, Any]]] = deque()
        self._resolver = BackgroundLoop("memsync-resolver", self._resolve_disputes, 0, on_demand=True)

    @property
    def in_resolver(self) -> bool:
        """Whether the calling thread is the one that runs resolvers."""
        return self._resolver.is_current

    def close(self) -> None:
        """Stop the thread that runs resolvers, without waiting for it."""
        self._resolver.stop(0)

    def base_of(self, change: Change) -> MergeBase:
        """Return what the fields of a change are to be merged into."""
        if not isinstance(change, MergeFields):
            return EMPTY_BASE
        return self.versions.base(change.location) if change.base is None else change.base.present

    def settle_all(
        self, changes: Sequence[Change], writes: Sequence[EntryWrite], results: Sequence[WriteResult],
    ) -> list[Change]:
        """Note what the writes of changes came to; return what is to be written instead at once."""
        has_handlers, written = self.report.events.has_handlers, 0
        again: list[Change] = []
        for change, write, result in zip(changes, writes, results):
            if result.status == "ok":
                left = self.pending.settle(change)
                if isinstance(change, (SetValue, MergeFields)):
                    self._remember(change, result.stamp, left)
            elif result.status == "again":
                # Others may have written since; what they wrote was not read.
                self.versions.forget(change.location)
                self.pending.settle(change)
            else:
                instead = self._settle_unwritten(change, result)
                again += () if instead is None else (instead,)
                continue
            written += 1
            if change.conflict is not None:
                self.report.conflict_resolved(change.conflict)
            if has_handlers:
                self._write_events.written(change, write.body)
        self.report.written(written)
        return again

    def _settle_unwritten(self, change: Change, result: WriteResult) -> Change | None:
        """Note why a change was not written; return what is to be written instead at once, or None."""
        status = result.status
        if status == "conflict":
            if self.pending.is_later(change):
                # What comes before it is settled first.  The writer of this knew of that, so it plainly follows.
                return None if self.pending.is_waiting(change) else change
            return self._resolve(change, result)
        if status == "error":
            if not result.is_of_all and result.code != UNANSWERED:
                self.refusals.add(change, result)
            return None
        if status == "fenced":
            self.refusals.fence_off(change)
            self.versions.forget(change.location)
        self.pending.settle(change)
        return None

    def settle_coordinated(self, change: Coordinated, result: CoordinationResult) -> None:
        """Note that a change of the queue or the counters is done, or that this can't be known any more."""
        self.pending.settle(change)
        if result.status == "forgotten":
            logger.warning("%s: %s", change.location.path, result.error)
            self.report.dropped()
            return
        if result.answer and isinstance(change, SyncMetrics):
            logger.warning("Counters that are no numbers can't be added to: %s", ", ".join(result.answer))
        self.report.written()
        self._write_events.written(change)

    def drop(self, change: Change) -> None:
        """Drop a change that can't be made into a write."""
        logger.exception("Dropped a write of %s that can't be made", change.location.path)
        self.pending.settle(change)
        self.report.spoiled()

    def note_stored(self, location: Location, stored: StoredEntry | None) -> None:
        """Note the version that a caller was given as that of a conflict."""
        self.versions.note(location, UNWRITTEN if stored is None else stored.header.stamp)

    def _remember(self, change: SetValue | MergeFields, stamp: EntryVersion, left: Iterable[Change]) -> None:
        """Note what was written.

        Args:
            left: The changes of the entry that follow it.
        """
        location = change.location
        if isinstance(change, SetValue):
            self.versions.forget_base(location)
        else:
            base = self.base_of(change)
            recorded_at = max(change.at, base.recorded_at)
            merged = change.merged(base.fields)
            self.versions.note_base(location, MergeBase(stamp, merged, recorded_at + change.ttl, recorded_at))
        self.versions.note(location, stamp)
        # What this process has written since then follows what it wrote before.
        for later in left:
            if isinstance(later, SetValue):
                later.seen = stamp

    # -- conflicts

    def _resolve(self, change: Change, result: WriteResult) -> Change | None:
        """Return what is to be written instead of a change that found another version than its writer had read."""
        stored, base = result.stored, MergeBase.of(result.stored, self.store.clock)
        absent = stored is None or stored.absent(self.store.clock.now())
        before = self.base_of(change)
        if isinstance(change, MergeFields):
            change.late = not absent
            change.base = base._replace(body={}, until=0.0) if absent else base
            self.versions.note_base(change.location, change.base)
        elif isinstance(change, SetValue):
            change.seen = UNWRITTEN if stored is None else stored.header.stamp
        own = stored is not None and stored.header.writes.startswith(self.store.token)
        # What a later run of a task writes plainly follows.
        if stored is None or own or result.is_later_run or absent and not (stored.deleted and isinstance(change, SetValue)):
            return change
        settled = self.settler.settle(change, stored, before.fields)
        if isinstance(settled, Dispute):
            if change.rounds >= MAX_ROUNDS:
                return change  # it stays pending as it is
            change.rounds += 1
            if not settled.is_quick:
                self.pending.hold(change)
                self._disputes.append((change, settled))
                self._resolver.wake()
                return None
            settled = settled.resolve()
        return self._take_resolution(change, settled)

    def take_resolved(self) -> None:
        """Take what resolvers have settled."""
        while self._settled:
            change, settled = self._settled.popleft()
            self._take_resolution(change, settled)

    def _take_resolution(self, change: Change, settled: Change | dict[str, Any]) -> Change | None:
        """Put what a conflict was settled to in the place of a change; return it."""
        if isinstance(settled, Change):
            settled.rounds, settled.authors = change.rounds, change.authors
            self.pending.settle(change, settled)
            return settled
        self.report.conflict_resolved(settled)
        self.pending.settle(change)
        return None

    def _resolve_disputes(self) -> None:
        """Call the user's resolvers; in a thread of their own, for they may block."""
        while self._disputes:
            change, dispute = self._disputes.popleft()
            self._settled.append((change, dispute.resolve()))
            self._on_resolved()
