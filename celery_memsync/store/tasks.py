"""All that is stored of tasks, and their index."""
from __future__ import annotations

from typing import NamedTuple, Sequence

from ..connections import Source, redis_call
from ..keys import FORMER, SLOTS
from ..records import Stored
from .calls import Calls, answers_of, stored_of
from .entries import slot_of, split_page


class Task(NamedTuple):
    """All that is stored of a task.

    Attributes:
        slots: What Celery's signals told, what users told, how far it is; by slot.
        former: Entries of earlier runs, oldest first, by slot.
        agents: What agents share, by agent id.
    """

    slots: dict[int, Stored]
    former: dict[int, list[Stored]]
    agents: dict[str, Stored]


class TaskCalls(Calls):
    """What is about tasks."""

    @redis_call
    def read_tasks(
        self, task_ids: Sequence[str], agents: bool = False, source: Source | None = None,
    ) -> list[Task]:
        """Return all that is stored of tasks; what their agents share only if asked for."""
        pipeline = self._pipeline(source)
        for task_id in task_ids:
            pipeline.get(self.keys.task(task_id))
            if agents:
                pipeline.hgetall(self.keys.agents(task_id))
        answers = answers_of(pipeline) if task_ids else []
        pages = answers[::2] if agents else answers
        shared: Sequence[dict[bytes, bytes] | None] = answers[1::2] if agents else [{}] * len(pages)
        return [self._task(split_page(page), fields) for page, fields in zip(pages, shared)]

    def _task(self, texts: list[bytes], fields: dict[bytes, bytes] | None) -> Task:
        slots = {slot: stored_of(slot_of(texts, slot)) for slot in range(1, SLOTS + 1)}
        former: dict[int, list[Stored]] = {}
        for text in texts[SLOTS:]:
            mark, _, rest = text.partition(FORMER)
            stored = stored_of(rest)
            if stored is not None and mark.isdigit() and not stored.gone(self.clock.now()):
                former.setdefault(int(mark), []).append(stored)
        for row in former.values():
            row.sort(key=lambda stored: stored.header.run)
        agents = {name.decode(errors="replace"): stored_of(text) for name, text in (fields or {}).items()}
        return Task(self._present(slots), former, self._present(agents))

    @redis_call
    def recent_tasks(self, limit: int, before: str = "+", since: float | None = None) -> list[tuple[str, str]]:
        """Return ids of tasks, newest first.

        Arguments:
            limit: Most ids to return.
            before: Position up to which to look, from an earlier answer.
            since: When the first of them was told of, in seconds of Redis's clock.  None: however long ago.

        Returns:
            Pairs of position and task id; an id may come twice.
        """
        after = "-" if since is None else str(max(0, int(since * 1000)))
        rows = self.redis.xrevrange(self.keys.task_index, before, after, limit)
        return [(position.decode(), item.get(b"id", b"").decode(errors="replace")) for position, item in rows]
