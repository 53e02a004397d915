"""The services of one process, built and closed together."""
from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from .closing import closer
from .conflicts import Resolvers
from .deadline import Deadline, remaining
from .environment import Environment
from .events import Events
from .keys import Keys, new_token
from .locking.lock_reader import LockReader
from .locking.lock_service import LockService
from .reading.cache import EntryCache
from .reading.cancelled import CancelledIds
from .reading.feeds import Feeds
from .reading.handlers import Handlers
from .reading.listener import ChangeListener
from .reading.reader import VIEW, Reader
from .reading.search import Search
from .reading.subscriptions import Subscriptions
from .records.cancellations import Cancellations
from .records.counters import Counters
from .records.entry_records import EntryRecords
from .records.lock_records import LockRecords
from .records.queue_records import QueueRecords
from .records.statistics import Statistics
from .records.task_records import TaskRecords
from .records.worker_records import WorkerRecords
from .records.workflow_records import WorkflowRecords
from .redaction import leave_logs, redact_logs
from .store import Store
from .store.client import connect, connect_to_nothing
from .store.cluster_store import ClusterStore
from .types import ProcessMetrics
from .urls import is_cluster
from .user_code import message_of
from .writing.conflict_settler import ConflictSettler
from .writing.discarding import DiscardingWriter
from .writing.progress import Progress
from .writing.shared_queue import SharedQueue
from .writing.writer import BatchWriter

logger = logging.getLogger(__name__)

#: Seconds that the listening thread has in any case to end: mostly it has only to be woken.
LINK_TIMEOUT = 0.1


#: Whether it was logged that this Python runs without the GIL.
_warned_without_gil = False


def _warn_without_gil() -> None:
    """Log once that a free-threaded Python has its GIL switched off, because nothing was tested there."""
    global _warned_without_gil
    if not _warned_without_gil and not getattr(sys, "_is_gil_enabled", lambda: True)():
        _warned_without_gil = True
        logger.warning("This Python runs without the GIL, in which celery-memsync is not tested; start it with PYTHON_GIL=1")


class WeakEvents(Events):
    """The events of a manager, without keeping it alive: handlers often refer to it.

    Args:
        events: The manager's own.
    """

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._of = weakref.ref(events)

    @property
    def has_handlers(self) -> bool:
        """Whether there are handlers of any event, or were."""
        events = self._of()
        return events is not None and events.has_handlers

    def wanted(self, name: str) -> bool:
        """Whether there are handlers of an event, so that details are needed."""
        events = self._of()
        return events is not None and events.wanted(name)

    def emit(self, name: str, /, **details: Any) -> None:
        """Call all handlers of an event."""
        events = self._of()
        if events is not None:
            events.emit(name, **details)


class Runtime:
    """The services of one process; a forked child builds its own.

    Nothing in here refers to the manager, whose end closes all this.

    Args:
        was_away: Whether Redis was away when this process was forked.

    Attributes:
        store: Talks to Redis.
        writer: Sends buffered writes in batches.
        cache, link, reader, search, subscriptions: Read, and follow changes.
        feeds: The subscriptions that those share who follow the same.
        cancelled: Knows which ids are cancelled.
        locks: Acquires and renews the locks of this process.
        coordination: Makes the atomic operations of the shared queue.
        progress: The progress of the tasks that this process reports, by task id.
        entries, tasks, workflows, workers, queue, counters, lock_records, cancellations: What the methods of the manager do.
        statistics: Reads what was counted of the runs of tasks.
    """

    def __init__(self, environment: Environment, events: Events, was_away: bool) -> None:
        settings, events = environment.settings(), WeakEvents(events)
        worker_id, url = settings.worker_id or environment.worker_id(), settings.backend or ""
        keys = Keys(settings.namespace, together=is_cluster(url))
        token = new_token()
        _warn_without_gil()
        self.settings = settings
        self.redact = settings.redactor
        if self.redact is not None:
            redact_logs(self.redact)
        self.worker_id = worker_id
        self.keys = keys
        self.token = token
        #: Ids of the runs of tasks of this process.
        self.new_runs: Iterator[str] = map(f"{token}-{{:x}}".format, count(1))
        self._was_away = was_away
        # A node of a cluster can't invalidate over one connection what was read over others.
        cache_size = 0 if is_cluster(url) else settings.cache_size
        self.cache = EntryCache(cache_size, settings.cache_max_age, lambda: self.link.is_stale())
        make_store = ClusterStore if is_cluster(url) else Store
        client = connect_to_nothing() if not settings.enabled else connect(
            url, settings.backend_options, keys.about, settings.timeout)
        self.store: Store = make_store(client, keys, worker_id, token, settings.default_ttl, settings.timeout)
        self.store.counts_exceptions = settings.failure_types
        resolvers = Resolvers(settings.conflict_resolver, settings.namespace)
        make_writer = BatchWriter if settings.enabled else DiscardingWriter
        self.writer = make_writer(
            self.store, events, ConflictSettler(self.store.clock, worker_id, resolvers, settings.max_value_size),
            interval=settings.batch_interval, batch_size=settings.batch_size, max_pending=settings.max_pending,
            on_put=self.cache.drop_for, copies=self.cache.parts, timeout=settings.timeout,
        )
        self.link = ChangeListener(
            self.store, on_invalid=self._on_invalid, on_message=self._on_message, on_taken=self._on_taken,
            on_up=self._on_up, on_down=self._on_down, on_look=self._on_look)
        self.cancelled = CancelledIds(self.store, self.link)
        self.reader = Reader(self.store, self.writer, self.cache, self.link)
        self.search = Search(self.reader)
        self.subscriptions = Subscriptions(self.reader, self.search, self.link, events, settings.handler_threads)
        self.feeds = Feeds(self.subscriptions)
        self.coordination = SharedQueue(self.store, settings.default_ttl)
        self.locks = LockService(self.store, events, environment.lock_owner, settings.lock_replicas)
        self.progress: dict[str, Progress] = {}
        self.entries = EntryRecords(settings, self.reader, self.search)
        self.tasks = TaskRecords(self.entries, self.progress, environment.run_of)
        self.workflows = WorkflowRecords(self.reader, settings.timeout)
        self.workers = WorkerRecords(self.entries, worker_id)
        self.queue = QueueRecords(settings, self.reader, self.coordination)
        self.counters = Counters(settings, self.reader)
        self.statistics = Statistics(self.reader, settings.timeout)
        self.lock_records = LockRecords(settings, self.locks, LockReader(self.store))
        self.cancellations = Cancellations(
            self.reader, self.cancelled, worker_id, environment.running_task, self.redact)

    @property
    def is_away(self) -> bool:
        """Whether Redis is away, as far as this process knows, or knew before it was forked."""
        if self.writer.connected and not self.writer.counts["writes"]:
            return self._was_away
        return not self.writer.connected

    def metrics(self, events_dropped: int) -> ProcessMetrics:
        """Return counters of this process, without a call to Redis."""
        writer, cache = self.writer, self.cache
        return {
            "reads": cache.hits + cache.misses + self.reader.uncached,
            "cache_hits": cache.hits, "cache_misses": cache.misses,
            "cache": {"size": len(cache), "max_size": cache.size, "invalidated": cache.invalidated},
            **writer.counts, "pending_writes": writer.pending, "subscriptions": len(self.subscriptions),
            "skipped": self.subscriptions.skipped, "events_dropped": events_dropped,
            "last_flush_seconds": writer.report.last_flush_seconds, "connected": writer.connected,
        }

    def close(self, timeout: float | None = None) -> None:
        """Write what is pending, stop the threads, close the connections; log what can't be written.

        Args:
            timeout: Most seconds that all of it takes together.  None: ``memsync_timeout``.
        """
        # Not within that of a call which a signal has interrupted.
        Deadline(self.settings.timeout if timeout is None else timeout).run(self._close)

    def _close(self) -> None:
        # From the last line to the first, each whatever the others raise.
        with contextlib.ExitStack() as steps:
            if self.redact is not None:
                steps.callback(leave_logs, self.redact)
            steps.callback(self.store.close)
            steps.callback(lambda: self.cancelled.stop(remaining()))
            steps.callback(lambda: self.link.stop(max(LINK_TIMEOUT, remaining())))
            # The next holder of a lock finds what was written under it.
            steps.callback(lambda: self.locks.close(free=self.writer.connected, timeout=remaining()))
            steps.callback(self._close_writer)
            steps.callback(lambda: self.subscriptions.close(remaining()))

    def _close_writer(self) -> None:
        try:
            self.writer.close(remaining())
        except Exception as exc:
            # What a newer fence has refused is pending no more.
            pending = self.writer.pending
            left = f"{pending} write{'s' * (pending != 1)} could not be written" if pending else "a write was refused"
            logger.warning("At shutdown %s: %s", left, message_of(exc))

    # -- what the listener receives goes to the cache and to the subscriptions

    def _on_invalid(self, keys: Sequence[str] | None) -> None:
        if keys is None:
            self.cache.clear()
            self.subscriptions.on_emptied()
        else:
            for key in keys:
                self.cache.invalidate(key)

    def _on_message(self, pattern: str, path: str, data: bytes) -> None:
        self.subscriptions.on_message(pattern, path, data)
        self.cancelled.on_message(path)

    def _on_taken(self) -> None:
        self.subscriptions.on_taken()

    def _on_up(self, patterns: Sequence[str]) -> None:
        self.subscriptions.on_up(patterns)
        self.cancelled.on_up(patterns)

    def _on_down(self, confirmed_at: float) -> None:
        self.subscriptions.on_down(confirmed_at, [
            self.keys.full(name) for name in self.cache.clear() if isinstance(name, str) and not name.startswith(VIEW)])

    def _on_look(self) -> None:
        self.subscriptions.on_look()


_lifetimes: weakref.WeakSet[Lifetime] = weakref.WeakSet()


class Lifetime:
    """The runtimes that a manager has, one after the other: built at the first use, closed, built again.

    It belongs to the manager alone, so it is collected with it.

    Attributes:
        runtime: What is open now, or None.
        events: The event handlers of the manager, which outlive what is open.
        handlers: The handlers of subscriptions by id; nothing else keeps them alive.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.events = Events()
        self.handlers: dict[str, Handlers] = {}
        self.runtime: Runtime | None = None
        #: Whether Redis was away when this process was forked.
        self._was_away = False
        #: Of what is open, for the closer.
        self._number = 0
        self._mutex = threading.RLock()
        _lifetimes.add(self)

    def open(self) -> Runtime:
        """Return what is open; build it if nothing is."""
        with self._mutex:
            if self.runtime is None:
                runtime = Runtime(self.environment, self.events, self._was_away)
                # The last flush, at the end of the process or of the manager.
                self._number = closer.add(self, runtime.close)
                self.runtime = runtime
            return self.runtime

    def close(self, timeout: float | None) -> None:
        """Close what is open; see :meth:`MemorySyncManager.shutdown`."""
        with self._mutex:
            runtime, self.runtime = self.runtime, None
            number, handlers, self.handlers = self._number, self.handlers, {}
        if runtime is None:
            return
        closer.remove(number)
        seconds = runtime.settings.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        try:
            runtime.close(seconds)
            handlers.clear()  # not earlier: they were called until now
            self.events.emit("shutdown")
        finally:
            self.events.close(deadline - time.monotonic())

    def forget(self) -> None:
        """Begin anew in a forked child: threads, sockets and locks are the parent's."""
        self._mutex = threading.RLock()
        self._was_away = self._was_away if self.runtime is None else self.runtime.is_away
        self.runtime = None
        self.handlers = {}
        events, self.events = self.events, self.events.copy()
        events.discard()
        self.environment.forget()


def _forget_all() -> None:
    for lifetime in list(_lifetimes):
        lifetime.forget()


os.register_at_fork(after_in_child=_forget_all)
