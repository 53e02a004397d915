"""The lock that a user takes."""
from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..exceptions import LockLost, LockNotAcquired, StoreError
from .lease import LockLease
from .lock_service import LockService


class Acquisition:
    """One acquisition through a :class:`Lock`, from its grant to its release.

    Its lease is renewed as long as this object exists.  After ``acquire`` the thread keeps it, or
    the Lock object; that of a block is kept by the ``with`` statement and by nothing else.  So a
    lock that no call can release any more is released by the service's thread, however its owner
    has ended.
    """

    __slots__ = ("service", "lease", "released", "__weakref__")

    def __init__(self, service: LockService, lease: LockLease) -> None:
        self.service = service
        self.lease = lease
        self.released = False

    def claim(self) -> None:
        """Have the lease renewed from now on; the last step, because an exception may end any before."""
        self.lease.claim = weakref.ref(self)

    def release(self) -> bool:
        """Release the lock; return whether it was held until now."""
        self.released = True
        # By the service that has acquired it: the one that is open now may be another, which knows nothing of it.
        return self.lease.pid == os.getpid() and self.service.release(self.lease)


class Block:
    """What a ``with`` statement calls at its end, and keeps until then.

    Attributes:
        taken: What it has acquired, or None before that.
    """

    __slots__ = ("lock", "taken", "__weakref__")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.taken: Acquisition | None = None

    def __call__(self, *exc_info: object) -> None:
        self.lock._leave(self.taken)


class BlockMaker:
    """The ``__exit__`` of a lock: a new :class:`Block` each time.

    Python looks it up before it calls ``__enter__``, and keeps what it finds as long as the block
    runs.  A method would not do: an exception may strike before its first bytecode.
    """

    def __get__(self, lock: Lock | None, owner: type[Lock]) -> Callable[..., None]:
        if lock is None:
            return lambda lock, *exc_info: lock._leave(None)  # contextlib.ExitStack calls it with the lock
        block = Block(lock)
        lock._mine.entering = weakref.ref(block)
        return block


class Held:
    """What a lock object knows of an acquisition without a call to Redis."""

    name: str

    def _current(self) -> Acquisition | None:
        """Return the acquisition that a call is about."""
        raise NotImplementedError

    def _last_fence(self) -> int:
        """Return the fence of the last acquisition, 0 if there was none."""
        raise NotImplementedError

    @property
    def owned(self) -> bool:
        """Whether it is held now; no round trip, and once it is False it stays so, until it is acquired again."""
        taken = self._current()
        return taken is not None and taken.lease.owned

    @property
    def fence(self) -> int:
        """The number of this acquisition, which is higher than those of all before; of the last one if it is not held.

        0: it was never held.
        """
        taken = self._current()
        return self._last_fence() if taken is None else taken.lease.fence

    def check(self) -> None:
        """Go on only if it is held; no round trip.

        Raises:
            LockLost: If it is not held any more.
        """
        if not self.owned:
            raise LockLost(self.name)


class Lock(Held):
    """A named lock, shared by all processes of a namespace.

    It is not re-entrant: a caller that holds it and acquires it again is refused,
    or waits, like any other.  Waiters get it in the order in which they came.
    While it is held a thread renews its lease.  If Redis is away until the lease
    has run out, or this process was paused for so long, or it is held for longer
    than ``max_hold``, the lock is lost: ``owned`` is False, :meth:`check` raises,
    and the event ``lock-lost`` is emitted.

    All methods are about one acquisition: the last ``acquire`` of the calling thread
    (or greenlet), or else that of its ``with`` block.  A thread that has none speaks
    of the last acquisition of any thread if ``thread_local`` is False, and of none
    otherwise.  A lock whose object is collected, whose thread ends, or whose block
    is left without its end, is released at its next renewal.

    A thread has one block of a Lock object at a time.  While it is in one whose lock
    was lost it acquires it not again, but raises :exc:`LockLost`, for all in that
    block would take the new acquisition for its own.  Generators and coroutines of one
    thread share what the thread has acquired, as with redis-py: give each its own
    Lock object.

    A lock that is acquired in the body of a task is released at the end of the
    task at the latest.  A forked child has none of its parent's.

    Usage::

        with memsync.lock("account:42", wait=5) as lock:
            memsync.write("accounts/42", balance, fence=lock)
    """

    def __init__(
        self, name: str, ttl: float, wait: float, find: Callable[[], LockService],
        max_hold: float = float("inf"), thread_local: bool = True,
    ) -> None:
        self.name = name
        self.ttl = ttl
        self.wait = wait
        self.max_hold = max_hold
        #: Seconds to wait at least if an earlier run of the same task holds it; infinity: until that renews its lease, or
        #: is dead.
        self.own_wait: float = 0.0
        self._find = find
        #: Of the calling thread: ``taken`` by acquire() and not released; ``block``, a weak reference
        #: to the one it is in; ``entering``, one to the next; the last ``fence``.
        self._mine: Any = threading.local()
        #: Of all threads: ``latest``, a weak reference to the last acquisition, unless it was released;
        #: ``taken`` by acquire(), which outlives its thread; the last ``fence``.
        self._shared: Any = None if thread_local else SimpleNamespace(latest=None, taken=None, fence=0)

    def acquire(self) -> bool:
        """Acquire it; return whether that was possible within the time to wait.

        Raises:
            LockLost: In a block of this thread that has lost it.
            StoreError: If Redis is away.
        """
        try:
            self._keep(self._acquire())
        except LockNotAcquired:
            return False
        return True

    def _acquire(self) -> Acquisition:
        service = self._find()
        taken = Acquisition(
            service, service.acquire(self.name, self.ttl, self.wait, service.owner(), self.max_hold, self.own_wait))
        block = self._block()
        if block is not None and block.taken is not None and not block.taken.released:
            taken.release()
            raise LockLost(self.name)
        # What this thread has had before is lost, or it would have been refused.
        self._mine.taken = None
        if self._shared is None:
            self._mine.fence = taken.lease.fence
        else:
            self._shared.latest, self._shared.fence = weakref.ref(taken), taken.lease.fence
        return taken

    def _keep(self, taken: Acquisition) -> None:
        """Keep an acquisition until it is released, or the thread ends if that alone may release it."""
        self._mine.taken = taken
        if self._shared is not None:
            self._shared.taken = taken
        taken.claim()

    def _block(self) -> Block | None:
        """Return the block in which the calling thread is, or None if it is in none."""
        find = getattr(self._mine, "block", None)
        return None if find is None else find()

    def release(self) -> bool:
        """Release it; return whether it was still held.

        After a shutdown of the manager, which has released it, and in a forked child this does nothing.

        Raises:
            StoreError: If Redis is away: then it is tried again, until the lease ends.
        """
        taken = self._current()
        self._mine.taken = None
        return taken is not None and self._release(taken)

    def _release(self, taken: Acquisition) -> bool:
        shared = self._shared
        if shared is not None and shared.latest is not None and shared.latest() is taken:
            shared.latest = shared.taken = None
        return taken.release()

    def extend(self, ttl: float) -> None:
        """Let the lease end ``ttl`` seconds from now, and renew it for as long from then on; it does not get shorter.

        Nor does it last beyond ``max_hold``.

        Raises:
            LockLost: If it is not held any more.
            StoreError: If Redis is away.
        """
        taken = self._current()
        if taken is None:
            raise LockLost(self.name)
        taken.service.extend(taken.lease, ttl)

    def _last_fence(self) -> int:
        fence: int = getattr(self._mine if self._shared is None else self._shared, "fence", 0)
        return fence

    def _current(self) -> Acquisition | None:
        taken: Acquisition | None = getattr(self._mine, "taken", None)
        if taken is None and (block := self._block()) is not None:
            taken = block.taken
        if taken is None and self._shared is not None and self._shared.latest is not None:
            taken = self._shared.latest()
        return taken

    def __enter__(self) -> Lock:
        mine = self._mine
        find, mine.entering = getattr(mine, "entering", None), None
        block: Block | None = None if find is None else find()
        taken = self._acquire()
        if block is None:
            self._keep(taken)  # called by hand, and not by a ``with`` statement
        else:
            block.taken = taken
            mine.block = weakref.ref(block)
            taken.claim()
        return self

    __exit__: BlockMaker = BlockMaker()

    def _leave(self, taken: Acquisition | None) -> None:
        """Release what a block has acquired, or what this thread has if that is None."""
        try:
            self.release() if taken is None else self._release(taken)
        except StoreError:
            # What was done under it is done.  The thread tries again until the lease has ended, and logs that.
            pass

    def __repr__(self) -> str:
        return f"<Lock {self.name}{' (held)' if self.owned else ''}>"
