"""The cancelled ids, as this process knows them."""
from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..background_loop import BackgroundLoop, Wakeup
from ..deadline import remaining
from ..models.cancellation import Cancellation
from ..store import Store
from .listener import ChangeListener

#: Seconds between two reads while a task of this process wants to know whether it is cancelled.
POLL_INTERVAL = 0.5

#: Seconds for which the last read is fresh enough for a task that wants to know it for the first time.
FRESH = 0.5

#: Most seconds that such a task waits for an answer of Redis.
FIRST_TIMEOUT = 1.0


class Watch:
    """Stands for a task that wants to know whether it is cancelled, as long as an object refers to it."""


class CancelledIds:
    """Which ids are cancelled, so that no caller needs a round trip to find that out.

    The main process of a worker follows all changes.  Any other process reads the set while there is a :class:`Watch`, so
    it needs neither a thread nor a connection before.  What was read once stays known until it expires, also if Redis
    loses it.

    Attributes:
        known: Cancelled ids; empty as long as nothing is cancelled.
    """

    def __init__(self, store: Store, link: ChangeListener) -> None:
        self.store = store
        self.link = link
        self.known: dict[str, Cancellation] = {}
        self._until: dict[str, float] = {}
        self._on_new: Callable[[Sequence[Cancellation]], object] | None = None
        self._mark: object = None
        self._read_at = float("-inf")
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._waiting: list[Wakeup] = []
        self._thread = BackgroundLoop("memsync-cancelled", self._look, POLL_INTERVAL, on_demand=True)

    def find(self, ids: Iterable[Any]) -> Cancellation | None:
        """Return why a task with these ids is cancelled, or None if it is not."""
        known = self.known
        return next((known[one] for one in ids if isinstance(one, str) and one in known), None) if known else None

    def note(self, cancelled: Cancellation) -> None:
        """Take what this process has cancelled itself."""
        if self._on_new is None:
            self.known.setdefault(cancelled.id, cancelled)
        else:
            self._thread.call_now()

    def follow(self, on_new: Callable[[Sequence[Cancellation]], object]) -> None:
        """Read the set, and follow all changes of it from now on.

        Args:
            on_new: Called with ids that are cancelled, in the thread that reads them.

        Raises:
            StoreError: If Redis is away; it is read when Redis is back.
        """
        self._on_new = on_new
        self.link.subscribe_to(self.store.cancelled_path)
        self.read()

    def watch(self) -> Watch:
        """Return what lets changes be known here within a second, as long as it is kept."""
        watch = Watch()
        self._watches.add(watch)
        if self._on_new is None:
            self._thread.wake()
        return watch

    def wait_fresh(self) -> None:
        """Return when all is known that was cancelled before, or Redis does not answer in time."""
        if self._on_new is None and time.monotonic() > self._read_at + FRESH:
            bell = Wakeup()
            self._waiting.append(bell)
            self._thread.call_now()
            bell.wait(min(FIRST_TIMEOUT, remaining()))

    def request(self) -> None:
        """Read soon, and try again until Redis answers."""
        self._thread.wake()

    def stop(self, timeout: float) -> None:
        """Read no more."""
        self._thread.stop(timeout)

    # -- what the listener receives

    def on_message(self, path: str) -> None:
        """Note that something was published under a path."""
        if self._on_new is not None and path == self.store.cancelled_path:
            self._thread.call_now()

    def on_up(self, patterns: Sequence[str]) -> None:
        """Note that changes of what matches these patterns are received from now on."""
        if self._on_new is not None and self.store.cancelled_path in patterns:
            self._thread.call_now()

    # -- the thread

    def _look(self) -> float | None:
        try:
            self.read()
        finally:
            while self._waiting:
                self._waiting.pop().set()
        return 0.0 if self._watches and self._on_new is None else None

    def read(self) -> None:
        """Read what was cancelled since the last read.

        Raises:
            StoreError: If Redis is away.
        """
        began = time.monotonic()
        found = self.store.read_cancelled(self._mark)
        if found is not None:
            new = {one.id: one for one, _ in reversed(found.rows) if one.id not in self.known}
            self._until.update((one.id, until) for one, until in found.rows)
            now = self.store.clock.now()
            self.known.update(new)
            for one, until in list(self._until.items()):
                if until <= now:
                    del self._until[one]
                    self.known.pop(one, None)
            if new and self._on_new is not None:
                self._on_new(list(new.values()))
            self._mark = found.mark
        self._read_at = began
