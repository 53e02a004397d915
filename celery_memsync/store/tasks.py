"""All that is stored of tasks, and their index."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..keys import FORMER, SLOTS, STAGE, is_id
from ..models.entry import StoredEntry
from ..models.order import run_key_of, run_order
from ..models.statistics import counts_of
from ..models.task import TaskRun
from .entries import EntryWrite, slot_of, split_page
from .errors import redis_call
from .members import parts_of
from .push import TrackedConnection
from .script_caller import ScriptCaller, answers_of


class Task(NamedTuple):
    """All that is stored of a task.

    Attributes:
        slots: What Celery's signals recorded, what users wrote, the progress; by slot.
        former: Entries of earlier runs, oldest first, by slot.
        agents: What agents share, by agent id.
    """

    slots: dict[int, StoredEntry]
    former: dict[int, list[StoredEntry]]
    agents: dict[str, StoredEntry]


class RecentTasks(NamedTuple):
    """A part of the index of tasks.

    Attributes:
        task_ids: Newest first; an id may come twice.
        before: Where to go on; None at the end.
    """

    task_ids: list[str]
    before: str | None


class TaskStore(ScriptCaller):
    """What is about tasks."""

    @redis_call
    def read_tasks(
        self, task_ids: Sequence[str], agents: bool = False, source: TrackedConnection | None = None,
    ) -> list[Task]:
        """Return all that is stored of tasks; what their agents share only if asked for."""
        pipeline = self._reads(source)
        for task_id in task_ids:
            pipeline.get(self.keys.task(task_id))
            if agents:
                pipeline.hgetall(self.keys.agents(task_id))
        answers = self._answers(pipeline) if task_ids else []
        pages = answers[::2] if agents else answers
        shared: Sequence[dict[bytes, bytes] | None] = answers[1::2] if agents else [{}] * len(pages)
        return [self._task(self.keys.task(task_id), split_page(page), fields)
                for task_id, page, fields in zip(task_ids, pages, shared)]

    def _task(self, key: str, texts: list[bytes], fields: dict[bytes, bytes] | None) -> Task:
        now = self.clock.now()
        slots = {slot: self._stored(key, slot_of(texts, slot)) for slot in range(1, SLOTS + 1)}
        former: dict[int, list[StoredEntry]] = {}
        for text in texts[SLOTS:]:
            mark, _, rest = text.partition(FORMER)
            stored = self._stored(key, rest)
            if stored is not None and mark.isdigit() and not stored.absent(now):
                former.setdefault(int(mark), []).append(stored)
        for row in former.values():
            row.sort(key=lambda stored: run_order(stored.header.run))
        agents = {agent_id: self._stored(key, text) for name, text in (fields or {}).items()
                  if is_id(agent_id := name.decode(errors="replace"))}
        return Task(self._present(slots), former, self._present(agents))

    def stage_write(self, task_id: str, stage: StoredEntry, run: TaskRun, seen: str = "run") -> EntryWrite:
        """Return the write that puts another stage of a run in the place of the stored one.

        Args:
            seen: As in :class:`EntryWrite`.
        """
        run_key = run_key_of(stage.header.run)
        return EntryWrite(
            self.keys.task_location(task_id, STAGE), seen, run_key, run.rank, 0, time.monotonic(), stage.header.ttl_ms,
            next(self.serials), run.encode(task_id, run_key), parts=parts_of(task_id, run), counts=counts_of(run, run.rank))

    @redis_call
    def read_recent_tasks(
        self, limit: int, before: str = "+", since: float | None = None,
    ) -> RecentTasks:
        """Return ids of tasks, newest first.

        Args:
            limit: Most ids to return.
            before: Where to go on, from an earlier answer.
            since: When the first of them was recorded, in seconds of Redis's clock.  None: however long ago.
        """
        after = "-" if since is None else str(max(0, int(since * 1000)))
        start, _, seen = before.partition("/")
        pipeline = self._pipeline()
        pipeline.xrevrange(self.keys.task_index, start, after, limit)
        (rows,) = answers_of(pipeline)
        items = [(item_id.decode(), ids_of(item)) for item_id, item in rows or ()]
        if seen and items and items[0][0] == start:
            del items[0][1][:int(seen)]
        ids: list[str] = []
        for item_id, its_ids in items:
            room = limit - len(ids)
            ids += its_ids[:room]
            if len(its_ids) > room:
                read = room + int(seen) if item_id == start else room
                return RecentTasks(list(filter(is_id, ids)), f"{item_id}/{read}")
        more = f"({items[-1][0]}" if items and len(items) == limit else None
        return RecentTasks(list(filter(is_id, ids)), more)


def ids_of(item: Mapping[bytes, bytes] | None) -> list[str]:
    """Return the ids of an item of the index, newest first; none of what another program has put there."""
    text = (item or {}).get(b"ids", b"").decode(errors="replace")
    return text.split("\n")[::-1] if text else []
