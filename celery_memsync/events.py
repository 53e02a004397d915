"""Every event of this package, and who listens in this process."""
from __future__ import annotations

import threading
from typing import Any, Callable

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

logger = get_logger(__name__)

Handler = Callable[..., object]

#: Names of the events, with the keyword arguments that handlers get.
EVENTS: dict[str, tuple[str, ...]] = {
    "write": ("key", "value"),
    "delete": ("key",),
    "change": ("key", "value", "entry"),
    "batch-flushed": ("count", "seconds"),
    "batch-failed": ("count", "error"),
    "writes-dropped": ("count",),
    "conflict-resolved": ("key", "strategy", "entries", "discarded"),
    "subscribed": ("id", "pattern"),
    "unsubscribed": ("id", "pattern"),
    "cache-cleared": ("count",),
    "force-sync": ("count", "seconds"),
    "shutdown": (),
    "task-state-synced": ("task_id", "state"),
    "worker-status-synced": ("worker_id", "status"),
    "agent-coordinated": ("task_id", "agent_id", "data"),
    "queue-synced": ("queue",),
    "lock-acquired": ("name", "fence"),
    "lock-released": ("name",),
    "lock-lost": ("name",),
    "worker-online": ("worker_id",),
    "worker-lost": ("worker_id",),
    "task-lost": ("task_id", "name", "worker_id", "since"),
    "connection-lost": ("error",),
    "connection-restored": (),
}


class Events:
    """Calls handlers by the name of an event.

    A handler that raises is logged; the others go on.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._handlers: dict[str, tuple[Handler, ...]] = {}

    def on(self, name: str, handler: Handler) -> None:
        """Call ``handler(**details)`` whenever the event happens in this process.

        Raises:
            ValueError: If there is no event of that name.
        """
        if name not in EVENTS:
            raise ValueError(f"there is no event {name!r}; there are: {', '.join(EVENTS)}")
        if not callable(handler):
            raise TypeError(f"a handler of {name!r} must be callable, not {type(handler).__name__}")
        with self._mutex:
            self._handlers[name] = (*self._handlers.get(name, ()), handler)

    def off(self, name: str, handler: Handler) -> None:
        """Call that handler no more."""
        with self._mutex:
            self._handlers[name] = tuple(h for h in self._handlers.get(name, ()) if h != handler)

    def copy(self) -> Events:
        """Return the same handlers under a mutex of their own, for a forked child."""
        copied = Events()
        copied._handlers = dict(self._handlers)
        return copied

    @property
    def has_handlers(self) -> bool:
        """Whether anybody listens, or has listened, to anything."""
        return bool(self._handlers)

    def wanted(self, name: str) -> bool:
        """Whether anybody listens, so that details need be gathered."""
        return bool(self._handlers.get(name))

    def emit(self, name: str, /, **details: Any) -> None:
        """Call all handlers of an event, in the order in which they came; what they raise is logged.

        Raises:
            SoftTimeLimitExceeded: If the limit of the task strikes that this is called in.
        """
        for handler in self._handlers.get(name, ()):
            try:
                handler(**details)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                logger.exception("A handler of the event %r raised", name)
