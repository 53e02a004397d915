"""Gather changes in memory and write them in batches."""
from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import OrderedDict, deque
from itertools import count
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger
from redis.backoff import EqualJitterBackoff

from .. import encoding
from ..background_loop import LONGEST_PAUSE, BackgroundLoop
from ..conflicts import MAX_ROUNDS
from ..events import Events
from ..exceptions import ConflictError, LockLost, MemSyncError, StoreError, StoreRefused, StoreUnavailable
from ..keys import ASSIGNMENTS, STATE, Location
from ..models.entry import UNWRITTEN, EntryVersion, Header, StoredEntry
from ..models.progress import progress_from
from ..store import EntryWrite, Store, WriteResult, explain_code, ms
from .changes import Change, Coordinated, DeferredChange, MergeFields, SetValue, StageChange, SyncMetrics, SyncQueue
from .conflict_settler import ConflictSettler
from .unanswered import Attempt, Unanswered, maybe_done_is, number_of, was_never_written
from .version_tracker import EMPTY_BASE, MergeBase, VersionTracker

logger = get_logger(__name__)

#: Most rounds of merging fields into a state that others write at the same moment.
MAX_MERGES = 50

#: Longest pause before the second of these rounds, in seconds; it grows with each.
CONTENTION_PAUSE = 0.001

#: Seconds between two tries of a write that Redis refuses while it takes others.
REFUSED_PAUSE = 1.0

#: Part of ``interval`` for which a draft is left for the next batch if there may be more to tell then: what a busy worker
#: has just received will have ended.
YOUNG = 0.1

#: Most writes that are kept although Redis will not take them by itself.
MAX_REFUSED = 1000

Queue = OrderedDict[Location, list[Change]]


class BatchWriter:
    """Writes changes in the background; whoever makes one never waits for Redis.

    Changes of one entry are coalesced and stay in order.  A batch that fails
    goes back to the queue, under newer changes, and is sent again.

    Args:
        settler: Settles conflicts.
        interval: Seconds that changes are gathered; 0 sends every one at once.
        batch_size: Most changes in one round trip.
        max_pending: Most changes in memory; beyond it the oldest progress is
            dropped first, then the oldest others.
        on_put: Called with each draft that is taken, and with the place of each change.
    """

    def __init__(
        self, store: Store, events: Events, settler: ConflictSettler, *,
        interval: float, batch_size: int, max_pending: int, on_put: Callable[[Location | DeferredChange], object],
    ) -> None:
        self.store = store
        self.events = events
        self.settler = settler
        self.batch_size = batch_size
        self.max_pending = max_pending
        self.on_put = on_put
        #: Counters since the start of this process.
        self.counts = dict.fromkeys(("writes", "conflicts", "syncs", "flush_failures", "dropped", "coalesced"), 0)
        self.last_flush_seconds = 0.0
        self.connected = True
        # Both can be taken twice by one thread: by what it does, and by a signal's handler in the middle of it.
        self._mutex = threading.RLock()
        #: Held while a batch is under way, so that batches go one after the other.
        self._flushing = threading.RLock()
        self._deferred: dict[DeferredChange, None] = {}
        self._ordinary: Queue = OrderedDict()
        self._expendable: Queue = OrderedDict()
        self._in_flight: list[Change] = []
        #: Redis keys of what waits, and of what is under way or has come back; perhaps of more.
        self._keys_waiting: set[str] = set()
        self._keys_sent: set[str] = set()
        self._assignments = store.keys.coordination_location(ASSIGNMENTS).path
        #: What Redis refuses, by place, with the time of the next try.
        self._refused: OrderedDict[Location, tuple[float, list[Change]]] = OrderedDict()
        #: What Redis said of it last.
        self._refusals: dict[Location, WriteResult] = {}
        #: What was written or shown to a reader last.
        self._seen = VersionTracker()
        self._serials = count(1)
        #: Writes of expected versions that got no answer.
        self.unanswered = Unanswered(lambda: next(self._serials))
        self._pending_events: deque[tuple[str, dict[str, Any]]] = deque()
        self._unreported_drops = 0
        self._warned_of_drops = False
        #: Slots of which a refusal was told.
        self._warned: set[Location] = set()
        self._thread = BackgroundLoop("memsync-writer", self._flush_on_demand, interval, on_demand=True)

    # -- tell

    def defer(self, deferred: DeferredChange) -> None:
        """Take a draft, unless it waits already; what it has to tell is written within ``interval``, and a tenth of that.

        No lock is taken: a soft time limit may raise anywhere in here.
        """
        if deferred in self._deferred:
            return
        self._deferred[deferred] = None
        self.on_put(deferred)
        if len(self._deferred) > self.max_pending:
            self._queue_deferred()
        self._thread.wake()
        if len(self._deferred) >= self.batch_size:
            self._thread.run_now()

    def put(self, change: Change) -> None:
        """Take a change; it is written within ``interval``."""
        full = self._queue(change)
        self._thread.wake()
        if full:
            self._thread.run_now()

    def _queue(self, change: Change) -> bool:
        """Let a change wait; tell whether there is a batch of them."""
        location = change.location
        with self._mutex:
            queue = self._expendable if change.expendable else self._ordinary
            if isinstance(change, SetValue):
                change.seen = self._seen.stamp(location)
            self._append(queue, location, change)
            change.mark_queued()
            if len(self._ordinary) + len(self._expendable) > self.max_pending:
                self._drop_oldest()
            # Nobody sees that it waits before the copies of what it changes are gone.
            self.on_put(location)
            return len(queue) >= self.batch_size

    def note_read(self, location: Location, stored: StoredEntry | None) -> None:
        """Take note of what a reader of this process was shown: what it writes next follows that."""
        with self._mutex:
            self._seen.note(location, UNWRITTEN if stored is None else stored.header.stamp)
            if location.slot == STATE or location.path == self._assignments:
                self._seen.note_base(location, MergeBase.of(stored, self.store.clock))

    def withdraw(self, deferred: DeferredChange, change: Change | None) -> None:
        """Take a draft back, or the change that it came to: nobody needs it any more.  What is under way stays."""
        self._deferred.pop(deferred, None)
        if change is not None:
            with self._mutex:
                if self._ordinary.get(change.location) == [change]:
                    del self._ordinary[change.location]

    # -- ask

    @property
    def pending(self) -> int:
        """Number of changes that are not in Redis yet."""
        with self._mutex:
            self._queue_deferred()
            return len(self._ordinary) + len(self._expendable) + len(self._in_flight) + len(self._refused)

    def waiting_for(self, *keys: str) -> list[Change]:
        """Return the changes of all entries under Redis keys that are not in Redis yet."""
        with self._mutex:
            self._queue_deferred()
            if not any(key in self._keys_waiting or key in self._keys_sent for key in keys):
                return []
            return [change for change in self.waiting() if change.location.key in keys]

    def waiting(self) -> list[Change]:
        """Return all changes that are not in Redis yet, those of an entry in their order."""
        with self._mutex:
            self._queue_deferred()
            rows = [*(changes for _, changes in self._refused.values()), self._in_flight]
            rows += [*self._ordinary.values(), *self._expendable.values()]
            return [change for row in rows for change in row]

    def overlay(self, stored: StoredEntry | None, changes: Sequence[Change]) -> StoredEntry | None:
        """Return an entry as it will be when changes of this process have been written over it."""
        for change in changes:
            if not self._holds(stored, change):
                stored = change.applied_to(stored, self.store.clock, self.store.worker_id)
        return stored

    def _holds(self, stored: StoredEntry | None, change: Change) -> bool:
        """Whether a change that is under way has arrived already."""
        if stored is None or change.serial is None:
            return False
        for write in stored.header.writes.split(","):
            token, _, serial = write.partition(".")
            if token == self.store.token:
                return serial.isdigit() and int(serial) >= change.serial
        return False

    @property
    def idle(self) -> contextlib.AbstractContextManager[object]:
        """A lock; whoever holds it knows that nothing leaves this process meanwhile."""
        return self._flushing

    # -- write

    def flush(self) -> None:
        """Write everything that waits now.

        Raises:
            StoreError: If Redis is away; what was not written waits on.
        """
        try:
            with self._flushing:
                self._flush()
        finally:
            self._emit_events()

    def flush_for(self, key: str) -> None:
        """Write everything that waits now, if something waits under a Redis key.

        Raises:
            StoreError: If Redis is away; what was not written waits on.
        """
        if self.waiting_for(key):
            self.flush()

    def _flush_on_demand(self) -> float | None:
        try:
            with self._flushing:
                self._flush(young=YOUNG * self._thread.interval)
        finally:
            self._emit_events()
        if self._deferred:
            self._thread.wake()
        return REFUSED_PAUSE if self._refused or self.store.unpublished else None

    def force(self, timeout: float | None = None) -> int:
        """Return when everything that waited is in Redis; tell how many changes that were.

        Args:
            timeout: Seconds to keep trying while Redis is away.  None: one try.

        Raises:
            StoreError: If Redis is away, or refuses a change; nothing is lost.
            ConflictError: If a change lost every round of resolving.
        """
        deadline = time.monotonic() + (timeout or 0)
        backoff = EqualJitterBackoff(cap=LONGEST_PAUSE, base=0.05)
        failures = 0
        while True:
            try:
                with self._barrier(None if timeout is None else deadline):
                    written = self._flush(strict=True)
                    with maybe_done_is(True):
                        self.store.wait_invalidated()
                    return written
            except StoreError as exc:
                failures += 1
                pause = backoff.compute(failures)
                if isinstance(exc, StoreRefused) or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
            finally:
                self._emit_events()

    def compare_and_set(self, change: SetValue, expected: int, attempt: Attempt) -> StoredEntry:
        """Write a value at once, if an entry is at the expected version; return it as it was stored.

        Raises:
            ConflictError: If the entry is at another version.
            StoreError: If Redis is away, or refuses.
        """
        with maybe_done_is(False):
            self.flush()
        try:
            with self._flushing:
                return self._compare_and_set(change, expected, attempt)
        finally:
            self._emit_events()

    def _compare_and_set(self, change: SetValue, expected: int, attempt: Attempt) -> StoredEntry:
        location, key = change.location, change.location.path
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
        last = number_of(outcome.writes, self.store.token)
        if outcome.status == "again" and last != attempt.number:  # this process has written something else since
            if outcome.version != expected:
                raise attempt.conflict(key, outcome.version, False)
            attempt.number = next(self._serials)
            return self._compare_and_set(change, expected, attempt)
        if outcome.status == "conflict":
            stored = outcome.stored
            is_certain = was_never_written(stored, expected)
            if attempt.maybe_done and not is_certain:
                raise attempt.conflict(key, outcome.version, is_certain)
            if expected or not outcome.version or stored is not None and not stored.absent(self.store.clock.now()):
                with self._mutex:
                    self._seen.note(location, UNWRITTEN if stored is None else stored.header.stamp)
                raise ConflictError(key, outcome.version)
            # Version 0 is meant, nothing to see; what was deleted counts its versions on.
            return self._compare_and_set(change, outcome.version, attempt)
        if outcome.status == "error":
            raise _refusal(key, [outcome])
        attempt.maybe_done = outcome.status != "fenced"
        if outcome.status == "fenced":
            raise LockLost(f"under which {key} was written")
        self._settle(change, write, outcome)
        self.store.wait_invalidated()
        self.on_put(location)
        # If this is a second try others may have written since.
        is_last = f"{outcome.writes},".startswith(f"{self.store.token}.{attempt.number},")
        version = expected + 1 if outcome.status == "again" and not is_last else outcome.version
        before = StoredEntry(Header(version - 1, "-", "-", 0, 0, 0, 0, "-", ""), b"")
        after = change.applied_to(before, self.store.clock, self.store.worker_id)
        assert after is not None
        return after

    def close(self, timeout: float) -> None:
        """Stop the thread and write what waits, for at most about ``timeout`` seconds.

        Raises:
            StoreError: If something could not be written.
        """
        deadline = time.monotonic() + timeout
        self._thread.stop(timeout)
        left = deadline - time.monotonic()
        if self.pending and left <= 0 and not self.connected:
            raise StoreUnavailable("Redis is away")
        if self.pending:
            self.force(max(0.0, left))

    @contextlib.contextmanager
    def _barrier(self, deadline: float | None) -> Iterator[None]:
        if deadline is None:
            with self._flushing:
                yield
            return
        held = False
        try:
            held = self._flushing.acquire(timeout=max(0.0, deadline - time.monotonic()))
            if not held:
                raise StoreUnavailable("Redis did not take the batch under way in time; it waits on", maybe_done=True)
            yield
        finally:
            if held:
                self._flushing.release()

    def _flush(self, strict: bool = False, young: float = 0.0) -> int:
        started = time.monotonic()
        lost_rounds: list[ConflictError] = []
        try:
            self._take(all_refused=strict, young=young)
            count = len(self._in_flight)
            if count:
                self.store.connect()
            elif not self.connected:
                self.store.ping()
                self._restored()
            if self.store.unpublished:
                self.store.publish_again()
            while self._in_flight:
                lost_rounds += self._send(self._in_flight[:self.batch_size])
        except MemSyncError as exc:
            self._failed(exc, len(self._in_flight))
            raise
        finally:
            self._put_back(self._in_flight)
        if count:
            self._succeeded(count, time.monotonic() - started)
        if strict and self._refused:
            raise _refusal(next(iter(self._refused)).path, [self._refusals[location] for location in self._refused])
        if strict and lost_rounds:
            raise lost_rounds[0]
        return count

    def _send(self, changes: list[Change]) -> list[ConflictError]:
        """Write the first changes that are in flight in one round trip; settle conflicts by more of them.

        Returns:
            An error for each change that lost every round; it waits on.
        """
        lost: list[Change] = []
        changes = self._replace(changes, self._coordinate(changes))
        for number in range(MAX_MERGES):
            written: list[tuple[Change, EntryWrite]] = []
            outcomes = self.store.write_entries(self._writes_of(changes, written))
            settled = [self._settle(change, write, outcome) for (change, write), outcome in zip(written, outcomes)]
            again = [change for change in settled if change is not None]
            if number >= MAX_ROUNDS:
                # Merging fields settles nothing, it only has to be the first to write.
                lost += self._postpone([change for change in again if not isinstance(change, MergeFields)])
                again = [change for change in again if isinstance(change, MergeFields)]
            changes = self._replace(changes, again)
            for (change, _), outcome in zip(written, outcomes):
                if outcome.is_of_all:
                    raise _refusal(change.location.path, [outcome])
            if not again:
                break
            time.sleep(number * random.random() * CONTENTION_PAUSE)  # nosec B311 # spreads tries, no secret
        else:
            lost += self._postpone(changes)
            self._replace(changes, [])
        return [ConflictError(
            change.location.path,
            (change.seen if isinstance(change, SetValue) else self._base(change).stamp).version,
        ) for change in lost]

    def _postpone(self, changes: list[Change]) -> list[Change]:
        """Put changes that lost every round back before those that wait; at no moment are they nowhere."""
        with self._mutex:
            for change in changes:
                self._append(self._ordinary, change.location, change, front=True)
        return changes

    def _replace(self, changes: list[Change], left: list[Change]) -> list[Change]:
        """Put what is left of the first changes in flight in their place; if the connection breaks, that waits on."""
        with self._mutex:
            self._in_flight = left + self._in_flight[len(changes):]
        return left

    def _coordinate(self, changes: Sequence[Change]) -> list[Change]:
        """Write what is no entry; return the rest."""
        together = [change for change in changes if isinstance(change, Coordinated)]
        if together:
            for change in together:
                change.serial = change.serial or next(self._serials)
            try:
                answers = self.store.change_coordination([change.update() for change in together])
            except StoreError as exc:
                if not isinstance(exc, StoreRefused) and exc.code != "NOPERM":
                    raise
                for change in together:
                    self._refuse(change, WriteResult("error", error=str(exc), code=exc.code))
                answers = []
            for change, failed in zip(together, answers):
                if failed and isinstance(change, SyncMetrics):
                    logger.warning("Counters that are no numbers can't be added to: %s", ", ".join(failed))
                self.counts["writes"] += 1
                self._note_written(change)
        return [change for change in changes if not isinstance(change, Coordinated)]

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
                base = self._base(change)
                fields = base.fields
                # One of the fields may have been told later.
                at = max(at, base.recorded_at)
                change.note_sent()
            seen, run, rank, body, figure = change.content(clock, fields)
        except SoftTimeLimitExceeded:  # of the task that flushes just now
            raise
        except Exception:
            logger.exception("A write of %s can't be made and is dropped", change.location.path)
            self._count_drop()
            return None
        if change.serial is None:
            change.serial = next(self._serials)
        if seen == "version":
            stored_at, version = change.seen if isinstance(change, SetValue) else base.stamp
            seen = f"{version}@{stored_at}"
        return EntryWrite(
            change.location, seen, run, rank, change.fence, ms(clock.at(at)), ms(change.ttl), change.serial, body, figure)

    def _base(self, change: Change) -> MergeBase:
        """Return what the fields of a change are to be merged into."""
        if not isinstance(change, MergeFields):
            return EMPTY_BASE
        return self._seen.base(change.location) if change.base is None else change.base.present

    # -- what became of a change

    def _settle(self, change: Change, write: EntryWrite, outcome: WriteResult) -> Change | None:
        """Take note of an outcome; return what is to be written instead, if anything."""
        status = outcome.status
        if status == "ok" or status == "again":
            self.counts["writes"] += 1
            if status == "ok":
                self._remember(change, EntryVersion(outcome.stored_at, outcome.version))
            else:
                # Others may have written since; what they wrote was not seen.
                self._seen.forget(change.location)
            if change.conflict is not None:
                self._note_conflict(change.conflict)
            if self.events.has_handlers:
                self._note_written(change, write.body)
        elif status == "conflict":
            return self._resolve(change, outcome)
        elif status == "error":
            if outcome.is_of_all:
                return change
            self._refuse(change, outcome)
        elif status == "fenced":
            self._fence_off(change)
        return None

    def _fence_off(self, change: Change) -> None:
        """Drop a change that was made under a lock which somebody else has had since, and has written."""
        if self._warn_about(change.location):
            logger.warning("A write of %s is refused: a later holder of its lock has written there", change.location.path)
        self._seen.forget(change.location)
        self.counts["dropped"] += 1
        self._note("writes-dropped", count=1)

    def _remember(self, change: Change, stamp: EntryVersion) -> None:
        location = change.location
        if isinstance(change, MergeFields):
            base = self._base(change)
            recorded_at = max(change.at, base.recorded_at)
            merged = change.merged(base.fields)
            self._seen.note_base(location, MergeBase(stamp, merged, recorded_at + change.ttl, recorded_at))
        elif isinstance(change, SetValue):
            self._seen.forget_base(location)
        else:
            return
        with self._mutex:
            self._seen.note(location, stamp)
            # What this process told since then was told by one who knew of it.
            for later in self._ordinary.get(location, ()):
                if isinstance(later, SetValue):
                    later.seen = stamp

    def _resolve(self, change: Change, outcome: WriteResult) -> Change | None:
        """Return what is to be written instead of a change that found something else than its writer had seen."""
        stored, base = outcome.stored, MergeBase.of(outcome.stored, self.store.clock)
        gone = stored is None or stored.absent(self.store.clock.now())
        before, seen = self._base(change), UNWRITTEN
        if isinstance(change, MergeFields):
            change.late = not gone
            change.base = base._replace(body={}, until=0.0) if gone else base
            self._seen.note_base(change.location, change.base)
        elif isinstance(change, SetValue):
            seen, change.seen = change.seen, UNWRITTEN if stored is None else stored.header.stamp
        own = stored is not None and stored.header.writes.startswith(self.store.token)
        if stored is None or own or gone and not (stored.deleted and isinstance(change, SetValue)):
            return change
        try:
            settled = self.settler.settle(change, stored, before.fields)
        except SoftTimeLimitExceeded:  # of the task that flushes just now: whoever flushes next meets the conflict again
            if isinstance(change, MergeFields):
                change.base = before
            elif isinstance(change, SetValue):
                change.seen = seen
            raise
        if isinstance(settled, Change):
            return settled
        self._note_conflict(settled)
        return None

    def _note_conflict(self, conflict: dict[str, Any]) -> None:
        """Count a conflict that is settled; however many rounds it took, it was one."""
        self.counts["conflicts"] += 1
        self._note("conflict-resolved", **conflict)

    def _refuse(self, change: Change, outcome: WriteResult) -> None:
        """Set a change aside that Redis refuses, so that it does not hold up the others."""
        location = change.location
        with self._mutex:
            known = location in self._refused
            queue: Queue = OrderedDict({location: self._refused[location][1]} if known else {})
            self._append(queue, location, change)
            self._refused[location] = (time.monotonic() + REFUSED_PAUSE, queue[location])
            self._refusals[location] = outcome
            if len(self._refused) > (self.max_pending if outcome.passes else MAX_REFUSED):
                self._refusals.pop(self._refused.popitem(last=False)[0], None)
                self._count_drop()
        if not known and self._warn_about(location):
            logger.warning("Redis refuses to write %s: %s", change.location.path, outcome.error[:120])

    def _warn_about(self, location: Location) -> bool:
        """Whether a refusal is to be told: once of each place."""
        if location in self._warned:
            return False
        if len(self._warned) >= MAX_REFUSED:
            self._warned.clear()
        self._warned.add(location)
        return True

    def _note_written(self, change: Change, body: bytes = b"") -> None:
        location = change.location
        deleted = isinstance(change, SetValue) and not change.body
        name = "delete" if deleted else "write"
        synced = None if deleted else _synced(change)
        if not self.events.wanted(name) and (synced is None or not self.events.wanted(synced)):
            return
        value = None if deleted else self._value_of(change, body)
        self._note(name, key=location.path, **({} if deleted else {"value": value}))
        if synced == "task-state-synced":
            self._note(synced, task_id=location.task_id, state=value)
        elif synced == "agent-coordinated":
            self._note(synced, task_id=location.task_id, agent_id=location.field, data=value)
        elif synced == "worker-status-synced":
            self._note(synced, worker_id=location.field.rpartition("/")[0], status=value)
        elif synced == "queue-synced":
            self._note(synced, queue=value)

    def _value_of(self, change: Change, body: bytes) -> Any:
        if isinstance(change, SyncQueue):
            return change.lists
        if isinstance(change, SyncMetrics):
            return change.applied({})
        if isinstance(change, StageChange):
            return change.task_run.as_dict()
        if change.expendable:
            return progress_from(encoding.decode(body))  # its times as written: the clock may have been corrected since
        after = change.applied_to(None, self.store.clock, self.store.worker_id)
        return None if after is None or after.deleted else after.value

    # -- the queue

    def _append(self, queue: Queue, location: Location, change: Change, front: bool = False) -> None:
        self._keys_waiting.add(location.key)
        waiting = queue.get(location)
        if waiting is None:
            queue[location] = [change]
        elif front:
            joined = change.coalesce(waiting[0])
            waiting[:1] = [change, waiting[0]] if joined is None else [joined]
            self.counts["coalesced"] += joined is not None
        else:
            joined = waiting[-1].coalesce(change)
            waiting[-1:] = [waiting[-1], change] if joined is None else [joined]
            self.counts["coalesced"] += joined is not None

    def _queue_deferred(self, young: float = 0.0) -> None:
        """Queue what drafts have to tell.

        Args:
            young: Seconds below which those are left alone of which there may be more to tell.
        """
        if not self._deferred:
            return
        born = time.monotonic() - young
        with self._mutex:
            for deferred in list(self._deferred):
                if deferred.at <= born or deferred.done:
                    self._queue_one_deferred(deferred)

    def _queue_one_deferred(self, deferred: DeferredChange) -> None:
        try:
            # First this: who has more to tell from now on hands it in again.
            if self._deferred.pop(deferred, self) is self:
                return  # a signal's handler has asked it meanwhile
            for change in deferred.changes():
                self._queue(change)
        except SoftTimeLimitExceeded:  # of the task that asks or flushes just now
            self._deferred[deferred] = None
            raise
        except Exception:
            logger.exception("What a task came to can't be told and is dropped")
            self._count_drop()

    def _take(self, all_refused: bool, young: float = 0.0) -> None:
        """Move what waits into flight."""
        now = time.monotonic()
        with self._mutex:
            self._queue_deferred(young)
            waiting = [*self._ordinary.items(), *self._expendable.items()]
            touched = {location for location, _ in waiting}
            due = [location for location, (at, _) in self._refused.items()
                   if all_refused or at <= now or location in touched]
            rows = [self._refused.pop(location)[1] for location in due] + [row for _, row in waiting]
            for location in due:
                self._refusals.pop(location, None)
            self._keys_sent |= self._keys_waiting
            self._keys_waiting = set()
            self._ordinary, self._expendable = OrderedDict(), OrderedDict()
            # A batch may be under way in this very thread, if a signal's handler came in between.
            self._in_flight = self._in_flight + [change.snapshot() for row in rows for change in row]

    def _put_back(self, changes: Sequence[Change]) -> None:
        with self._mutex:
            self._in_flight = []
            newer = self._ordinary, self._expendable
            self._ordinary, self._expendable = OrderedDict(), OrderedDict()
            for change in changes:
                self._append(self._expendable if change.expendable else self._ordinary, change.location, change)
            for queue, later in zip((self._ordinary, self._expendable), newer):
                for location, row in later.items():
                    for change in row:
                        self._append(queue, location, change)
            while len(self._ordinary) + len(self._expendable) > self.max_pending:
                self._drop_oldest()
            self._keys_sent = {location.key for location in self._refused}

    def _drop_oldest(self) -> None:
        _, dropped = (self._expendable or self._ordinary).popitem(last=False)
        for change in dropped:
            change.snapshot()  # a progress that is dropped may be queued again
        self._count_drop()

    def _count_drop(self) -> None:
        self.counts["dropped"] += 1
        self._unreported_drops += 1

    # -- what is told of it all

    def _note(self, name: str, **details: Any) -> None:
        """Keep an event until the batch is done: a handler may flush too."""
        self._pending_events.append((name, details))

    def _emit_events(self) -> None:
        with self._mutex:
            dropped, self._unreported_drops = self._unreported_drops, 0
        if dropped:
            if not self._warned_of_drops:
                self._warned_of_drops = True
                logger.warning("More than %d changes wait for Redis; the oldest are dropped", self.max_pending)
            self._note("writes-dropped", count=dropped)
        for _ in range(len(self._pending_events)):
            with contextlib.suppress(IndexError):  # another thread tells too
                name, details = self._pending_events.popleft()
                self.events.emit(name, **details)

    def _failed(self, error: MemSyncError, count: int) -> None:
        self.counts["flush_failures"] += 1
        self._note("batch-failed", count=count, error=error)
        if self.connected and isinstance(error, StoreError) and not error.code:
            self.connected = False
            self._note("connection-lost", error=error)

    def _succeeded(self, count: int, seconds: float) -> None:
        self.counts["syncs"] += 1
        self.last_flush_seconds = seconds
        self._warned_of_drops = False
        self._note("batch-flushed", count=count, seconds=seconds)
        self._restored()

    def _restored(self) -> None:
        if not self.connected:
            self.connected = True
            self._note("connection-restored")


def _refusal(key: str, outcomes: Sequence[WriteResult]) -> StoreError:
    """Return what to raise where Redis refuses to write entries, of which there may be more than this one."""
    others = f" and {len(outcomes) - 1} others" if len(outcomes) > 1 else ""
    code, error = outcomes[0].code, outcomes[0].error
    why = explain_code(code, error) if outcomes[0].passes else "something else may be stored there: " \
        "look at it with redis-cli TYPE and remove it"
    message = f"Redis refuses to write {key}{others} ({why})"
    return StoreUnavailable(message, code=code) if outcomes[0].passes else StoreRefused(message, code or "ERR")


def _synced(change: Change) -> str | None:
    """Return the event that tells that users' words of this kind have arrived."""
    location = change.location
    if isinstance(change, SyncQueue):
        return "queue-synced"
    if isinstance(change, (MergeFields, StageChange)) and location.task_id:
        return "task-state-synced"
    if isinstance(change, SetValue) and location.task_id and not location.slot:
        return "agent-coordinated"
    return "worker-status-synced" if isinstance(change, SetValue) and location.field.endswith("/status") else None
