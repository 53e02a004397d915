"""The changes of this process that are not in Redis yet."""
from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from itertools import chain
from typing import Iterable, Iterator

from celery.utils.log import get_logger

from ..keys import Location
from .changes import Change, DeferredChange

logger = get_logger(__name__)

#: Seconds until a change that Redis refuses is tried again; they double with each try, up to the longest pause.
REFUSED_PAUSE, LONGEST_REFUSED_PAUSE = 1.0, 30.0


class Row:
    """The pending changes of one entry, in their order.

    Attributes:
        changes: A list that is replaced, never changed: other threads read it without a lock.
        newest: The last of them, unless it is under way: a newer one may be joined with it.  What is under way may be
            stored by then, and must not be stored again with the newer one, over what others have made of it.
        resolving: The first of them, if a resolver is at work on it.
        retry_at: Monotonic time before which it is not sent, because Redis refuses it.
        refusals: How often Redis has refused it in a row.
    """

    __slots__ = ("changes", "newest", "resolving", "retry_at", "refusals")

    def __init__(self, change: Change) -> None:
        self.changes = [change]
        self.newest: Change | None = change
        self.resolving: Change | None = None
        self.retry_at = 0.0
        self.refusals = 0


class PendingChanges:
    """Gathers changes, coalesces them by entry, and keeps them until the writer says what became of each.

    A change is in the inbox, then in a row.  It leaves its row when its outcome
    is known, so an interruption loses nothing: at worst a change is sent twice,
    under one number, which is writing it once.

    :meth:`put`, :meth:`has` and :meth:`unsent` take no lock.  They are called by
    tasks, where a soft time limit may raise at any bytecode and must not leave a
    lock closed for the writer.  The rest is called by the writer's thread.

    Args:
        limit: Most rows.  Beyond it the oldest progress is dropped first, then the oldest others.  Of deferred changes
            there are as many at most, and the oldest are dropped.
        inbox_size: Changes in the inbox from which on the caller of :meth:`put` coalesces them, as the writer's thread
            does otherwise.

    Attributes:
        coalesced: How many changes were joined with another one.
        dropped: How many were dropped.
        spoiled: How many of those because they could not be described.
    """

    def __init__(self, limit: int, inbox_size: int = 500) -> None:
        self.limit = limit
        self.inbox_size = inbox_size
        self.coalesced = 0
        self.dropped = 0
        self.spoiled = 0
        self._inbox: deque[Change | DeferredChange] = deque()
        #: Redis keys of what is in the inbox, of what is being taken out of it, and of the rest.
        self._fresh: set[str] = set()
        self._taken: set[str] = set()
        self._held: set[str] = set()
        #: Redis keys of what could not be sent with the last batch.
        self._stuck: set[str] = set()
        self._deferred: dict[DeferredChange, None] = {}
        self._ordinary: OrderedDict[Location, Row] = OrderedDict()
        self._expendable: OrderedDict[Location, Row] = OrderedDict()
        #: The change that was moved from the inbox to its row last.
        self._moved: object = None
        self._mutex = threading.RLock()

    # -- called by any thread

    def put(self, key: str, change: Change | DeferredChange) -> int:
        """Take a change of what is under a Redis key; return how many entries have changes, if that may be many."""
        fresh = self._fresh
        fresh.add(key)
        self._inbox.append(change)
        while fresh is not self._fresh:  # the inbox was emptied meanwhile, perhaps before the change was in it
            fresh = self._fresh
            fresh.add(key)
        if len(self._inbox) < self.inbox_size:
            return 0
        self.try_drain()
        return len(self._ordinary) + len(self._expendable) + len(self._deferred)

    def has(self, *keys: str) -> bool:
        """Return whether a change of what is under one of some Redis keys is pending, perhaps True just after it was."""
        # In this order: a change moves from left to right.
        return any(key in self._fresh or key in self._taken or key in self._held for key in keys)

    def is_stuck(self, *keys: str) -> bool:
        """Return whether a change of what is under one of some Redis keys could not be sent with the last batch."""
        return not self._stuck.isdisjoint(keys)

    def unsent(self, location: Location) -> list[Change]:
        """Return the pending changes of an entry, in their order."""
        row = self._row(location)
        found = [] if row is None else list(row.changes)
        fresh = [change for change in list(self._inbox) if isinstance(change, Change) and change.location == location]
        return found + [change for change in fresh if change not in found]

    def try_drain(self) -> None:
        """Move what is in the inbox to the rows, unless another thread does so."""
        mutex = self._mutex
        if mutex._is_owned():  # type: ignore[attr-defined]  # by what this thread was doing when a signal came
            return
        # An exception of a signal handler may strike after any call.  There is none between the end of the block and
        # the release, and of a lock that this thread does not have the release fails.
        try:
            if mutex.acquire(False):
                self._empty_inbox()
        finally:
            try:
                mutex.release()
            except RuntimeError:
                pass

    def __len__(self) -> int:
        """Return how many changes are pending."""
        self.try_drain()
        rows = [*list(self._ordinary.values()), *list(self._expendable.values())]
        return len(self._inbox) + len(self._deferred) + sum(len(row.changes) for row in rows)

    # -- called by the writer's thread

    def drain(self, born: float) -> None:
        """Move what is in the inbox to the rows.

        Args:
            born: Monotonic time.  Deferred changes since then are left, unless they are done: there may be more to
                record of them.
        """
        with self._mutex:
            self._empty_inbox()
            for deferred in list(self._deferred):
                if deferred.at <= born or deferred.done:
                    del self._deferred[deferred]
                    self._append_deferred(deferred)

    def due(self, now: float, everything: bool = False) -> list[Change]:
        """Return the changes that are to be sent now, those of an entry in their order.

        Args:
            now: Monotonic time.
            everything: Whether to return those that Redis has refused a moment ago, too.
        """
        with self._mutex:
            found: list[Change] = []
            for row in self._rows():
                if row.resolving is None and (everything or row.retry_at <= now):
                    row.changes = [change.snapshot() for change in row.changes]
                    row.newest = None
                    found += row.changes
            return found

    def settle(self, change: Change, instead: Change | None = None) -> None:
        """Remove a change whose outcome is known, or put another one in its place."""
        with self._mutex:
            row = self._row(change.location)
            if row is None or not any(one is change for one in row.changes):
                return  # it was dropped, or joined with a newer one
            changes = [instead if one is change else one for one in row.changes]
            row.changes = [one for one in changes if one is not None]
            row.resolving, row.retry_at, row.refusals = None, 0.0, 0
            if not row.changes:
                self._ordinary.pop(change.location, None) or self._expendable.pop(change.location, None)

    def refuse(self, change: Change) -> None:
        """Try a change again later, because Redis refuses it."""
        with self._mutex:
            row = self._row(change.location)
            if row is not None:
                change.serial = None  # it was not stored, so what is sent next is another write
                row.retry_at = time.monotonic() + min(REFUSED_PAUSE * 2 ** row.refusals, LONGEST_REFUSED_PAUSE)
                row.refusals += 1

    def hold(self, change: Change) -> None:
        """Keep a change, and those that follow it, until a resolver has settled it."""
        with self._mutex:
            row = self._row(change.location)
            if row is not None:
                row.resolving = change

    def is_later(self, change: Change) -> bool:
        """Return whether another change of its entry comes before it."""
        row = self._row(change.location)
        return row is not None and change in row.changes[1:]

    def is_waiting(self, change: Change) -> bool:
        """Return whether the row of a change is not sent for now."""
        row = self._row(change.location)
        return row is not None and (row.resolving is not None or row.refusals > 0)

    @property
    def refused(self) -> list[Location]:
        """The entries that Redis refuses to write."""
        with self._mutex:
            return [row.changes[0].location for row in self._rows() if row.refusals]

    @property
    def resolving(self) -> bool:
        """Whether a resolver is at work on a change."""
        with self._mutex:
            return any(row.resolving is not None for row in self._rows())

    @property
    def deferring(self) -> bool:
        """Whether deferred changes are left."""
        return bool(self._deferred)

    def later(self, location: Location) -> Iterable[Change]:
        """Return the changes of an entry that are in its row."""
        row = self._row(location)
        return () if row is None else row.changes

    def note_keys(self) -> None:
        """Note what is still pending, after a batch."""
        with self._mutex:
            for row in self._rows():
                self._join(row)
            self._stuck = {row.changes[0].location.key for row in self._rows() if row.refusals or row.resolving is not None}
            self._held = {location.key for location in chain(self._ordinary, self._expendable)}
            self._held.update(deferred.key for deferred in self._deferred)

    # -- helpers; with the mutex

    def _empty_inbox(self) -> None:
        self._taken, self._fresh = self._fresh, set()
        for _ in range(len(self._inbox)):
            # It leaves the inbox when it is in its row, so that an interruption in between does not lose it.
            change = self._inbox[0]
            if change is not self._moved:
                self._move(change)
            self._inbox.popleft()
            self._moved = None
        self._taken = set()
        while len(self._ordinary) + len(self._expendable) > self.limit:
            self._drop_oldest()
        while len(self._deferred) > self.limit:  # the writer's thread is waiting for Redis
            del self._deferred[next(iter(self._deferred))]
            self.dropped += 1

    def _move(self, change: Change | DeferredChange) -> None:
        if isinstance(change, DeferredChange):
            self._held.add(change.key)
            self._deferred[change] = None
        elif not change.withdrawn:
            self._append(change)
        self._moved = change

    def _append(self, change: Change) -> None:
        location = change.location
        queue = self._expendable if change.expendable else self._ordinary
        self._held.add(location.key)
        row = queue.get(location)
        if row is None:
            queue[location] = Row(change)
            return
        joined = None if row.newest is None else row.newest.coalesce(change)
        if joined is None:
            row.changes, row.newest = [*row.changes, change], change
        else:
            row.changes, row.newest = [*row.changes[:-1], joined], joined
            self.coalesced += 1

    def _join(self, row: Row) -> None:
        """Join what can be: nothing of it is under way."""
        changes = row.changes[:1]
        for change in row.changes[1:]:
            joined = None if changes[-1] is row.resolving else changes[-1].coalesce(change)
            if joined is None:
                changes.append(change)
            else:
                changes[-1] = joined
                self.coalesced += 1
        row.changes, row.newest = changes, None if changes[-1] is row.resolving else changes[-1]

    def _append_deferred(self, deferred: DeferredChange) -> None:
        try:
            for change in deferred.changes():
                self._append(change)
        except Exception:
            logger.exception("Dropped a stage of a task that could not be described")
            self.dropped += 1
            self.spoiled += 1

    def _drop_oldest(self) -> None:
        _, row = (self._expendable or self._ordinary).popitem(last=False)
        for change in row.changes:
            change.snapshot()  # a progress that is dropped may be queued again
        self.dropped += 1

    def _row(self, location: Location) -> Row | None:
        return self._ordinary.get(location) or self._expendable.get(location)

    def _rows(self) -> Iterator[Row]:
        for queue in (self._ordinary, self._expendable):
            for location, row in list(queue.items()):
                if row.changes[0].withdrawn and row.changes[0].serial is None:
                    row.changes = row.changes[1:]
                if row.changes:
                    yield row
                else:
                    del queue[location]
