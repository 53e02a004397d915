"""The changes of this process that are not in Redis yet."""
from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from operator import attrgetter

from ..keys import Location
from .changes import Change, Coordinated, DeferredChange

logger = logging.getLogger(__name__)

#: Changes in the inbox from which on threads that change things help to empty it; and most of them.
LONG_INBOX, LARGEST_INBOX = 5000, 100_000

#: Seconds until a change that Redis refuses is tried again; they double with each try, up to the longest pause.
REFUSED_PAUSE, LONGEST_REFUSED_PAUSE = 1.0, 30.0

#: The longest one if it is a node of a cluster that takes no writes, whose successor may be there soon.
LONGEST_NODE_PAUSE = 5.0


#: Most changes of one entry that are not joined, such as those under several fences in turn.
MAX_CHANGES = 1000


class Row:
    """The pending changes of one entry, in their order.

    Attributes:
        changes: They are replaced in one step, for other threads read them without a lock.
        sending: The last of them that is in the batch under way.
        resolving: The first of them, if a resolver runs for it.
        retry_at: Monotonic time before which it is not sent, because Redis refuses it.
        refusals: How often Redis has refused it in a row.
    """

    __slots__ = ("changes", "sending", "resolving", "retry_at", "refusals")

    def __init__(self, change: Change) -> None:
        self.changes: tuple[Change, ...] = (change,)
        self.sending: Change | None = None
        self.resolving: Change | None = None
        self.retry_at = 0.0
        self.refusals = 0

    def append(self, change: Change) -> bool:
        """Add a change; return whether it was joined with the last one.  What is under way stays as it is."""
        last = self.changes[-1]
        joined = None if last is self.sending or last is self.resolving else last.coalesce(change)
        if joined is None:
            self.changes = *self.changes, change
            return False
        joined.rounds = max(last.rounds, joined.rounds)
        joined.authors = last.authors | change.authors
        self.changes = *self.changes[:-1], joined
        return True

    def join(self) -> int:
        """Join changes that came while others were under way; return how many."""
        first, *others = self.changes
        self.changes = (first,)
        return sum(self.append(change) for change in others)


class PendingChanges:
    """Gathers changes, coalesces them by entry, and keeps them until the writer reports the outcome of each.

    A change is in the inbox, then in a row.  It leaves its row when its outcome
    is known, so an interruption loses nothing: at worst a change is sent twice,
    under one number, which is writing it once.

    What callers use takes no lock.  They are tasks, where a soft time limit may
    raise at any bytecode, and a signal's handler may shut all this down in the
    middle of it: they must not leave a lock closed for the threads of this
    package, which use the rest.

    Args:
        limit: Most rows.  Beyond it the oldest progress is dropped first, then the oldest others.  Of deferred changes
            there are as many at most, and the oldest are dropped.
        inbox_size: Changes from which on the inbox is to be emptied.

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
        self._inbox: deque[Change] = deque()
        #: Redis keys of what is in the inbox, and of what is being taken out of it; of the rest, with their number.
        self._fresh: set[str] = set()
        self._taken: set[str] = set()
        self._held: dict[str, int] = {}
        #: Redis keys of what could not be sent with the last batch.
        self._stuck: set[str] = set()
        #: Deferred changes in their order, and the one whose content is being made.
        self.deferred: dict[DeferredChange, None] = {}
        self._making: DeferredChange | None = None
        self._ordinary: OrderedDict[Location, Row] = OrderedDict()
        self._expendable: OrderedDict[Location, Row] = OrderedDict()
        #: Takes a deferred change; :meth:`drop_deferred` is to be called if there are more of them than ``limit``.
        self.defer: Callable[[DeferredChange], None] = self.deferred.setdefault
        self._mutex = threading.RLock()

    # -- called by any thread

    def drop_deferred(self) -> None:
        """Drop the oldest deferred change."""
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread has just taken it
            del self.deferred[next(iter(self.deferred))]
            self.dropped += 1

    def put(self, key: str, change: Change) -> bool:
        """Take a change of what is under a Redis key; return whether :meth:`empty_inbox` is to be called."""
        fresh = self._fresh
        fresh.add(key)
        self._inbox.append(change)
        while fresh is not self._fresh:  # the inbox was emptied meanwhile, perhaps before the change was in it
            fresh = self._fresh
            fresh.add(key)
        size = len(self._inbox)
        if size > LONG_INBOX:
            self._help(size)
        return size >= self.inbox_size

    def has(self, *keys: str) -> bool:
        """Return whether a change of what is under one of some Redis keys is pending, perhaps True just after it was."""
        # In this order: a deferred change moves from there to the others, and a change from left to right.
        deferred = ([one.key for one in (*list(self.deferred), self._making) if one is not None]
                    if self.deferred or self._making is not None else ())
        for key in keys:
            if key in deferred or key in self._fresh or key in self._taken or key in self._held:
                return True
        return False

    def is_stuck(self, *keys: str) -> bool:
        """Return whether a change of what is under one of some Redis keys could not be sent with the last batch."""
        return not self._stuck.isdisjoint(keys)

    def unsent(self, location: Location) -> list[Change]:
        """Return the pending changes of an entry, in their order."""
        rows = [self._ordinary.get(location), self._expendable.get(location)]
        found = [change for row in rows if row is not None for change in row.changes]
        fresh = [change for change in list(self._inbox) if change.location == location]
        return found + [change for change in fresh if change not in found]

    def __bool__(self) -> bool:
        """Return whether anything is pending."""
        return bool(self._inbox or self._ordinary or self._expendable or self.deferred)

    def __len__(self) -> int:
        """Return how many changes are pending."""
        rows = [*list(self._ordinary.values()), *list(self._expendable.values())]
        entries = self._new_entries()
        return sum(len(row.changes) for row in rows) + len(entries) + len(self.deferred) - self._overflow(entries)

    @property
    def all_coalesced(self) -> int:
        """How many changes were joined with another one, or will be when the inbox is emptied."""
        return self.coalesced + len(self._inbox) - len(self._new_entries())

    @property
    def all_dropped(self) -> int:
        """How many were dropped, or will be when the inbox is emptied."""
        return self.dropped + self._overflow(self._new_entries())

    def _new_entries(self) -> set[Location]:
        """Return the entries that get a row when the inbox is emptied."""
        entries = {change.location for change in list(self._inbox) if not change.withdrawn}
        return entries - self._ordinary.keys() - self._expendable.keys()

    def _overflow(self, entries: set[Location]) -> int:
        """Return how many of the oldest rows have to go for new entries."""
        return max(0, len(self._ordinary) + len(self._expendable) + len(entries) - self.limit)

    def _help(self, size: int) -> None:
        """Empty the inbox in a thread that no signal's handler interrupts; many of them are faster than the gatherer."""
        if threading.current_thread() is not threading.main_thread():
            self.empty_inbox()
        elif size > max(self.limit, LARGEST_INBOX):  # a loop that lets no other thread run
            self._drop_from_inbox()

    def _drop_from_inbox(self) -> None:
        with contextlib.suppress(IndexError):  # another thread has just emptied it
            change = self._inbox.popleft()
            change.snapshot()  # a progress that is dropped may be queued again
            self.dropped += 1

    # -- called by threads of this package

    def empty_inbox(self) -> int:
        """Move what is in the inbox to the rows; return how many rows there are."""
        with self._mutex:
            self._empty_inbox()
            return len(self._ordinary) + len(self._expendable)

    def drain(self, born: float) -> None:
        """Move what is in the inbox, and what deferred changes come to, to the rows.

        Args:
            born: Monotonic time.  Deferred changes since then are left, unless they are done: there may be more to
                record of them.
        """
        with self._mutex:
            self._empty_inbox()
            for deferred in [one for one in list(self.deferred) if one.at <= born or one.done]:
                # In this order: readers see it all the time, and what is handed in from now on is looked at again.
                self._making = deferred
                self.deferred.pop(deferred, None)
                try:
                    for change in () if deferred.withdrawn else deferred.changes():
                        self._append(change)
                except BaseException:  # a thread of this package: whatever is raised, the next batch would meet it again
                    logger.exception("Dropped a stage of a task that could not be described")
                    self.dropped += 1
                    self.spoiled += 1
            self._making = None

    def due(self, now: float, everything: bool = False) -> list[Change]:
        """Return the changes that are to be sent now, those of an entry in their order.

        Args:
            now: Monotonic time.
            everything: Whether to return entries that Redis has refused a moment ago, too.
        """
        with self._mutex:
            found: list[Change] = []
            # What may be refused again comes last, behind what can be written.
            for row in sorted(self._rows(), key=attrgetter("refusals")):
                if row.resolving is None and (everything or row.retry_at <= now):
                    if row.changes[0].expendable:
                        row.changes = tuple([change.snapshot() for change in row.changes])
                    row.sending = row.changes[-1]
                    found += row.changes
            return found

    def settle(self, change: Change, instead: Change | None = None) -> Iterable[Change]:
        """Remove a change whose outcome is known, or put another one in its place; return what is left of its entry."""
        with self._mutex:
            location = change.location
            queue = self._expendable if change.expendable else self._ordinary
            row = queue.get(location)
            if row is None or change not in row.changes:
                return ()  # it was dropped, or joined with a newer one
            if instead is None and len(row.changes) == 1:
                del queue[location]
                self._release(location.key)
                return ()
            at = row.changes.index(change)
            row.changes = *row.changes[:at], *(() if instead is None else (instead,)), *row.changes[at + 1:]
            row.sending = instead if row.sending is change else row.sending
            row.resolving, row.retry_at, row.refusals = None, 0.0, 0
            return row.changes

    def refuse(self, change: Change, maybe_done: bool = False, longest: float = LONGEST_REFUSED_PAUSE) -> None:
        """Try a change again later, because Redis refuses it.

        Args:
            maybe_done: Whether it may be stored all the same.
            longest: Longest pause before it is tried again, in seconds.
        """
        with self._mutex:
            row = self._row_of(change)
            if row is not None:
                if not maybe_done and not isinstance(change, Coordinated):
                    change.serial = None  # it was not stored, so what is sent next is another write
                row.retry_at = time.monotonic() + min(REFUSED_PAUSE * 2 ** min(row.refusals, 10), longest)
                row.refusals += 1

    def hold(self, change: Change) -> None:
        """Keep a change, and its successors, until a resolver has settled it."""
        with self._mutex:
            row = self._row_of(change)
            if row is not None:
                row.resolving = change

    def is_resolving(self, location: Location) -> bool:
        """Return whether a resolver runs for a change of an entry."""
        row = self._ordinary.get(location)
        return row is not None and row.resolving is not None

    def is_unsettled(self, location: Location) -> bool:
        """Return whether a change of an entry waits for another try: Redis refuses it, or others were quicker each time."""
        row = self._ordinary.get(location)
        return row is not None and (row.refusals > 0 or row.sending in row.changes)

    def is_later(self, change: Change) -> bool:
        """Return whether another change of its entry comes before it."""
        row = self._row_of(change)
        return row is not None and change in row.changes[1:]

    def is_waiting(self, change: Change) -> bool:
        """Return whether the row of a change is not sent for now."""
        row = self._row_of(change)
        return row is not None and (row.resolving is not None or row.refusals > 0)

    @property
    def resolving(self) -> bool:
        """Whether a resolver runs for a change."""
        with self._mutex:
            return any(row.resolving is not None for row in self._rows())

    def end_batch(self) -> list[Location]:
        """Join what may be joined now; return the entries that Redis refuses to write."""
        with self._mutex:
            refused: list[Location] = []
            stuck: set[str] = set()
            for row in self._rows():
                is_unsettled = row.sending in row.changes  # others were quicker in every round
                row.sending = None
                if len(row.changes) > 1:
                    self.coalesced += row.join()
                location = row.changes[0].location
                if row.refusals:
                    refused.append(location)
                if is_unsettled or row.refusals or row.resolving is not None:
                    stuck.add(location.key)
            self._stuck = stuck
            return refused

    # -- helpers; with the mutex

    def _empty_inbox(self) -> None:
        self._taken, self._fresh = self._fresh, set()
        with contextlib.suppress(IndexError):  # some were dropped
            for _ in range(len(self._inbox)):
                change = self._inbox.popleft()
                if not change.withdrawn:
                    self._append(change)
        self._taken = set()
        while len(self._ordinary) + len(self._expendable) > self.limit:
            self._drop_oldest()

    def _append(self, change: Change) -> None:
        location = change.location
        queue = self._expendable if change.expendable else self._ordinary
        row = queue.get(location)
        if row is None:
            queue[location] = Row(change)
            self._held[location.key] = self._held.get(location.key, 0) + 1
            return
        self.coalesced += row.append(change)
        if len(row.changes) > MAX_CHANGES:
            # Not the first, for which a resolver may run.
            first, dropped, *others = row.changes
            dropped.snapshot()  # a progress that is dropped may be queued again
            row.changes = first, *others
            self.dropped += 1

    def _drop_oldest(self) -> None:
        location, row = (self._expendable or self._ordinary).popitem(last=False)
        self._release(location.key)
        for change in row.changes:
            change.snapshot()  # a progress that is dropped may be queued again
        self.dropped += 1

    def _release(self, key: str) -> None:
        number = self._held.get(key, 0) - 1
        if number > 0:
            self._held[key] = number
        else:
            self._held.pop(key, None)

    def _row_of(self, change: Change) -> Row | None:
        return (self._expendable if change.expendable else self._ordinary).get(change.location)

    def _rows(self) -> list[Row]:
        """Return the rows that have anything to write; remove the others."""
        rows = []
        for queue in (self._ordinary, self._expendable):
            for location, row in list(queue.items()):
                if row.changes[0].withdrawn and row.changes[0].serial is None:
                    row.changes = row.changes[1:]
                if row.changes:
                    rows.append(row)
                else:
                    del queue[location]
                    self._release(location.key)
        return rows
