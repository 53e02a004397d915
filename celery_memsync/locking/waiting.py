"""Request locks of Redis, and wait in their queues until they are handed over."""
from __future__ import annotations

import time
from collections.abc import Callable

from ..background_loop import Steps
from ..deadline import current
from ..store import LockAnswer, Store
from .former_run import FormerRun
from .lease import LockLease
from .turns import Turns

#: Seconds after which a lock that was handed over is renewed; until then Redis keeps it for a moment only.
CONFIRM_AFTER = 0.05

#: Longest that a waiter sleeps before it sends its request again, in seconds: the first may have missed its turn.
LONGEST_SLEEP = 2.0

#: Seconds of a lease that are left when it is handed over, at least; with less it is requested again.
MARGIN = 0.1


class LockRequester:
    """Requests the locks of one process, and waits for those that others hold.

    Args:
        on_held: Called with a lease as soon as it holds its lock.
    """

    def __init__(self, store: Store, on_held: Callable[[LockLease], None]) -> None:
        self.store = store
        self._on_held = on_held
        self._turns = Turns(store)

    def request(self, lease: LockLease) -> LockAnswer:
        """Take a lock if it is free; send the request again if its lease had ended when the answer came."""
        while True:
            sent_at = time.monotonic()
            answer = self.store.take_lock(lease.request)
            if answer.status != "ok" or self._hold(lease, answer.fence, sent_at, answer.lease):
                return answer

    def wait(
        self, lease: LockLease, answer: LockAnswer, deadline: float, former: FormerRun | None,
    ) -> Steps[LockAnswer]:
        """Wait in the queue until the lock is handed over, or the deadline, or that of an earlier run."""
        if former is not None and (call := current()) is not None:
            call.postpone(max(0.0, former.deadline - max(deadline, time.monotonic())))
        request = lease.request = lease.request._replace(channel=self._turns.channel)
        while lease.state == "requested":
            turn = self._turns.turn_of(request)
            yield from turn.listen(self.store.timeout)
            sent_at = time.monotonic()
            answer = self.store.wait_for_lock(request)
            if answer.status == "ok":
                if self._hold(lease, answer.fence, sent_at, answer.lease):
                    return answer
                continue
            if former is not None and former.is_dead(answer):
                self.store.free_lock(request.location, answer.fence)
                continue
            until = deadline if former is None else max(deadline, former.wait_until(answer))
            left = until - time.monotonic()
            if left <= 0:
                break
            handed = yield from turn.wait(answer.fence, min(left, answer.lease + 0.001, LONGEST_SLEEP))
            if handed is not None and self._take_turn(lease, handed, sent_at):
                return answer
        self.store.leave_lock(request)
        return answer

    def close(self, timeout: float) -> None:
        """Wait no more; return after ``timeout`` seconds at the latest."""
        self._turns.close(timeout)

    def _take_turn(self, lease: LockLease, handed: tuple[int, float], sent_at: float) -> bool:
        """Take a lock that was handed over; return False if so much time has passed that it is requested again.

        Until it is renewed its lease counts from the last request.
        """
        fence, seconds = handed
        now = time.monotonic()
        until = sent_at + min(seconds, lease.request.ttl)
        if until < now + MARGIN and until < now + lease.request.ttl / 2:
            return False
        lease.hold_until = now + lease.max_hold
        lease.fence, lease.until = fence, until
        lease.renew_at = now + min(CONFIRM_AFTER, (until - now) / 4)
        self._on_held(lease)
        return True

    def _hold(self, lease: LockLease, fence: int, sent_at: float, seconds: float) -> bool:
        """Note that a lock was granted; return False if its lease had ended when the answer came."""
        lease.fence = fence
        lease.hold_until = sent_at + lease.max_hold
        lease.extend(sent_at, seconds)
        if time.monotonic() >= lease.until:
            return False
        self._on_held(lease)
        return True
