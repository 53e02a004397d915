"""The lists of the queue while they are read, a piece at a time."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..keys import is_id
from ..types import QueueLists

#: Names of the lists of the queue.
LISTS = ("pending", "processing")

#: Ids that are written to, or read from, a list of the queue at once: that holds Redis for about a millisecond.
PIECE_OF_LIST = 1000

#: Above any score in a list, as in ``store/lua/queue_score.lua``.
MAX_SCORE = 8e15


class ListReading:
    """How far a list of the queue is read.

    Attributes:
        ids: Of the tasks that were read and have not expired.
        score: Of the last one that was read.
        seen: How many of that score were read.
    """

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.score: float | str = "-inf"
        self.seen = 0

    def take(self, rows: Sequence[tuple[bytes, float]], now: float) -> None:
        """Take what follows.

        Args:
            rows: Names and scores.
            now: Redis's time in ms.
        """
        for name, score in rows:
            self.seen = self.seen + 1 if score == self.score else 1
            self.score = score
            task_id = name.decode(errors="replace")
            if expires_at(score) > now and is_id(task_id):
                self.ids[task_id] = None


class QueueReading:
    """The lists of the queue while they are read.

    Args:
        limit: Most ids of each list.

    Attributes:
        parts: Lists that are not read to their end, or to the limit.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = max(1, min(limit, PIECE_OF_LIST))
        self.parts = {name: ListReading() for name in LISTS}
        self._all = dict(self.parts)
        self._replaced: set[bytes | None] = set()

    def take(self, pieces: Sequence[Any], replaced: bytes | None, now: float) -> None:
        """Take the next piece of each list that is not read to its end.

        Args:
            pieces: Names and scores, of each list.
            replaced: When the queue was replaced last.
            now: Redis's time in ms.
        """
        self._replaced.add(replaced)
        for (name, part), rows in zip(list(self.parts.items()), pieces):
            part.take(rows or (), now)
            # Behind tasks that have expired there may be others.
            if len(rows or ()) < self.size or len(part.ids) >= self.limit:
                del self.parts[name]

    @property
    def is_whole(self) -> bool:
        """Whether all that was read is of one queue, which was not replaced meanwhile."""
        return len(self._replaced) <= 1

    def lists(self) -> QueueLists:
        """Return the ids that were read."""
        return {"pending": self._ids("pending"), "processing": self._ids("processing")}

    def _ids(self, name: str) -> list[str]:
        return list(self._all[name].ids)[:self.limit]


def expires_at(score: float) -> float:
    """Return when a task with that score expires, in ms, 0 if it is no score; see ``store/lua/queue_score.lua``."""
    if not 0 < score < MAX_SCORE:
        return 0.0
    order, stage = divmod(int(score), 256)
    return order / 10 + 500 * 1.07 ** stage
