"""The shared state as one process sees it: buffered writes, reads, atomic operations, subscriptions."""
from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from celery.exceptions import ImproperlyConfigured

from . import encoding
from .closing import closer
from .deadline import within
from .events import Events, Handler
from .exceptions import ConflictError, InvalidKey, InvalidValue, LockLost
from .keys import ASSIGNMENTS, METRICS, PROGRESS, QUEUE, STAGE, STATE, Keys, Location, check_id, is_id
from .locking.lock import Lock
from .locking.lock_service import LockService, Owner
from .models.entry import MAX_FENCE, Entry, StoredEntry
from .models.lock import LockRecord
from .models.order import is_run_key
from .models.task import TaskRun
from .models.worker import WorkerRecord
from .reading.handlers import Handlers, OnChange, OnInvalidate
from .reading.projections import active_workers, progress_of, runs_of, state_of, worker_record, worker_records
from .reading.reader import LONGEST_LIST, parts_of
from .reading.subscriptions import Watch
from .runtime import Runtime
from .settings import MAX_SECONDS, Settings, short
from .store import Store
from .writing.changes import Change, MergeFields, SetValue, StageChange, SyncMetrics, SyncQueue
from .writing.progress import Progress
from .writing.shared_queue import check_assignments, check_queue, check_steps
from .writing.unanswered import digest_of, maybe_done_is
from .writing.writer import BatchWriter

logger = logging.getLogger(__name__)

#: Tasks that are read in one round trip: no command of it holds Redis for more than a millisecond or two.
TASKS_AT_ONCE = 500

#: Tasks of which a process remembers the progress that it told by hand.
MAX_PROGRESS = 10_000

T = TypeVar("T")

P = ParamSpec("P")

F = TypeVar("F", bound=Callable[..., Any])

_managers: weakref.WeakSet[MemorySyncManager] = weakref.WeakSet()


def _bounded(method: F) -> F:
    """Let a method end within ``memsync_timeout``, whatever Redis does."""

    @functools.wraps(method)
    def call(self: MemorySyncManager, *args: Any, **kwargs: Any) -> Any:
        return within((self._opened or self._open()).settings.timeout, method, self, *args, **kwargs)

    return call  # type: ignore[return-value]


class MemorySyncManager:
    """One process's view of the memory that all processes of a namespace share.

    What *tells* returns at once and never raises because of Redis; what *asks*
    raises :exc:`StoreError` when Redis is away; what *decides* answers truly or
    raises.  Nothing is connected or started before it is needed, and a forked
    child begins anew.

    Usage::

        with MemorySyncManager(worker_id="worker-1", url="redis://localhost") as memsync:
            memsync.sync_task_state("task-123", {"status": "processing"})
            memsync.force_sync()

    Args:
        worker_id: Name of this process.  None: ``host:pid``.
        url: Redis, as ``memsync_backend``.
        settings: Other settings by name, without ``memsync_``.

    Raises:
        ImproperlyConfigured: For an unknown or wrong setting.
    """

    def __init__(self, worker_id: str | None = None, url: str | None = None, **settings: Any) -> None:
        given = {"worker_id": worker_id, "backend": url}
        self._given = {**settings, **{name: value for name, value in given.items() if value is not None}}
        self._events = Events()
        self._mutex = threading.RLock()
        self._opened: Runtime | None = None
        #: Whether Redis was away when this process was forked.
        self._was_away = False
        #: Of what is open, for the closer.
        self._number = 0
        #: The handlers of subscriptions, which nothing else keeps alive, by id.
        self._handlers: dict[str, Handlers] = {}
        self._check_given()
        _managers.add(self)

    def _check_given(self) -> None:
        settings = Settings.build(self._given)
        if settings.backend is None:
            raise ImproperlyConfigured("MemorySyncManager needs a url, such as redis://localhost:6379/0 or embedded://")

    # ------------------------------------------------------------------ tell

    def sync_task_state(self, task_id: str, state: Mapping[str, Any], ttl: float | None = None) -> None:
        """Merge top-level fields into the state of a task.

        Other fields stay, whoever wrote them.  A status that comes late does
        not undo a later stage of a task's life.

        Args:
            ttl: Seconds that the state lives.  None: ``memsync_default_ttl``.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: If a field can't be stored as JSON, or is too large.
        """
        services = self._open()
        location = services.keys.task_location(check_id(task_id, "task"), STATE)
        fields = encoding.encode_fields(state, location.path, services.settings.max_value_size)
        services.writer.put(
            MergeFields(location, fields, self._ttl(ttl), self._fence(task_id), run_key=self._run_key(task_id)))

    def sync_task_run(self, task_id: str, run: TaskRun, run_key: str = "", ttl: float | None = None) -> Change:
        """Tell a stage in the life of a task.

        Args:
            run: All that is known of the run.
            run_key: Names the run and its place among those of the task, see :mod:`celery_memsync.models.order`; "" for
                the one that is stored.

        Returns:
            The change that waits to be written.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: If the run key is none.
        """
        if run_key and not is_run_key(run_key):
            raise InvalidValue(f"{short(run_key)} is no run key")
        services = self._open()
        location = services.keys.task_location(check_id(task_id, "task"), STAGE)
        change = StageChange(location, run, run_key, self._ttl(ttl))
        services.writer.put(change)
        return change

    def sync_task_progress(
        self, task_id: str, progress: float | None, status: str | None = None, *,
        current: float | None = None, total: float | None = None, message: str | None = None,
    ) -> None:
        """Record how far a task is.

        A figure below the one before is ignored, within one phase of the run.
        Of a task that runs in this process it goes on with what that reports.

        Args:
            progress: Percent, 0 to 100.  None: reckoned from current and total.
            status: A word for what it is doing.
            current: How many are done.
            total: How many there are.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: For a figure that is no number, or out of its range.
        """
        services = self._open()
        cell = self._progress_cell(services, check_id(task_id, "task"))
        if cell.report(current, total, message, status, progress):
            services.writer.put(cell)

    def sync_agent_coordination(self, task_id: str, agent_id: str, data: Any) -> None:
        """Share what an agent, or a sub-step, of a task has to say.

        Raises:
            InvalidKey: If one of the ids is not fit for a key.
            InvalidValue: If the data can't be stored as JSON, or is too large.
        """
        services = self._open()
        location = services.keys.agent_location(task_id, agent_id)
        self._set(services, location, data, run_key=self._run_key(task_id), fence=self._fence(task_id))

    def sync_worker_status(self, worker_id: str, status: Any) -> None:
        """Tell the status of a worker by hand; Celery's workers tell theirs at every beat.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: If the status can't be stored as JSON, or is too large.
        """
        services = self._open()
        self._set(services, services.keys.worker_location(check_id(worker_id, "worker"), "status"), status, owned=True)

    def sync_worker_capacity(self, worker_id: str, capacity: Any) -> None:
        """Tell by hand how many free slots a worker has; see :meth:`sync_worker_status`."""
        services = self._open()
        self._set(services, services.keys.worker_location(check_id(worker_id, "worker"), "capacity"), capacity, owned=True)

    def update_heartbeat(self) -> None:
        """Tell once that this process is alive, under its worker id; returns at once, as all that tells."""
        services = self._open()
        record = WorkerRecord(services.worker_id, hostname=socket.gethostname(), pid=os.getpid())
        location = services.keys.worker_location(services.worker_id, "heartbeat")
        self._set(services, location, record.as_dict(), owned=True)

    def sync_queue(self, queue: Mapping[str, Iterable[str]]) -> None:
        """Make the lists of the queue what is given; a list that is not given stays.

        With Celery the signals keep the queue: what is published is pending, what runs is processing.

        Args:
            queue: Task ids, those that come first first, of ``"pending"``, of ``"processing"``, or both.

        Raises:
            InvalidKey: If an id is not fit for a key.
            InvalidValue: If it is something else than lists of ids by these names, or too long.
        """
        services = self._open()
        lists = check_queue(queue, services.settings.max_value_size)
        services.writer.put(SyncQueue(services.keys.coordination_location(QUEUE), lists, self._ttl(None)))

    def sync_assignments(self, assignments: Mapping[str, Iterable[str]]) -> None:
        """Tell which tasks workers have, by worker id; other workers' stay.

        Celery's workers tell theirs at every beat.

        Raises:
            InvalidKey: If an id is not fit for a key.
            InvalidValue: If it is something else than lists of ids by worker, or too long.
        """
        services = self._open()
        location = services.keys.coordination_location(ASSIGNMENTS)
        lists = check_assignments(assignments)
        fields = encoding.encode_fields(lists, location.path, services.settings.max_value_size)
        services.writer.put(MergeFields(location, fields, self._ttl(None)))

    def sync_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Set counters, or anything else that is worth a name; other counters stay.

        Raises:
            InvalidKey: If a name is not fit for a key.
            InvalidValue: If a value can't be stored as JSON, or is too large.
        """
        services = self._open()
        location = services.keys.coordination_location(METRICS)
        fields = encoding.encode_fields(metrics, location.path, services.settings.max_value_size)
        steps: dict[str, tuple[bytes | None, float]] = {
            check_id(name, "metric"): (body, 0) for name, body in fields.items()}
        services.writer.put(SyncMetrics(location, steps, self._ttl(None)))

    def increment_metrics(self, /, **amounts: float) -> None:
        """Add to counters; what several processes add is added up.

        With Celery the signals count ``total``, ``succeeded``, ``failed``, ``retried``, ``revoked``, ``ignored``,
        ``skipped``, ``lost`` and ``runtime`` (seconds).

        Raises:
            InvalidValue: If an amount is no number.
        """
        services = self._open()
        steps = check_steps(amounts)
        services.writer.put(SyncMetrics(services.keys.coordination_location(METRICS), steps, self._ttl(None)))

    def write(
        self, key: str, value: Any, *, ttl: float | None = None, expected_version: int | None = None,
        fence: Lock | int | None = None,
    ) -> Entry | None:
        """Store a value under a key of the user's own.

        Args:
            key: A path; the namespace is put before it unless it is there.
            ttl: Seconds that it lives.  None: ``memsync_default_ttl``.
            expected_version: If given, this decides: the value is stored at
                once if that version is there (0: nothing is there), else
                nothing is changed.
            fence: The lock under which it is written, or that lock's fence: if
                a later holder has written the key, this write is refused.

        Returns:
            With ``expected_version`` the entry as it was stored, else None.

        Raises:
            InvalidKey: If the key is not fit.
            InvalidValue: If the value can't be stored as JSON, or is too large.
            ConflictError: If another version is there than the expected one.
            LockLost: If the lock was never held; with ``expected_version``, if a later holder has written the key.
            StoreError: With ``expected_version``, if Redis is away.
        """
        services = self._open()
        location = self._location_to_write(services.keys, key)
        number = _check_fence(fence)
        if expected_version is None:
            self._set(services, location, value, ttl, fence=number)
            return None
        return self._compare_and_set(location, value, self._ttl(ttl), expected_version, number)

    def delete(self, key: str) -> None:
        """Remove what is stored under a key; like :meth:`write` it returns at once."""
        services = self._open()
        services.writer.put(SetValue(self._location_to_write(services.keys, key), b"", self._ttl(None)))

    # ------------------------------------------------------------------- ask

    def get_task_state(self, task_id: str) -> dict[str, Any] | None:
        """Return the state of a task, or None if nobody ever told of it.

        What this process told and has not written yet is included.

        Raises:
            StoreError: If Redis is away.
        """
        reader = self._open().reader
        state: dict[str, Any] | None = reader.of_task(
            "state", check_id(task_id, "task"), lambda task: state_of(task_id, task.slots, task.former))
        return state

    def get_task_progress(self, task_id: str) -> dict[str, Any] | None:
        """Return how far a task is, or None if it has reported no progress.

        A task that has succeeded is at 100 %, whatever it reported last.

        Returns:
            ``progress`` (percent), ``status``, ``current``, ``total``,
            ``message``, ``phase`` (its name), ``phase_number`` (1 of the first),
            ``started_at``, ``phase_started_at`` and ``updated_at`` (seconds since
            the epoch on Redis's clock), ``run``, ``eta`` (seconds left of the
            phase, None when unknown and unless the task runs), the task's own
            fields, and ``previous``: the last progress of the run before, if
            there was one.

        Raises:
            StoreError: If Redis is away.
        """
        progress: dict[str, Any] | None = self._open().reader.of_task(
            "progress", check_id(task_id, "task"), lambda task: progress_of(task, state_of(task_id, task.slots)))
        return progress

    @_bounded
    def get_task(self, task_id: str) -> dict[str, Any] | None:
        """Return all that is known of a task, or None: state, progress, runs, agents."""
        task = self._open().reader.task(check_id(task_id, "task"), agents=True)
        state = state_of(task_id, task.slots, task.former)
        progress = progress_of(task, state)
        agents = {agent: stored.value for agent, stored in task.agents.items()}
        if state is None and progress is None and not agents:
            return None
        runs = runs_of(task_id, task)
        return {"id": task_id, "state": state, "progress": progress, "runs": runs, "agents": agents}

    @_bounded
    def get_tasks(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the newest tasks with state and progress, newest first.

        Args:
            limit: Most tasks to return.

        Returns:
            Dicts with ``id``, ``state`` and ``progress``.

        Raises:
            StoreError: If Redis is away.
        """
        return list(islice(self.iter_tasks(at_once=min(limit, TASKS_AT_ONCE)), limit)) if limit > 0 else []

    def iter_tasks(self, since: float | None = None, at_once: int = TASKS_AT_ONCE) -> Iterator[dict[str, Any]]:
        """Yield tasks with state and progress, newest first; read as they are taken.

        Args:
            since: When the first of them was told of, in seconds since the epoch on Redis's clock.  None: however
                long ago.
            at_once: How many are read at a time, within ``memsync_timeout``.

        Raises:
            StoreError: If Redis is away.
        """
        services = self._open()
        known: set[str] = set()
        before: str | None = "+"
        while before:
            page, before = self._within(services.reader.recent_tasks, at_once, before, since)
            for task_id, task in page.items():
                if task_id not in known and task.slots:
                    state = state_of(task_id, task.slots, task.former)
                    yield {"id": task_id, "state": state, "progress": progress_of(task, state)}
            known.update(page)

    def get_agent_coordination(self, task_id: str, agent_id: str) -> Any:
        """Return what an agent of a task shared, or None.

        Raises:
            StoreError: If Redis is away.
        """
        return self.read(self._open().keys.agent_location(task_id, agent_id).path)

    def get_task_agents(self, task_id: str) -> list[str]:
        """Return the ids of the agents of a task, sorted.

        Raises:
            StoreError: If Redis is away.
        """
        agents: list[str] = self._open().reader.of_task(
            "agents", check_id(task_id, "task"), lambda task: sorted(task.agents), agents=True)
        return agents

    @_bounded
    def get_queue(self, limit: int = LONGEST_LIST) -> dict[str, list[str]]:
        """Return the ids of the tasks that wait and of those at work, those that came first first.

        Args:
            limit: Most ids of each list.

        Returns:
            ``{"pending": [...], "processing": [...]}``.

        Raises:
            StoreError: If Redis is away.
        """
        return self._open().reader.queue(_check_count(limit, "limit"))

    @_bounded
    def get_assignments(self) -> dict[str, list[str]]:
        """Return the ids of the tasks that workers have, by worker id: what was told by hand, else by the last beat.

        Raises:
            StoreError: If Redis is away.
        """
        assignments = {
            record.worker_id: [task["id"] for task in record.running if isinstance(task, dict) and is_id(task.get("id"))]
            for record in self.get_workers() if record.running and record.status not in ("lost", "offline")
        }
        by_hand = self.read(self._open().keys.coordination_location(ASSIGNMENTS).path)
        for worker_id, ids in by_hand.items() if isinstance(by_hand, dict) else ():
            if is_id(worker_id) and isinstance(ids, list):
                assignments[worker_id] = list(filter(is_id, ids))
        return assignments

    @_bounded
    def get_coordination_metrics(self) -> dict[str, Any]:
        """Return all counters by name.

        Raises:
            StoreError: If Redis is away.
        """
        return self._open().reader.metrics()

    @_bounded
    def locks(self) -> list[LockRecord]:
        """Return all locks that are held, whoever holds them, sorted by name.

        Raises:
            StoreError: If Redis is away.
        """
        return self._open().locks.held()

    @_bounded
    def get_lock(self, name: str) -> LockRecord | None:
        """Return who holds a lock; None: nobody does.

        Args:
            name: As given to :meth:`lock`; ``tasks/<task_id>`` for the lock of a task.

        Raises:
            InvalidKey: If the name is not fit for a key.
            StoreError: If Redis is away.
        """
        return self._open().locks.record(_check_lock(name))

    @_bounded
    def get_awaited_lock(self, task_id: str) -> LockRecord | None:
        """Return the lock for which a task waits, as it is held by somebody else; None: it waits for none.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away.
        """
        return self._open().locks.awaited(check_id(task_id, "task"))

    @_bounded
    def get_queue_position(self, task_id: str) -> int | None:
        """Return how many tasks wait before one, in all queues together; None if it does not wait.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away.
        """
        return self._open().store.read_queue_position(check_id(task_id, "task"))

    @_bounded
    def get_worker_status(self, worker_id: str) -> Any:
        """Return the status of a worker: what was told by hand, else its last beat; None if unknown.

        Raises:
            StoreError: If Redis is away.
        """
        by_hand, record = self._worker(worker_id, "status")
        return by_hand if by_hand is not None else record.as_dict() if record is not None else None

    @_bounded
    def get_worker_capacity(self, worker_id: str) -> Any:
        """Return how many free slots a worker has, None if unknown.

        Raises:
            StoreError: If Redis is away.
        """
        by_hand, record = self._worker(worker_id, "capacity")
        return by_hand if by_hand is not None else record.capacity.get("free") if record is not None else None

    @_bounded
    def get_active_workers(self) -> list[str]:
        """Return the ids of the workers that are alive now, sorted.

        Raises:
            StoreError: If Redis is away.
        """
        return active_workers(*self._fleet())

    @_bounded
    def get_workers(self) -> list[WorkerRecord]:
        """Return what every worker told last, sorted by id.

        One that was silent for ``memsync_worker_ttl`` has the status ``lost``.

        Raises:
            StoreError: If Redis is away.
        """
        return worker_records(*self._fleet())

    def _fleet(self) -> tuple[dict[str, StoredEntry], float, float]:
        services = self._open()
        stored_records, ttl = services.reader.workers(), services.settings.worker_ttl
        return stored_records, services.store.clock.now() - ttl, ttl

    def read(self, key: str, *, max_age: float | None = None, consistent: bool = False) -> Any:
        """Return what is stored under a key, or None.

        A copy from the cache is returned as long as it may be believed, and
        what this process wrote is included.

        Args:
            max_age: Seconds that a copy may be old.  None: ``memsync_cache_max_age``.
            consistent: Ask Redis in any case.

        Raises:
            InvalidKey: If the key is not fit.
            StoreError: If Redis is away.
        """
        if max_age is not None:
            _check_seconds(max_age, "max_age")
        services = self._opened
        if services is not None and not consistent:
            copy = services.cache.get(key, max_age)
            if copy is not None:
                return copy.take()
        entry = self._within(
            self._open().reader.entry, key, max_age, consistent, cache_checked=services is not None and not consistent)
        return None if entry is None else entry.value

    @_bounded
    def read_entry(self, key: str, *, max_age: float | None = None, consistent: bool = False) -> Entry | None:
        """Return what is stored under a key with version, time and writer, or None; see :meth:`read`.

        What this process wrote there is sent first, for its version is not known before.  If Redis is away
        it is shown with version 0.
        """
        if max_age is not None:
            _check_seconds(max_age, "max_age")
        return self._open().reader.entry(key, max_age, consistent)

    @_bounded
    def read_many(
        self, keys: Iterable[str], *, max_age: float | None = None, consistent: bool = False,
    ) -> dict[str, Any]:
        """Return the values of many keys, by key as given, None for those that are not there; see :meth:`read`."""
        if max_age is not None:
            _check_seconds(max_age, "max_age")
        entries = self._open().reader.entries(_check_keys(keys), max_age, consistent)
        return {key: None if entry is None else entry.value for key, entry in entries.items()}

    @_bounded
    def search(self, pattern: str, limit: int = 1000) -> list[str]:
        """Return the keys that match a pattern, sorted, with their namespace.

        It goes by the indexes of tasks, workers and users' keys, not through
        all keys of Redis; what this process wrote is included.

        Args:
            pattern: A glob as Redis has them: ``*`` stands for any text, slashes
                too, ``?`` for one character, ``[ab]`` for one of some.
            limit: Most keys to return.

        Raises:
            InvalidKey: If the pattern is not fit.
            StoreError: If Redis is away.
        """
        services = self._open()
        return services.search.search(services.keys.pattern(pattern), _check_count(limit, "limit"))

    def iter_entries(self, pattern: str = "*") -> Iterator[Entry]:
        """Yield the entries whose keys match a pattern, each once, in no order.

        They are read in bulk, as they are taken.  What this process wrote is sent first; an entry
        that changes meanwhile may be missing, or be yielded in its old or its new state.

        Args:
            pattern: As in :meth:`search`.

        Raises:
            InvalidKey: If the pattern is not fit.
            StoreError: If Redis is away.
        """
        services = self._open()
        full = services.keys.pattern(pattern)
        self._within(services.writer.flush)
        return services.search.iter_entries(full)

    def get_metrics(self) -> dict[str, Any]:
        """Return counters of this process; nothing is asked of Redis."""
        services = self._open()
        writer, cache = services.writer, services.cache
        return {
            "reads": cache.hits + cache.misses + services.reader.uncached,
            "cache_hits": cache.hits, "cache_misses": cache.misses,
            "cache": {"size": len(cache), "max_size": cache.size, "invalidated": cache.invalidated},
            **writer.counts, "pending_writes": writer.pending, "subscriptions": len(services.subscriptions),
            "skipped": services.subscriptions.skipped, "events_dropped": self._events.dropped,
            "last_flush_seconds": writer.last_flush_seconds, "connected": writer.connected,
        }

    def clear_cache(self) -> None:
        """Forget all copies of what was read; the next reads ask Redis."""
        self._events.emit("cache-cleared", count=len(self._open().cache.clear()))

    # ---------------------------------------------------------------- decide

    @_bounded
    def enqueue(self, task_id: str) -> bool:
        """Put a task at the end of the shared queue.

        Returns:
            Whether it was put there; False if it is pending or processing already.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away, or does not answer.  The same call again returns what this one would have
                returned, and does not put it there twice.
        """
        services = self._open()
        with maybe_done_is(False):
            services.writer.flush_for(services.keys.about)
        return services.coordination.enqueue(check_id(task_id, "task"))

    @_bounded
    def dequeue(self) -> str | None:
        """Take the first pending task of the shared queue; it is processing from then on.

        Returns:
            Its id, which nobody else gets; None if nothing is pending.

        Raises:
            StoreError: If Redis is away, or does not answer.  What was taken all the same is what the next call by
                this thread returns.
        """
        services = self._open()
        with maybe_done_is(False):
            services.writer.flush_for(services.keys.about)
        return services.coordination.dequeue()

    @_bounded
    def complete(self, task_id: str) -> bool:
        """Take a task out of the shared queue, wherever in it it is.

        Returns:
            Whether it was there.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away, or does not answer.  The same call again returns what this one would have
                returned.
        """
        services = self._open()
        with maybe_done_is(False):
            services.writer.flush_for(services.keys.about)
        return services.coordination.complete(check_id(task_id, "task"))

    def lock(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
        thread_local: bool = True,
    ) -> Lock:
        """Return a lock that all processes of the namespace share; it is not acquired yet.

        Args:
            ttl: Its lease in seconds, which is renewed while it is held.  None: ``memsync_lock_ttl``.
            wait: Most seconds to wait for it.  None: as long as it takes.
            max_hold: Most seconds to hold it, for a holder that hangs: then it is lost.  None: as long as it takes.
            thread_local: Whether each thread (or greenlet) that uses the object has an acquisition of its own.  False: a
                thread that has none checks and releases the latest one, whichever thread has made it.

        Raises:
            InvalidKey: If the name is not fit for a key.
            InvalidValue: If a number of seconds is none.
        """
        return self._lock(check_id(name, "lock"), ttl, wait, max_hold, thread_local)

    @_bounded
    def free_lock(self, name: str, fence: int) -> bool:
        """Free a lock for whoever holds it; who waits for it gets it, and its holder loses it at the next renewal.

        What the holder does meanwhile goes on: only its fenced writes are refused, once a later holder has written.

        Args:
            name: As given to :meth:`lock`; ``tasks/<task_id>`` for the lock of a task.
            fence: Of the acquisition that is to end, see :meth:`get_lock`.

        Returns:
            Whether it was held with that fence until now.

        Raises:
            InvalidKey: If the name is not fit for a key.
            StoreError: If Redis is away.
        """
        services = self._open()
        return services.store.free_lock(services.keys.lock_location(_check_lock(name)), _check_count(fence, "fence"))

    def task_lock(
        self, task_id: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
        thread_local: bool = True,
    ) -> Lock:
        """Return the lock of a task as an object, as :meth:`lock` does; it is the one of :meth:`acquire_task_lock`."""
        return self._lock(f"tasks/{check_id(task_id, 'task')}", ttl, wait, max_hold, thread_local)

    def acquire_task_lock(self, task_id: str, ttl: float | None = None, wait: float | None = 0.0) -> bool:
        """Take the lock of a task; tell whether it was to be had.

        It is renewed until :meth:`release_task_lock`, or the end of this
        process, or, if it is taken in the body of a task, the end of that.

        Args:
            ttl: As in :meth:`lock`.
            wait: As in :meth:`lock`.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away.
        """
        locks, owner = self._locks_and_owner()
        name = f"tasks/{check_id(task_id, 'task')}"
        return locks.acquire_task(name, self._lease(ttl), _check_wait(wait), owner)

    def release_task_lock(self, task_id: str) -> bool:
        """Give back the lock of a task that this process has taken; tell whether it was still ours.

        Raises:
            InvalidKey: If the id is not fit for a key.
            StoreError: If Redis is away.
        """
        name, services = f"tasks/{check_id(task_id, 'task')}", self._opened
        return services is not None and services.locks.release_task(name)

    def force_sync(self, timeout: float | None = None) -> None:
        """Return when every write made before this call is in Redis.

        Args:
            timeout: Seconds to keep trying while Redis is away.  None: one try.

        Raises:
            StoreError: If Redis is away, or refuses a write; nothing is lost.
            ConflictError: If a write lost every round of conflict resolution.
            LockLost: Once, if a later holder's fence has refused a write; and once in the thread that made it.
        """
        if timeout is not None:
            _check_seconds(timeout, "timeout")
        started, services = time.monotonic(), self._open()
        count = within(services.settings.timeout + (timeout or 0), services.writer.force, timeout)
        self._events.emit("force-sync", count=count, seconds=time.monotonic() - started)

    # ------------------------------------------------------------------ hear

    @_bounded
    def subscribe(
        self, pattern: str, on_change: OnChange | None = None, on_invalidate: OnInvalidate | None = None,
    ) -> str:
        """Call handlers when keys that match a pattern change, whoever changes them.

        Of each key the newest value is told, never an older one after it; what
        came in between may be left out.  After a lost connection every key that
        may have changed is delivered, with its present value or as invalid: so
        a copy kept by both handlers ends equal to Redis.  Handlers run in at most ``memsync_handler_threads``
        threads, beside slow ones; those of one subscription never at the same
        time.  One that raises is logged.

        Args:
            pattern: As in :meth:`search`, such as ``"tasks/*/state"``.
            on_change: Called with key and value; with the :class:`Entry` too if
                it takes three arguments.
            on_invalidate: Called with the key when it was deleted, when its ttl
                is over, and when what was delivered of it may be outdated,
                because the connection is lost.

        Returns:
            An id for :meth:`unsubscribe`.

        Raises:
            InvalidKey: If the pattern is not fit.
        """
        handlers = Handlers(on_change, on_invalidate)
        subscription = self._open().subscriptions.subscribe(pattern, handlers)
        self._handlers[subscription] = handlers
        return subscription

    def unsubscribe(self, subscription: str) -> bool:
        """End a subscription; tell whether there was one of that id."""
        self._handlers.pop(subscription, None)
        services = self._opened
        return services is not None and services.subscriptions.unsubscribe(subscription)

    def watch(self, pattern: str, timeout: float | None = None) -> Watch:
        """Return changes of keys that match a pattern as an iterator, from now on.

        Usage::

            with memsync.watch("tasks/*/progress", timeout=60) as changes:
                for change in changes:
                    print(change.key, change.value)

        Args:
            timeout: Seconds without a change after which the loop ends.  None: never.

        Raises:
            InvalidKey: If the pattern is not fit.
        """
        if timeout is not None:
            _check_seconds(timeout, "timeout")
        return self._within(self._open().subscriptions.watch, pattern, timeout, self)

    def on(self, event: str, handler: Handler) -> None:
        """Call ``handler(**details)`` when an event happens in this process.

        Handlers run one after the other in a thread of their own, and delay nothing else.

        Raises:
            ValueError: If there is no event of that name.
        """
        self._events.on(event, handler)

    def off(self, event: str, handler: Handler) -> None:
        """Call that handler no more."""
        self._events.off(event, handler)

    # ------------------------------------------------------------ life cycle

    @property
    def worker_id(self) -> str:
        """Name of this process."""
        return self._open().worker_id

    @property
    def settings(self) -> Settings:
        """The settings that are in force."""
        return self._open().settings

    @property
    def events(self) -> Events:
        """Who listens in this process, for extensions."""
        return self._events

    @property
    def store(self) -> Store:
        """What talks to Redis, for extensions."""
        return self._open().store

    @property
    def writer(self) -> BatchWriter:
        """What gathers the writes of this process, for extensions."""
        return self._open().writer

    def shutdown(self, timeout: float | None = None) -> None:
        """Write what waits, stop the threads, close the connections.

        It may be called twice, or never: then a thread does it when the manager
        is collected, or the end of the process.  The next call of another method
        begins anew, but what was made before has ended: locks are not held any
        more, and subscriptions get nothing.  If Redis is away, what could not be
        written is logged and lost with the process.  Handlers of events that have
        not run in time are not called any more; one of them may call this.

        Args:
            timeout: Most seconds that all of it takes together.  None: ``memsync_timeout``.
        """
        with self._mutex:
            services, self._opened = self._opened, None
            number, handlers, self._handlers = self._number, self._handlers, {}
        if services is None:
            return
        closer.remove(number)
        seconds = services.settings.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        try:
            services.close(seconds)
            handlers.clear()  # not earlier: they were called until now
            self._events.emit("shutdown")
        finally:
            self._events.close(deadline - time.monotonic())

    def _is_away(self) -> bool:
        """Whether Redis is away, as far as this process knows, or knew before it was forked."""
        services = self._opened
        if services is None or services.writer.connected and not services.writer.counts["writes"]:
            return self._was_away
        return not services.writer.connected

    def __enter__(self) -> MemorySyncManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def _open(self) -> Runtime:
        """Return the services of this process; build them at the first use."""
        services = self._opened
        if services is None:
            with self._mutex:
                services = self._opened
                if services is None:
                    services = self._opened = self._build()
        return services

    def _build(self) -> Runtime:
        settings = self._settings()
        worker_id = settings.worker_id or self._default_worker_id()
        services = Runtime(settings, worker_id, settings.backend or "", self._events)
        # The last flush, at the end of the process or of this object.
        self._number = closer.add(self, services.close)
        return services

    def _settings(self) -> Settings:
        return Settings.build(self._given)

    def _default_worker_id(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def _forget(self) -> None:
        """Begin anew in a forked child: threads, sockets and locks of the parent are not ours."""
        self._mutex = threading.RLock()
        self._was_away = self._is_away()
        self._opened = None
        self._handlers = {}
        events, self._events = self._events, self._events.copy()
        events.discard()

    # --------------------------------------------------------------- helpers

    def _within(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call that ends within ``memsync_timeout``, or earlier if that is a part of another one."""
        return within(self._open().settings.timeout, call, *args, **kwargs)

    def _ttl(self, ttl: float | None) -> float:
        if ttl is None:
            return self._open().settings.default_ttl
        return _check_seconds(ttl, "ttl", positive=True)

    def _run_key(self, task_id: str) -> str:
        """Return which run of a task is speaking; "" if that is not known."""
        return ""

    def _fence(self, task_id: str) -> int:
        """Return the fence of the lock under which a task speaks; 0 for none."""
        return 0

    def _owner(self) -> Owner:
        """Return for what a lock is taken just now."""
        return Owner()

    def _lock(
        self, name: str, ttl: float | None, wait: float | None, max_hold: float | None, thread_local: bool,
    ) -> Lock:
        most = float("inf") if max_hold is None else _check_seconds(max_hold, "max_hold", positive=True)
        return Lock(name, self._lease(ttl), _check_wait(wait), self._locks_and_owner, most, thread_local)

    def _locks_and_owner(self) -> tuple[LockService, Owner]:
        return self._open().locks, self._owner()

    def _lease(self, ttl: float | None) -> float:
        return self._open().settings.lock_ttl if ttl is None else _check_seconds(ttl, "ttl", positive=True)

    def _location_to_write(self, keys: Keys, key: str) -> Location:
        location = keys.location(key)
        if location.key == location.path:  # a key of the user's own
            return location
        if keys.lock_name(location.path) is not None:
            raise InvalidKey(f"{location.path} is a lock; take it with lock(), or acquire_task_lock()")
        if location.key == keys.about:
            raise InvalidKey(f"{location.path} has no value in one piece; change it by sync_{location.field}() and its like")
        return location

    def _set(
        self, services: Runtime, location: Location, value: Any, ttl: float | None = None, owned: bool = False,
        run_key: str = "", fence: int = 0,
    ) -> None:
        body = encoding.encode(value, location.path, services.settings.max_value_size)
        services.writer.put(SetValue(location, body, self._ttl(ttl), fence, owned, run_key))

    @_bounded
    def _compare_and_set(self, location: Location, value: Any, ttl: float, expected: int, fence: int = 0) -> Entry:
        services = self._open()
        if isinstance(expected, bool) or not isinstance(expected, int) or expected < 0:
            raise InvalidValue(f"expected_version is a whole number, 0 or more, not {short(expected)}")
        body = encoding.encode(value, location.path, services.settings.max_value_size)
        change = SetValue(location, body, ttl, fence)
        with services.writer.unanswered.attempt(location, digest_of(body), expected) as attempt:
            with maybe_done_is(False):
                beside = self._version_beside(location)
            if expected < beside:
                raise attempt.conflict(location.path, beside, False)
            try:
                entry = services.writer.compare_and_set(change, expected - beside, attempt).entry(location.path, value)
            except ConflictError as exc:
                raise ConflictError(location.path, exc.version + beside) from None
        return replace(entry, version=entry.version + beside)

    def _version_beside(self, location: Location) -> int:
        """Return how much of the version of an entry is not of this place: a state has a part that Celery tells."""
        services = self._open()
        parts = [part for part in parts_of(location) if part != location]
        if not parts:
            return 0
        services.writer.flush()
        stored = services.reader.stored_parts([location])[location]
        return sum(one.header.version for slot, one in stored.items() if one is not None and slot != location.slot)

    def _worker(self, worker_id: str, thing: str) -> tuple[Any, WorkerRecord | None]:
        services = self._open()
        check_id(worker_id, "worker")
        stored_records = services.reader.workers(worker_id)
        by_hand, heartbeat = (stored_records.get(f"{worker_id}/{name}") for name in (thing, "heartbeat"))
        ttl = services.settings.worker_ttl
        record = None if heartbeat is None else worker_record(worker_id, heartbeat, services.store.clock.now() - ttl, ttl)
        return None if by_hand is None else by_hand.value, record

    def _progress_cell(self, services: Runtime, task_id: str) -> Progress:
        # No lock: each step is one that nothing can interrupt.
        cells = services.progress
        cell = cells.get(task_id)
        if cell is None:
            location = services.keys.task_location(task_id, PROGRESS)
            cell = cells.setdefault(task_id, Progress(
                location, services.settings.default_ttl, limit=services.settings.max_value_size, redact=services.redact))
            if len(cells) > MAX_PROGRESS:
                with contextlib.suppress(StopIteration, RuntimeError):  # another thread adds one, or takes one away
                    cells.pop(next(iter(cells)), None)
        return cell


def _forget_all() -> None:
    for manager in list(_managers):
        manager._forget()


os.register_at_fork(after_in_child=_forget_all)


def _check_seconds(value: float, what: str, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"{what} is a number of seconds, not {type(value).__name__}")
    if not (0 < value < MAX_SECONDS or value == 0 and not positive):
        allowed = f"{'above 0' if positive else '0 or more'} and below {MAX_SECONDS:.0e}"
        raise InvalidValue(f"{what} is {short(value)}; it must be a number of seconds {allowed}")
    return float(value)


def _check_wait(wait: float | None) -> float:
    return float("inf") if wait is None or wait == float("inf") else _check_seconds(wait, "wait")


def _check_lock(name: str) -> str:
    """Return the name of a lock, of a task's too."""
    if isinstance(name, str) and name.startswith("tasks/"):
        check_id(name[len("tasks/"):], "task")
        return name
    return check_id(name, "lock")


def _check_fence(fence: Lock | int | None) -> int:
    if fence is None:
        return 0
    number = fence.fence if isinstance(fence, Lock) else fence
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InvalidValue(f"fence is a lock, or the number that is its fence, not {type(fence).__name__}")
    if number == 0 and isinstance(fence, Lock):
        raise LockLost(fence.name)
    if number >= MAX_FENCE:
        raise InvalidValue("fence is larger than that of any lock")
    return number


def _check_count(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidValue(f"{what} is a whole number, 0 or more, not {short(value)}")
    return value


def _check_keys(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, (str, bytes)):
        raise InvalidKey("read_many takes several keys, such as a list; for one there is read")
    return list(keys)
