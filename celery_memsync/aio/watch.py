"""Changes of keys as an asynchronous iterator, and the end of a task."""
from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, cast

from ..closing import closer
from ..exceptions import StoreUnavailable
from ..models.order import ends_at
from ..reading.cache import copier
from ..reading.feeds import Feed, Feeds
from ..reading.subscription import KeyChange
from ..reading.subscriptions import CONFIRM_TIMEOUT
from ..runtime import Runtime
from ..types import TaskState
from .loops import LoopWakeup


class Changes:
    """The newest change of each key that one coroutine has not taken yet; any thread puts them in."""

    def __init__(self) -> None:
        self._wakeup = LoopWakeup()
        #: Each use is one step of C's, so it needs no mutex.
        self._changes: OrderedDict[str, KeyChange] = OrderedDict()

    def put(self, change: KeyChange) -> None:
        """Take a change, in place of an earlier one of its key."""
        self._changes[change.key] = change
        self._wakeup.set()

    def begin_with(self, changes: Iterable[KeyChange]) -> None:
        """Take changes of which newer ones may have come; the coroutine itself does that before it takes any."""
        for change in changes:
            self._changes.setdefault(change.key, change)

    def ring(self) -> None:
        """Have the coroutine look."""
        self._wakeup.set()

    def take(self) -> KeyChange | None:
        """Return the change of the key that waits longest, with a value of its own; None if there is none."""
        try:
            _, change = self._changes.popitem(last=False)
        except KeyError:
            return None
        if change.entry is None:
            return change
        value = copier(change.value)()
        return KeyChange(change.key, value, change.entry.evolve(value))

    async def wait_until(self, is_true: Callable[[], object], timeout: float | None) -> bool:
        """Return True as soon as something is true, which is looked at with each ring, False after ``timeout`` seconds."""
        loop = self._wakeup.loop
        end = float("inf") if timeout is None else loop.time() + timeout
        while not is_true():
            left = end - loop.time()
            if left <= 0:
                return False
            await self._wakeup.wait(left)
        return True

    def __len__(self) -> int:
        return len(self._changes)


class AsyncWatch:
    """An asynchronous iterator over changes, and a context manager that ends it.

    Usage::

        async with aio.watch("tasks/*/progress", timeout=60) as changes:
            async for change in changes:
                print(change.key, change.value)

    It receives changes from the moment it is entered, or first iterated.  Of each key the newest value is yielded: values
    in between may be left out if the loop is slow.  The loop ends when nothing has changed for ``timeout`` seconds, after
    :meth:`close`, or at a shutdown.  A coroutine that is cancelled while it waits misses nothing: it may go on.  A watch
    that is collected is closed by a thread.

    Args:
        find: Returns the feeds of the process, opened if need be.
        owner: Kept alive as long as this.
    """

    def __init__(self, find: Callable[[], Awaitable[Feeds]], pattern: str, timeout: float | None, owner: object) -> None:
        self.timeout = timeout
        self._find = find
        self._pattern = pattern
        self._owner = owner
        self._changes = Changes()
        self._feed: Feed | None = None
        self._is_closed = False
        self._closer_number = 0
        self._end: Callable[[], None] = _nothing

    async def get(self, timeout: float | None = None) -> KeyChange | None:
        """Return the next change.

        Args:
            timeout: Seconds to wait for it.  None: no limit.

        Returns:
            The change; None if there was none in time, or this is closed.
        """
        await self._begin()
        await self._changes.wait_until(lambda: self._changes or self._has_ended, timeout)
        return None if self._is_closed else self._changes.take()

    def close(self) -> None:
        """Stop watching."""
        self._is_closed = True
        closer.remove(self._closer_number)
        self._end()
        self._changes.ring()

    @property
    def _has_ended(self) -> bool:
        return self._is_closed or self._feed is not None and self._feed.has_ended

    async def _begin(self) -> None:
        """Return when all is received that changes from now on."""
        feeds = await self._find() if self._feed is None else None
        if feeds is None or self._feed is not None or self._is_closed:
            return
        feed = self._feed = feeds.follow(self._pattern, self._changes)
        self._end = partial(feeds.leave, feed, self._changes)
        self._closer_number = closer.add(self, self._end)
        if not await self._changes.wait_until(lambda: feed.is_found or self._has_ended, CONFIRM_TIMEOUT):
            feeds.deliver_all_if_down(feed)

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> KeyChange:
        change = await self.get(self.timeout)
        if change is None:
            raise StopAsyncIteration
        return change

    async def __aenter__(self) -> AsyncWatch:
        try:
            await self._begin()
        except BaseException:  # nothing calls the end of a block that was not entered
            self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()


async def wait_for_end(runtime: Runtime, task_id: str, timeout: float | None) -> TaskState:
    """Return the state of a task when it has ended.

    Raises:
        TimeoutError: If it has not within ``timeout`` seconds.
        StoreUnavailable: At a shutdown.
    """
    changes, clock = Changes(), runtime.store.clock
    end = float("inf") if timeout is None else time.monotonic() + timeout
    state: Any = None
    feed = runtime.feeds.follow(f"tasks/{task_id}/state", changes, with_present=True)
    changes.begin_with(feed.present)
    try:
        while (ends := ends_at(state) if isinstance(state, dict) else float("inf")) > clock.now():
            left = end - time.monotonic()
            if left <= 0:
                unknown = "nothing is recorded of it" if feed.is_found else "Redis has not answered"
                known = f"its status is {state.get('status')}" if isinstance(state, dict) else unknown
                raise TimeoutError(f"the task {task_id} has not ended within {timeout:g} s; {known}")
            await changes.wait_until(lambda: changes or feed.has_ended, min(left, ends - clock.now()))
            while (change := changes.take()) is not None:
                state = change.value
            if feed.has_ended:
                raise StoreUnavailable(f"Waiting for the task {task_id} was given up: this manager was shut down")
    finally:
        runtime.feeds.leave(feed, changes)
    return cast("TaskState", state)


def _nothing() -> None:
    """Stand for the end of what has not begun."""
