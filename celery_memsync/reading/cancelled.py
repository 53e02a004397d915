"""The cancelled ids, as this process knows them."""
from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any
from uuid import UUID

from ..background_loop import BackgroundLoop, Wakeup
from ..deadline import remaining
from ..models.cancellation import Cancellation
from ..store import Store
from ..store.cancelled import Mark
from .listener import ChangeListener

#: Seconds between two reads while a task of this process wants to know whether it is cancelled.
POLL_INTERVAL = 0.5

#: Seconds after which a process that follows changes was paused, if the thread that reads has not run meanwhile.
PAUSE = 1.0

#: Seconds until such a process waits again for a Redis that has not answered.
PATIENCE = 60.0

#: Seconds for which what a task knows is fresh enough.
FRESH = 0.5

#: Most seconds that a task waits for an answer of Redis.
FIRST_TIMEOUT = 1.0


class Watch:
    """Stands for a task that wants to know whether it is cancelled, as long as an object refers to it.

    Attributes:
        ids: What is read for it.
    """

    def __init__(self, ids: CancelledIds) -> None:
        self.ids = ids


class CancelledIds:
    """Which ids are cancelled, so that no caller needs a round trip to find that out.

    The main process of a worker follows all changes.  Any other process reads the set while there is a :class:`Watch`, so
    it needs neither a thread nor a connection before.  What was read once stays known until it expires, also if Redis
    loses it.

    Attributes:
        known: Cancelled ids; empty as long as nothing is cancelled.
        watchers: Names of tasks that have wanted to know it: the next ones want to, too.
        stale_at: Monotonic time at which a process that follows changes has been paused if that was not put off.
    """

    def __init__(self, store: Store, link: ChangeListener) -> None:
        self.store = store
        self.link = link
        self.known: dict[str, Cancellation] = {}
        self.watchers: set[str] = set()
        self.stale_at = float("inf")
        #: Until when each id that was read is kept, in seconds of Redis's clock.
        self._until: dict[str, float] = {}
        self._on_new: Callable[[Sequence[Cancellation]], object] | None = None
        self._mark: Mark | None = None
        self._read_at = float("-inf")
        #: Whether Redis has not answered the last time; is to be read, of a process that follows changes.
        self._is_away = self._is_wanted = False
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._waiting: list[Wakeup] = []
        self._thread = BackgroundLoop("memsync-cancelled", self._look, POLL_INTERVAL, on_demand=True)

    def find(self, ids: Iterable[Any]) -> Cancellation | None:
        """Return why a task with these ids is cancelled, or None if it is not."""
        return next(self.find_all(ids), None) if self.known else None

    def find_all(self, ids: Iterable[Any]) -> Iterator[Cancellation]:
        """Yield what is known of those of these ids that are cancelled."""
        for one in ids:
            if isinstance(one, (str, UUID)) and (found := self.known.get(str(one))) is not None:
                yield found

    def note(self, cancelled: Cancellation) -> None:
        """Take what a task of this process, or a worker, has cancelled; a later read finds out when that is forgotten."""
        if cancelled.task_id is not None or self._on_new is not None:
            self.known.setdefault(cancelled.id, cancelled)
            self._read_now()

    def follow(self, on_new: Callable[[Sequence[Cancellation]], object]) -> None:
        """Read the set, and follow all changes of it from now on.

        Args:
            on_new: Called with ids that are cancelled, in the thread that reads them.

        Raises:
            StoreError: If Redis is away; it is read when Redis is back.
        """
        self._on_new = on_new
        self.link.subscribe_to(self.store.cancelled_path)
        self.request()
        self.read()

    def watch(self) -> Watch:
        """Return what lets changes be known here within a second, as long as it is kept."""
        watch = Watch(self)
        self._watches.add(watch)
        if self._on_new is None:
            self._thread.wake()
        return watch

    def wait_fresh(self, since: float = float("-inf")) -> None:
        """Return when all is known that was cancelled half a second ago, or Redis does not answer.

        It waits once: if Redis is away, the next task does not.

        Args:
            since: Monotonic time when the caller was not cancelled, for its worker would not have let it begin.
        """
        began = time.monotonic()
        if self._on_new is not None or self._is_away or began <= max(self._read_at, since) + FRESH:
            return
        self._wait(began)

    def catch_up(self) -> None:
        """Wait for an answer of Redis if this process, which follows changes, was paused: it may have missed some.

        Its main thread may go on sooner than the one that reads.  While Redis is away it waits once a minute at most.
        """
        now = time.monotonic()
        if now > self.stale_at:
            self.stale_at = now + PATIENCE
            # What was read when it was paused has failed by now, for its time was over.
            for _ in range(2):
                if self._read_at < now and time.monotonic() < now + FIRST_TIMEOUT / 2:
                    self._wait(now)

    def _wait(self, began: float) -> None:
        bell = Wakeup()
        self._waiting.append(bell)
        self._read_now()
        timeout = min(FIRST_TIMEOUT, remaining())
        bell.wait(timeout)
        self._is_away = self._is_away or time.monotonic() >= began + timeout

    def _read_now(self) -> None:
        self._is_wanted = True
        self._thread.call_now()

    def request(self) -> None:
        """Read soon, and try again until Redis answers."""
        self._is_wanted = True
        self._thread.wake()

    def stop(self, timeout: float) -> None:
        """Read no more."""
        self._thread.stop(timeout)

    # -- what the listener receives

    def on_message(self, path: str) -> None:
        """Note that something was published under a path."""
        if self._on_new is not None and path == self.store.cancelled_path:
            self._read_now()

    def on_up(self, patterns: Sequence[str]) -> None:
        """Note that changes of what matches these patterns are received from now on."""
        if self._on_new is not None and self.store.cancelled_path in patterns:
            self._read_now()

    # -- the thread

    def _look(self) -> float | None:
        follows = self._on_new is not None
        if not follows or self._is_wanted or self._waiting or time.monotonic() > self.stale_at:
            self._look_at_redis()
        if follows:
            self.stale_at = time.monotonic() + PAUSE
        return 0.0 if self._watches or follows else None

    def _look_at_redis(self) -> None:
        self._is_wanted = False
        try:
            self.read()
        except BaseException:
            self._is_away = self._is_wanted = True
            raise
        finally:
            while self._waiting:
                self._waiting.pop().set()

    def read(self) -> None:
        """Read what was cancelled since the last read.

        Raises:
            StoreError: If Redis is away.
        """
        began = time.monotonic()
        found = self.store.read_cancelled(self._mark)
        if found is not None:
            new = self._take(found.rows)
            if new and self._on_new is not None:
                self._on_new(new)
            if found.is_all and self._on_new is not None:
                self._restore({one.id for one, _ in found.rows})
            self._mark = found.mark
        self._forget()
        self._read_at, self._is_away = began, False

    def _take(self, rows: Sequence[tuple[Cancellation, float]]) -> list[Cancellation]:
        """Take what was read; return what is new, or is to be terminated now."""
        new = []
        for one, until in rows:
            before = self._until.pop(one.id, None)
            if before is None or one.terminate and before != until:
                new.append(one)
                self.known[one.id] = one
            self._until[one.id] = until
        return new

    def _restore(self, there: Set[str]) -> None:
        """Cancel again what Redis has lost: a worker that starts now is to find it."""
        self.store.restore_cancelled([self.known[one] for one in self._until if one not in there and one in self.known])

    def _forget(self) -> None:
        """Forget what has expired; it is in the order in which that happens."""
        now = self.store.clock.now()
        while self._until:
            one, until = next(iter(self._until.items()))
            if until > now:
                return
            del self._until[one]
            self.known.pop(one, None)
