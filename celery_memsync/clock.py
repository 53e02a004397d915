"""Redis's clock, read without asking Redis."""
from __future__ import annotations

import time

#: Seconds after which a better measurement no longer shuts out a worse one: clocks drift.
FORGET_AFTER = 60.0


class Clock:
    """Maps this process's monotonic clock onto Redis's ``TIME``.

    Every answer of Redis that carries its time corrects the mapping; the one
    with the shortest round trip is believed (as in Cristian's algorithm, the
    error is at most half of it).  Until the first answer the host's own clock
    stands in.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._error = float("inf")
        self._measured = float("-inf")

    def now(self) -> float:
        """Return Redis's time, in seconds since the epoch."""
        return time.monotonic() + self._offset

    def at(self, monotonic: float) -> float:
        """Return Redis's time at a moment of this process's monotonic clock."""
        return monotonic + self._offset

    def monotonic(self, redis_time: float) -> float:
        """Return the moment of this process's monotonic clock at which Redis's time was that."""
        return redis_time - self._offset

    @property
    def measured(self) -> bool:
        """Whether Redis has been heard at least once."""
        return self._error != float("inf")

    def learn(self, redis_time: float, asked: float, answered: float) -> None:
        """Correct the mapping by one answer.

        Arguments:
            redis_time: What ``TIME`` said, in seconds.
            asked: Monotonic time when the question went out.
            answered: Monotonic time when the answer was here.
        """
        error = (answered - asked) / 2
        if error <= self._error or answered - self._measured > FORGET_AFTER:
            self._offset = redis_time - (asked + answered) / 2
            self._error = error
            self._measured = answered
