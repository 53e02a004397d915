"""The index updates of a cluster that are not applied yet."""
from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, islice
from math import ceil

from ..background_loop import BackgroundLoop, Wakeup
from ..deadline import remaining
from ..exceptions import StoreError, StoreUnavailable

logger = logging.getLogger(__name__)

#: Most updates in one call.
UPDATES_PER_CALL = 500

#: Least seconds between two calls of a process, unless a caller waits: what a busy process writes meanwhile is one call.
#: A call for each of its batches would be on the path of every write, and all of them go to one node.
CALL_INTERVAL = 2.0

#: Most updates, and most bytes of them, that are kept while the node of the indexes is away.
MAX_UPDATES, MAX_BYTES = 100_000, 16 * 2 ** 20


class PackedUpdate(bytes):
    """Index updates as ``store/lua/entry_write.lua`` returns them.

    Attributes:
        keys: Of the sets of groups and workflows, and records of statistics, that are in them.
    """

    keys: tuple[str, ...] = ()


#: Index updates as ``store/lua/entry_write.lua`` returns them, or the path of a lock and when its lease ends (ms).
IndexUpdate = bytes | tuple[str, int]


class _Waiter:
    """A caller that waits until its updates are applied.

    Attributes:
        error: Why they are not.
        is_answered: Whether it is known what became of them.
    """

    def __init__(self) -> None:
        self.error: StoreError | None = None
        self.is_answered = False
        self._done = Wakeup()

    def answer(self, error: StoreError | None) -> None:
        """Let the caller go on."""
        self.error, self.is_answered = error, True
        self._done.set()

    def wait(self, seconds: float) -> None:
        """Return when there is an answer, or after some seconds."""
        end = time.monotonic() + seconds
        while not self.is_answered and (left := end - time.monotonic()) > 0:
            self._done.wait(left)


class IndexQueue:
    """Sends index updates to the node of the indexes, in their order; no write waits for that.

    Those that are not urgent, and come within `CALL_INTERVAL` of the call
    before, are gathered.  A call that got no answer is sent again under the
    same number, until there is one.  No method takes a lock.

    Args:
        send: Sends updates under a number; a second try has the same.
    """

    def __init__(self, send: Callable[[int, Sequence[IndexUpdate]], object]) -> None:
        self._send = send
        self._updates: deque[IndexUpdate] = deque()
        self._size = 0
        #: What is being sent, and under which number.
        self._under_way: list[IndexUpdate] = []
        self._serial = 0
        self._serials = count(1)
        self._waiters: deque[_Waiter] = deque()
        self._dropped = 0
        #: Monotonic time before which nothing is sent unless a caller waits.
        self._next_at = 0.0
        self._thread = BackgroundLoop("memsync-indexes", self._send_all, 0, on_demand=True)

    def add(self, update: IndexUpdate, urgent: bool = False) -> None:
        """Take an update; it is sent within `CALL_INTERVAL`, with all before it.

        Args:
            urgent: Whether it is sent at once.
        """
        self._updates.append(update)
        self._size += _size_of(update)
        while len(self._updates) > MAX_UPDATES or self._size > MAX_BYTES:
            self._dropped += self._remove_first()
        self._thread.interval = max(0.0, self._next_at - time.monotonic())
        if urgent:
            self._thread.run_now()
        self._thread.wake()

    def wait(self) -> None:
        """Return when all that was taken before is applied.

        Raises:
            StoreUnavailable: If the node of the indexes is away; nothing is lost.
        """
        if not self._updates and not self._under_way:
            return
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._thread.call_now()
        if not self._thread.running:  # the interpreter is shutting down, or this was closed
            self._send_all()
        waiter.wait(remaining())
        if waiter.error is not None or not waiter.is_answered:
            raise StoreUnavailable(
                f"Written, but missing in lists and counters ({waiter.error or 'their node did not answer in time'})", True)

    def close(self) -> None:
        """Send no more."""
        self._thread.stop(0)

    def _send_all(self) -> None:
        """Send what there is, and let those go on that wait for it."""
        self._next_at = time.monotonic() + CALL_INTERVAL
        waiters = [self._waiters.popleft() for _ in range(len(self._waiters))]
        error: StoreError | None = None
        try:
            # What is under way first, then all that is there by now; what comes meanwhile is gathered.
            for _ in range(bool(self._under_way) + ceil(len(self._updates) / UPDATES_PER_CALL)):
                self._send_some()
        except StoreError as exc:
            error = exc
            raise
        finally:
            for waiter in waiters:
                waiter.answer(error)
        if self._updates:
            self._thread.wake()

    def _send_some(self) -> None:
        self._report_dropped()
        if not self._under_way:
            self._under_way = list(islice(self._updates, UPDATES_PER_CALL))
            self._serial = next(self._serials)
            for _ in self._under_way:
                self._remove_first()
        if self._under_way:
            self._send(self._serial, self._under_way)
            self._under_way = []

    def _remove_first(self) -> bool:
        """Remove the oldest update; return whether there was one, for other threads remove some, too."""
        try:
            self._size -= _size_of(self._updates.popleft())
        except IndexError:
            self._size = 0
            return False
        return True

    def _report_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("Dropped %d index updates: too many were pending for the node of the indexes", dropped)


def _size_of(update: IndexUpdate) -> int:
    return len(update) if isinstance(update, bytes) else len(update[0])
