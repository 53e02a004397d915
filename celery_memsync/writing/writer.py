"""Write changes in the background, in batches."""
from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sized
from copy import copy
from itertools import count

from redis.backoff import EqualJitterBackoff

from ..background_loop import LONGEST_PAUSE, BackgroundLoop, start_thread
from ..deadline import remaining, within
from ..events import Events
from ..exceptions import ConflictError, MemSyncError, StoreError, StoreRefused, StoreUnavailable
from ..keys import ASSIGNMENTS, STATE, Location
from ..models.entry import UNWRITTEN, StoredEntry
from ..store import Store
from ..types import WriterCounts
from .batch_sender import BatchSender
from .changes import Change, DeferredChange, SetValue
from .conflict_settler import ConflictSettler
from .outcomes import Outcomes
from .pending import REFUSED_PAUSE, PendingChanges
from .progress import Progress
from .refusals import Refusals
from .requests import CompareAndSet, FlushRequest
from .unanswered import Attempt, Unanswered
from .version_tracker import MergeBase, VersionTracker
from .write_report import WriteReport

logger = logging.getLogger(__name__)

#: Part of ``interval`` for which a deferred change is left for the next batch, because more may follow: what a busy worker
#: has just received will have ended.
YOUNG = 0.1

#: Most entries that were read and are not noted yet.
MAX_READS = 1000


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
        copies: One of them is not empty if there is anything that ``on_put`` would drop.
        timeout: Seconds that a caller waits at most; see :mod:`celery_memsync.deadline`.
    """

    def __init__(
        self, store: Store, events: Events, settler: ConflictSettler, *, interval: float, batch_size: int,
        max_pending: int, on_put: Callable[[str], object], copies: Iterable[Sized], timeout: float = 3.0,
    ) -> None:
        self.store = store
        self.settler = settler
        self.batch_size = batch_size
        self.on_put = on_put
        self.copies = copies
        self.timeout = timeout
        self._pending = PendingChanges(max_pending, min(batch_size, max_pending))
        #: Deferred changes that are not described yet.
        self.deferred = self._pending.deferred
        self._versions = VersionTracker()
        self.report = WriteReport(events, self._pending)
        self._refusals = Refusals(self._pending, self.report, store.address)
        self._thread = BackgroundLoop("memsync-writer", self._write_pending, interval, on_demand=True)
        self._outcomes = Outcomes(
            store, settler, self._pending, self._versions, self.report, self._refusals, self._thread.call_now)
        self._sender = BatchSender(store, self._outcomes, batch_size, timeout, self._thread.call_now)
        #: Writes of expected versions that got no answer.
        self.unanswered = Unanswered(store.serials)
        #: What callers wait for: new, and begun.
        self._requests: deque[FlushRequest] = deque()
        self._begun: list[FlushRequest] = []
        #: Entries that were read and may be merged into.
        self._reads: deque[tuple[Location, StoredEntry | None]] = deque(maxlen=MAX_READS)
        self._assignments = store.keys.coordination_location(ASSIGNMENTS).path
        #: Empties the inbox while the writer's thread waits for Redis.
        self._gatherer = BackgroundLoop("memsync-gatherer", self._gather, 0, on_demand=True)
        self._closed = False
        #: Held by a caller that writes by itself, because no thread can be started any more.
        self._alone = threading.Lock()

    # -- take changes

    def defer(self, deferred: DeferredChange) -> None:
        """Take a deferred change; what it comes to is written within ``interval``, and a tenth of that."""
        self._pending.defer(deferred)
        if len(self.deferred) > self._pending.limit:
            self._pending.drop_deferred()
        if any(self.copies):
            self.on_put(deferred.key)
        if self._thread.is_asleep():
            self._thread.wake()
        if self._closed:
            self._write_late()

    def put(self, change: Change) -> None:
        """Take a change; it is written within ``interval``."""
        key = change.location.key
        reports = change.reports if isinstance(change, Progress) else 0
        if change.fence:
            change.authors = frozenset((weakref.ref(threading.current_thread()),))
        if isinstance(change, SetValue):
            change.seen = self._versions.stamp(change.location)
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

    def hurry(self) -> None:
        """Write what was taken until now without waiting for the rest of ``interval``."""
        self._thread.run_now()

    def _write_late(self) -> None:
        """Write what came while the writer was being closed, as by the handler of a signal in the middle of a write."""
        with contextlib.suppress(RuntimeError):  # no threads any more: the process is at its end
            start_thread(threading.Thread(target=self._write_what_is_left, name="memsync-late", daemon=True))

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
        self._versions.note(location, UNWRITTEN if stored is None else stored.header.stamp)
        if location.slot == STATE or location.path == self._assignments:
            self._reads.append((location, stored))

    # -- what is pending

    @property
    def pending(self) -> int:
        """Number of changes that are not in Redis yet."""
        return len(self._pending)

    @property
    def counts(self) -> WriterCounts:
        """Counters since the start of this process."""
        return self.report.counts

    @property
    def connected(self) -> bool:
        """Whether Redis has answered the last batch."""
        return self.report.connected

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
        if self._pending.has(*keys) and not self._outcomes.in_resolver:
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
        self._refusals.give_back(request)

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
            self._outcomes.close()

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
            self._outcomes.take_resolved()
            self._pending.drain(time.monotonic() - (0.0 if self._begun else YOUNG * self._thread.interval))
            written, lost = self._sender.send_due(strict)
            self._compare_and_set_all()
        except BaseException as exc:
            failure = exc
        refused = self._pending.end_batch()
        self._refusals.keep(refused)
        self.report.pending_dropped()
        if self.deferred:
            self._thread.wake()
        # At last, for the callers are waiting for this thread, too.
        if failure is not None:
            known = failure if isinstance(failure, MemSyncError) else StoreUnavailable(f"Writing failed: {failure!r}")
            self._answer(known, failed=True)
            raise failure
        self._answer(lost[0] if lost and not refused else self._refusals.error(refused), written)
        return REFUSED_PAUSE if lost or refused or self.store.unpublished else None

    def _note_reads(self) -> None:
        while self._reads:
            location, stored = self._reads.popleft()
            self._versions.note_base(location, MergeBase.of(stored, self.store.clock))

    def _answer(self, error: MemSyncError | None, written: int = 0, failed: bool = False) -> None:
        """Answer the callers that wait; some go on waiting while a resolver runs.

        Args:
            error: What was not written, or why nothing was.
            failed: Whether nothing was.
        """
        waiting = self._pending.resolving and not failed
        for request in self._begun:
            if failed or not request.waits:
                request.answer(written, request.own(error) if failed else None)
            elif not waiting:
                request.answer(written, error or self._refusals.fence_error(request))
        self._begun = [request for request in self._begun if waiting and request.waits]

    def _compare_and_set_all(self) -> None:
        for request in self._begun:
            if not isinstance(request, CompareAndSet):
                continue
            # It comes after what the resolver makes of an earlier write.
            request.waits = self._pending.is_resolving(request.change.location)
            if request.waits:
                continue
            request.may_be_done = True
            # In this order: a caller that gives up looks at the other after it has set this.
            if not request.given_up:
                try:
                    request.stored = self._sender.compare_and_set(request.change, request.expected, request.attempt)
                except MemSyncError as exc:
                    request.answer(error=exc)
                else:
                    request.answer()
