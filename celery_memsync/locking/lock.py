"""The lock that a user takes."""
from __future__ import annotations

import os
from typing import Callable

from ..exceptions import LockLost, LockNotAcquired, StoreError
from .lock_service import LockLease, LockService, Owner


class Lock:
    """A named lock, shared by all processes of a namespace.

    It is not re-entrant: who holds it and asks again is refused, or waits, like
    anybody else.  Those who wait get it in the order in which they came.  While
    it is held a thread renews its lease.  If Redis is away until the lease has
    run out, or this process was paused for so long, the lock is lost:
    ``owned`` is False, :meth:`check` raises, and the event ``lock-lost`` tells.

    A lock that is taken in the body of a task is given back at the end of the
    task at the latest.  A forked child has none of its parent's.

    Usage::

        with memsync.lock("account:42", wait=5) as lock:
            memsync.write("accounts/42", balance, fence=lock)
    """

    def __init__(
        self, name: str, ttl: float, wait: float, find: Callable[[], tuple[LockService, Owner]],
    ) -> None:
        self.name = name
        self.ttl = ttl
        self.wait = wait
        self._find = find
        self._locks: LockService | None = None
        self._grant: LockLease | None = None
        self._fence = 0

    def acquire(self) -> bool:
        """Take it; tell whether it was to be had within the time to wait.

        Raises:
            StoreError: If Redis is away.
        """
        try:
            self._acquire()
        except LockNotAcquired:
            return False
        return True

    def _acquire(self) -> None:
        locks, owner = self._find()
        grant = locks.acquire(self.name, self.ttl, self.wait, owner)
        self._locks, self._grant = locks, grant
        self._fence = grant.fence

    def release(self) -> bool:
        """Give it back; tell whether it was still held.

        After a shutdown of the manager, which has given it back, and in a forked child this does nothing.

        Raises:
            StoreError: If Redis is away: then it is tried again, until the lease ends.
        """
        locks, grant = self._locks, self._grant
        self._locks = self._grant = None
        # Not the service that is open now: that may be another, and is none of a lock that was taken before.
        return locks is not None and grant is not None and grant.pid == os.getpid() and locks.release(grant)

    def extend(self, ttl: float) -> None:
        """Let the lease end ``ttl`` seconds from now, and renew it for as long from then on; it does not get shorter.

        Raises:
            LockLost: If it is not held any more.
            StoreError: If Redis is away.
        """
        self.check()
        assert self._locks is not None and self._grant is not None
        self._locks.extend(self._grant, ttl)
        self.ttl = ttl

    @property
    def owned(self) -> bool:
        """Whether it is held now; no round trip, and never True after the lease has run out."""
        return self._grant is not None and self._grant.owned

    @property
    def fence(self) -> int:
        """The number of this acquisition, which is higher than those of all before; of the last one if it is not held.

        0: it was never held.
        """
        return self._fence

    def check(self) -> None:
        """Go on only if it is held; no round trip.

        Raises:
            LockLost: If it is not held any more.
        """
        if not self.owned:
            raise LockLost(self.name)

    def __enter__(self) -> Lock:
        self._acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.release()
        except StoreError:
            # What was done under it is done.  The thread tries again until the lease has ended, and tells the log.
            pass

    def __repr__(self) -> str:
        return f"<Lock {self.name}{' (held)' if self.owned else ''}>"
