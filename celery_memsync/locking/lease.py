"""One acquisition of a lock, as the process that has it sees it."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from .. import encoding
from ..store import LockRequest

#: A lease is renewed when this part of it is over.
RENEW_AFTER = 1 / 3

#: A lease that is due within this part of the time between two renewals is renewed with the others.
TOGETHER = 0.5

#: Seconds by which a lease may end before ``max_hold`` and is not renewed any more: Redis takes whole milliseconds.
LAST_MOMENT = 0.002


class Owner(NamedTuple):
    """What a lock is held for.

    Attributes:
        task_id: The running task, or None outside of a task.
        run: Id of its run, "-" for none.
    """

    task_id: str | None = None
    run: str = "-"


#: Of a lock that no task holds.
NO_TASK = Owner()


@lru_cache(maxsize=1)
def body_of(owner: Owner, worker_id: str) -> bytes:
    """Return the body of the entry of a lock; it is the same for all locks of a task."""
    return encoding.dumps({"worker_id": worker_id, "task_id": owner.task_id, "run": owner.run})


class LockLease:
    """One acquisition of a lock, from its request to its end.

    Attributes:
        until: Monotonic time until which it is valid.
        max_hold: Most seconds that it is held, however often it is renewed.
        hold_until: Monotonic time when these have passed.
        renew_at: Monotonic time when it is to be renewed.
        arrives_until: Monotonic time until which a request that was not answered may still arrive.
        claim: Returns what it is held for, or None if that was collected; None until the caller has got the lock, for
            an exception may strike before.
        run_id: Redis's run id when it had this lease last; "" if that is not known.
        state: ``requested``, ``held``, ``releasing`` (by its caller), ``abandoned`` (the thread is to release it),
            ``released`` (the thread has, and will again when the request has arrived) or ``closed``.
    """

    __slots__ = (
        "name", "request", "owner", "fence", "until", "max_hold", "hold_until", "renew_at", "arrives_until", "run_id",
        "state", "pid", "claim", "_expired")

    def __init__(self, name: str, request: LockRequest, owner: Owner, max_hold: float) -> None:
        self.name = name
        self.request = request
        self.owner = owner
        self.fence = 0
        self.until = time.monotonic() + request.ttl
        self.max_hold = max_hold
        self.hold_until = float("inf")
        self.renew_at = float("inf")
        self.arrives_until = float("-inf")
        self.run_id = ""
        self.state = "requested"
        self.pid = os.getpid()
        self.claim: Callable[[], object] | None = None
        self._expired = False

    @property
    def owned(self) -> bool:
        """Whether the lock is held, as far as this is known without a call to Redis; once False, never True again."""
        return self.state == "held" and not self.expired and self.pid == os.getpid()

    @property
    def expired(self) -> bool:
        """Whether the lease has run out; once True, never False again, whatever answer to a renewal comes later."""
        if time.monotonic() >= self.until:
            self._expired = True
        return self._expired

    @property
    def is_abandoned(self) -> bool:
        """Whether no call can release it any more: what it was held for is gone."""
        return self.claim is not None and self.claim() is None

    def extend(self, since: float, lease: float) -> None:
        """Take the lease that Redis has answered to a request.

        Args:
            since: Monotonic time when the request was sent: the lease began no earlier.
        """
        self.until = min(since + lease, self.hold_until)
        is_last = self.exceeds_max_hold
        # What is left of a lease that was handed over is shorter than the requested one.
        self.renew_at = self.until if is_last else since + min(lease, self.request.ttl) * RENEW_AFTER

    @property
    def exceeds_max_hold(self) -> bool:
        """Whether the lease ends because the lock was held for the most seconds."""
        return self.until > self.hold_until - LAST_MOMENT

    @property
    def why_lost(self) -> str:
        """Why the lease has ended, for the log."""
        if self.exceeds_max_hold:
            return f"it was held for longer than its max_hold of {self.max_hold:g} s"
        return "its lease has run out"

    def is_due_with(self, now: float) -> bool:
        """Whether it is to be renewed together with one that is due now."""
        return self.renew_at < self.until and self.renew_at <= now + self.request.ttl * RENEW_AFTER * TOGETHER

    def bounded(self, request: LockRequest, now: float) -> LockRequest:
        """Return a request whose lease ends no later than ``max_hold``, so that the lock is free then."""
        left = self.hold_until - now
        return request if request.ttl <= left else request._replace(ttl=left)
