"""What works for one process, and how it hangs together."""
from __future__ import annotations

import contextlib
import logging
import sys
import weakref
from collections.abc import Sequence
from typing import Any

from .conflicts import Resolvers
from .deadline import Deadline, remaining
from .events import Events
from .keys import Keys, new_token
from .locking.lock_service import LockService
from .reading.cache import EntryCache
from .reading.listener import ChangeListener
from .reading.reader import VIEW, Reader
from .reading.search import Search
from .reading.subscriptions import Subscriptions
from .redaction import leave_logs, redact_logs
from .settings import Settings
from .store import Store
from .store.client import connect, connect_to_nothing
from .store.cluster_store import ClusterStore
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
    """The events of a manager, as long as it is there.

    Handlers often refer to the manager, and threads to what works for it: they must not keep it alive.

    Args:
        events: The manager's own.
    """

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._of = weakref.ref(events)

    @property
    def has_handlers(self) -> bool:
        """Whether anybody listens, or has listened, to anything."""
        events = self._of()
        return events is not None and events.has_handlers

    def wanted(self, name: str) -> bool:
        """Whether anybody listens, so that details need be gathered."""
        events = self._of()
        return events is not None and events.wanted(name)

    def emit(self, name: str, /, **details: Any) -> None:
        """Call all handlers of an event."""
        events = self._of()
        if events is not None:
            events.emit(name, **details)


class Runtime:
    """What works for one process; a forked child gets its own.

    Nothing in here refers to the manager, whose end ends all this.
    """

    def __init__(self, settings: Settings, worker_id: str, url: str, events: Events) -> None:
        events = WeakEvents(events)
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
        # The nodes of a cluster can't tell one connection what was read over others.
        cache_size = 0 if is_cluster(url) else settings.cache_size
        self.cache = EntryCache(cache_size, settings.cache_max_age, lambda: self.link.is_stale())
        make_store = ClusterStore if is_cluster(url) else Store
        client = connect_to_nothing() if not settings.enabled else connect(
            url, settings.backend_options, keys.about, settings.timeout)
        self.store: Store = make_store(client, keys, worker_id, token, settings.default_ttl, settings.timeout)
        resolvers = Resolvers(settings.conflict_resolver, settings.namespace)
        make_writer = BatchWriter if settings.enabled else DiscardingWriter
        self.writer = make_writer(
            self.store, events, ConflictSettler(self.store.clock, worker_id, resolvers, settings.max_value_size),
            interval=settings.batch_interval, batch_size=settings.batch_size, max_pending=settings.max_pending,
            on_put=self.cache.drop_for, timeout=settings.timeout,
        )
        self.link = ChangeListener(
            self.store, on_invalid=self._on_invalid, on_message=self._on_message, on_taken=self._on_taken,
            on_up=self._on_up, on_down=self._on_down, on_look=self._on_look)
        self.reader = Reader(self.store, self.writer, self.cache, self.link)
        self.search = Search(self.reader)
        self.subscriptions = Subscriptions(self.reader, self.search, self.link, events, settings.handler_threads)
        self.coordination = SharedQueue(self.store, settings.default_ttl)
        self.locks = LockService(self.store, events, settings.lock_replicas)
        self.progress: dict[str, Progress] = {}

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
            steps.callback(lambda: self.link.stop(max(LINK_TIMEOUT, remaining())))
            # The next holder of a lock finds what was written under it.
            steps.callback(lambda: self.locks.close(free=self.writer.connected, timeout=remaining()))
            steps.callback(self._close_writer)
            steps.callback(lambda: self.subscriptions.close(remaining()))

    def _close_writer(self) -> None:
        try:
            self.writer.close(remaining())
        except Exception as exc:
            logger.warning("At shutdown %d writes could not be written: %s", self.writer.pending, message_of(exc))

    # -- what the link hears goes to the cache and to who subscribed

    def _on_invalid(self, keys: Sequence[str] | None) -> None:
        if keys is None:
            self.cache.clear()
            self.subscriptions.on_emptied()
        else:
            for key in keys:
                self.cache.invalidate(key)

    def _on_message(self, pattern: str, path: str, data: bytes) -> None:
        self.subscriptions.on_message(pattern, path, data)

    def _on_taken(self) -> None:
        self.subscriptions.on_taken()

    def _on_up(self, patterns: Sequence[str]) -> None:
        self.subscriptions.on_up(patterns)

    def _on_down(self, confirmed_at: float) -> None:
        self.subscriptions.on_down(confirmed_at, [
            self.keys.full(name) for name in self.cache.clear() if isinstance(name, str) and not name.startswith(VIEW)])

    def _on_look(self) -> None:
        self.subscriptions.on_look()
