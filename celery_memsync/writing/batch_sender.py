"""Send changes to Redis in batches, and values that are to replace a known version one by one."""
from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, takewhile

from ..conflicts import MAX_ROUNDS
from ..deadline import within
from ..exceptions import ConflictError, LockLost, MemSyncError, StoreError, StoreRefused, StoreUnavailable
from ..keys import Location
from ..models.entry import Header, StoredEntry
from ..store import UNANSWERED, UNREACHABLE, CoordinationResult, EntryWrite, Store, WriteResult, may_be_done, ms
from .changes import Change, Coordinated, MergeFields, SetValue
from .outcomes import Outcomes
from .refusals import refusal
from .unanswered import Attempt, number_of, was_never_written

#: Most rounds of merging fields into a state that others write at the same moment.
MAX_MERGES = 50

#: Longest pause before the second of these rounds, in seconds; it grows with each.
CONTENTION_PAUSE = 0.001

#: Part of the time for an answer that Redis has to show that it is there, when it has not answered a batch.
PING_TIME = 0.5


class BatchSender:
    """Sends changes; all of it runs in the writer's thread.

    Args:
        batch_size: Most changes in one round trip.
        timeout: Seconds that callers wait for a round of batches.
        call_again: Has :meth:`send_due` called again at once; called when a round ends before all was sent.
    """

    def __init__(
        self, store: Store, outcomes: Outcomes, batch_size: int, timeout: float, call_again: Callable[[], object],
    ) -> None:
        self.store = store
        self.outcomes = outcomes
        self.pending = outcomes.pending
        self.report = outcomes.report
        self.refusals = outcomes.refusals
        self.batch_size = batch_size
        self.timeout = timeout
        #: Most changes of the next batch: one after a batch without an answer, then twice as many as were answered.
        self._batch_limit = batch_size
        #: Entry of the last batch without an answer, if that was a single change.
        self._failed_alone: Location | None = None
        #: Whether Redis was there in this round although a batch got no answer.
        self._answers_pings = False
        self._call_again = call_again
        self._coordination_serials = count(1)

    def send_due(self, strict: bool) -> tuple[int, list[ConflictError]]:
        """Send what is due; return how many changes that were, and an error for each that lost every round.

        Args:
            strict: Whether a caller wants to know that everything is in Redis, what was refused included.

        Raises:
            StoreError: If Redis is away; what was not written stays pending.
        """
        started = time.monotonic()
        changes = self.pending.due(started, everything=strict)
        try:
            if changes:
                self.store.connect()
            elif not self.report.connected:
                self.store.ping()
                self.report.connection_restored()
            if self.store.unpublished:
                self.store.publish_again()
            written, lost = self._send_batches(changes, strict)
            if strict:
                self.store.wait_invalidated()
        except MemSyncError as exc:
            self.report.batch_failed(exc, len(changes), self._answers_pings)
            raise
        if written:
            self.report.batch_flushed(written, time.monotonic() - started)
        return written, lost

    def _send_batches(self, changes: list[Change], strict: bool) -> tuple[int, list[ConflictError]]:
        """Send changes in batches; return how many changes that were, and an error for each that lost every round.

        A batch without an answer, from a Redis that is there, may be too much for the link within the time, or hold an
        argument at which Redis closes the connection.  So the next one is a single change, and they grow while they are
        answered.  A change that gets no answer alone, twice, is set aside.

        Raises:
            StoreUnavailable: If Redis is not there, or that took as long as a caller waits.
        """
        written, started = 0, time.monotonic()
        lost: list[ConflictError] = []
        self.refusals.in_round.clear()
        self._answers_pings = False
        while changes:
            batch = self._first_batch(changes)
            try:
                lost += self._send(batch)
            except StoreUnavailable as exc:
                if exc.code not in ("", "ERR") or not self._is_redis_there():
                    raise
                self._batch_limit = 1
                if len(batch) == 1 and batch[0].location == self._failed_alone:
                    self.refusals.add(batch[0], WriteResult("error", error=str(exc), code=UNANSWERED, maybe_done=True))
                self._failed_alone = batch[0].location if len(batch) == 1 else None
                if time.monotonic() - started > self.timeout:
                    self._call_again()
                    raise
                lost, changes = [], self.pending.due(time.monotonic(), everything=strict)
            else:
                written += len(batch)
                changes = changes[len(batch):]
                self._batch_limit = min(self.batch_size, 2 * self._batch_limit)
            if self.refusals.in_round:
                changes = [change for change in changes if change.location not in self.refusals.in_round]
        return written, lost

    def _first_batch(self, changes: list[Change]) -> list[Change]:
        """Return what is to be sent first; what was refused before does not come together with what was not."""
        batch = changes[:self._batch_limit]
        if not self.refusals:
            return batch
        was_refused = batch[0].location in self.refusals
        return list(takewhile(lambda change: (change.location in self.refusals) == was_refused, batch))

    def _is_redis_there(self) -> bool:
        try:
            within(PING_TIME * self.timeout, self.store.ping)
        except StoreError:
            return False
        self._answers_pings = True
        return True

    def _send(self, changes: list[Change]) -> list[ConflictError]:
        """Send changes in one round trip; settle conflicts by more of them.

        Returns:
            An error for each change that lost every round; it stays pending.
        """
        changes = self._coordinate(changes)
        lost: list[Change] = []
        number = 0  # of rounds in which nothing was settled: of changes of one entry that are not joined each takes a round
        while number < MAX_MERGES:
            sent = len(changes)
            made: list[Change] = []
            writes: list[EntryWrite] = []
            outcomes = self.store.write_entries(self._writes_of(changes, made, writes), repeated=True)
            again = self.outcomes.settle_all(made, writes, outcomes)
            for change, outcome in zip(made, outcomes):
                if outcome.status != "error":
                    continue
                if outcome.is_of_all:  # what was not stored stays pending
                    raise refusal(change.location.path, [outcome], self.store.address)
                if outcome.code == UNANSWERED:
                    raise StoreUnavailable(f"No answer came to a write of {change.location.path}", outcome.maybe_done)
            changes = again
            number = number + 1 if len(changes) == sent else 0
            late = [change for change in changes if _is_late(change, number)]
            lost += late
            changes = [change for change in changes if change not in late]
            if not changes:
                break
            time.sleep(number * random.random() * CONTENTION_PAUSE)  # noqa: S311 # spreads tries, no secret
        for change in lost:
            change.rounds = 0
        return [ConflictError(change.location.path, self._version_before(change)) for change in lost + changes]

    def _version_before(self, change: Change) -> int:
        """Return the version upon which a change was sent last."""
        stamp = change.seen if isinstance(change, SetValue) else self.outcomes.base_of(change).stamp
        return stamp.version

    def _writes_of(
        self, changes: Iterable[Change], made: list[Change], writes: list[EntryWrite],
    ) -> Iterator[EntryWrite]:
        """Yield changes as the store takes them, and keep both; drop those that can't be made."""
        for change in changes:
            try:
                if change.serial is None:
                    change.serial = next(self.store.serials)
                if isinstance(change, MergeFields):
                    write = change.entry_write(self.store.clock, self.outcomes.base_of(change))
                    change.note_sent()
                else:
                    write = change.entry_write(self.store.clock)
            except Exception:
                self.outcomes.drop(change)
            else:
                made.append(change)
                writes.append(write)
                yield write

    # -- the queue and the counters

    def _coordinate(self, changes: list[Change]) -> list[Change]:
        """Write what is no entry, changes of one location one after the other; return the rest."""
        rows: dict[Location, list[Coordinated]] = {}
        for change in changes:
            if isinstance(change, Coordinated):
                rows.setdefault(change.location, []).append(change)
        while rows:
            self._coordinate_first(rows)
        return [change for change in changes if not isinstance(change, Coordinated)]

    def _coordinate_first(self, rows: dict[Location, list[Coordinated]]) -> None:
        """Write the first change of each location, and take it out of its row.

        What is refused is not overtaken: what follows it stays pending with it.
        """
        errors: list[StoreError] = []
        first = [row[0] for row in rows.values()]
        for change, result in zip(first, self._change_coordination(first)):
            if result.error is not None and result.status == "error":
                del rows[change.location]
                if isinstance(result.error, StoreRefused) or result.code in ("NOPERM", UNREACHABLE):
                    self.refusals.add(change, WriteResult(
                        "error", error=str(result.error), code=result.code, maybe_done=may_be_done(result.error),
                        is_of_node=result.code == UNREACHABLE))
                else:
                    errors.append(result.error)
                continue
            self.outcomes.settle_coordinated(change, result)
            rows[change.location].pop(0)
            if not rows[change.location]:
                del rows[change.location]
        if errors:
            raise errors[0]

    def _change_coordination(self, changes: list[Coordinated]) -> list[CoordinationResult]:
        """Send changes, each under its number, until it is answered; one that was certainly not sent gives it back."""
        started = time.monotonic()
        fresh = [change for change in changes if change.serial is None]
        for change in fresh:
            change.serial, change.since = next(self._coordination_serials), started
        try:
            results = self.store.change_coordination([change.update() for change in changes])
        except StoreError as exc:
            if not may_be_done(exc):
                for change in fresh:
                    change.serial = None
            raise
        for change, result in zip(changes, results):
            if result.error is not None and result.status == "error" and not may_be_done(result.error):
                change.since = started  # nothing was done until then
        return results

    # -- compare and set

    def compare_and_set(self, change: SetValue, expected: int, attempt: Attempt) -> StoredEntry:
        """Replace a value if its entry is at the expected version; return the entry as it was stored.

        Raises:
            ConflictError: If the entry is at another version.
            StoreError: If Redis is away, or refuses.
            LockLost: If a newer fence has written.
        """
        location, key = change.location, change.location.path
        if self.pending.is_unsettled(location):
            raise self.refusals.error([location]) or StoreUnavailable(f"an earlier write of {key} waits for another try")
        change.serial = attempt.number
        self.store.connect()
        write = change.entry_write(self.store.clock)
        shown = self.outcomes.versions.stamp(location)
        # Versions begin anew when a key is gone; the time says which one it is, if this process has read it.
        at = f"@{shown.stored_at}" if expected and shown.version == expected else ""
        resent = self.store.resent
        made_ms = ms(self.store.clock.at(change.at))  # before the answer, which may correct the clock
        (outcome,) = self.store.write_entries([write._replace(seen=f"{expected}{at}")])
        attempt.maybe_done = attempt.maybe_done or resent != self.store.resent
        if outcome.status == "again" and number_of(outcome.writes, self.store.token) != attempt.number:
            # This process has written something else since.
            if outcome.version != expected:
                raise attempt.conflict(key, outcome.version, False)
            attempt.number = next(self.store.serials)
            return self.compare_and_set(change, expected, attempt)
        if outcome.status == "conflict":
            return self._compare_with_deleted(change, expected, attempt, outcome)
        if outcome.status == "error":
            raise refusal(key, [outcome], self.store.address)
        attempt.maybe_done = outcome.status != "fenced"
        if outcome.status == "fenced":
            raise LockLost(f"under which {key} was written")
        self.outcomes.settle_all([change], [write], [outcome])
        self.store.wait_invalidated()
        # If this is a second try others may have written since.
        is_last = f"{outcome.writes},".startswith(f"{self.store.token}.{attempt.number},")
        version = expected + 1 if outcome.status == "again" and not is_last else outcome.version
        header = Header(version, "-", "-", change.fence, made_ms, write.ttl_ms, 0, "-", self.store.worker_id)
        return StoredEntry(header, change.body)

    def _compare_with_deleted(
        self, change: SetValue, expected: int, attempt: Attempt, outcome: WriteResult,
    ) -> StoredEntry:
        """Raise a conflict, unless nothing is expected and nothing is there: what was deleted counts its versions on."""
        location, stored = change.location, outcome.stored
        if attempt.maybe_done and not was_never_written(stored, expected):
            raise attempt.conflict(location.path, outcome.version, False)
        if expected or not outcome.version or stored is not None and not stored.absent(self.store.clock.now()):
            self.outcomes.note_stored(location, stored)
            raise ConflictError(location.path, outcome.version)
        return self.compare_and_set(change, outcome.version, attempt)


def _is_late(change: Change, number: int) -> bool:
    """Return whether a change has lost every round; merging fields only has to be the first to write, so it has more."""
    return change.rounds >= MAX_ROUNDS or number > MAX_ROUNDS and not isinstance(change, MergeFields)
