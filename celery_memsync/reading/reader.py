"""What there is: in Redis, under what waits here to be written, kept for as long as it may be believed."""
from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Hashable, Iterable, Mapping, Sequence, TypeVar

from .. import encoding
from ..exceptions import InvalidKey, StoreError
from ..keys import METRICS, QUEUE, STAGE, STATE, Keys, Location
from ..models.entry import Entry, StoredEntry
from ..store import Store, Task
from ..store.push import TrackedConnection
from ..writing.changes import Change, Coordinated, SetValue, SyncMetrics, SyncQueue
from ..writing.writer import BatchWriter
from .cache import EntryCache, PendingRead
from .listener import ChangeListener
from .projections import entry_of, expires_at, with_change

T = TypeVar("T")

#: Times to ask Redis while this process goes on writing what is asked for; the last time it may not.
MAX_READS = 3

#: Tasks, or keys, of which a search reads what is stored in one round trip.
READ_AT_ONCE = 200

#: Most ids of a list of the queue that are read, unless told otherwise.
LONGEST_LIST = 1000

#: Marks the names of copies that are not those of keys: no key has it.
VIEW = "\0"

#: Parts of an entry by slot.
Parts = dict[int, "StoredEntry | None"]


class CacheableRead:
    """One question to Redis, whose answer may be kept unless it is overtaken.

    Args:
        keys: Redis keys that are read.
        to_keep: Whether anything of the answer is to be kept.

    Usage::

        with CacheableRead(reader, keys) as asking:
            answer, waiting = asking.ask(lambda source: ...)
            asking.keep(name, value, keys, until)
    """

    def __init__(self, reader: Reader, keys: Sequence[str], to_keep: bool = True) -> None:
        self._reader = reader
        self._keys = keys
        self._to_keep = to_keep and reader.cache.enabled
        self._source: TrackedConnection | None = None
        self._reading: PendingRead | None = None
        self._asked_at = 0.0

    def __enter__(self) -> CacheableRead:
        reader = self._reader
        self._source = reader.link.checkout() if self._to_keep else None
        self._asked_at = time.monotonic()
        if self._source is not None:
            self._reading = reader.cache.begin(self._keys, self._source)
        return self

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

    def ask(self, read: Callable[[TrackedConnection | None], T]) -> tuple[T, list[Change]]:
        """Ask Redis; return its answer and the changes of this process to lay over it.

        What waited before and was written while Redis answered may be in
        neither, so it is asked again.
        """
        writer = self._reader.writer
        for number in range(MAX_READS):
            with contextlib.nullcontext() if number < MAX_READS - 1 else writer.idle:
                before = writer.waiting_for(*self._keys)
                answer = self._read(read)
                waiting = writer.waiting_for(*self._keys)
            if set(before) <= set(waiting):
                break
        if waiting:
            self._stop_keeping()
        return answer, waiting

    def keep(self, name: Hashable, value: Any, keys: tuple[str, ...], until: float, about: Any = None) -> None:
        """Keep what was made of the answer.

        Args:
            until: When it is over, in seconds of Redis's clock.
        """
        cache = self._reader.cache
        if self._reading is not None:
            cache.keep(self._reading, name, value, keys, self._reader.store.clock.monotonic(until), about)
        else:
            cache.compare(name, value)

    def _read(self, read: Callable[[TrackedConnection | None], T]) -> T:
        source = self._source
        if source is None:
            return read(None)
        try:
            return read(source)
        except StoreError:
            # It may be this one connection that is broken.
            self._source = None
            self._reader.link.discard(source)
            self._stop_keeping()
            return read(None)

    def _stop_keeping(self) -> None:
        if self._reading is not None:
            self._reader.cache.finish(self._reading)
            self._reading = None


class Reader:
    """Answers what one process asks."""

    def __init__(self, store: Store, writer: BatchWriter, cache: EntryCache, link: ChangeListener) -> None:
        self.store = store
        self.writer = writer
        self.cache = cache
        self.link = link
        self.keys: Keys = store.keys
        #: Questions that went past the cache.
        self.uncached = 0

    # -- entries

    def entry(
        self, key: str, max_age: float | None = None, consistent: bool = False, cache_checked: bool = False,
    ) -> Entry | None:
        """Return the entry of a key, or None.

        Args:
            cache_checked: Whether the cache was asked already, in vain.
        """
        if cache_checked:
            return self._read({key: self.keys.location(key)})[key]
        return self.entries([key], max_age, consistent)[key]

    def settled_entry(self, key: str, max_age: float | None, consistent: bool) -> Entry | None:
        """Return the entry of a key with a version that is true: what waits here is written first.

        If Redis is away it is what will be there, with version 0.
        """
        try:
            self.writer.flush_for(self.keys.location(key).key)
        except StoreError:
            entry = self.entry(key, max_age, consistent)
            return entry if entry is None else replace(entry, version=0)
        return self.entries([key], max_age, consistent, settled=True)[key]

    def entries(
        self, keys: Iterable[str], max_age: float | None = None, consistent: bool = False, settled: bool = False,
    ) -> dict[str, Entry | None]:
        """Return the entries of keys, by key as given.

        Args:
            max_age: Seconds that a copy may be old.
            consistent: Ask Redis in any case.
            settled: Leave out what waits here to be written.
        """
        found: dict[str, Entry | None] = {}
        missing: dict[str, Location] = {}
        for key in keys:
            copy = None if consistent else self.cache.get(key, max_age)
            self.uncached += consistent
            if copy is None:
                missing[key] = self.keys.location(key)
            else:
                found[key] = None if copy.about is None else copy.about.evolve(copy.take())
        if missing:
            found.update(self._read(missing, settled))
        return found

    def _read(self, wanted: Mapping[str, Location], settled: bool = False) -> dict[str, Entry | None]:
        rows = {key: parts_of(location) for key, location in wanted.items()}
        with CacheableRead(self, [location.key for location in wanted.values()]) as cacheable:
            locations = list(dict.fromkeys(part for row in rows.values() for part in row))
            stored, seen = self._read_locations(cacheable, locations, settled)
            now = self.store.clock.now()
            found = {}
            for key, row in rows.items():
                location = wanted[key]
                parts = {part.slot: stored[part] for part in row}
                entry = found[key] = self.whole_entry(location, parts, now)
                if location in seen:
                    self.writer.note_read(location, stored[location])
                if location.key != self.keys.about:
                    cacheable.keep(key, None if entry is None else entry.value, (location.key,),
                                   expires_at(parts.values(), now), entry)
        return found

    def _read_locations(
        self, cacheable: CacheableRead, locations: Sequence[Location], settled: bool,
    ) -> tuple[dict[Location, StoredEntry | None], set[Location]]:
        """Return what is stored under what waits, and of which places nothing waits."""
        keys = {location.key for location in locations}
        answer: list[StoredEntry | None] = [None] * len(locations)
        try:
            answer, waiting = cacheable.ask(lambda source: self.store.read_entries(locations, source))
        except StoreError:
            waiting = self.writer.waiting_for(*keys)
            in_process = {change.location for change in waiting if isinstance(change, SetValue)}
            if settled or not in_process.issuperset(locations):
                raise
        now = self.store.clock.now()
        found: dict[Location, StoredEntry | None] = {}
        waiting = [change for change in waiting if not isinstance(change, Coordinated)]
        touched = {change.location for change in waiting}
        for location, stored in zip(locations, answer):
            if location in touched and not settled:
                alive = None if stored is None or stored.absent(now) else stored
                after = self.writer.overlay(alive, [change for change in waiting if change.location == location])
                stored = after or stored
            found[location] = stored
        return found, set(locations) - touched

    def whole_entry(self, location: Location, parts: Mapping[int, StoredEntry | None], now: float) -> Entry | None:
        """Return the entry that the parts of a place make up; the queue and the metrics are read."""
        entry = entry_of(location, parts, now)
        if location.key != self.keys.about:
            return entry
        value: Any = self.queue() if location.field == QUEUE else self.metrics()
        return None if entry is None else entry.evolve(value)

    def shown(self, location: Location, parts: Mapping[int, StoredEntry | None]) -> None:
        """Take note that somebody in this process was told of an entry: what he writes next follows that."""
        if not self.writer.waiting_for(location.key):
            for part in parts_of(location):
                self.writer.note_read(part, parts.get(part.slot))

    # -- tasks

    def task(self, task_id: str, agents: bool = False) -> Task:
        """Return all that is told of a task."""
        self.uncached += 1
        with CacheableRead(self, self._keys_of(task_id, agents), to_keep=False) as cacheable:
            return self._read_task(cacheable, task_id, agents)

    def tasks(self, task_ids: Sequence[str]) -> list[Task]:
        """Return all that is told of tasks, but for their agents."""
        self.uncached += len(task_ids)
        tasks = dict(zip(task_ids, self.store.read_tasks(task_ids)))
        waiting: dict[str, list[Change]] = {}
        for change in self.writer.waiting():
            if change.location.slot and change.location.task_id in tasks:
                waiting.setdefault(change.location.task_id, []).append(change)
        return [self._seen(task_id, task, waiting.get(task_id, [])) for task_id, task in tasks.items()]

    def of_task(self, name: str, task_id: str, make: Callable[[Task], Any], agents: bool = False) -> Any:
        """Return something that is made of what is told of a task; it is kept.

        Args:
            name: What it is.
        """
        name = f"{VIEW}{name}{VIEW}{task_id}"
        copy = self.cache.get(name)
        if copy is not None:
            return copy.take()
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
        (task,), waiting = cacheable.ask(lambda source: self.store.read_tasks([task_id], agents, source))
        return self._seen(task_id, task, waiting)

    def _seen(self, task_id: str, task: Task, waiting: Sequence[Change]) -> Task:
        """Return a task as it will be when changes are written; what they do not touch this process has seen."""
        touched = {change.location for change in waiting}
        found: dict[Location, StoredEntry | None] = {self.keys.task_location(task_id, STATE): task.slots.get(STATE)}
        for agent_id, stored in task.agents.items():
            with contextlib.suppress(InvalidKey):  # nobody of ours writes under a name like that
                found[self.keys.agent_location(task_id, agent_id)] = stored
        for location, seen in found.items():
            if location not in touched:
                self.writer.note_read(location, seen)
        for change in waiting:
            task = with_change(task, change, self.writer.overlay)
        return task

    # -- what all do together

    def queue(self, limit: int = LONGEST_LIST) -> dict[str, list[str]]:
        """Return the ids of tasks that wait and that are at work, first come first, at most ``limit`` each."""
        queue, waiting = self._read_coordination(QUEUE, lambda done: self.store.read_queue(limit, done))
        for change in waiting:
            if isinstance(change, SyncQueue):
                queue = {**queue, **{name: list(ids[:limit]) for name, ids in change.lists.items()}}
        return queue

    def metrics(self) -> dict[str, Any]:
        """Return all counters."""
        counters, waiting = self._read_coordination(METRICS, self.store.read_metrics)
        metrics = {name: _number(body) for name, body in counters.items()}
        for change in waiting:
            if isinstance(change, SyncMetrics):
                metrics = change.applied(metrics)
        return metrics

    def _read_coordination(self, thing: str, read: Callable[[bool], tuple[T, set[int]]]) -> tuple[T, list[Change]]:
        """Return what there is, and the changes that wait and are not in it.

        Args:
            read: Reads it, and if asked also the numbers of the changes that are in it.
        """
        location = self.keys.coordination_location(thing)
        self.uncached += 1
        answer, done, waiting = self._read_and_wait(location, partial(read, False))
        if any(change.serial is not None for change in waiting):  # it is on its way, or its answer was lost
            answer, done, waiting = self._read_and_wait(location, partial(read, True))
        return answer, [change for change in waiting if change.serial not in done]

    def _read_and_wait(
        self, location: Location, read: Callable[[], tuple[T, set[int]]],
    ) -> tuple[T, set[int], list[Change]]:
        with CacheableRead(self, [location.key], to_keep=False) as cacheable:
            (answer, done), waiting = cacheable.ask(lambda _: read())
        return answer, done, [change for change in waiting if change.location == location]

    def stored_whole(self, location: Location) -> Entry | None:
        """Return the queue or the metrics as Redis has them now, without what waits here."""
        (parts,) = self.stored_parts([location]).values()
        entry = entry_of(location, parts, self.store.clock.now())
        value: Any
        if location.field == QUEUE:
            value, _ = self.store.read_queue(LONGEST_LIST, False)
        else:
            value = {name: _number(body) for name, body in self.store.read_metrics(False)[0].items()}
        return None if entry is None else entry.evolve(value)

    # -- workers

    def workers(self, worker_id: str | None = None) -> dict[str, StoredEntry]:
        """Return what is told of workers by ``<worker_id>/<thing>``; of one, or of all."""
        self.uncached += 1
        if worker_id is None:
            stored_records = self.store.read_workers()
        else:
            locations = [self.keys.worker_location(worker_id, thing) for thing in ("status", "heartbeat", "capacity")]
            now = self.store.clock.now()
            answers = zip(locations, self.store.read_entries(locations))
            stored_records = {location.field: stored for location, stored in answers
                              if stored is not None and not stored.absent(now)}
        for change in self.writer.waiting_for(self.keys.workers):
            after = self.writer.overlay(stored_records.get(change.location.field), [change])
            if after is not None:
                stored_records[change.location.field] = after
        return stored_records

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


def _number(body: bytes) -> Any:
    try:
        return encoding.decode(body)
    except encoding.UNREADABLE:
        return None
