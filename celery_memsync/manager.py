"""The shared memory as one process sees it: tell, ask, decide, hear."""
from __future__ import annotations

import os
import random
import socket
import string
import threading
import time
import weakref
from collections import OrderedDict
from multiprocessing import util as multiprocessing_util
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger

from . import values
from .changes import Change, MergeFields, Progress, SetValue, TellRun
from .conflicts import Resolvers
from .connections import connect
from .events import Events, Handler
from .exceptions import InvalidValue, StoreError
from .keys import LIFE, PROGRESS, STATE, Keys, Place, check_id
from .records import Entry, Stored, TaskRun, WorkerRecord
from .settings import Settings
from .store import Store, Task
from .views import entry_of, progress_of, runs_of, state_of, with_change, worker_record, worker_records
from .writer import BatchWriter

logger = get_logger(__name__)

#: Seconds that the end of a process may wait for its last changes to be written.
CLOSE_TIMEOUT = 2.0

#: Tasks of which a process remembers the progress that it told by hand.
MAX_PROGRESS = 10_000

#: Times to ask Redis while this process goes on writing what is asked for.
MAX_READS = 5

T = TypeVar("T")

_TOKEN_LETTERS = string.ascii_letters + string.digits

_managers: "weakref.WeakSet[MemorySyncManager]" = weakref.WeakSet()


class Services:
    """What works for one process; a forked child gets its own."""

    def __init__(self, settings: Settings, worker_id: str, url: str, events: Events) -> None:
        keys = Keys(settings.namespace)
        # Not the random module's own generator: its state crosses a fork, and users seed it.
        token = "".join(random.SystemRandom().choices(_TOKEN_LETTERS, k=8))
        self.settings = settings
        self.worker_id = worker_id
        self.keys = keys
        self.token = token
        self.store = Store(connect(url, settings.backend_options), keys, worker_id, token, settings.default_ttl)
        self.writer = BatchWriter(
            self.store, events, Resolvers(settings.conflict_resolver, settings.namespace),
            interval=settings.batch_interval, batch_size=settings.batch_size,
            max_pending=settings.max_pending, max_value_size=settings.max_value_size,
        )
        self.progress: OrderedDict[str, Progress] = OrderedDict()
        self.progress_mutex = threading.RLock()

    def close(self, timeout: float) -> None:
        """Write what waits, stop the threads, close the connections; what can't be written is told in the log."""
        try:
            self.writer.close(timeout)
        except Exception as exc:
            logger.warning("At shutdown %d writes could not be written: %s", self.writer.pending, exc)
        self.store.close()


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

    Arguments:
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
        self._opened: Services | None = None
        self._at_exit: weakref.finalize[..., MemorySyncManager] | None = None
        self._reads = 0
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

        Arguments:
            ttl: Seconds that the state lives.  None: ``memsync_default_ttl``.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: If a field can't be stored as JSON, or is too large.
        """
        services = self._open()
        place = services.keys.task_place(check_id(task_id, "task"), STATE)
        fields = values.encode_fields(state, place.channel, services.settings.max_value_size)
        services.writer.put(MergeFields(place, fields, self._ttl(ttl)))

    def sync_task_run(self, task_id: str, run: TaskRun, run_key: str = "", ttl: float | None = None) -> Change:
        """Tell a stage in the life of a task.

        Arguments:
            run: All that is known of the run.
            run_key: Sorts the run among those of the task, see
                :func:`~celery_memsync.records.run_key`; "" for the one that is stored.

        Returns:
            The change that waits to be written.
        """
        services = self._open()
        change = TellRun(services.keys.task_place(check_id(task_id, "task"), LIFE), run, run_key, self._ttl(ttl))
        services.writer.put(change)
        return change

    def sync_task_progress(
        self, task_id: str, progress: float | None, status: str | None = None, *,
        current: float | None = None, total: float | None = None, message: str | None = None,
    ) -> None:
        """Tell how far a task is.

        A figure below the one before is ignored, within one run of the task.

        Arguments:
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
        self._set(self._open().keys.agent_place(task_id, agent_id), data)

    def sync_worker_status(self, worker_id: str, status: Any) -> None:
        """Tell the status of a worker by hand; Celery's workers tell theirs at every beat.

        Raises:
            InvalidKey: If the id is not fit for a key.
            InvalidValue: If the status can't be stored as JSON, or is too large.
        """
        self._set(self._open().keys.worker_place(check_id(worker_id, "worker"), "status"), status, owned=True)

    def sync_worker_capacity(self, worker_id: str, capacity: Any) -> None:
        """Tell by hand how many free slots a worker has; see :meth:`sync_worker_status`."""
        self._set(self._open().keys.worker_place(check_id(worker_id, "worker"), "capacity"), capacity, owned=True)

    def update_heartbeat(self) -> None:
        """Tell once that this process is alive, under its worker id; returns at once, as all that tells."""
        services = self._open()
        record = WorkerRecord(services.worker_id, hostname=socket.gethostname(), pid=os.getpid())
        place = services.keys.worker_place(services.worker_id, "heartbeat")
        self._set(place, record.as_dict(), owned=True)

    def write(self, key: str, value: Any, *, ttl: float | None = None, expected_version: int | None = None) -> Entry | None:
        """Store a value under a key of the user's own.

        Arguments:
            key: A path; the namespace is put before it unless it is there.
            ttl: Seconds that it lives.  None: ``memsync_default_ttl``.
            expected_version: If given, this decides: the value is stored at
                once if that version is there (0: nothing is there), else
                nothing is changed.

        Returns:
            With ``expected_version`` the entry as it was stored, else None.

        Raises:
            InvalidKey: If the key is not fit.
            InvalidValue: If the value can't be stored as JSON, or is too large.
            ConflictError: If another version is there than the expected one.
            StoreError: With ``expected_version``, if Redis is away.
        """
        place = self._open().keys.place(key)
        if expected_version is None:
            self._set(place, value, ttl)
            return None
        return self._compare_and_set(place, value, self._ttl(ttl), expected_version)

    def delete(self, key: str) -> None:
        """Remove what is stored under a key; like :meth:`write` it returns at once."""
        services = self._open()
        services.writer.put(SetValue(services.keys.place(key), b"", self._ttl(None)))

    # ------------------------------------------------------------------- ask

    def get_task_state(self, task_id: str) -> dict[str, Any] | None:
        """Return the state of a task, or None if nobody ever told of it.

        What this process told and has not written yet is included.

        Raises:
            StoreError: If Redis is away.
        """
        return state_of(task_id, self._task(task_id).slots)

    def get_task_progress(self, task_id: str) -> dict[str, Any] | None:
        """Return how far a task is, or None if nobody told.

        Returns:
            ``progress`` (percent), ``status``, ``current``, ``total``,
            ``message``, ``started_at`` and ``updated_at`` (seconds since the
            epoch on Redis's clock), ``run``, ``eta`` (seconds left, None when
            unknown), the task's own fields, and ``previous``: the last progress
            of the run before, if there was one.

        Raises:
            StoreError: If Redis is away.
        """
        task = self._task(task_id)
        return progress_of(task)

    def get_task(self, task_id: str) -> dict[str, Any] | None:
        """Return all that is known of a task, or None: state, progress, runs, agents."""
        task = self._task(task_id, agents=True)
        state = state_of(task_id, task.slots)
        progress = progress_of(task)
        agents = {agent: stored.value for agent, stored in task.agents.items()}
        if state is None and progress is None and not agents:
            return None
        runs = runs_of(task_id, task)
        return {"id": task_id, "state": state, "progress": progress, "runs": runs, "agents": agents}

    def get_tasks(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the newest tasks with state and progress, newest first.

        Arguments:
            limit: Most tasks to return.

        Returns:
            Dicts with ``id``, ``state`` and ``progress``.

        Raises:
            StoreError: If Redis is away.
        """
        services = self._open()
        found: list[dict[str, Any]] = []
        known: set[str] = set()
        before = "+"
        while len(found) < limit:
            rows = services.store.recent_tasks(limit, before)
            task_ids = [task_id for task_id in dict.fromkeys(task_id for _, task_id in rows) if task_id not in known]
            known.update(task_ids)
            for task_id, task in zip(task_ids, services.store.read_tasks(task_ids)):
                if task.slots:
                    state = state_of(task_id, task.slots)
                    found.append({"id": task_id, "state": state, "progress": progress_of(task)})
            if len(rows) < limit:
                break
            before = "(" + rows[-1][0]
        return found[:limit]

    def get_agent_coordination(self, task_id: str, agent_id: str) -> Any:
        """Return what an agent of a task shared, or None.

        Raises:
            StoreError: If Redis is away.
        """
        return self._value(self._open().keys.agent_place(task_id, agent_id))

    def get_task_agents(self, task_id: str) -> list[str]:
        """Return the ids of the agents of a task, sorted.

        Raises:
            StoreError: If Redis is away.
        """
        return sorted(self._task(task_id, agents=True).agents)

    def get_worker_status(self, worker_id: str) -> Any:
        """Return the status of a worker: what was told by hand, else its last beat; None if unknown.

        Raises:
            StoreError: If Redis is away.
        """
        by_hand, record = self._worker(worker_id, "status")
        return by_hand if by_hand is not None else record.as_dict() if record is not None else None

    def get_worker_capacity(self, worker_id: str) -> Any:
        """Return how many free slots a worker has, None if unknown.

        Raises:
            StoreError: If Redis is away.
        """
        by_hand, record = self._worker(worker_id, "capacity")
        return by_hand if by_hand is not None else record.capacity.get("free") if record is not None else None

    def get_active_workers(self) -> list[str]:
        """Return the ids of the workers that are alive now, sorted.

        Raises:
            StoreError: If Redis is away.
        """
        return [record.worker_id for record in self.get_workers() if record.status not in ("lost", "offline")]

    def get_workers(self) -> list[WorkerRecord]:
        """Return what every worker told last, sorted by id.

        One that was silent for ``memsync_worker_ttl`` has the status ``lost``.

        Raises:
            StoreError: If Redis is away.
        """
        services = self._open()
        told, waiting = self._ask(services.store.read_workers, services.keys.workers)
        for change in waiting:
            after = services.writer.overlay(told.get(change.place.field), [change])
            if after is not None:
                told[change.place.field] = after
        since = services.store.clock.now() - services.settings.worker_ttl
        return worker_records(told, since)

    def read(self, key: str, *, max_age: float | None = None, consistent: bool = False) -> Any:
        """Return what is stored under a key, or None.

        Arguments:
            max_age: Seconds that a cached copy may be old; this version asks Redis every time.
            consistent: Ask Redis in any case.

        Raises:
            StoreError: If Redis is away.
        """
        entry = self.read_entry(key)
        return None if entry is None else entry.value

    def read_entry(self, key: str) -> Entry | None:
        """Return what is stored under a key with version, time and writer, or None."""
        return self.read_entries([key])[key]

    def read_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of many keys, by key as given, None for those that are not there."""
        return {key: None if entry is None else entry.value for key, entry in self.read_entries(keys).items()}

    def read_entries(self, keys: Iterable[str]) -> dict[str, Entry | None]:
        """Return the entries of many keys, by key as given, None for those that are not there."""
        services = self._open()
        places = {key: services.keys.place(key) for key in keys}
        parts = {key: self._parts(place) for key, place in places.items()}
        stored = self._read_places(list({place: None for row in parts.values() for place in row}))
        return {key: entry_of(places[key], {part.slot: stored[part] for part in row}) for key, row in parts.items()}

    def get_metrics(self) -> dict[str, Any]:
        """Return counters of this process; nothing is asked of Redis."""
        writer = self._open().writer
        return {
            "reads": self._reads, **writer.counts, "pending_writes": writer.pending,
            "last_flush_seconds": writer.last_flush_seconds, "connected": writer.connected,
        }

    # ---------------------------------------------------------------- decide

    def force_sync(self, timeout: float | None = None) -> None:
        """Return when every write made before this call is in Redis.

        Arguments:
            timeout: Seconds to keep trying while Redis is away.  None: one try.

        Raises:
            StoreError: If Redis is away, or refuses a write; nothing is lost.
            ConflictError: If a write lost every round of conflict resolution.
        """
        if timeout is not None:
            _check_seconds(timeout, "timeout")
        started = time.monotonic()
        count = self._open().writer.force(timeout)
        self._events.emit("force-sync", count=count, seconds=time.monotonic() - started)

    # ------------------------------------------------------------------ hear

    def on(self, event: str, handler: Handler) -> None:
        """Call ``handler(**details)`` when an event happens in this process.

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
    def store(self) -> Store:
        """What talks to Redis, for extensions."""
        return self._open().store

    @property
    def writer(self) -> BatchWriter:
        """What gathers the writes of this process, for extensions."""
        return self._open().writer

    def shutdown(self, timeout: float | None = None) -> None:
        """Write what waits, stop the threads, close the connections.

        It may be called twice, or never; the next call of another method
        begins anew.  If Redis is away what could not be written is told in the
        log and lost with the process.

        Arguments:
            timeout: Most seconds to wait.  None: 2.
        """
        with self._mutex:
            services, self._opened = self._opened, None
        if services is None:
            return
        if self._at_exit is not None:
            self._at_exit.detach()
        services.close(CLOSE_TIMEOUT if timeout is None else timeout)
        self._events.emit("shutdown")

    def __enter__(self) -> MemorySyncManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def _open(self) -> Services:
        """Return the services of this process; build them at the first use."""
        services = self._opened
        if services is None:
            with self._mutex:
                services = self._opened
                if services is None:
                    services = self._opened = self._build()
        return services

    def _build(self) -> Services:
        settings = self._settings()
        assert settings.backend is not None
        worker_id = settings.worker_id or self._default_worker_id()
        services = Services(settings, worker_id, settings.backend, self._events)
        # The last flush, at the end of the process or of this object; children of multiprocessing skip atexit.
        self._at_exit = weakref.finalize(self, services.close, CLOSE_TIMEOUT)
        multiprocessing_util.Finalize(None, self._at_exit, exitpriority=10)
        return services

    def _settings(self) -> Settings:
        return Settings.build(self._given)

    def _default_worker_id(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def _forget(self) -> None:
        """Begin anew in a forked child: threads, sockets and locks of the parent are not ours."""
        self._mutex = threading.RLock()
        self._opened = None
        self._events = self._events.copy()
        if self._at_exit is not None:
            self._at_exit.detach()

    # --------------------------------------------------------------- helpers

    def _ttl(self, ttl: float | None) -> float:
        if ttl is None:
            return self._open().settings.default_ttl
        return _check_seconds(ttl, "ttl", positive=True)

    def _set(self, place: Place, value: Any, ttl: float | None = None, owned: bool = False) -> None:
        services = self._open()
        body = values.encode(value, place.channel, services.settings.max_value_size)
        services.writer.put(SetValue(place, body, self._ttl(ttl), owned=owned))

    def _compare_and_set(self, place: Place, value: Any, ttl: float, expected: int) -> Entry:
        services = self._open()
        if isinstance(expected, bool) or not isinstance(expected, int) or expected < 0:
            raise InvalidValue(f"expected_version is a whole number, 0 or more, not {expected!r}")
        body = values.encode(value, place.channel, services.settings.max_value_size)
        return services.writer.compare_and_set(SetValue(place, body, ttl), expected).entry(place.channel, value)

    def _ask(self, read: Callable[[], T], *keys: str) -> tuple[T, list[Change]]:
        """Ask Redis; return its answer and what this process has to lay over it.

        What was written while Redis answered may be in neither, so it is asked again.

        Arguments:
            keys: Redis keys from which is read.
        """
        writer = self._open().writer
        for _ in range(MAX_READS):
            before = writer.waiting_for(*keys)
            answer = read()
            waiting = writer.waiting_for(*keys)
            if waiting == before:
                break
        return answer, waiting

    def _read_places(self, places: Sequence[Place]) -> dict[Place, Stored | None]:
        services = self._open()
        keys = {place.key for place in places}
        answer: list[Stored | None] = [None] * len(places)
        try:
            answer, waiting = self._ask(lambda: services.store.read_entries(places), *keys)
        except StoreError:
            waiting = services.writer.waiting_for(*keys)
            in_memory = {change.place for change in waiting if isinstance(change, SetValue)}
            if not in_memory.issuperset(places):
                raise
        found: dict[Place, Stored | None] = {}
        for place, stored in zip(places, answer):
            after = services.writer.overlay(stored, [change for change in waiting if change.place == place])
            found[place] = None if after is None or after.deleted else after
        self._reads += len(places)
        return found

    def _value(self, place: Place) -> Any:
        stored = self._read_places([place])[place]
        return None if stored is None else stored.value

    def _task(self, task_id: str, agents: bool = False) -> Task:
        services = self._open()
        keys = services.keys.task(check_id(task_id, "task")), services.keys.agents(task_id)
        self._reads += 1
        (task,), waiting = self._ask(lambda: services.store.read_tasks([task_id], agents), *keys)
        for change in waiting:
            task = with_change(task, change, services.writer)
        return task

    def _worker(self, worker_id: str, thing: str) -> tuple[Any, WorkerRecord | None]:
        services = self._open()
        check_id(worker_id, "worker")
        places = [services.keys.worker_place(worker_id, name) for name in (thing, "heartbeat")]
        by_hand, beat = self._read_places(places).values()
        record = None
        if beat is not None:
            since = services.store.clock.now() - services.settings.worker_ttl
            record = worker_record(worker_id, beat, since)
        return None if by_hand is None else by_hand.value, record

    def _parts(self, place: Place) -> list[Place]:
        """Return the places that make up what a key names: a task's state has two."""
        if place.task_id and place.slot == STATE:
            return [self._open().keys.task_place(place.task_id, LIFE), place]
        return [place]

    def _progress_cell(self, services: Services, task_id: str) -> Progress:
        with services.progress_mutex:
            cell = services.progress.get(task_id)
            if cell is None:
                place = services.keys.task_place(task_id, PROGRESS)
                cell = services.progress[task_id] = Progress(
                    place, services.settings.default_ttl, limit=services.settings.max_value_size)
                if len(services.progress) > MAX_PROGRESS:
                    services.progress.popitem(last=False)
            services.progress.move_to_end(task_id)
            return cell


def _forget_all() -> None:
    for manager in list(_managers):
        manager._forget()


os.register_at_fork(after_in_child=_forget_all)


def _check_seconds(value: float, what: str, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"{what} is a number of seconds, not {type(value).__name__}")
    if not (0 < value < 1e10 or value == 0 and not positive):
        raise InvalidValue(f"{what} is {value:g}; it must be a number of seconds {'above 0' if positive else '0 or more'}")
    return float(value)
