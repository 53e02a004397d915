"""Read entries, tasks and workers: what Redis has, with this process's pending changes; answers are kept while valid."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from .. import encoding
from ..deadline import within
from ..exceptions import InvalidKey, StoreError
from ..keys import PROGRESS, QUEUE, STAGE, STATE, Keys, Location
from ..models.entry import Entry, StoredEntry
from ..store import Store, Task
from ..store.push import TrackedConnection
from ..types import QueueLists
from ..writing.changes import Change, SetValue
from ..writing.writer import BatchWriter
from .cache import CacheEntry, EntryCache, MakeEntry, PendingRead
from .listener import ChangeListener
from .projections import entry_of, expires_at

T = TypeVar("T")

#: Tasks, or keys, of which a search reads what is stored in one round trip.
READ_AT_ONCE = 200

#: Most ids of a list of the queue that are read, unless given otherwise.
LONGEST_LIST = 1000

#: Marks the names of copies that are not those of keys: no key has it.
VIEW = "\0"

#: Parts of an entry by slot.
Parts = dict[int, "StoredEntry | None"]


class CacheableRead:
    """One read from Redis, whose answer may be kept unless what is read changes meanwhile.

    What this process has written there is sent first.  If that fails, the answer
    lacks it; it is not kept then.

    Attributes:
        lacks_writes: Whether something that this process has written there could not be sent.
        error: Why, if Redis did not answer; None if it is stuck.

    Args:
        keys: Redis keys that are read.
        to_keep: Whether anything of the answer is to be kept.

    Usage::

        with CacheableRead(reader, keys) as cacheable:
            answer = cacheable.read(store.read_entries, locations)
            cacheable.keep(name, value, keys, until)
    """

    def __init__(self, reader: Reader, keys: Sequence[str], to_keep: bool = True) -> None:
        self._reader = reader
        self._keys = keys
        self._to_keep = to_keep and reader.cache.enabled
        self._source: TrackedConnection | None = None
        self._reading: PendingRead | None = None
        self._asked_at = 0.0
        self.lacks_writes = False
        self.error: StoreError | None = None

    def __enter__(self) -> CacheableRead:
        reader = self._reader
        if reader.writer.is_pending(*self._keys):
            self._send_writes()
        self._source = reader.link.checkout() if self._to_keep else None
        self._asked_at = time.monotonic()
        if self._source is not None:
            self._reading = reader.cache.begin(self._keys, self._source)
            if reader.writer.is_pending(*self._keys):
                # Another thread wrote between the flush and this: what is read may be older, and is not to be kept.
                self._stop_keeping()
        return self

    def _send_writes(self) -> None:
        try:
            self._reader.writer.flush_for(*self._keys)
            self.lacks_writes = self._reader.writer.is_stuck(*self._keys)
        except StoreError as exc:
            # What Redis refuses to write does not keep it from answering a read.
            self.lacks_writes, self.error = True, None if exc.code else exc

    def __exit__(self, *exc_info: object) -> None:
        if self._reading is not None:
            self._reader.cache.finish(self._reading)
        if self._source is None:
            return
        if exc_info[0] is None:
            self._reader.link.checkin(self._source, self._asked_at)
        else:
            # It may have been cut short in the middle of an answer.
            self._reader.link.discard(self._source)

    def read(self, read: Callable[..., T], *args: Any) -> T:
        """Read from Redis.

        Args:
            read: A method of the store, which takes a connection as its last argument.
            args: The others.
        """
        source = self._source
        if self.lacks_writes:
            self._stop_keeping()
        try:
            return read(*args, source)
        except StoreError:
            if source is None:
                raise
        # It may be this one connection that is broken.
        self._source = None
        self._reader.link.discard(source)
        self._stop_keeping()
        return read(*args, None)

    def keep(self, name: Hashable, value: Any, keys: tuple[str, ...], until: float, make_entry: MakeEntry = None) -> None:
        """Keep what was made of the answer.

        Args:
            until: When it is over, in seconds of Redis's clock.
        """
        cache = self._reader.cache
        if self._reading is not None:
            cache.keep(self._reading, name, value, keys, self._reader.store.clock.monotonic(until), make_entry)
        else:
            cache.compare(name, value)

    def _stop_keeping(self) -> None:
        if self._reading is not None:
            self._reader.cache.finish(self._reading)
            self._reading = None


class Reader:
    """Reads for one process: from its cache, or from Redis."""

    def __init__(self, store: Store, writer: BatchWriter, cache: EntryCache, link: ChangeListener) -> None:
        self.store = store
        self.writer = writer
        self.cache = cache
        self.link = link
        self.keys: Keys = store.keys
        #: Number of reads that went past the cache.
        self.uncached = 0

    # -- entries

    def entries(
        self, keys: Iterable[str], max_age: float | None = None, consistent: bool = False,
    ) -> dict[str, Entry | None]:
        """Return the entries of keys, by key as given; those that could not be written yet have version 0.

        Args:
            max_age: Seconds that a copy may be old.
            consistent: Read from Redis in any case.
        """
        found: dict[str, Entry | None] = {}
        missing: dict[str, Location] = {}
        for key in keys:
            copy = None if consistent else self.cache.get(key, max_age)
            self.uncached += consistent
            if copy is None:
                missing[key] = self.keys.location(key)
            else:
                found[key] = None if copy.make_entry is None else copy.make_entry(copy.take())
        if missing:
            found.update(self.read(missing))
        return found

    def read(self, wanted: Mapping[str, Location]) -> dict[str, Entry | None]:
        """Read the entries of locations from Redis, and keep copies under the names that are given."""
        with CacheableRead(self, [location.key for location in wanted.values()]) as cacheable:
            return self._read_all(cacheable, wanted)

    def read_value(self, key: str, location: Location) -> Any:
        """Do the same for one location, and return its value, or None; the shortest way to a key of a user's own."""
        keys = (location.key,)
        with CacheableRead(self, keys) as cacheable:
            if location.path != location.key or cacheable.lacks_writes:
                entry = self._read_all(cacheable, {key: location})[key]
                return None if entry is None else entry.value
            stored = cacheable.read(self.store.read_entry, location)
            self.writer.note_read(location, stored)
            if stored is None or stored.absent(self.store.clock.now()):
                cacheable.keep(key, None, keys, float("inf"))
                return None
            value, header = stored.value, stored.header
            cacheable.keep(key, value, keys, header.expires_at / 1000, partial(header.entry, location.path))
            return value

    def _read_all(self, cacheable: CacheableRead, wanted: Mapping[str, Location]) -> dict[str, Entry | None]:
        rows = {key: parts_of(location) for key, location in wanted.items()}
        stored, unsent = self._read_locations(cacheable, {part for row in rows.values() for part in row})
        now = self.store.clock.now()
        found = {}
        for key, row in rows.items():
            location = wanted[key]
            parts = {part.slot: stored[part] for part in row}
            entry = self.whole_entry(location, parts, now)
            if entry is not None and not unsent.isdisjoint(row):
                entry = replace(entry, version=0)
            found[key] = entry
            if location not in unsent:
                self.writer.note_read(location, stored[location])
            if location.key != self.keys.about:
                value, make_entry = (None, None) if entry is None else (entry.value, entry.evolve)
                cacheable.keep(key, value, (location.key,), expires_at(parts.values(), now), make_entry)
        return found

    def _read_locations(
        self, cacheable: CacheableRead, wanted: Iterable[Location],
    ) -> tuple[dict[Location, StoredEntry | None], set[Location]]:
        """Return what is stored, and which of the locations have changes of this process that are not stored yet.

        While Redis is away, a whole value that is pending is an answer, too.
        """
        locations = list(wanted)
        unsent = {}
        if cacheable.lacks_writes:
            # Before Redis is read: what leaves them later, is stored later.
            unsent = {one: changes for one in locations if (changes := self.writer.unsent(one))}
            self._check_whole(cacheable, [one for one in locations if self.writer.is_pending(one.key)], unsent)
        answer: list[StoredEntry | None] = [None] * len(locations)
        try:
            answer = cacheable.read(self.store.read_entries, locations)
        except StoreError:
            if not all(_is_whole(unsent.get(one, ())) for one in locations):
                raise
        found = dict(zip(locations, answer))
        found.update({one: self._preview(found[one], changes) for one, changes in unsent.items()})
        return found, set(unsent)

    def _check_whole(
        self, cacheable: CacheableRead, pending: Sequence[Location], unsent: Mapping[Location, Sequence[Change]],
    ) -> None:
        """Raise why what is pending could not be sent, unless all of it is whole values."""
        if cacheable.error is not None and not all(_is_whole(unsent.get(one, ())) for one in pending):
            raise cacheable.error

    def _preview(self, stored: StoredEntry | None, changes: Sequence[Change]) -> StoredEntry | None:
        """Return an entry with changes of this process over it that could not be written yet."""
        if stored is not None and stored.absent(self.store.clock.now()):
            stored = None
        for change in changes:
            stored = change.preview(stored, self.store.clock, self.store.worker_id)
        return stored

    def whole_entry(self, location: Location, parts: Mapping[int, StoredEntry | None], now: float) -> Entry | None:
        """Return the entry that the parts of a place make up; the queue and the metrics are read."""
        entry = entry_of(location, parts, now)
        if location.key != self.keys.about:
            return entry
        value: Any = self.queue() if location.field == QUEUE else self.metrics()
        return None if entry is None else entry.evolve(value)

    def shown(self, location: Location, parts: Mapping[int, StoredEntry | None]) -> None:
        """Take note that a caller in this process has received an entry: what is written next follows that."""
        if not self.writer.is_pending(location.key):
            for part in parts_of(location):
                self.writer.note_read(part, parts.get(part.slot))

    # -- tasks

    def task(self, task_id: str, agents: bool = False) -> Task:
        """Return all that is recorded of a task."""
        self.uncached += 1
        with CacheableRead(self, self._keys_of(task_id, agents), to_keep=False) as cacheable:
            return self._read_task(cacheable, task_id, agents)

    def tasks(self, task_ids: Sequence[str]) -> list[Task]:
        """Return all that is recorded of tasks, but for their agents."""
        self.uncached += len(task_ids)
        return [self._noted(task_id, task) for task_id, task in zip(task_ids, self.store.read_tasks(task_ids))]

    def recent_tasks(self, limit: int, before: str = "+", since: float | None = None) -> tuple[dict[str, Task], str | None]:
        """Return what is recorded of the newest tasks by id, and where to go on; see :meth:`TaskStore.read_recent_tasks`."""
        self.send_pending()  # which may put tasks into the index
        recent = self.store.read_recent_tasks(limit, before, since)
        task_ids = list(dict.fromkeys(recent.task_ids))
        return dict(zip(task_ids, self.tasks(task_ids))), recent.before

    def of_task(self, name: str, task_id: str, make: Callable[[Task], Any], agents: bool = False) -> Any:
        """Return something that is made of what is recorded of a task; it is kept.

        Args:
            name: What it is.
        """
        name = f"{VIEW}{name}{VIEW}{task_id}"
        copy = self.cache.get(name)
        if copy is not None:
            return copy.take()
        return within(self.store.timeout, self._read_of_task, name, task_id, make, agents)

    def peek(self, name: str, task_id: str) -> CacheEntry | None:
        """Return a valid copy of what :meth:`of_task` returns, or None."""
        return self.cache.peek(f"{VIEW}{name}{VIEW}{task_id}")

    def _read_of_task(self, name: str, task_id: str, make: Callable[[Task], Any], agents: bool) -> Any:
        keys = self._keys_of(task_id, agents)
        with CacheableRead(self, keys) as cacheable:
            task = self._read_task(cacheable, task_id, agents)
            until = expires_at([*task.slots.values(), *task.agents.values()], self.store.clock.now())
            value = make(task)
            cacheable.keep(name, value, keys, until)
        return value

    def _keys_of(self, task_id: str, agents: bool) -> tuple[str, ...]:
        return (self.keys.task(task_id), self.keys.agents(task_id)) if agents else (self.keys.task(task_id),)

    def _read_task(self, cacheable: CacheableRead, task_id: str, agents: bool) -> Task:
        if cacheable.error is not None:
            raise cacheable.error
        (task,) = cacheable.read(self.store.read_tasks, [task_id], agents)
        return self._with_unsent(task_id, task) if cacheable.lacks_writes else self._noted(task_id, task)

    def _noted(self, task_id: str, task: Task) -> Task:
        """Note that this process has seen what is recorded of a task."""
        self.writer.note_read(self.keys.task_location(task_id, STATE), task.slots.get(STATE))
        for agent_id, stored in task.agents.items():
            with contextlib.suppress(InvalidKey):  # no process of ours writes under a name like that
                self.writer.note_read(self.keys.agent_location(task_id, agent_id), stored)
        return task

    def _with_unsent(self, task_id: str, task: Task) -> Task:
        """Return a task with what this process could not write yet."""
        slots = dict(task.slots)
        for slot in (STAGE, STATE, PROGRESS):
            changes = self.writer.unsent(self.keys.task_location(task_id, slot))
            shown = self._preview(slots.get(slot), changes) if changes else None
            if shown is not None and not shown.deleted:
                slots[slot] = shown
        return task._replace(slots=slots)

    # -- what all do together

    def send_pending(self) -> None:
        """Send what this process has written; what Redis refuses to write does not keep it from answering a read."""
        try:
            self.writer.flush()
        except StoreError as exc:
            if not exc.code:
                raise

    def queue(self, limit: int = LONGEST_LIST) -> QueueLists:
        """Return the ids of pending and running tasks, first come first, at most ``limit`` each."""
        self.uncached += 1
        self.send_pending()
        return self.store.read_queue(limit)

    def queue_position(self, task_id: str) -> int | None:
        """Return before how many others a task waits, None if it does not."""
        self.uncached += 1
        self.send_pending()
        return self.store.read_queue_position(task_id)

    def metrics(self) -> dict[str, Any]:
        """Return all counters."""
        self.uncached += 1
        self.send_pending()
        return self._stored_metrics()

    def stored_whole(self, location: Location) -> Entry | None:
        """Return the queue or the metrics as Redis has them now, without what waits here."""
        (parts,) = self.stored_parts([location]).values()
        entry = entry_of(location, parts, self.store.clock.now())
        value: Any = self.store.read_queue(LONGEST_LIST) if location.field == QUEUE else self._stored_metrics()
        return None if entry is None else entry.evolve(value)

    def _stored_metrics(self) -> dict[str, Any]:
        return {name: _number(body) for name, body in self.store.read_metrics().items()}

    # -- workers

    def workers(self, worker_id: str | None = None) -> dict[str, StoredEntry]:
        """Return the records of workers by ``<worker_id>/<thing>``; of one, or of all."""
        self.uncached += 1
        if worker_id is None:
            self.send_pending()
            return self.store.read_workers()
        locations = [self.keys.worker_location(worker_id, thing) for thing in ("status", "heartbeat", "capacity")]
        with CacheableRead(self, [self.keys.workers], to_keep=False) as cacheable:
            stored, _ = self._read_locations(cacheable, locations)
        now = self.store.clock.now()
        return {location.field: one for location, one in stored.items() if one is not None and not one.absent(now)}

    def stored_parts(self, locations: Sequence[Location]) -> dict[Location, Parts]:
        """Return the parts of entries as Redis has them now, without what waits here."""
        rows = {location: parts_of(location) for location in locations}
        every = list(dict.fromkeys(part for row in rows.values() for part in row))
        stored = dict(zip(every, self.store.read_entries(every)))
        return {location: {part.slot: stored[part] for part in row} for location, row in rows.items()}


def parts_of(location: Location) -> list[Location]:
    """Return the places that make up what a key names: a task's state has two."""
    if location.task_id and location.slot == STATE:
        return [location._replace(slot=STAGE), location]
    return [location]


def _is_whole(changes: Sequence[Change]) -> bool:
    """Whether changes make up a value, whatever is stored."""
    return any(isinstance(change, SetValue) for change in changes)


def _number(body: bytes) -> Any:
    try:
        return encoding.decode(body)
    except encoding.UNREADABLE:
        return None
