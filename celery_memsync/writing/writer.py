"""Write changes in the background, in batches."""
from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from itertools import count, takewhile
from typing import Any

from redis.backoff import EqualJitterBackoff

from ..background_loop import LONGEST_PAUSE, BackgroundLoop
from ..conflicts import MAX_ROUNDS
from ..deadline import remaining, within
from ..events import Events
from ..exceptions import ConflictError, LockLost, MemSyncError, StoreError, StoreRefused, StoreUnavailable
from ..keys import ASSIGNMENTS, STATE, Location
from ..models.entry import UNWRITTEN, EntryVersion, Header, StoredEntry
from ..store import (
    UNANSWERED,
    UNREACHABLE,
    CoordinationResult,
    EntryWrite,
    Store,
    WriteResult,
    explain_code,
    may_be_done,
    ms,
)
from .changes import Change, Coordinated, DeferredChange, MergeFields, SetValue, SyncMetrics
from .conflict_settler import ConflictSettler, Dispute
from .pending import LONGEST_NODE_PAUSE, LONGEST_REFUSED_PAUSE, REFUSED_PAUSE, PendingChanges
from .progress import Progress
from .requests import CompareAndSet, FencedWrite, FlushRequest
from .unanswered import Attempt, Unanswered, number_of, was_never_written
from .version_tracker import EMPTY_BASE, MergeBase, VersionTracker
from .write_events import WriteEvents

logger = logging.getLogger(__name__)

#: Most rounds of merging fields into a state that others write at the same moment.
MAX_MERGES = 50

#: Longest pause before the second of these rounds, in seconds; it grows with each.
CONTENTION_PAUSE = 0.001

#: Part of ``interval`` for which a deferred change is left for the next batch, because more may follow: what a busy worker
#: has just received will have ended.
YOUNG = 0.1

#: Part of the time for an answer that Redis has to show that it is there, when it has not answered a batch.
PING_TIME = 0.5

#: Most entries that are read and not noted yet, most paths of refused writes that are remembered.
MAX_READS, MAX_WARNED = 1000, 1000


class BatchWriter:
    """Writes changes in the background; making one never waits for Redis.

    All writing is done by one thread.  No signal handler's exception strikes
    there, batches follow each other without a lock, and callers that need what
    is pending to be written send the thread a request and wait, each until its own deadline.

    Args:
        settler: Settles conflicts.
        interval: Seconds that changes are gathered; 0 sends every one at once.
        batch_size: Most changes in one round trip.
        max_pending: Most entries with pending changes.
        on_put: Called with the Redis key of what each change is of.
        timeout: Seconds that a caller waits at most; see :mod:`celery_memsync.deadline`.
    """

    def __init__(
        self, store: Store, events: Events, settler: ConflictSettler, *, interval: float, batch_size: int,
        max_pending: int, on_put: Callable[[str], object], timeout: float = 3.0,
    ) -> None:
        self.store = store
        self.events = events
        self.settler = settler
        self.batch_size = batch_size
        #: Most changes of the next batch: one after a batch without an answer, then twice as many as were answered.
        self._batch_limit = batch_size
        #: Entry of the last batch without an answer, if that was a single change.
        self._failed_alone: Location | None = None
        #: Entries of which a change was refused since the round began: what comes after it must not overtake it.
        self._refused_now: set[Location] = set()
        #: Whether Redis was there in this round although a batch got no answer.
        self._answers_pings = False
        self.max_pending = max_pending
        self.on_put = on_put
        self.timeout = timeout
        self.last_flush_seconds = 0.0
        self.connected = True
        self._counts = dict.fromkeys(("writes", "conflicts", "syncs", "flush_failures", "dropped"), 0)
        self._pending = PendingChanges(max_pending, min(batch_size, max_pending))
        #: What callers wait for: new, and begun.
        self._requests: deque[FlushRequest] = deque()
        self._begun: list[FlushRequest] = []
        #: Entries that were read and may be merged into.
        self._reads: deque[tuple[Location, StoredEntry | None]] = deque(maxlen=MAX_READS)
        #: What resolvers have to settle, and what they have settled.
        self._disputes: deque[tuple[Change, Dispute]] = deque()
        self._settled: deque[tuple[Change, Change | dict[str, Any]]] = deque()
        self._assignments = store.keys.coordination_location(ASSIGNMENTS).path
        self._seen = VersionTracker()
        self._serials = count(1)
        #: Writes of expected versions that got no answer.
        self.unanswered = Unanswered(lambda: next(self._serials))
        self._coordination_serials = count(1)
        self._write_events = WriteEvents(events)
        #: Drops that were reported, and those of them because there were too many.
        self._reported_drops = 0
        self._reported_as_too_many = 0
        self._warned_of_drops = False
        #: Whether it was logged that a node of a cluster takes no writes.
        self._warned_of_node = False
        #: What Redis answered to the writes that it refuses.
        self._refusals: dict[Location, WriteResult] = {}
        #: Locations of which a refusal was logged.
        self._warned: set[Location] = set()
        #: What newer fences have refused and :meth:`force` has not reported to the threads that it concerns.
        self._fenced: deque[FencedWrite] = deque(maxlen=MAX_WARNED)
        self._thread = BackgroundLoop("memsync-writer", self._write_pending, interval, on_demand=True)
        #: Empties the inbox while the writer's thread waits for Redis.
        self._gatherer = BackgroundLoop("memsync-gatherer", self._gather, 0, on_demand=True)
        self._resolver = BackgroundLoop("memsync-resolver", self._resolve_disputes, 0, on_demand=True)
        self._closed = False
        #: Held by a caller that writes by itself, because no thread can be started any more.
        self._alone = threading.Lock()

    # -- take changes

    def defer(self, deferred: DeferredChange) -> None:
        """Take a deferred change; what it comes to is written within ``interval``, and a tenth of that."""
        key = deferred.key
        is_full = self._pending.put(key, deferred)
        self.on_put(key)
        self._thread.wake()
        if is_full:
            self._gatherer.wake()
        if self._closed:
            self._write_late()

    def put(self, change: Change) -> None:
        """Take a change; it is written within ``interval``."""
        key = change.location.key
        reports = change.reports if isinstance(change, Progress) else 0
        if change.fence:
            change.authors = frozenset((weakref.ref(threading.current_thread()),))
        if isinstance(change, SetValue):
            change.seen = self._seen.stamp(change.location)
        # It is not seen before the copies of what it changes are dropped; and copies that are made meanwhile are not valid.
        self.on_put(key)
        is_full = self._pending.put(key, change)
        self.on_put(key)
        if isinstance(change, Progress):
            change.note_put(reports)
        self._thread.wake()
        if is_full:
            self._gatherer.wake()
        if self._closed:
            self._write_late()

    def _write_late(self) -> None:
        """Write what came while the writer was being closed, as by the handler of a signal in the middle of a write."""
        with contextlib.suppress(RuntimeError):  # no threads any more: the process is at its end
            threading.Thread(target=self._write_what_is_left, name="memsync-late", daemon=True).start()

    def _write_what_is_left(self) -> None:
        # Of many threads one goes on.  It looks again when it has released the lock, so what the others came for is written.
        while self._pending and self._alone.acquire(blocking=False):
            try:
                self._write_pending()
            except StoreError as exc:
                logger.warning("After a shutdown %d writes could not be written: %s", self.pending, exc)
                return
            finally:
                self._alone.release()

    def _gather(self) -> None:
        if self._pending.empty_inbox() >= self.batch_size:
            self._thread.run_now()

    def note_read(self, location: Location, stored: StoredEntry | None) -> None:
        """Note what a reader of this process was shown: what it writes next follows that."""
        self._seen.note(location, UNWRITTEN if stored is None else stored.header.stamp)
        if location.slot == STATE or location.path == self._assignments:
            self._reads.append((location, stored))

    # -- what is pending

    @property
    def pending(self) -> int:
        """Number of changes that are not in Redis yet."""
        return len(self._pending)

    @property
    def counts(self) -> dict[str, int]:
        """Counters since the start of this process."""
        pending = self._pending
        return {**self._counts, "dropped": self._counts["dropped"] + pending.all_dropped, "coalesced": pending.all_coalesced}

    def is_pending(self, *keys: str) -> bool:
        """Return whether a change of what is under one of some Redis keys is pending."""
        return self._pending.has(*keys)

    def is_stuck(self, *keys: str) -> bool:
        """Return whether one of them is refused by Redis, or a resolver runs for it."""
        return self._pending.is_stuck(*keys)

    def unsent(self, location: Location) -> list[Change]:
        """Return the pending changes of an entry, in their order."""
        return self._pending.unsent(location)

    # -- what callers wait for

    def flush(self) -> None:
        """Write everything that is pending now.

        Raises:
            StoreError: If Redis is away; what was not written stays pending.
        """
        if self._pending:
            self._wait_for(FlushRequest(), self.timeout)

    def flush_for(self, *keys: str) -> None:
        """Write everything that is pending now, if something is under one of some Redis keys.

        Raises:
            StoreError: If Redis is away; what was not written stays pending.
        """
        if self._pending.has(*keys) and not self._resolver.is_current:
            self._wait_for(FlushRequest(), self.timeout)

    def force(self, timeout: float | None = None) -> int:
        """Return when everything that was pending is in Redis; return how many changes that were.

        Args:
            timeout: Seconds to keep trying while Redis is away.  None: one try.

        Raises:
            StoreError: If Redis is away, or refuses a change; nothing is lost.
            ConflictError: If a change lost every round of resolving.
            LockLost: Once, if a newer fence has refused a change; and once in the thread that made it, if that is another.
        """
        deadline = time.monotonic() + (timeout or 0)
        backoff = EqualJitterBackoff(cap=LONGEST_PAUSE, base=0.05)
        for failures in count(1):
            try:
                written = self._wait_for(FlushRequest(strict=True), max(self.timeout, deadline - time.monotonic()))
                self.store.wait_indexed()
                return written
            except StoreError as exc:
                pause = backoff.compute(failures)
                if isinstance(exc, StoreRefused) or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
        raise AssertionError("count() does not end")

    def compare_and_set(self, change: SetValue, expected: int, attempt: Attempt) -> StoredEntry:
        """Write a value at once, if an entry is at the expected version; return it as it was stored.

        Raises:
            ConflictError: If the entry is at another version.
            StoreError: If Redis is away, or refuses.
            LockLost: If a newer fence has written.
        """
        request = CompareAndSet(change, expected, attempt)
        self._wait_for(request, self.timeout)
        self.on_put(change.location.key)
        assert request.stored is not None
        return request.stored

    def _wait_for(self, request: FlushRequest, timeout: float) -> int:
        self._requests.append(request)
        self._thread.call_now()
        if self._thread.cannot_start or self._closed:
            self._write_alone()
        timeout = max(0.0, min(timeout, remaining()))
        try:
            is_answered = request.wait(timeout)
        except BaseException:  # of a signal's handler
            self._give_up(request)
            raise
        if not is_answered:
            request.given_up = True
            raise StoreUnavailable(
                f"Redis at {self.store.address} did not take what is pending within {timeout:.3g} s; it stays pending",
                request.may_be_done)
        if request.error is not None:
            # Several callers may get the same one.
            raise copy(request.error) from request.error
        return request.written

    def _give_up(self, request: FlushRequest) -> None:
        """Keep the answer that a caller does not wait for any more for the next one."""
        request.given_up = True
        if isinstance(request.error, LockLost):
            self._fenced.extend(request.fenced)

    def _write_alone(self) -> None:
        """Write in this thread: the interpreter is shutting down and starts no other one."""
        if self._alone.acquire(timeout=self.timeout):
            try:
                self._write_pending()
            except StoreError:
                logger.debug("The last writes have failed", exc_info=True)
            finally:
                self._alone.release()

    def close(self, timeout: float) -> None:
        """Write what is pending and stop the threads, within ``timeout`` seconds.

        Raises:
            StoreError: If something could not be written.
        """
        deadline = time.monotonic() + timeout
        try:
            while self._pending and self._write_before(deadline):
                pass
            within(max(0.0, deadline - time.monotonic()), self.store.wait_indexed)
        finally:
            self._closed = True
            self._gatherer.stop(0)
            self._thread.stop(max(0.0, deadline - time.monotonic()))
            self._resolver.stop(0)

    def _write_before(self, deadline: float) -> bool:
        """Write what is pending; return whether to go on, because some got no answer from a Redis that is there."""
        try:
            self._wait_for(FlushRequest(strict=True), deadline - time.monotonic())
        except StoreUnavailable as exc:
            if exc.code or not self.connected or time.monotonic() >= deadline:
                raise
            return True
        return False

    # -- write; in the writer's thread

    def _write_pending(self) -> float | None:
        """Write what is due, answer the callers that wait; return in how many seconds to look again."""
        while self._requests:
            self._begun.append(self._requests.popleft())
        self._begun = [request for request in self._begun if not request.given_up]
        strict = any(request.strict for request in self._begun)
        written = 0
        lost: list[ConflictError] = []
        failure: BaseException | None = None
        try:
            self._note_reads()
            self._take_settled()
            self._pending.drain(time.monotonic() - (0.0 if self._begun else YOUNG * self._thread.interval))
            written, lost = self._write_due(strict)
            self._compare_and_set_all()
        except BaseException as exc:
            failure = exc
        refused = self._pending.end_batch()
        self._refusals = {location: self._refusals[location] for location in refused if location in self._refusals}
        self._report_nodes()
        self._report_drops()
        if self._pending.deferring:
            self._thread.wake()
        # At last, for the callers are waiting for this thread, too.
        if failure is not None:
            known = failure if isinstance(failure, MemSyncError) else StoreUnavailable(f"Writing failed: {failure!r}")
            self._answer(known, failed=True)
            raise failure
        self._answer(lost[0] if lost and not refused else self._refused_error(refused), written)
        return REFUSED_PAUSE if lost or refused or self.store.unpublished else None

    def _note_reads(self) -> None:
        while self._reads:
            location, stored = self._reads.popleft()
            self._seen.note_base(location, MergeBase.of(stored, self.store.clock))

    def _take_settled(self) -> None:
        """Take what resolvers have settled."""
        while self._settled:
            change, settled = self._settled.popleft()
            self._take_resolution(change, settled)

    def _write_due(self, strict: bool) -> tuple[int, list[ConflictError]]:
        """Write what is due; return how many changes that were, and an error for each that lost every round."""
        started = time.monotonic()
        changes = self._pending.due(started, everything=strict)
        try:
            if changes:
                self.store.connect()
            elif not self.connected:
                self.store.ping()
                self._restored()
            if self.store.unpublished:
                self.store.publish_again()
            written, lost = self._write_batches(changes, strict)
            if strict:
                self.store.wait_invalidated()
        except MemSyncError as exc:
            self._failed(exc, len(changes))
            raise
        if written:
            self._succeeded(written, time.monotonic() - started)
        return written, lost

    def _write_batches(self, changes: list[Change], strict: bool) -> tuple[int, list[ConflictError]]:
        """Write changes in batches; return how many changes that were, and an error for each that lost every round.

        A batch without an answer, from a Redis that is there, may be too much for the link within the time, or hold an
        argument at which Redis closes the connection.  So the next one is a single change, and they grow while they are
        answered.  A change that gets no answer alone, twice, is set aside.

        Raises:
            StoreUnavailable: If Redis is not there, or that took as long as a caller waits.
        """
        written, started = 0, time.monotonic()
        lost: list[ConflictError] = []
        self._refused_now.clear()
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
                    self._refuse(batch[0], WriteResult("error", error=str(exc), code=UNANSWERED, maybe_done=True))
                self._failed_alone = batch[0].location if len(batch) == 1 else None
                if time.monotonic() - started > self.timeout:
                    self._thread.call_now()
                    raise
                lost, changes = [], self._pending.due(time.monotonic(), everything=strict)
            else:
                written += len(batch)
                changes = changes[len(batch):]
                self._batch_limit = min(self.batch_size, 2 * self._batch_limit)
            if self._refused_now:
                changes = [change for change in changes if change.location not in self._refused_now]
        return written, lost

    def _first_batch(self, changes: list[Change]) -> list[Change]:
        """Return what is to be sent first; what was refused before does not come together with what was not."""
        batch = changes[:self._batch_limit]
        if not self._refusals:
            return batch
        was_refused = batch[0].location in self._refusals
        return list(takewhile(lambda change: (change.location in self._refusals) == was_refused, batch))

    def _is_redis_there(self) -> bool:
        try:
            within(PING_TIME * self.timeout, self.store.ping)
        except StoreError:
            return False
        self._answers_pings = True
        return True

    def _refused_error(self, refused: list[Location]) -> StoreError | None:
        """Return what a caller that wants everything to be in Redis has to know."""
        outcomes = [self._refusals[location] for location in refused if location in self._refusals]
        return _refusal(refused[0].path, outcomes, self.store.address) if outcomes else None

    def _answer(self, error: MemSyncError | None, written: int = 0, failed: bool = False) -> None:
        """Answer the callers that wait; requests for everything go on waiting while a resolver runs.

        Args:
            error: What was not written, or why nothing was.
            failed: Whether nothing was.
        """
        waiting = self._pending.resolving and not failed
        for request in self._begun:
            if failed or not request.strict:
                request.answer(written, request.own(error) if failed else None)
            elif not waiting:
                request.answer(written, error or self._fence_error(request))
        self._begun = [request for request in self._begun if waiting and request.strict]

    def _fence_error(self, request: FlushRequest) -> LockLost | None:
        """Return what a caller has to know: the first of what newer fences refused, and each thread what it wrote itself."""
        if request.given_up:
            return None
        reported: list[FencedWrite] = []
        for _ in range(len(self._fenced)):
            fenced = self._fenced.popleft()
            is_own = fenced.is_by(request.caller)
            if is_own or not fenced.is_reported:
                reported.append(fenced)
            if not is_own and fenced.has_author:
                self._fenced.append(fenced._replace(is_reported=True))
        request.fenced = tuple(reported)
        paths = list(dict.fromkeys(fenced.path for fenced in reported))
        more = f" and {len(paths) - 1} others" if len(paths) > 1 else ""
        return LockLost(f"under which {paths[0]}{more} was written") if paths else None

    def _send(self, changes: list[Change]) -> list[ConflictError]:
        """Write changes in one round trip; settle conflicts by more of them.

        Returns:
            An error for each change that lost every round; it stays pending.
        """
        changes = self._coordinate(changes)
        lost: list[Change] = []
        for number in range(MAX_MERGES):
            written: list[tuple[Change, EntryWrite]] = []
            outcomes = self.store.write_entries(self._writes_of(changes, written))
            again = [self._settle(change, write, outcome) for (change, write), outcome in zip(written, outcomes)]
            for (change, _), outcome in zip(written, outcomes):
                if outcome.status == "error" and outcome.is_of_all:  # what was not stored stays pending
                    raise _refusal(change.location.path, [outcome], self.store.address)
                if outcome.code == UNANSWERED:
                    raise StoreUnavailable(f"No answer came to a write of {change.location.path}", outcome.maybe_done)
            changes = [change for change in again if change is not None]
            late = [change for change in changes if _is_late(change, number)]
            lost += late
            changes = [change for change in changes if change not in late]
            if not changes:
                break
            time.sleep(number * random.random() * CONTENTION_PAUSE)  # noqa: S311 # spreads tries, no secret
        for change in lost:
            change.rounds = 0
        return [ConflictError(
            change.location.path, (change.seen if isinstance(change, SetValue) else self._base_of(change).stamp).version,
        ) for change in lost + changes]

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
                    self._refuse(change, WriteResult(
                        "error", error=str(result.error), code=result.code, maybe_done=may_be_done(result.error),
                        is_of_node=result.code == UNREACHABLE))
                else:
                    errors.append(result.error)
                continue
            self._settle_coordinated(change, result)
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

    def _settle_coordinated(self, change: Coordinated, result: CoordinationResult) -> None:
        """Note what was done, or can't be known any more."""
        self._pending.settle(change)
        if result.status == "forgotten":
            logger.warning("%s: %s", change.location.path, result.error)
            self._counts["dropped"] += 1
            self.events.emit("writes-dropped", count=1)
            return
        if result.answer and isinstance(change, SyncMetrics):
            logger.warning("Counters that are no numbers can't be added to: %s", ", ".join(result.answer))
        self._counts["writes"] += 1
        self._write_events.written(change)

    def _writes_of(self, changes: Iterable[Change], written: list[tuple[Change, EntryWrite]]) -> Iterator[EntryWrite]:
        """Yield changes as the store takes them, and keep each beside what it became."""
        for change in changes:
            write = self._as_write(change)
            if write is not None:
                written.append((change, write))
                yield write

    def _as_write(self, change: Change) -> EntryWrite | None:
        """Return a change as the store takes it; None, and it is dropped, if there is something wrong with it."""
        clock, base, at = self.store.clock, EMPTY_BASE, change.at
        fields: Mapping[str, bytes] = {}
        try:
            if isinstance(change, MergeFields):
                base = self._base_of(change)
                fields = base.fields
                # One of the fields may have been written later.
                at = max(at, base.recorded_at)
                change.note_sent()
            seen, run, rank, body, figure = change.content(clock, fields)
        except Exception:
            logger.exception("Dropped a write of %s that can't be made", change.location.path)
            self._pending.settle(change)
            self._counts["dropped"] += 1
            return None
        if change.serial is None:
            change.serial = next(self._serials)
        if seen == "version":
            stored_at, version = change.seen if isinstance(change, SetValue) else base.stamp
            seen = f"{version}@{stored_at}"
        age_ms = max(0, round((time.monotonic() - at) * 1000))
        return EntryWrite(
            change.location, seen, run, rank, change.fence, ms(clock.at(at)), age_ms, ms(change.ttl), change.serial, body,
            figure)

    def _base_of(self, change: Change) -> MergeBase:
        """Return what the fields of a change are to be merged into."""
        if not isinstance(change, MergeFields):
            return EMPTY_BASE
        return self._seen.base(change.location) if change.base is None else change.base.present

    # -- compare and set

    def _compare_and_set_all(self) -> None:
        for request in self._begun:
            if not isinstance(request, CompareAndSet):
                continue
            request.may_be_done = True
            # In this order: a caller that gives up looks at the other after it has set this.
            if not request.given_up:
                try:
                    request.stored = self._compare_and_set(request.change, request.expected, request.attempt)
                except MemSyncError as exc:
                    request.answer(error=exc)
                else:
                    request.answer()

    def _compare_and_set(self, change: SetValue, expected: int, attempt: Attempt) -> StoredEntry:
        location, key = change.location, change.location.path
        if self._pending.is_refused(location):
            raise self._refused_error([location]) or StoreUnavailable(f"an earlier write of {key} waits for another try")
        change.serial = attempt.number
        self.store.connect()
        write = self._as_write(change)
        assert write is not None  # a value that was encoded already
        shown = self._seen.stamp(location)
        # Of which life of the key that version is, if this process was shown it.
        at = f"@{shown.stored_at}" if expected and shown.version == expected else ""
        resent = self.store.resent
        (outcome,) = self.store.write_entries([write._replace(seen=f"{expected}{at}")])
        attempt.maybe_done = attempt.maybe_done or resent != self.store.resent
        if outcome.status == "again" and number_of(outcome.writes, self.store.token) != attempt.number:
            # This process has written something else since.
            if outcome.version != expected:
                raise attempt.conflict(key, outcome.version, False)
            attempt.number = next(self._serials)
            return self._compare_and_set(change, expected, attempt)
        if outcome.status == "conflict":
            return self._compare_with_deleted(change, expected, attempt, outcome)
        if outcome.status == "error":
            raise _refusal(key, [outcome], self.store.address)
        attempt.maybe_done = outcome.status != "fenced"
        if outcome.status == "fenced":
            raise LockLost(f"under which {key} was written")
        self._settle(change, write, outcome)
        self.store.wait_invalidated()
        # If this is a second try others may have written since.
        is_last = f"{outcome.writes},".startswith(f"{self.store.token}.{attempt.number},")
        version = expected + 1 if outcome.status == "again" and not is_last else outcome.version
        header = Header(version, "-", "-", change.fence, write.time, write.ttl_ms, 0, "-", self.store.worker_id)
        return StoredEntry(header, change.body)

    def _compare_with_deleted(
        self, change: SetValue, expected: int, attempt: Attempt, outcome: WriteResult,
    ) -> StoredEntry:
        """Raise a conflict, unless nothing is expected and nothing is there: what was deleted counts its versions on."""
        location, stored = change.location, outcome.stored
        if attempt.maybe_done and not was_never_written(stored, expected):
            raise attempt.conflict(location.path, outcome.version, False)
        if expected or not outcome.version or stored is not None and not stored.absent(self.store.clock.now()):
            self._seen.note(location, UNWRITTEN if stored is None else stored.header.stamp)
            raise ConflictError(location.path, outcome.version)
        return self._compare_and_set(change, outcome.version, attempt)

    # -- what became of a change

    def _settle(self, change: Change, write: EntryWrite, outcome: WriteResult) -> Change | None:
        """Note an outcome; return what is to be written instead at once, if anything."""
        status = outcome.status
        if status == "conflict":
            if self._pending.is_later(change):
                # What comes before it is settled first.  This was made by who knew of that, so it follows plainly.
                return None if self._pending.is_waiting(change) else change
            return self._resolve(change, outcome)
        if status == "error":
            if not outcome.is_of_all and outcome.code != UNANSWERED:
                self._refuse(change, outcome)
            return None
        if status == "fenced":
            self._fence_off(change)
        if status == "ok" or status == "again":
            self._counts["writes"] += 1
            if status == "ok":
                self._remember(change, EntryVersion(outcome.stored_at, outcome.version))
            else:
                # Others may have written since; what they wrote was not seen.
                self._seen.forget(change.location)
            if change.conflict is not None:
                self._note_conflict(change.conflict)
            self._write_events.written(change, write.body)
        self._pending.settle(change)
        return None

    def _fence_off(self, change: Change) -> None:
        """Drop a change that was made under a lock which another process has had since, and has written."""
        path = change.location.path
        if self._is_first_warning(change.location):
            logger.warning("Rejected a write of %s: a newer fence has already written it", path)
        self._fenced.extend(FencedWrite(path, author) for author in change.authors or (None,))
        self._seen.forget(change.location)
        self._counts["dropped"] += 1
        self.events.emit("writes-dropped", count=1)

    def _remember(self, change: Change, stamp: EntryVersion) -> None:
        location = change.location
        if isinstance(change, MergeFields):
            base = self._base_of(change)
            recorded_at = max(change.at, base.recorded_at)
            merged = change.merged(base.fields)
            self._seen.note_base(location, MergeBase(stamp, merged, recorded_at + change.ttl, recorded_at))
        elif isinstance(change, SetValue):
            self._seen.forget_base(location)
        else:
            return
        self._seen.note(location, stamp)
        # What this process has written since then follows what it wrote before.
        for later in self._pending.later(location):
            if isinstance(later, SetValue):
                later.seen = stamp

    def _resolve(self, change: Change, outcome: WriteResult) -> Change | None:
        """Return what is to be written instead of a change that found another version than its writer had seen."""
        stored, base = outcome.stored, MergeBase.of(outcome.stored, self.store.clock)
        gone = stored is None or stored.absent(self.store.clock.now())
        before = self._base_of(change)
        if isinstance(change, MergeFields):
            change.late = not gone
            change.base = base._replace(body={}, until=0.0) if gone else base
            self._seen.note_base(change.location, change.base)
        elif isinstance(change, SetValue):
            change.seen = UNWRITTEN if stored is None else stored.header.stamp
        own = stored is not None and stored.header.writes.startswith(self.store.token)
        # What a later run of a task writes plainly follows.
        if stored is None or own or outcome.is_later_run or gone and not (stored.deleted and isinstance(change, SetValue)):
            return change
        settled = self.settler.settle(change, stored, before.fields)
        if isinstance(settled, Dispute):
            if change.rounds >= MAX_ROUNDS:
                return change  # it stays pending as it is
            change.rounds += 1
            if not settled.is_quick:
                self._pending.hold(change)
                self._disputes.append((change, settled))
                self._resolver.wake()
                return None
            settled = settled.resolve()
        return self._take_resolution(change, settled)

    def _take_resolution(self, change: Change, settled: Change | dict[str, Any]) -> Change | None:
        """Put what a conflict was settled to in the place of a change; return it."""
        if isinstance(settled, Change):
            settled.rounds, settled.authors = change.rounds, change.authors
            self._pending.settle(change, settled)
            return settled
        self._note_conflict(settled)
        self._pending.settle(change)
        return None

    def _resolve_disputes(self) -> None:
        """Call the user's resolvers; in a thread of their own, for they may block."""
        while self._disputes:
            change, dispute = self._disputes.popleft()
            self._settled.append((change, dispute.resolve()))
            self._thread.call_now()

    def _note_conflict(self, conflict: dict[str, Any]) -> None:
        """Count a conflict that is settled; however many rounds it took, it was one."""
        self._counts["conflicts"] += 1
        self.events.emit("conflict-resolved", **conflict)

    def _refuse(self, change: Change, outcome: WriteResult) -> None:
        """Set a change aside that Redis refuses, so that it does not hold up the others."""
        earlier = self._refusals.get(change.location)
        if outcome.code == UNREACHABLE and earlier is not None and earlier.maybe_done:
            outcome = outcome._replace(maybe_done=True)
        longest = LONGEST_NODE_PAUSE if outcome.is_of_node else LONGEST_REFUSED_PAUSE
        self._pending.refuse(change, outcome.maybe_done, longest)
        self._refused_now.add(change.location)
        self._refusals[change.location] = outcome
        if outcome.is_of_node:
            if not self._warned_of_node:
                logger.warning("Part of the cluster takes no writes, which stay pending: %s", outcome.error[:200])
            self._warned_of_node = True
        elif self._is_first_warning(change.location):
            logger.warning("Redis refuses to write %s: %s", change.location.path, outcome.error[:120])

    def _is_first_warning(self, location: Location) -> bool:
        """Return whether a refusal is to be logged: once for each location."""
        if location in self._warned:
            return False
        if len(self._warned) >= MAX_WARNED:
            self._warned.clear()
        self._warned.add(location)
        return True

    # -- what is reported of it all

    def _report_nodes(self) -> None:
        """Log that every node takes writes again."""
        if self._warned_of_node and not any(outcome.is_of_node for outcome in self._refusals.values()):
            self._warned_of_node = False
            logger.info("All nodes of the cluster take writes again")

    def _report_drops(self) -> None:
        dropped = self._pending.dropped - self._reported_drops
        if not dropped:
            return
        self._reported_drops += dropped
        too_many = self._pending.dropped - self._pending.spoiled - self._reported_as_too_many
        self._reported_as_too_many += too_many
        if too_many and not self._warned_of_drops:
            self._warned_of_drops = True
            logger.warning("Dropped %d changes: more than %d entries were pending", too_many, self.max_pending)
        self.events.emit("writes-dropped", count=dropped)

    def _failed(self, error: MemSyncError, count: int) -> None:
        self._counts["flush_failures"] += 1
        self.events.emit("batch-failed", count=count, error=error)
        if self.connected and isinstance(error, StoreError) and not error.code and not self._answers_pings:
            self.connected = False
            self.events.emit("connection-lost", error=error)

    def _succeeded(self, count: int, seconds: float) -> None:
        self._counts["syncs"] += 1
        self.last_flush_seconds = seconds
        self._warned_of_drops = False
        self.events.emit("batch-flushed", count=count, seconds=seconds)
        self._restored()

    def _restored(self) -> None:
        if not self.connected:
            self.connected = True
            self.events.emit("connection-restored")


def _is_late(change: Change, number: int) -> bool:
    """Return whether a change has lost every round; merging fields only has to be the first to write, so it has more."""
    return change.rounds >= MAX_ROUNDS or number >= MAX_ROUNDS and not isinstance(change, MergeFields)


def _refusal(key: str, outcomes: list[WriteResult], address: str) -> StoreError:
    """Return what to raise where Redis refuses to write entries, of which there may be more than this one."""
    others = f" and {len(outcomes) - 1} more" if len(outcomes) > 1 else ""
    code, error = outcomes[0].code or "WRONGTYPE", outcomes[0].error
    message = f"Could not write {key}{others} (Redis at {address}): {explain_code(code, error)}"
    return StoreUnavailable(message, outcomes[0].maybe_done, code) if outcomes[0].passes else StoreRefused(message, code)
