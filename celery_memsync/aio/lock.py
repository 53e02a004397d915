"""The lock that coroutines take."""
from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable

from ..exceptions import LockLost, LockNotAcquired, StoreError
from ..locking.lease import LockLease
from ..locking.lock import Acquisition, Held, Lock
from ..locking.lock_service import LockService
from .calls import Call, take_steps
from .executor import Executor


class AsyncLock(Held):
    """A lock as :class:`Lock` is one, for coroutines; those that wait for it take no thread.

    All methods are about one acquisition: the last one of the running asyncio task, or if that has made none, the
    latest of this object; so tasks that are started in a block speak of the lock of that block.  A lock whose object is
    collected is released at its next renewal; so is what a cancelled coroutine has acquired, at once.

    Usage::

        async with aio.lock("account:42", wait=5) as lock:
            aio.write("accounts/42", balance, fence=lock)

    Args:
        lock: Has the arguments.
        find: Returns the service that acquires it.
    """

    def __init__(self, lock: Lock, executor: Executor, find: Callable[[], LockService]) -> None:
        self.name = lock.name
        self._lock = lock
        self._executor = executor
        self._find = find
        #: By task: its acquisition, and that of the block in which it is.
        self._taken: weakref.WeakKeyDictionary[object, Acquisition] = weakref.WeakKeyDictionary()
        self._blocks: weakref.WeakKeyDictionary[object, Acquisition] = weakref.WeakKeyDictionary()
        self._latest: Acquisition | None = None
        self._fence = 0

    async def acquire(self) -> bool:
        """Acquire it; return whether that was possible within the time to wait.

        Raises:
            LockLost: In a block of this task that has lost it.
            StoreError: If Redis is away.
        """
        try:
            await self._acquire()
        except LockNotAcquired:
            return False
        return True

    async def _acquire(self) -> Acquisition:
        service, lock = self._find(), self._lock
        steps = service.acquisition(self.name, lock.ttl, lock.wait, service.owner(), lock.max_hold)
        lease = await take_steps(self._executor, service.store.timeout + lock.wait, steps, service.give_up)
        taken = Acquisition(service, lease)
        block = self._blocks.get(_task())
        if block is not None and not block.released:
            service.give_up(lease)
            raise LockLost(self.name)
        self._taken[_task()] = self._latest = taken
        self._fence = lease.fence
        taken.claim()
        return taken

    async def release(self) -> bool:
        """Release it; return whether it was still held.

        A coroutine that is cancelled meanwhile has released it all the same.

        Raises:
            StoreError: If Redis is away: then it is tried again, until the lease ends.
        """
        taken = self._current()
        return taken is not None and await self._release(taken)

    async def _release(self, taken: Acquisition) -> bool:
        for known in (self._taken, self._blocks):
            if known.get(_task()) is taken:
                del known[_task()]
        if self._latest is taken:
            self._latest = None
        return await release(self._executor, taken.service, taken.lease, taken.release)

    async def extend(self, ttl: float) -> None:
        """Let the lease end ``ttl`` seconds from now, as :meth:`Lock.extend`.

        Raises:
            LockLost: If it is not held any more.
            StoreError: If Redis is away.
        """
        taken = self._current()
        if taken is None:
            raise LockLost(self.name)
        service, lease = taken.service, taken.lease
        await Call(self._executor, service.store.timeout, lambda: service.extend(lease, ttl)).answer()

    def _current(self) -> Acquisition | None:
        return self._taken.get(_task(), self._latest)

    def _last_fence(self) -> int:
        return self._fence

    async def __aenter__(self) -> AsyncLock:
        self._blocks[_task()] = await self._acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        taken = self._blocks.get(_task(), self._latest)  # another task may leave the block, such as that of a fixture
        if taken is not None:
            with contextlib.suppress(StoreError):
                # What was done under it is done.  The thread tries again until the lease has ended, and logs that.
                await self._release(taken)

    def __repr__(self) -> str:
        return f"<AsyncLock {self.name}{' (held)' if self._latest is not None and self._latest.lease.owned else ''}>"


async def release(executor: Executor, service: LockService, lease: LockLease, function: Callable[[], bool]) -> bool:
    """Release a lock by a call; the service's thread does it if that is cancelled, or no thread is free in time."""
    try:
        return await Call(executor, service.store.timeout, function).answer()
    except BaseException:
        if lease.owned:
            service.give_up(lease)
        raise


def _task() -> object:
    """Return the running asyncio task, or what stands for none."""
    try:
        return asyncio.current_task() or _task
    except RuntimeError:  # there is no event loop in this thread
        return _task
