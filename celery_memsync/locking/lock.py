"""The lock that a user takes."""
from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any, Callable

from ..exceptions import LockLost, LockNotAcquired, StoreError
from .lock_service import LockLease, LockService, Owner


class Acquisition:
    """One acquisition through a :class:`Lock`, from its grant to its release.

    Only the Lock object refers to it.  So it is collected with that, or with the thread that has acquired the lock and
    ended: then the lock can't be released by any call any more, and the service's thread releases it.
    """

    __slots__ = ("service", "lease")

    def __init__(self, service: LockService, lease: LockLease) -> None:
        self.service = service
        self.lease = lease
        lease.is_claimed = True

    def __del__(self) -> None:
        # Runs in any thread at any bytecode: one step, which takes no lock and sends nothing.
        if self.lease.state == "held":
            self.service.forgotten.append(self.lease)

    def release(self) -> bool:
        """Release the lock; return whether it was held until now."""
        # By the service that has acquired it: the one that is open now may be another, which knows nothing of it.
        return self.lease.pid == os.getpid() and self.service.release(self.lease)


class Lock:
    """A named lock, shared by all processes of a namespace.

    It is not re-entrant: a caller that holds it and acquires it again is refused,
    or waits, like any other.  Waiters get it in the order in which they came.
    While it is held a thread renews its lease.  If Redis is away until the lease
    has run out, or this process was paused for so long, or it is held for longer
    than ``max_hold``, the lock is lost: ``owned`` is False, :meth:`check` raises,
    and the event ``lock-lost`` is emitted.

    All methods are about one acquisition: that of the ``with`` block, or else the
    last one of the calling thread (or greenlet).  A thread that has none speaks of
    the last acquisition of any thread if ``thread_local`` is False, and of none
    otherwise.  A lock whose object is collected, or whose thread ends, while it is
    held is released at its next renewal.

    A lock that is acquired in the body of a task is released at the end of the
    task at the latest.  A forked child has none of its parent's.

    Usage::

        with memsync.lock("account:42", wait=5) as lock:
            memsync.write("accounts/42", balance, fence=lock)
    """

    def __init__(
        self, name: str, ttl: float, wait: float, find: Callable[[], tuple[LockService, Owner]],
        max_hold: float = float("inf"), thread_local: bool = True,
    ) -> None:
        self.name = name
        self.ttl = ttl
        self.wait = wait
        self.max_hold = max_hold
        #: Seconds to wait at least if an earlier run of the same task holds it; infinity: until that renews its lease, or
        #: is dead.
        self.own_wait = 0.0
        self._find = find
        #: Of the calling thread: ``taken`` by acquire() and not released, those of its ``blocks``, the last ``fence``.
        self._mine: Any = threading.local()
        #: Of all threads: the ``latest`` acquisition, unless it was released, and the last ``fence``.
        self._shared: Any = None if thread_local else SimpleNamespace(latest=None, fence=0)

    def acquire(self) -> bool:
        """Acquire it; return whether that was possible within the time to wait.

        Raises:
            StoreError: If Redis is away.
        """
        try:
            self._mine.taken = self._acquire()
        except LockNotAcquired:
            return False
        return True

    def _acquire(self) -> Acquisition:
        service, owner = self._find()
        lease = service.acquire(self.name, self.ttl, self.wait, owner, self.max_hold, self.own_wait)
        taken = Acquisition(service, lease)
        # What this thread has had before is lost, or it would have been refused.
        self._mine.taken = None
        if self._shared is None:
            self._mine.fence = lease.fence
        else:
            self._shared.latest, self._shared.fence = taken, lease.fence
        return taken

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
        if self._shared is not None and self._shared.latest is taken:
            self._shared.latest = None
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
        if taken is not None:
            return taken.lease.fence
        return getattr(self._mine if self._shared is None else self._shared, "fence", 0)

    def check(self) -> None:
        """Go on only if it is held; no round trip.

        Raises:
            LockLost: If it is not held any more.
        """
        if not self.owned:
            raise LockLost(self.name)

    def _current(self) -> Acquisition | None:
        """Return the acquisition that a call of this thread is about."""
        mine = self._mine
        taken: Acquisition | None = getattr(mine, "taken", None)
        if taken is None and (blocks := getattr(mine, "blocks", None)):
            taken = blocks[-1]
        return self._shared.latest if taken is None and self._shared is not None else taken

    def __enter__(self) -> Lock:
        taken = self._acquire()
        if not hasattr(self._mine, "blocks"):
            self._mine.blocks = []
        self._mine.blocks.append(taken)
        return self

    def __exit__(self, *exc_info: object) -> None:
        blocks = getattr(self._mine, "blocks", None)
        try:
            # Without a block it was entered in another thread.
            self._release(blocks.pop()) if blocks else self.release()
        except StoreError:
            # What was done under it is done.  The thread tries again until the lease has ended, and logs that.
            pass

    def __repr__(self) -> str:
        return f"<Lock {self.name}{' (held)' if self.owned else ''}>"
