"""`AsyncMemSync`: the manager for coroutines."""
from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from ..background_loop import Wakeup
from ..closing import closer
from ..deadline import DEFAULT_TIMEOUT
from ..exceptions import LockLost, LockNotAcquired
from ..keys import check_id
from ..locking.lock import Lock
from ..manager import MemorySyncManager
from ..models.entry import Entry
from ..reading.cache import CacheEntry
from ..reading.feeds import Feeds
from ..reading.reader import READ_AT_ONCE
from ..records.checks import check_timeout
from ..records.lock_records import name_of
from ..records.task_records import TASKS_PER_CALL
from ..runtime import Runtime
from ..types import ListedTask, TaskState
from .calls import Call, take_steps
from .executor import Executor, executors_of
from .lock import AsyncLock, release
from .loops import running_loop
from .watch import AsyncWatch, wait_for_end

P = ParamSpec("P")

T = TypeVar("T")

#: Returns a valid copy of what a method of a manager reads, by the arguments of that, or None.
Peek = Callable[..., "CacheEntry | None"]


def _plain(
    method: Callable[Concatenate[MemorySyncManager, P], T],
) -> Callable[Concatenate[AsyncMemSync, P], T]:
    """Return a method of the manager that waits for nothing."""

    @functools.wraps(method)
    def call(self: AsyncMemSync, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.memsync, *args, **kwargs)

    return call


def _awaited(
    method: Callable[Concatenate[MemorySyncManager, P], T], peek: Peek | None = None,
) -> Callable[Concatenate[AsyncMemSync, P], Coroutine[Any, Any, T]]:
    """Return a method of the manager as a coroutine; it needs no thread if there is a copy in the local cache."""

    @functools.wraps(method)
    async def call(self: AsyncMemSync, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if peek is not None and self._timeout is not None:
            copy = peek(self.memsync.runtime, *args, **kwargs)
            if copy is not None:
                value: T = copy.take()
                return value
        return await self._call(partial(method, self.memsync, *args, **kwargs))

    return call


def _copy_of_task(name: str) -> Peek:
    return lambda runtime, task_id: runtime.reader.peek(name, task_id)


def _copy_of_value(
    runtime: Runtime, key: str, *, max_age: float | None = None, consistent: bool = False,
) -> CacheEntry | None:
    return None if consistent or max_age is not None else runtime.cache.peek(key)


class AsyncMemSync:
    """A manager for the coroutines of asyncio: what waits for Redis is awaitable.

    Buffered writes are plain calls, as those of the manager; reads and atomic operations are coroutines, and have the same
    arguments and errors.  They are made by at most 8 threads for each manager, whatever the number of coroutines and event
    loops; a :meth:`force_sync` with a timeout by 8 others at most.  :meth:`wait`, :meth:`watch` and :meth:`lock` take none
    while they wait.  There may be many of these for one
    manager, in any thread.  A coroutine that is cancelled leaves nothing behind: what it was waiting for is
    finished or undone, no lock, no place in a queue and no subscription remains.  What it had sent may be done; after
    that the same call is recognised, and does nothing twice.

    Usage::

        async with AsyncMemSync(memsync) as aio:
            aio.sync_task_state("task-123", {"status": "processing"})
            state = await aio.wait("task-123", timeout=60)

    The block shuts the manager down at its end.  What a task reports of itself (``progress``, ``track``) waits for nothing:
    call the manager.

    Args:
        memsync: A :class:`MemorySyncManager` or :class:`MemSync`.
    """

    def __init__(self, memsync: MemorySyncManager) -> None:
        if not isinstance(memsync, MemorySyncManager):
            raise TypeError(f"AsyncMemSync takes a MemSync or a MemorySyncManager, not {type(memsync).__name__}")
        self.memsync = memsync
        self._executors = executors_of(memsync)
        self._executor = self._executors.calls
        #: ``memsync_timeout``; None before the manager was opened.
        self._timeout: float | None = None

    # -- buffered writes

    sync_task_state = _plain(MemorySyncManager.sync_task_state)
    sync_task_progress = _plain(MemorySyncManager.sync_task_progress)
    sync_agent_coordination = _plain(MemorySyncManager.sync_agent_coordination)
    sync_worker_status = _plain(MemorySyncManager.sync_worker_status)
    sync_worker_capacity = _plain(MemorySyncManager.sync_worker_capacity)
    update_heartbeat = _plain(MemorySyncManager.update_heartbeat)
    sync_queue = _plain(MemorySyncManager.sync_queue)
    sync_assignments = _plain(MemorySyncManager.sync_assignments)
    sync_metrics = _plain(MemorySyncManager.sync_metrics)
    increment_metrics = _plain(MemorySyncManager.increment_metrics)
    delete = _plain(MemorySyncManager.delete)

    @overload
    def write(
        self, key: str, value: Any, *, ttl: float | None = None, expected_version: None = None,
        fence: AsyncLock | Lock | int | None = None,
    ) -> None: ...

    @overload
    def write(
        self, key: str, value: Any, *, ttl: float | None = None, expected_version: int,
        fence: AsyncLock | Lock | int | None = None,
    ) -> Coroutine[Any, Any, Entry]: ...

    def write(
        self, key: str, value: Any, *, ttl: float | None = None, expected_version: int | None = None,
        fence: AsyncLock | Lock | int | None = None,
    ) -> Coroutine[Any, Any, Entry | None] | None:
        """Store a value as :meth:`MemorySyncManager.write`: a plain call, but with ``expected_version`` it is awaited."""
        if isinstance(fence, AsyncLock):
            if not fence.fence:
                raise LockLost(fence.name)
            fence = fence.fence
        write = partial(self.memsync.write, key, value, ttl=ttl, expected_version=expected_version, fence=fence)
        return write() if expected_version is None else self._call(write)  # type: ignore[return-value]

    # -- of this process

    get_metrics = _plain(MemorySyncManager.get_metrics)
    clear_cache = _plain(MemorySyncManager.clear_cache)
    unsubscribe = _plain(MemorySyncManager.unsubscribe)
    on = _plain(MemorySyncManager.on)
    off = _plain(MemorySyncManager.off)

    # -- reads

    get_task_state = _awaited(MemorySyncManager.get_task_state, _copy_of_task("state"))
    get_task_progress = _awaited(MemorySyncManager.get_task_progress, _copy_of_task("progress"))
    get_task = _awaited(MemorySyncManager.get_task)
    get_tasks = _awaited(MemorySyncManager.get_tasks)
    get_group = _awaited(MemorySyncManager.get_group)
    get_workflow = _awaited(MemorySyncManager.get_workflow)
    get_agent_coordination = _awaited(MemorySyncManager.get_agent_coordination)
    get_task_agents = _awaited(MemorySyncManager.get_task_agents, _copy_of_task("agents"))
    get_queue = _awaited(MemorySyncManager.get_queue)
    get_queue_position = _awaited(MemorySyncManager.get_queue_position)
    get_assignments = _awaited(MemorySyncManager.get_assignments)
    get_coordination_metrics = _awaited(MemorySyncManager.get_coordination_metrics)
    locks = _awaited(MemorySyncManager.locks)
    get_lock = _awaited(MemorySyncManager.get_lock)
    get_awaited_lock = _awaited(MemorySyncManager.get_awaited_lock)
    get_worker_status = _awaited(MemorySyncManager.get_worker_status)
    get_worker_capacity = _awaited(MemorySyncManager.get_worker_capacity)
    get_active_workers = _awaited(MemorySyncManager.get_active_workers)
    get_workers = _awaited(MemorySyncManager.get_workers)
    read = _awaited(MemorySyncManager.read, _copy_of_value)
    read_entry = _awaited(MemorySyncManager.read_entry)
    read_many = _awaited(MemorySyncManager.read_many)
    search = _awaited(MemorySyncManager.search)

    def iter_tasks(
        self, since: float | None = None, at_once: int = TASKS_PER_CALL,
    ) -> AsyncGenerator[ListedTask, None]:
        """Yield tasks as :meth:`MemorySyncManager.iter_tasks`."""
        return self._iterate(partial(self.memsync.iter_tasks, since, at_once), at_once)

    def iter_entries(self, pattern: str = "*") -> AsyncGenerator[Entry, None]:
        """Yield entries as :meth:`MemorySyncManager.iter_entries`."""
        return self._iterate(partial(self.memsync.iter_entries, pattern), READ_AT_ONCE)

    async def _iterate(self, make: Callable[[], Iterator[T]], at_once: int) -> AsyncGenerator[T, None]:
        items = await self._call(make)
        while chunk := await self._call(lambda: list(islice(items, at_once))):
            for one in chunk:
                yield one

    # -- atomic operations

    enqueue = _awaited(MemorySyncManager.enqueue)
    dequeue = _awaited(MemorySyncManager.dequeue)
    complete = _awaited(MemorySyncManager.complete)
    cancel = _awaited(MemorySyncManager.cancel)
    free_lock = _awaited(MemorySyncManager.free_lock)

    def lock(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
    ) -> AsyncLock:
        """Return a lock that all processes of the namespace share, not acquired yet; as :meth:`MemorySyncManager.lock`."""
        return self._lock(self.memsync.lock(name, ttl, wait, max_hold))

    def task_lock(
        self, task_id: str, ttl: float | None = None, wait: float | None = 0.0, max_hold: float | None = None,
    ) -> AsyncLock:
        """Return the lock of a task as an object; as :meth:`MemorySyncManager.task_lock`."""
        return self._lock(self.memsync.task_lock(task_id, ttl, wait, max_hold))

    def _lock(self, lock: Lock) -> AsyncLock:
        return AsyncLock(lock, self._executor, lambda: self.memsync.runtime.locks)

    async def acquire_task_lock(self, task_id: str, ttl: float | None = None, wait: float | None = 0.0) -> bool:
        """Acquire the lock of a task as :meth:`MemorySyncManager.acquire_task_lock`."""
        await self._open()
        lock, service = self.memsync.task_lock(task_id, ttl, wait), self.memsync.runtime.locks
        steps = service.acquisition(lock.name, lock.ttl, lock.wait, service.owner())
        try:
            service.keep(await take_steps(self._executor, service.store.timeout + lock.wait, steps, service.give_up))
        except LockNotAcquired:
            return False
        return True

    async def release_task_lock(self, task_id: str) -> bool:
        """Release the lock of a task as :meth:`MemorySyncManager.release_task_lock`, also if this is cancelled."""
        await self._open()
        service = self.memsync.runtime.locks
        lease = service.pop_task(name_of(task_id))
        return lease is not None and await release(self._executor, service, lease, partial(service.release, lease))

    async def force_sync(self, timeout: float | None = None) -> None:
        """Return when every write made before this call is in Redis; as :meth:`MemorySyncManager.force_sync`."""
        check_timeout(timeout)
        await self._call(partial(self.memsync.force_sync, timeout), timeout or 0.0)

    # -- subscriptions

    subscribe = _awaited(MemorySyncManager.subscribe)

    def watch(self, pattern: str, timeout: float | None = None) -> AsyncWatch:
        """Return an asynchronous iterator over changes of keys that match a pattern; see :class:`AsyncWatch`.

        It ends after ``timeout`` seconds without a change, if given.
        """
        check_timeout(timeout)
        return AsyncWatch(self._feeds, pattern, timeout, self)

    async def _feeds(self) -> Feeds:
        await self._open()
        return self.memsync.runtime.feeds

    async def wait(self, task_id: str, timeout: float | None = None) -> TaskState:
        """Return the state of a task as soon as it has ended.

        It has ended with a status after which nothing more is expected: SUCCESS, FAILURE, REVOKED, IGNORED, REJECTED,
        SKIPPED, CANCELLED; or if it has been LOST for 10 seconds and no worker has requeued it.  A task that is unknown,
        or whose record has expired, is waited for, and so is Redis while it is away.

        Args:
            timeout: Most seconds to wait.  None: no limit.

        Raises:
            TimeoutError: If it has not ended in time.
            StoreUnavailable: At a shutdown of the manager.
        """
        check_timeout(timeout)
        task_id = check_id(task_id, "task")
        await self._open()
        return await wait_for_end(self.memsync.runtime, task_id, timeout)

    # -- life cycle

    async def shutdown(self, timeout: float | None = None) -> None:
        """Shut the manager down as :meth:`MemorySyncManager.shutdown`; it goes on if this is cancelled."""
        ended = Wakeup()
        number = closer.add(self.memsync, partial(ended.wait, timeout or self._timeout or DEFAULT_TIMEOUT))

        def shut_down() -> None:
            try:
                self.memsync.shutdown(timeout)
            finally:
                closer.remove(number)
                ended.set()

        # The process does not end in the middle of it.  All other threads may wait for Redis.
        await Call(Executor(keeps_threads=False), float("inf"), shut_down, in_any_case=True).answer()
        self._executors.close()

    async def __aenter__(self) -> AsyncMemSync:
        await self._open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.shutdown()

    async def _open(self) -> float:
        """Open the manager, which may start an embedded Redis; return ``memsync_timeout``."""
        running_loop()
        if self._timeout is None:
            self._timeout = await Call(self._executor, float("inf"), lambda: self.memsync.settings.timeout).answer()
        return self._timeout

    async def _call(self, function: Callable[[], T], seconds: float = 0.0) -> T:
        """Make a call of the manager; it ends within ``memsync_timeout`` and ``seconds``."""
        timeout = self._timeout or await self._open()
        executor = self._executors.long_calls if seconds else self._executor
        return await Call(executor, timeout + seconds, function).answer()
