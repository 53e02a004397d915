"""`MemorySyncManager`: the shared state as one process sees it."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .environment import Environment, given_settings
from .events import Events, Handler
from .keys import check_id
from .locking.lock import Lock
from .models.entry import Entry
from .models.lock import LockRecord
from .models.task import TaskRun
from .models.worker import WorkerRecord
from .models.workflow import Group, Workflow
from .reading.handlers import Handlers, OnChange, OnInvalidate
from .reading.reader import LONGEST_LIST
from .reading.watch import Watch
from .records.checks import check_timeout
from .records.lock_records import name_of
from .records.task_records import TASKS_PER_CALL
from .runtime import Lifetime, Runtime
from .settings import Settings
from .types import ListedTask, ProcessMetrics, QueueLists, TaskProgress, TaskRecord, TaskState
from .writing.changes import Change


class MemorySyncManager:
    """The state that all processes of a namespace share, as one process sees it.

    * Buffered writes return at once, and never raise or wait because of Redis.
    * Reads include what this process wrote; they raise :exc:`StoreError` while Redis is away.
    * Atomic operations take effect in Redis before they return; they raise :exc:`StoreError` if that is not certain.
    * Subscriptions call handlers with the newest value of each key.

    Every read and every atomic operation ends within ``memsync_timeout``, plus the seconds that it is given to wait.  An id,
    a name, a key or a pattern that is not fit for a key in Redis raises :exc:`InvalidKey`; a value that can't be stored as
    JSON, or an argument out of its range, :exc:`InvalidValue`, and one that is too large :exc:`ValueTooLarge`.  A ``ttl``
    is the seconds until what is written expires, ``memsync_default_ttl`` unless it is given.  Nothing is connected or
    started before it is needed, and a forked child begins anew.  Usage::

        with MemorySyncManager(worker_id="worker-1", url="redis://localhost") as memsync:
            memsync.sync_task_state("task-123", {"status": "processing"})
            memsync.force_sync()

    Args:
        worker_id: Name of this process.  None: ``host:pid``.
        url: Redis, as ``memsync_backend``.
        environment: For extensions: where settings come from, and which task makes a call.
        settings: Other settings by name, without ``memsync_``.

    Raises:
        ImproperlyConfigured: For an unknown or wrong setting.
    """

    def __init__(
        self, worker_id: str | None = None, url: str | None = None, *, environment: Environment | None = None,
        **settings: Any,
    ) -> None:
        self.environment: Environment = environment or Environment(given_settings(worker_id, url, **settings))
        self._lifetime = Lifetime(self.environment)

    # -- buffered writes

    def sync_task_state(self, task_id: str, state: Mapping[str, Any], ttl: float | None = None) -> None:
        """Merge top-level fields into the state of a task; a late status does not undo a later stage."""
        self.runtime.tasks.set_state(task_id, state, ttl)

    def sync_task_run(self, task_id: str, run: TaskRun, run_key: str = "", ttl: float | None = None) -> Change:
        """Record all that is known of a run, named as in ``models/order.py``, or stored; return the pending change."""
        return self.runtime.tasks.set_run(task_id, run, run_key, ttl)

    def sync_task_progress(
        self, task_id: str, progress: float | None, status: str | None = None, *,
        current: float | None = None, total: float | None = None, message: str | None = None,
    ) -> None:
        """Record how far a task is.

        A figure below the one before is ignored within one phase.  Of a task that runs in this process it goes on with
        what that reports.

        Args:
            progress: Percent, 0 to 100.  None: computed from current and total.
            status: A word for what the task is doing.
            current, total: How many items are done, of how many.
        """
        self.runtime.tasks.set_progress(task_id, progress, status, current, total, message)

    def sync_agent_coordination(self, task_id: str, agent_id: str, data: Any) -> None:
        """Share what an agent, or a sub-step, of a task has found."""
        self.runtime.tasks.set_agent(task_id, agent_id, data)

    def sync_worker_status(self, worker_id: str, status: Any) -> None:
        """Record the status of a worker by hand; Celery's workers send theirs with every heartbeat."""
        self.runtime.workers.set(worker_id, "status", status)

    def sync_worker_capacity(self, worker_id: str, capacity: Any) -> None:
        """Record by hand how many free slots a worker has; see :meth:`sync_worker_status`."""
        self.runtime.workers.set(worker_id, "capacity", capacity)

    def update_heartbeat(self) -> None:
        """Record once that this process is alive, under its worker id."""
        self.runtime.workers.record_heartbeat()

    def sync_queue(self, queue: Mapping[str, Iterable[str]] | QueueLists) -> None:
        """Replace the lists ``"pending"``, ``"processing"`` or both, oldest first; with Celery the signals keep them."""
        self.runtime.queue.replace(queue)

    def sync_assignments(self, assignments: Mapping[str, Iterable[str]]) -> None:
        """Record task ids by worker id; other workers' stay, and Celery's workers send theirs with every heartbeat."""
        self.runtime.workers.set_assignments(assignments)

    def sync_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Set counters, or other values by name; other counters stay."""
        self.runtime.counters.set(metrics)

    def increment_metrics(self, /, **amounts: float) -> None:
        """Add to counters; what several processes add is summed.

        With Celery the signals count ``total``, ``succeeded``, ``failed``, ``retried``, ``revoked``, ``ignored``,
        ``skipped``, ``lost`` and ``runtime`` (seconds).
        """
        self.runtime.counters.add(amounts)

    def write(
        self, key: str, value: Any, *, ttl: float | None = None, expected_version: int | None = None,
        fence: Lock | int | None = None,
    ) -> Entry | None:
        """Store a value under a key of the user's own.

        Args:
            key: A path; the namespace is put before it unless it is there.
            expected_version: Makes this an atomic operation: the value replaces that version (0: nothing is stored),
                or nothing is changed.
            fence: The lock under which it is written, or its fence: refused if a later holder has written the key.

        Returns:
            With ``expected_version`` the entry as it was stored, else None.

        Raises:
            ConflictError: If another version is stored than the expected one.
            LockLost: If the lock was never held; with ``expected_version``, if a later holder has written the key.
        """
        return self.runtime.entries.write(key, value, ttl, expected_version, fence)

    def delete(self, key: str) -> None:
        """Remove what is stored under a key."""
        self.runtime.entries.delete(key)

    # -- reads

    def get_task_state(self, task_id: str) -> TaskState | None:
        """Return the state of a task, or None if the task is unknown."""
        return self.runtime.tasks.state(task_id)

    def get_task_progress(self, task_id: str) -> TaskProgress | None:
        """Return how far a task is, or None if it has reported no progress.

        A task that has succeeded is at 100 %, whatever it reported last.
        """
        return self.runtime.tasks.progress_of(task_id)

    def get_task(self, task_id: str) -> TaskRecord | None:
        """Return all that is known of a task, or None if it is unknown."""
        return self.runtime.tasks.whole(task_id)

    def get_tasks(self, limit: int = 50) -> list[ListedTask]:
        """Return states and progress of the newest tasks, newest first, at most ``limit``."""
        return self.runtime.tasks.newest(limit)

    def iter_tasks(self, since: float | None = None, at_once: int = TASKS_PER_CALL) -> Iterator[ListedTask]:
        """Yield tasks as :meth:`get_tasks` returns them, read as they are taken.

        Args:
            since: When the oldest was recorded first, in seconds on Redis's clock.  None: any time.
            at_once: How many are read at a time, each time within ``memsync_timeout``.
        """
        yield from self.runtime.tasks.iterate(since, at_once)

    def get_group(self, group_id: str) -> Group | None:
        """Return how far a group, or the header of a chord, is, or None if it is unknown; at the same cost for any size."""
        return self.runtime.workflows.group(group_id)

    def get_workflow(self, workflow_id: str) -> Workflow | None:
        """Return the workflow of a task or group with all its steps, also those not sent yet, or None if it is unknown."""
        return self.runtime.workflows.workflow(workflow_id)

    def get_agent_coordination(self, task_id: str, agent_id: str) -> Any:
        """Return what an agent of a task shared, or None."""
        return self.runtime.tasks.agent(task_id, agent_id)

    def get_task_agents(self, task_id: str) -> list[str]:
        """Return the ids of the agents of a task, sorted."""
        return self.runtime.tasks.agents(task_id)

    def get_queue(self, limit: int = LONGEST_LIST) -> QueueLists:
        """Return the ids of the tasks in the shared queue, at most ``limit`` of each list."""
        return self.runtime.queue.lists(limit)

    def get_queue_position(self, task_id: str) -> int | None:
        """Return how many tasks are before a pending one, in all queues together, or None if it is not pending."""
        return self.runtime.queue.position(task_id)

    def get_assignments(self) -> dict[str, list[str]]:
        """Return task ids by worker id: those recorded by hand, else those of the last heartbeat."""
        return self.runtime.workers.assignments()

    def get_coordination_metrics(self) -> dict[str, Any]:
        """Return all counters by name."""
        return self.runtime.counters.all()

    def locks(self) -> list[LockRecord]:
        """Return the records of all locks that are held, by any process, sorted by name."""
        return self.runtime.lock_records.held()

    def get_lock(self, name: str) -> LockRecord | None:
        """Return the record of a held lock, or None if it is free; ``tasks/<task_id>`` names the lock of a task."""
        return self.runtime.lock_records.record(name)

    def get_awaited_lock(self, task_id: str) -> LockRecord | None:
        """Return the record of the lock for which a task is waiting, or None if it waits for none."""
        return self.runtime.lock_records.awaited(task_id)

    def get_worker_status(self, worker_id: str) -> Any:
        """Return the status recorded by hand, else the last heartbeat of a worker, or None if it is unknown."""
        return self.runtime.workers.status(worker_id)

    def get_worker_capacity(self, worker_id: str) -> Any:
        """Return how many free slots a worker has, or None if that is unknown."""
        return self.runtime.workers.capacity(worker_id)

    def get_active_workers(self) -> list[str]:
        """Return the ids of the workers that are alive now, sorted."""
        return self.runtime.workers.active()

    def get_workers(self) -> list[WorkerRecord]:
        """Return the last record of every worker, sorted by id; ``lost`` without a heartbeat for ``memsync_worker_ttl``."""
        return self.runtime.workers.all()

    def read(self, key: str, *, max_age: float | None = None, consistent: bool = False) -> Any:
        """Return the value stored under a key, or None; from the local cache while the copy is valid.

        Args:
            max_age: Most seconds that a copy may be old.  None: ``memsync_cache_max_age``.
            consistent: Read from Redis in any case.
        """
        return (self._lifetime.runtime or self.runtime).entries.read(key, max_age, consistent)  # a hit takes 2 us

    def read_entry(self, key: str, *, max_age: float | None = None, consistent: bool = False) -> Entry | None:
        """Return an entry with version, time and writer, or None; see :meth:`read`.

        What this process wrote there is sent first, to get its version; while Redis is away it has version 0.
        """
        return self.runtime.entries.entry(key, max_age, consistent)

    def read_many(self, keys: Iterable[str], *, max_age: float | None = None, consistent: bool = False) -> dict[str, Any]:
        """Return values by key as given, None for a key under which nothing is stored; see :meth:`read`."""
        return self.runtime.entries.many(keys, max_age, consistent)

    def search(self, pattern: str, limit: int = 1000) -> list[str]:
        """Return the keys that match a pattern, sorted, with their namespace, at most ``limit``.

        It reads the indexes of tasks, workers and users' keys, and does not scan Redis.  Patterns are Redis's globs:
        ``*`` for any text, slashes too, ``?`` for one character, ``[ab]`` for one of some.
        """
        return self.runtime.entries.search(pattern, limit)

    def iter_entries(self, pattern: str = "*") -> Iterator[Entry]:
        """Yield the entries whose keys match a pattern, each once, in no order, read in bulk as they are taken.

        An entry that changes meanwhile may be missing, or be yielded in its old or its new state.
        """
        return self.runtime.entries.iterate(pattern)

    def get_metrics(self) -> ProcessMetrics:
        """Return counters of this process, without a call to Redis."""
        return self.runtime.metrics(self.events.dropped)

    def clear_cache(self) -> None:
        """Drop all copies of what was read; the next reads go to Redis."""
        self.events.emit("cache-cleared", count=len(self.runtime.cache.clear()))

    # -- atomic operations

    def enqueue(self, task_id: str) -> bool:
        """Put a task at the end of the shared queue; return whether it was neither pending nor processing.

        After a :exc:`StoreError` the same call returns what this one would have returned, and puts it there once.
        """
        return self.runtime.queue.enqueue(task_id)

    def dequeue(self) -> str | None:
        """Move the first pending task to processing; return its id, or None if nothing is pending.

        No other caller gets it.  After a :exc:`StoreError` the next call of this thread returns what was taken.
        """
        return self.runtime.queue.dequeue()

    def complete(self, task_id: str) -> bool:
        """Remove a task from the shared queue; return whether it was there.  Repeatable as :meth:`enqueue`."""
        return self.runtime.queue.complete(task_id)

    def cancel(self, task_id: str, reason: str | None = None, *, terminate: bool = False) -> str | None:
        """Cancel a task, or all tasks of a root or a group, also those that are sent within a day from now.

        Workers skip them; those that run end at :meth:`MemSync.check_cancelled`, or by Celery's signal with ``terminate``.
        Returns the status that the task with this id had, None if it is unknown; one that has ended stays as it is.
        """
        return self.runtime.cancellations.cancel(task_id, reason, terminate)

    def lock(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
        thread_local: bool = True,
    ) -> Lock:
        """Return a lock that all processes of the namespace share; it is not acquired yet.

        Args:
            ttl: Seconds of its lease, which is renewed while it is held.  None: ``memsync_lock_ttl``.
            wait: Most seconds to wait for it.  None: no limit.
            max_hold: Most seconds to hold it; a holder that hangs loses it then.  None: no limit.
            thread_local: Whether each thread (or greenlet) that uses the object has an acquisition of its own.  False: a
                thread that has none checks and releases the latest one, whichever thread has made it.
        """
        return self._lock(check_id(name, "lock"), ttl, wait, max_hold, thread_local)

    def task_lock(
        self, task_id: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
        thread_local: bool = True,
    ) -> Lock:
        """Return the lock of a task as an object, as :meth:`lock` does; it is the one of :meth:`acquire_task_lock`."""
        return self._lock(name_of(task_id), ttl, wait, max_hold, thread_local)

    def _lock(self, name: str, *options: Any) -> Lock:  # it may be used again after a shutdown, with another service
        return self.runtime.lock_records.lock(lambda: self.runtime.locks, name, *options)

    def acquire_task_lock(self, task_id: str, ttl: float | None = None, wait: float | None = 0.0) -> bool:
        """Acquire the lock of a task; return whether that was possible.  Arguments as in :meth:`lock`.

        It is renewed until :meth:`release_task_lock`, the end of the process, or that of the task that acquired it.
        """
        return self.runtime.lock_records.acquire_task(task_id, ttl, wait)

    def release_task_lock(self, task_id: str) -> bool:
        """Release the lock of a task; return whether this process still held it."""
        name, runtime = name_of(task_id), self._lifetime.runtime
        return runtime is not None and runtime.locks.release_task(name)

    def free_lock(self, name: str, fence: int) -> bool:
        """Free a lock, named as for :meth:`get_lock`, for its holder; return whether it was held with that fence.

        The next waiter gets it.  The holder goes on until its next renewal: its fenced writes are refused once a later
        holder has written.
        """
        return self.runtime.lock_records.free(name, fence)

    def force_sync(self, timeout: float | None = None) -> None:
        """Return when every write made before this call is in Redis; keep trying for ``timeout`` seconds, if given.

        Raises:
            StoreError: If Redis is away, or refuses a write; nothing is lost.
            ConflictError: If a write lost every round of conflict resolution.
            LockLost: Once, if a later holder's fence has refused a write; and once in the thread that made it.
        """
        self.events.emit("force-sync", **self.runtime.entries.force(timeout))

    # -- subscriptions

    def subscribe(
        self, pattern: str, on_change: OnChange | None = None, on_invalidate: OnInvalidate | None = None,
    ) -> str:
        """Call handlers when keys that match a pattern change, in any process; return an id for :meth:`unsubscribe`.

        Of each key the newest value is delivered, never an older one after it; values in between may be left out.  After
        a lost connection every key that may have changed is delivered, or invalidated, so a copy kept by both handlers
        ends equal to Redis.  Handlers of one subscription never run at the same time; one that raises is logged.

        Args:
            pattern: Such as ``"tasks/*/state"``.
            on_change: Called with key and value; with the :class:`Entry` too if it takes three arguments.
            on_invalidate: Called with the key when it was deleted, when it has expired, and when the value that was
                delivered may be outdated because the connection is lost.
        """
        handlers = Handlers(on_change, on_invalidate)
        subscription = self.runtime.subscriptions.subscribe(pattern, handlers)
        self._lifetime.handlers[subscription] = handlers
        return subscription

    def unsubscribe(self, subscription: str) -> bool:
        """End a subscription; return whether there was one of that id."""
        self._lifetime.handlers.pop(subscription, None)
        runtime = self._lifetime.runtime
        return runtime is not None and runtime.subscriptions.unsubscribe(subscription)

    def watch(self, pattern: str, timeout: float | None = None) -> Watch:
        """Return an iterator over changes of keys that match a pattern, from now on; see :class:`Watch`.

        It ends after ``timeout`` seconds without a change, if given.
        """
        check_timeout(timeout)
        return self.runtime.subscriptions.watch(pattern, timeout, self)

    def on(self, event: str, handler: Handler) -> None:
        """Call ``handler(**details)`` when an event happens in this process, one handler after another in one thread."""
        self.events.on(event, handler)

    def off(self, event: str, handler: Handler) -> None:
        """Stop calling that handler."""
        self.events.off(event, handler)

    # -- life cycle

    @property
    def worker_id(self) -> str:
        """Name of this process."""
        return self.runtime.worker_id

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.runtime.settings

    @property
    def events(self) -> Events:
        """The event handlers of this process, for extensions."""
        return self._lifetime.events

    @property
    def runtime(self) -> Runtime:
        """The services of this process, built at the first use, for extensions; another object after a shutdown or fork."""
        return self._lifetime.runtime or self._lifetime.open()

    def shutdown(self, timeout: float | None = None) -> None:
        """Write what is pending, release the locks, stop the threads, close the connections, within ``timeout`` seconds.

        It may be called twice, by a handler, or never: then a thread does it when the manager is collected, or the end of
        the process.  The next call of another method begins anew, but locks and subscriptions have ended.  What could not
        be written is logged and lost, and handlers that have not run in time are dropped.  Default: ``memsync_timeout``.
        """
        self._lifetime.close(timeout)

    def __enter__(self) -> MemorySyncManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
