"""The cancelled ids: one small sorted set that expires."""
from __future__ import annotations

from typing import NamedTuple

from ..exceptions import StoreRefused
from ..keys import CANCELLED
from ..models.cancellation import Cancellation
from .errors import redis_call
from .script_caller import ScriptCaller, ms
from .scripts import CANCELLED_ADD

#: Seconds that a cancelled id is kept: a worker that was down overnight, or a message that waited as long, must find it.
CANCELLED_TTL = 86400.0

#: Most ids that are kept: every worker reads them all.
MAX_CANCELLED = 10_000


class CancelledSet(NamedTuple):
    """The cancelled ids.

    Attributes:
        mark: Differs after each change.
        rows: What was cancelled, oldest first, and when that is forgotten, in seconds of Redis's clock.
    """

    mark: object
    rows: list[tuple[Cancellation, float]]


class CancelStore(ScriptCaller):
    """What is about cancelled ids."""

    @property
    def cancelled_path(self) -> str:
        """The path under which a change of the set is published."""
        return self.keys.full(CANCELLED)

    @redis_call
    def cancel(self, cancelled: Cancellation) -> None:
        """Add an id to the cancelled ones; doing so twice does nothing more.

        Raises:
            StoreRefused: If there are too many.
        """
        args = [cancelled.encode(), ms(CANCELLED_TTL), MAX_CANCELLED, self.prefix + self.cancelled_path]
        if self._run([(CANCELLED_ADD, [self.keys.cancelled], args)])[0][0] == b"full":
            raise StoreRefused(
                f"Could not cancel: {MAX_CANCELLED} ids were cancelled within {CANCELLED_TTL / 3600:g} hours; "
                "cancel the root or the group instead of each task")

    @redis_call
    def read_cancelled(self, mark: object = None) -> CancelledSet | None:
        """Return the cancelled ids, or None if nothing has changed since the answer with this mark."""
        key = self.keys.cancelled
        pipeline = self._pipeline(None)
        pipeline.zcount(key, "-inf", "+inf")
        pipeline.zrange(key, -1, -1, withscores=True)
        count, last = self._answers(pipeline)
        found = count or 0, tuple(last or ())
        if found == mark:
            return None
        pipeline = self._pipeline(None)
        pipeline.zrange(key, 0, MAX_CANCELLED, withscores=True)
        (rows,) = self._answers(pipeline)
        now = self.clock.now()
        latest = now + 2 * CANCELLED_TTL
        parsed = [(Cancellation.parse(member), score / 1000) for member, score in rows or ()]
        return CancelledSet(found, [(one, until) for one, until in parsed if one is not None and now < until < latest])
