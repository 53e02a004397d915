"""What waits in memory to be written: one class for each way to change an entry."""
from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from .. import encoding
from ..keys import Location
from ..models.entry import UNWRITTEN, EntryVersion, Header, StoredEntry
from ..models.order import WAITING, is_earlier_step, rank_of, run_key_of
from ..models.statistics import counts_of
from ..models.task import TOO_LATE, TaskRun
from ..store import CoordinationChange, EntryWrite, MetricsUpdate, QueueReplacement, ms
from ..store.clock import Clock
from ..store.members import parts_of
from .version_tracker import EMPTY_BASE, MergeBase

#: Milliseconds of a ttl: there are few of them.
_ms = lru_cache(ms)

#: Values that were sent of a field without an answer and are remembered.
MAX_SENT = 4

#: Statuses that do not follow a success; one of the user's own does.
_BEFORE_SUCCESS = frozenset({"PENDING", "RECEIVED", "STARTED", "LOST", "RETRY", "FAILURE", "REVOKED"})


#: Of a change without a fence: one object, for Python makes another empty set of 200 bytes each time.
NO_AUTHORS: frozenset[weakref.ref[threading.Thread]] = frozenset()


class Change:
    """A change of one entry.

    Args:
        location: Where the entry is kept.
        ttl: Seconds that it is valid.
        fence: Of the lock under which it is made; 0 for none.
    """

    __slots__ = ("location", "ttl", "at", "fence", "serial", "conflict", "rounds", "withdrawn", "authors")

    #: Whether it is the first to go when memory gets short.
    expendable = False

    def __init__(self, location: Location, ttl: float, fence: int = 0) -> None:
        self.location = location
        self.ttl = ttl
        self.at = time.monotonic()
        self.fence = fence
        #: Number of the write in its process, given when it is first sent: a second try has the same.
        self.serial: int | None = None
        #: The conflict that it settles, as the event has it.
        self.conflict: dict[str, Any] | None = None
        #: How often a resolver has settled it in vain, because another process was quicker again.
        self.rounds = 0
        #: Whether there is no need to write it any more.
        self.withdrawn = False
        #: The threads that made it, if it has a fence: it is reported to them if a newer one refuses it.
        self.authors = NO_AUTHORS

    def coalesce(self, newer: Change) -> Change | None:
        """Return one change that does what both do, or None if there is none."""
        raise NotImplementedError

    def snapshot(self) -> Change:
        """Return the change as it is at this moment, to be sent."""
        return self

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """Return what the store is to write.

        Args:
            base: What is stored, for changes that merge.
        """
        raise NotImplementedError

    def _entry_write(self, seen: str, run: str, rank: str, body: bytes, at: float | None = None) -> EntryWrite:
        return EntryWrite(self.location, seen, run, rank, self.fence, self.at if at is None else at, _ms(self.ttl),
                          self.serial or 0, body)

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """Return what a reader of this process sees of an entry while this can't be written.

        Its version is 0, for that is not known yet.  What other processes may rank above it is not seen.
        """
        return stored


class DeferredChange:
    """A change whose content is made late: when a batch is sent.

    Until then a short task has ended, and of all its stages only the last need be written.  Who hands it in does so in the
    middle of a task or of a worker's loop, and pays for little more than a line in a list.

    Attributes:
        at: Monotonic time when there was something to write first.
        withdrawn: Whether there is no need to write it any more.
    """

    __slots__ = ("at",)

    withdrawn = False

    def __init__(self, at: float) -> None:
        self.at = at

    @property
    def key(self) -> str:
        """The Redis key of what it will change."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether nothing more will be written."""
        raise NotImplementedError

    def changes(self) -> Iterable[Change]:
        """Return what there is to write by now."""
        raise NotImplementedError


class SetValue(Change):
    """Replace the value of an entry; an empty body deletes it.

    Args:
        owned: Whether no other process writes it, so that there are no conflicts.
        run_key: The run of a task that says so; "" for none.

    Attributes:
        seen: What its writer had seen there.
    """

    __slots__ = ("body", "owned", "run_key", "seen")

    def __init__(
        self, location: Location, body: bytes, ttl: float, fence: int = 0, owned: bool = False, run_key: str = "",
    ) -> None:
        Change.__init__(self, location, ttl, fence)  # at half of what super() takes
        self.body = body
        self.owned = owned
        self.run_key = run_key
        self.seen = UNWRITTEN

    def coalesce(self, newer: Change) -> Change | None:
        """The newer value, whatever was here; under another fence Redis decides about each by itself.

        But what a later holder sets replaces what an earlier one has set, whether that would have been refused or not.
        """
        if newer.fence != self.fence:
            return newer if isinstance(newer, SetValue) and 0 < self.fence < newer.fence else None
        if isinstance(newer, MergeFields) and self.body:
            merged = newer.merged(encoding.split_fields(self.body))
            joined = SetValue(newer.location, encoding.join_fields(merged), newer.ttl, newer.fence, run_key=newer.run_key)
            joined.seen = self.seen
            return joined
        return newer if isinstance(newer, SetValue) else None

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """The value."""
        return _preview(self, self.body, clock, worker_id)

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """The value."""
        seen = "*" if self.owned else _in_words(self.seen)
        return EntryWrite(
            self.location, seen, self.run_key, "-", self.fence, self.at, _ms(self.ttl), self.serial or 0, self.body)


class MergeFields(Change):
    """Merge top-level fields into an entry; other fields stay, also those of other writers.

    Args:
        run_key: The run of a task that says so; "" for none.

    Attributes:
        recorded_at: Monotonic time when each field was recorded.
        sent: What was sent of each field without an answer: it may have arrived.
        base: What is stored, if Redis has answered with it; None: whatever this process has seen last.
    """

    __slots__ = ("base", "fields", "late", "run_key", "sent", "recorded_at")

    def __init__(
        self, location: Location, fields: dict[str, bytes], ttl: float, fence: int = 0, run_key: str = "",
    ) -> None:
        super().__init__(location, ttl, fence)
        self.fields = fields
        self.run_key = run_key
        self.recorded_at = dict.fromkeys(fields, self.at)
        self.sent: dict[str, tuple[bytes, ...]] = {}
        self.base: MergeBase | None = None
        #: Whether another process has written meanwhile: then an earlier stage does not undo a later one.
        self.late = False

    def coalesce(self, newer: Change) -> Change | None:
        """The fields of both, the newer ones winning; under another fence Redis decides about each by itself."""
        if newer.fence != self.fence:
            return None
        if isinstance(newer, MergeFields):
            run_key = newer.run_key or self.run_key
            joined = MergeFields(newer.location, newer.merged(self.fields), newer.ttl, newer.fence, run_key)
            joined.at, joined.late = newer.at, self.late or newer.late
            joined.recorded_at = {**self.recorded_at, **newer.recorded_at}
            joined.sent = dict(self.sent)
            joined.conflict = self.conflict or newer.conflict
            return joined
        return newer if isinstance(newer, SetValue) else None

    def note_sent(self) -> None:
        """Take note that it is being sent."""
        for name, body in self.fields.items():
            before = self.sent.get(name, ())
            self.sent[name] = before if body in before else (*before, body)[-MAX_SENT:]

    def merged(self, base: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the fields of a base with these over them."""
        fields = {**base, **self.fields}
        if "status" in base and "status" in self.fields:
            old, new = encoding.decode(base["status"]), encoding.decode(self.fields["status"])
            if self.late and rank_of(old) > rank_of(new) or old == "SUCCESS" and new in _BEFORE_SUCCESS:
                fields["status"] = base["status"]
        return fields

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """The fields over the stored ones."""
        base = encoding.split_fields(stored.body) if stored is not None and stored.body else {}
        return _preview(self, encoding.join_fields(self.merged(base)), clock, worker_id)

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """All fields there are."""
        body = encoding.join_fields(self.merged(base.fields))
        # One of the fields may have been written later.
        at = max(self.at, base.recorded_at)
        return self._entry_write(_in_words(base.stamp), self.run_key, "-", body, at=at)


class Coordinated(Change):
    """A change of what has no value in one piece: the queue, the metrics.

    Attributes:
        serial: Its number, once it was sent.
        since: Monotonic time when it was sent first, or when Redis refused it last: it had done nothing until then.
    """

    __slots__ = ("since",)

    def __init__(self, location: Location, ttl: float) -> None:
        super().__init__(location, ttl)
        self.since = math.inf

    def update(self) -> CoordinationChange:
        """Return it as the store takes it; it has its number by then."""
        raise NotImplementedError

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """Nothing: it is no entry."""
        raise TypeError(f"{type(self).__name__} is not written as an entry")


class SyncQueue(Coordinated):
    """Make lists of the queue what is given.

    Args:
        lists: Task ids by name of the list: ``pending``, ``processing``.
    """

    __slots__ = ("lists",)

    def __init__(self, location: Location, lists: dict[str, list[str]], ttl: float) -> None:
        super().__init__(location, ttl)
        self.lists = lists

    def coalesce(self, newer: Change) -> Change | None:
        """The newer lists, and those of here that it does not name."""
        if not isinstance(newer, SyncQueue) or self.serial is not None:
            return None
        return SyncQueue(newer.location, {**self.lists, **newer.lists}, newer.ttl)

    def update(self) -> CoordinationChange:
        """The lists."""
        return QueueReplacement(self.serial or 0, self.ttl, self.lists, self.since)


class SyncMetrics(Coordinated):
    """Set counters, and add to counters.

    Args:
        steps: By counter: what it is set to, as JSON (None: it is not set), and what is added to that.
    """

    __slots__ = ("steps",)

    def __init__(self, location: Location, steps: dict[str, tuple[bytes | None, float]], ttl: float) -> None:
        super().__init__(location, ttl)
        self.steps = steps

    def coalesce(self, newer: Change) -> Change | None:
        """Both; what was sent already is not added to, for it may have arrived."""
        if not isinstance(newer, SyncMetrics) or self.serial is not None:
            return None
        steps = dict(self.steps)
        for name, (body, more) in newer.steps.items():
            before, some = steps.get(name, (None, 0))
            steps[name] = (before, some + more) if body is None else (body, more)
        return SyncMetrics(newer.location, steps, newer.ttl)

    def update(self) -> CoordinationChange:
        """The steps."""
        return MetricsUpdate(self.serial or 0, self.ttl, self.steps, self.since)


class StageChange(Change):
    """Record a stage of a task.

    Args:
        task_run: All that is known of the run.
        run_key: Which run; "" for the one that is stored.
        notes: Of groups and workflows, see :class:`EntryWrite`; beside that the task is a part of one.
    """

    __slots__ = ("task_run", "run_key", "notes")

    def __init__(
        self, location: Location, task_run: TaskRun, run_key: str, ttl: float, fence: int = 0,
        notes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(location, ttl, fence)
        self.task_run = task_run
        self.run_key = run_key
        self.notes = notes

    def coalesce(self, newer: Change) -> Change | None:
        """The later stage, if both are of one run."""
        if not isinstance(newer, StageChange) or newer.run_key != self.run_key:
            return None
        return newer if newer.task_run.rank >= self.task_run.rank else self

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """What is known of the run, unless a later one is stored."""
        return preview_of_run(self, self.run_key, stored, clock, worker_id)

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """What is known of the run."""
        run = self.task_run
        rank = run.rank
        if rank in WAITING:
            published = run.published_at
            if not isinstance(published, (int, float)) or not 0 < published < TOO_LATE:  # it has come with the message
                published = clock.at(self.at)
            figure = round(published * 1e4)
        else:
            took = run.runtime
            is_sound = isinstance(took, (int, float)) and 0 <= took < TOO_LATE
            figure = round(took * 1e6) if took is not None and is_sound else 0
        task_id = self.location.task_id
        # Spares most tasks, which are no part of anything, a call each.
        is_alone = run.group is None and run.workflow is None and (run.root_id is None or run.root_id == task_id)
        return EntryWrite(
            self.location, "run", self.run_key, rank, self.fence, self.at, _ms(self.ttl), self.serial or 0,
            run.encode(task_id, self.run_key), figure, self.notes if is_alone else (*self.notes, *parts_of(task_id, run)),
            counts_of(run, rank))


def preview_of_run(
    change: Change, run_key: str, stored: StoredEntry | None, clock: Clock, worker_id: str,
) -> StoredEntry | None:
    """Return what a change of a run comes to, or what is stored if that is known to be of a later run."""
    if stored is not None and run_key and is_earlier_step(run_key, run_key_of(stored.header.run)):
        return stored
    return _preview(change, change.entry_write(clock).body, clock, worker_id, run_key or "-")


def _preview(change: Change, body: bytes, clock: Clock, worker_id: str, run: str = "-") -> StoredEntry:
    time_ms, ttl_ms = round(clock.at(change.at) * 1000), round(change.ttl * 1000)
    return StoredEntry(Header(0, run, "-", change.fence, time_ms, ttl_ms, 0, "-", worker_id), body)


def _in_words(stamp: EntryVersion) -> str:
    """Return a version as the script takes it."""
    return "0@0" if stamp is UNWRITTEN else f"{stamp.version}@{stamp.stored_at}"
