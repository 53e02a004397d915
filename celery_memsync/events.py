"""Every event of this package, and who listens in this process."""
from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from .background_loop import BackgroundLoop, Wakeup
from .user_code import call_user_code, name_of

logger = logging.getLogger(__name__)

Handler = Callable[..., object]

#: Most events that wait for their handlers; of more the oldest are dropped.
MAX_WAITING = 10_000

#: Seconds that the last events have at a shutdown, at least.
LAST_WORDS = 0.1

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
    "task-stalled": ("task_id", "name", "worker_id", "since"),
    "connection-lost": ("error",),
    "connection-restored": (),
}


class _Event(NamedTuple):
    """The events that are pending for their handlers.

    Attributes:
        number: Handlers with a lower one were there when it happened.
    """

    number: int
    name: str
    details: dict[str, Any]


class _Mark:
    """Stands in the queue of events for a caller that waits until those before it are done."""

    def __init__(self) -> None:
        self.passed = False
        self.bell = Wakeup()

    def ring(self) -> None:
        """Wake who waits."""
        self.passed = True
        self.bell.set()


class _Dispatcher:
    """Calls handlers in a thread of its own, until it is closed.

    Args:
        events: Whose handlers these are.  The thread does not keep them alive, and ends with them.
        before: The one before, whose last events come first.
    """

    def __init__(self, events: Events, before: _Dispatcher | None = None) -> None:
        self.before = before
        #: Monotonic time when it gives up what still waits.
        self.until = float("inf")
        self._queue: deque[_Event | _Mark] = deque()
        self._closing = False
        self._warned = False
        #: What the log calls the running handler.
        self._busy_with: tuple[str, Handler] | None = None
        self._loop = BackgroundLoop("memsync-events", self._deliver, 0, on_demand=True)
        loop = self._loop
        self._events = weakref.ref(events, lambda _: loop.stop(0))

    @property
    def is_unused(self) -> bool:
        """Whether there is no thread, and nothing to do for one."""
        return not self._queue and not self._loop.running

    def put(self, event: _Event) -> int:
        """Let an event wait for its handlers, without any lock; return how many old ones were dropped for it."""
        self._queue.append(event)
        dropped = self._drop() if len(self._queue) > MAX_WAITING else 0
        self._loop.wake()
        return dropped

    def wait_idle(self, timeout: float | None) -> bool:
        """Return whether all that waits now has been delivered, as soon as it has, or after ``timeout`` seconds."""
        if self._loop.is_current:
            return False
        if self.is_unused:
            return True
        mark = _Mark()
        self._queue.append(mark)
        self._loop.wake()
        if self._loop.running:  # at the end of the interpreter no thread can be started
            mark.bell.wait(timeout)
        return mark.passed

    def close(self) -> None:
        """Deliver what waits, until :attr:`until`, and end; if a handler calls this the rest is done after it."""
        if self._loop.is_current:
            self._closing = True
            return
        self.wait_idle(max(0.0, self.until - time.monotonic()))
        self._loop.stop(max(0.0, self.until - time.monotonic()))
        self._give_up()

    def discard(self) -> None:
        """Deliver nothing any more."""
        self.until = float("-inf")
        self._queue.clear()
        self._loop.stop(0)

    def _deliver(self) -> None:
        before, self.before = self.before, None
        if before is not None:
            before.wait_idle(max(0.0, before.until - time.monotonic()))
        while self._queue and time.monotonic() < self.until:
            with contextlib.suppress(IndexError):  # the last one was dropped just now
                self._deliver_one(self._queue.popleft())
        self._warned = False
        if self._closing:
            self._loop.stop(0)
            self._give_up()

    def _deliver_one(self, event: _Event | _Mark) -> None:
        if isinstance(event, _Mark):
            event.ring()
            return
        events = self._events()
        handlers = {} if events is None else events.handlers_of(event.name)
        del events
        for number, handler in list(handlers.items()):
            # Neither one that came after the event, nor one that was taken away since.
            if number < event.number and number in handlers:
                self._busy_with = event.name, handler
                call_user_code(f"A handler of the event {event.name!r}", handler, **event.details)
                self._busy_with = None

    def _drop(self) -> int:
        dropped = 0
        with contextlib.suppress(IndexError):
            while len(self._queue) > MAX_WAITING:
                oldest = self._queue.popleft()
                dropped += isinstance(oldest, _Event)
                if isinstance(oldest, _Mark):
                    oldest.ring()
        if not self._warned:
            self._warned = True
            logger.warning("More than %d events wait for their handlers; the oldest are dropped%s", MAX_WAITING, self._why())
        return dropped

    def _give_up(self) -> None:
        """Part with what was not delivered in time."""
        left = 0
        with contextlib.suppress(IndexError):
            while True:
                event = self._queue.popleft()
                left += isinstance(event, _Event)
                if isinstance(event, _Mark):
                    event.ring()
        if left:
            logger.warning("At shutdown %d events have not reached their handlers%s", left, self._why())

    def _why(self) -> str:
        busy = self._busy_with
        return "" if busy is None else f": a handler of the event {busy[0]!r} is still running ({name_of(busy[1])})"


class Events:
    """Calls handlers by the name of an event, in one thread of its own, in the order in which the events happen.

    Emitting an event waits for no handler and takes no lock.  A handler that raises is logged; the others go on.
    """

    def __init__(self) -> None:
        #: By event and number; a dict keeps the order, and one step that nothing can interrupt changes it.
        self._handlers: dict[str, dict[int, Handler]] = {}
        #: Numbers of handlers and events, in the order in which they came.
        self._numbers = count(1)
        #: Both count: a drop takes a number of the first, and each look at how many there were one of both.
        self._drops, self._looks = count(), count()
        self._dispatcher = _Dispatcher(self)

    def on(self, name: str, handler: Handler) -> None:
        """Call ``handler(**details)`` whenever the event happens in this process.

        Raises:
            ValueError: If there is no event of that name.
        """
        if name not in EVENTS:
            raise ValueError(f"there is no event {name!r}; there are: {', '.join(EVENTS)}")
        if not callable(handler):
            raise TypeError(f"a handler of {name!r} must be callable, not {type(handler).__name__}")
        self._handlers.setdefault(name, {})[next(self._numbers)] = handler

    def off(self, name: str, handler: Handler) -> None:
        """Call that handler no more, not even with what has happened before."""
        handlers = self._handlers.get(name, {})
        for number, known in list(handlers.items()):
            if known == handler:
                handlers.pop(number, None)

    def handlers_of(self, name: str) -> dict[int, Handler]:
        """Return the handlers of an event by their numbers."""
        return self._handlers.get(name, {})

    def copy(self) -> Events:
        """Return the same handlers with nothing pending, for a forked child."""
        copied = Events()
        copied._handlers.update((name, dict(handlers)) for name, handlers in self._handlers.items())
        copied._numbers = self._numbers
        return copied

    @property
    def has_handlers(self) -> bool:
        """Whether anybody listens, or has listened, to anything."""
        return bool(self._handlers)

    @property
    def dropped(self) -> int:
        """Number of events that were dropped, for their handlers were too slow."""
        return next(self._drops) - next(self._looks)

    def wanted(self, name: str) -> bool:
        """Whether anybody listens, so that details need be gathered."""
        return bool(self._handlers.get(name))

    def emit(self, name: str, /, **details: Any) -> None:
        """Have all handlers of an event called, in the order in which they came; return at once."""
        if self._handlers.get(name):
            for _ in range(self._dispatcher.put(_Event(next(self._numbers), name, details))):
                next(self._drops)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Return whether the handlers of all that was emitted before are done, as soon as they are.

        Args:
            timeout: Seconds to wait for it.  None: as long as it takes.
        """
        return self._dispatcher.wait_idle(timeout)

    def close(self, timeout: float) -> None:
        """Deliver what was emitted before, and stop the thread; the next event starts another.

        A handler may call this: then it returns at once, and the rest is delivered after that handler.

        Args:
            timeout: Most seconds to wait.  What is still pending then is dropped, and a handler that is still running is
                left to itself: what is emitted later does not wait for it.
        """
        old = self._dispatcher
        if old.is_unused:
            return
        old.until = time.monotonic() + max(timeout, LAST_WORDS)
        self._dispatcher = new = _Dispatcher(self, before=old)
        old.close()
        if old.is_unused:
            new.before = None

    def discard(self) -> None:
        """Deliver nothing any more of what was emitted: it is the parent's, in a forked child."""
        self._dispatcher.discard()
