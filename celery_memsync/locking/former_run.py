"""An earlier run of a task that still holds the lock which a later run of it requests."""
from __future__ import annotations

import math
import time

from ..store import LockAnswer, Store

#: Seconds after the end of its lease for which a lock is still waited for.
GRACE = 1.0


class FormerRun:
    """An earlier run of the same task, which holds the lock and may be dead.

    It lives if it renews its lease: then there is no reason to wait longer than the caller said.  It is dead if its worker
    is lost and the renewal of its lease is overdue; the child of a worker that was killed alone goes on, and renews.

    Args:
        answer: That the lock is the earlier run's.
        ttl: The lease of the lock, which is that of the earlier run, too.
        seconds: Most to wait for its end; infinity: until the lease is renewed, or has ended.
    """

    def __init__(self, store: Store, answer: LockAnswer, ttl: float, seconds: float) -> None:
        assert answer.stored is not None
        self.store = store
        self.ttl = ttl
        self.header = answer.stored.header
        self.seconds = min(seconds, answer.lease + GRACE)
        self.deadline = time.monotonic() + self.seconds
        self._may_be_dead = math.isinf(seconds)

    def has_renewed(self, answer: LockAnswer) -> bool:
        """Whether it has renewed its lease since the first answer, or another has the lock by now."""
        header = None if answer.stored is None else answer.stored.header
        return header is not None and (header.fence != self.header.fence or header.expires_at > self.header.expires_at)

    def wait_until(self, answer: LockAnswer) -> float:
        """Return the monotonic time until which it is to be waited for, by an answer."""
        if self._may_be_dead and self.has_renewed(answer):
            self.deadline = -math.inf
        return self.deadline

    def is_dead(self, answer: LockAnswer) -> bool:
        """Whether it will not renew its lease any more."""
        if not self._may_be_dead or answer.lease > self.ttl / 2 or self.has_renewed(answer):
            return False
        return self.store.is_worker_lost(self.header.run.partition("-")[0], self.header.worker_id)


def former_run(
    store: Store, answer: LockAnswer, task_id: str | None, run: str, ttl: float, seconds: float,
) -> FormerRun | None:
    """Return the earlier run that holds a lock, None if its holder is something else.

    Args:
        task_id: The task that requests the lock.
        run: The run that requests it.
        seconds: As for :class:`FormerRun`.
    """
    stored = answer.stored
    if not seconds or task_id is None or stored is None or stored.header.run in ("-", run):
        return None
    about = stored.value
    is_of_task = isinstance(about, dict) and about.get("task_id") == task_id
    return FormerRun(store, answer, ttl, seconds) if is_of_task else None
