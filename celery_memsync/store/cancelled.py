"""The cancelled ids: one small sorted set that expires."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..exceptions import StoreRefused
from ..keys import CANCELLED
from ..models.cancellation import Cancellation
from .errors import redis_call
from .script_caller import Call, ScriptCaller, in_chunks, ms
from .scripts import CANCELLED_ADD

#: Seconds that a cancelled id is kept: a worker that was down overnight, or a message that waited as long, must find it.
CANCELLED_TTL = 86400.0

#: Most ids that are kept: every worker reads them all.
MAX_CANCELLED = 10_000

#: Ids that are added in one round trip.
IDS_PER_CALL = 200

#: The last row that was read: an id, and when it is forgotten, in ms of Redis's clock.
Mark = tuple[bytes, float]


class CancelledSet(NamedTuple):
    """Cancelled ids.

    Attributes:
        mark: The last of them; with it only what comes after that is read.
        rows: What was cancelled, oldest first, and when that is forgotten, in seconds of Redis's clock.
        is_all: Whether these are all that Redis has.
    """

    mark: Mark | None
    rows: list[tuple[Cancellation, float]]
    is_all: bool


class CancelStore(ScriptCaller):
    """What is about cancelled ids."""

    @property
    def cancelled_path(self) -> str:
        """The path under which a change of the set is published."""
        return self.keys.full(CANCELLED)

    @redis_call
    def cancel(self, cancelled: Cancellation) -> None:
        """Add an id to the cancelled ones; one that is there keeps its cause, unless processes are to be terminated now.

        Raises:
            StoreRefused: If there are too many.
        """
        if self._run([self._addition(cancelled)])[0][0] == b"full":
            raise StoreRefused(
                f"Could not cancel: {MAX_CANCELLED} ids were cancelled within {CANCELLED_TTL / 3600:g} hours; "
                "cancel the root or the group instead of each task")

    @redis_call
    def restore_cancelled(self, lost: Sequence[Cancellation]) -> None:
        """Add ids again that Redis has lost, as far as there is room; processes are not terminated again."""
        for chunk in in_chunks(lost, IDS_PER_CALL):
            self._run([self._addition(one._replace(terminate=False)) for one in chunk])

    def _addition(self, cancelled: Cancellation) -> Call:
        args = [cancelled.id.encode(), cancelled.encode(), int(cancelled.terminate), ms(CANCELLED_TTL), MAX_CANCELLED,
                self.prefix + self.cancelled_path]
        return CANCELLED_ADD, [self.keys.cancelled, self.keys.cancel_causes], args

    @redis_call
    def read_cancelled(self, mark: Mark | None = None) -> CancelledSet | None:
        """Return what was cancelled after a mark, or all that is; None if nothing has changed since."""
        rows = self._rows("-inf" if mark is None else mark[1])
        if mark is not None and mark[0] not in (name for name, _ in rows):
            rows, mark = self._rows("-inf"), None  # Redis has lost what was there, or it has expired
        if mark is not None and rows == [mark]:
            return None
        now = self.clock.now()
        latest = now + 2 * CANCELLED_TTL
        sound = [row for row in rows if now < row[1] / 1000 < latest and row != mark]
        causes = self._causes([name for name, _ in sound])
        parsed = [(Cancellation.parse(name, cause), score / 1000) for (name, score), cause in zip(sound, causes)]
        rows_of_ours = [(one, until) for one, until in parsed if one is not None]
        return CancelledSet(sound[-1] if sound else mark, rows_of_ours, mark is None)

    def _rows(self, first: object) -> list[Mark]:
        pipeline = self._pipeline()
        pipeline.zrangebyscore(self.keys.cancelled, first, "+inf", start=0, num=MAX_CANCELLED + 1, withscores=True)
        (rows,) = self._answers(pipeline)
        return [(name, score) for name, score in rows or ()]

    def _causes(self, names: list[bytes]) -> list[bytes | None]:
        """Return the causes of ids; None of those without one."""
        pipeline = self._pipeline()
        for name in names:  # and not all that is there: other programs may have put in anything
            pipeline.hget(self.keys.cancel_causes, name)
        return list(self._answers(pipeline)) if names else []
