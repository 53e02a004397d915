"""What other threads have for an event loop."""
from __future__ import annotations

import asyncio
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable


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


_inboxes: weakref.WeakKeyDictionary[AbstractEventLoop, Inbox] = weakref.WeakKeyDictionary()


def inbox_of(loop: AbstractEventLoop) -> Inbox:
    """Return the inbox of an event loop."""
    return _inboxes.get(loop) or _inboxes.setdefault(loop, Inbox(loop))


class LoopWakeup:
    """Wakes one coroutine that waits for it, from any thread."""

    def __init__(self) -> None:
        self.loop = running_loop()
        self._inbox = inbox_of(self.loop)
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the coroutine that waits, or that waits next."""
        if not self._is_set:
            self._is_set = True
            self._inbox.call(self._wake)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Return when it is set, or after ``seconds``."""
        if not self._is_set and seconds > 0:
            future = self._waiting = self.loop.create_future()
            timer = None if seconds == float("inf") else self.loop.call_later(seconds, self._wake)
            try:
                await future
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        self._is_set = False
