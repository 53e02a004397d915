"""Redis's clock, read without asking Redis."""
from __future__ import annotations

import time

#: Seconds by which two clocks may part in a second: NTP's bound for a clock that is not set is 500 ppm (RFC 5905).
DRIFT = 5e-4

#: Most seconds by which what a process takes for Redis's time may be wrong, unless Redis's clock was set.
UNNOTICED = 1.0

#: Above any time of Redis, and any age of a host, in seconds.
LATEST = 1e11

#: Error of a mapping that Redis has not confirmed.
UNKNOWN = float("inf")


class Clock:
    """Maps this process's monotonic clock onto Redis's ``TIME``.

    Every answer of Redis that carries its time may correct the mapping.  Its
    error is at most half of its round trip, as in Cristian's algorithm, and
    grows with the drift of the clocks from then on.  An answer is believed if
    its error is not larger than that of the mapping by now, or if both can't be
    right: then Redis's clock was set, or it is another Redis.  Until the first
    answer the host's own clock stands in.
    """

    def __init__(self) -> None:
        #: Seconds by which Redis's time is ahead of this process's monotonic clock.
        self.offset = time.time() - time.monotonic()
        #: Most seconds by which the mapping was wrong when it was made.
        self.error = UNKNOWN
        self._measured = 0.0
        self._learned_at = float("-inf")

    def now(self) -> float:
        """Return Redis's time, in seconds since the epoch."""
        return time.monotonic() + self.offset

    def at(self, monotonic: float) -> float:
        """Return Redis's time at a moment of this process's monotonic clock."""
        return monotonic + self.offset

    def monotonic(self, redis_time: float) -> float:
        """Return the moment of this process's monotonic clock at which Redis's time was that."""
        return redis_time - self.offset

    @property
    def age(self) -> float:
        """Seconds since Redis's time was read last."""
        return time.monotonic() - self._learned_at

    @property
    def measured(self) -> bool:
        """Whether Redis has answered at least once."""
        return self.error != UNKNOWN

    def assume(self, redis_time: object, monotonic: object) -> None:
        """Take what another process of this host knows, until Redis answers; anything else is passed over.

        Args:
            redis_time: Redis's time, in seconds, at a moment.
            monotonic: The same moment on the monotonic clock, which all processes of a host share.
        """
        if isinstance(redis_time, float) and isinstance(monotonic, float) and 0 < redis_time < LATEST and \
                abs(monotonic - time.monotonic()) < LATEST:
            self.offset = redis_time - monotonic

    def learn(self, redis_time: float, asked: float, answered: float) -> None:
        """Correct the mapping by one answer.

        Args:
            redis_time: What ``TIME`` said, in seconds.
            asked: Monotonic time when the question went out.
            answered: Monotonic time when the answer was here.
        """
        error = (answered - asked) / 2
        offset = redis_time - (asked + answered) / 2
        present = self.error + (answered - self._measured) * DRIFT if self.measured else float("inf")
        if error <= present or abs(offset - self.offset) > error + present:
            self.offset = offset
            self.error = error
            self._measured = answered
        self._learned_at = answered
