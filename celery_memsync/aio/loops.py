"""What other threads have for an event loop."""
from __future__ import annotations

import asyncio
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Longest that a coroutine waits before it looks again, in seconds; timers of loops take no infinity.
LONGEST_WAIT = 3600.0


def running_loop() -> AbstractEventLoop:
    """Return the event loop that runs in this thread.

    Raises:
        RuntimeError: If there is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "AsyncMemSync needs a running event loop of asyncio (also uvloop's, or anyio's on asyncio), and there is none "
            "in this thread; trio is not supported; without an event loop call the MemorySyncManager itself") from None


class PerLoop(Generic[T]):
    """One object for each event loop, as long as it is in use.

    It keeps neither alive: what is pending in a loop that was closed refers to both, and is collected with them.

    Args:
        make: Returns the object of a loop.
    """

    def __init__(self, make: Callable[[AbstractEventLoop], T]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[AbstractEventLoop, weakref.ref[T]] = weakref.WeakKeyDictionary()

    def of(self, loop: AbstractEventLoop) -> T:
        """Return that of the running loop."""
        find = self._made.get(loop)
        one = None if find is None else find()
        if one is None:
            one = self._make(loop)
            self._made[loop] = weakref.ref(one)
        return one


class Inbox:
    """What other threads have for one event loop: however much that is, they wake it once."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._calls: deque[Callable[[], object]] = deque()
        self._is_woken = False

    def call(self, function: Callable[[], object]) -> bool:
        """Have the loop call something that does not raise; return False if it is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._calls.append(function)
        if not self._is_woken:
            self._is_woken = True
            try:
                loop.call_soon_threadsafe(self._run)
            except RuntimeError:  # it was closed just now
                return False
        return True

    def _run(self) -> None:
        self._is_woken = False  # what comes from now on wakes it again
        for _ in range(len(self._calls)):
            self._calls.popleft()()


_inboxes = PerLoop(Inbox)

#: Returns the inbox of the running event loop.
inbox_of = _inboxes.of


class LoopWakeup:
    """Wakes one coroutine that waits for it, from any thread.

    It does not keep that coroutine alive, but the timers of the loop do: what waits in a loop that was closed is collected.
    """

    def __init__(self) -> None:
        self.loop = running_loop()
        self._inbox = inbox_of(self.loop)
        self._is_set = False
        self._find_waiting: Callable[[], asyncio.Future[None] | None] = _none

    def set(self) -> None:
        """Wake the coroutine that waits, or that waits next."""
        if not self._is_set:
            self._is_set = True
            self._inbox.call(self._wake)

    def _wake(self) -> None:
        waiting = self._find_waiting()
        if waiting is not None:
            _end(waiting)

    async def wait(self, seconds: float) -> None:
        """Return when it is set, or after ``seconds``, or an hour.

        Raises:
            RuntimeError: If another coroutine waits for it.
        """
        waiting = self._find_waiting()
        if waiting is not None and not waiting.done():
            raise RuntimeError("another coroutine waits for the next change already; give each a watch of its own")
        if not self._is_set and seconds > 0:
            future: asyncio.Future[None] = self.loop.create_future()
            self._find_waiting = weakref.ref(future)
            timer = self.loop.call_later(min(seconds, LONGEST_WAIT), _end, future)
            try:
                await future
            finally:
                timer.cancel()
        self._is_set = False


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _none() -> None:
    """Stand for a reference to nothing."""
