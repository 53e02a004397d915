"""Steps of workflows that are not sent any more, because a task before them was lost or revoked.

Where a task ends in a worker, that worker knows from its message what comes after it.  Of a task that is lost with its
worker, or revoked in a queue, the record says only of which workflow it is a part.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..keys import STAGE, is_id
from ..models.entry import StoredEntry
from ..models.order import PLANNED
from ..models.task import TaskRun, workflow_id_of
from ..store import EntryWrite, Store

#: Most tasks of a workflow that are looked at.
MAX_TASKS = 500


def cancellations(store: Store, ended: Iterable[tuple[str, TaskRun]]) -> list[EntryWrite]:
    """Return the writes that record the steps after tasks as cancelled, as far as they are still to be sent.

    Args:
        ended: Tasks that have ended without success, and how.
    """
    runs = {task_id: run for task_id, run in ended if run.workflow is not None or run.group is not None}
    if not runs:
        return []
    wholes = {one for run in runs.values() for one in (workflow_id_of(run), run.group) if is_id(one)}
    found = store.read_members(sorted(str(one) for one in wholes), MAX_TASKS)
    ids = list(dict.fromkeys(task_id for row in found for task_id in (*row.others, *row.members)))[:MAX_TASKS]
    steps = [(task_id, stage, run) for task_id, task in zip(ids, store.read_tasks(ids))
             if (stage := task.slots.get(STAGE)) is not None and stage.header.rank == PLANNED
             and (run := TaskRun.read(stage, task_id)) is not None]
    return [store.stage_write(task_id, stage, run.evolve(status="CANCELLED", never_ran=True, cause=cause),
                              str(stage.header.version))
            for task_id, stage, run, cause in _after(runs, steps)]


def _after(
    ended: dict[str, TaskRun], steps: list[tuple[str, StoredEntry, TaskRun]],
) -> Iterator[tuple[str, StoredEntry, TaskRun, dict[str, str | None]]]:
    """Yield the steps that depend on tasks, or on what depends on them, with the cause of each."""
    causes = {}
    for task_id, run in ended.items():
        causes[task_id] = cause = {"task_id": task_id, "status": run.status, "name": run.name}
        if run.group is not None:
            causes[run.group] = cause
    left = steps
    while left:
        rest = []
        for step in left:
            task_id, _, run = step
            before = [causes[one] for one in run.depends_on or () if isinstance(one, str) and one in causes]
            if before:
                causes[task_id] = before[0]
                if run.group is not None:
                    causes[run.group] = before[0]
                yield *step, before[0]
            else:
                rest.append(step)
        if len(rest) == len(left):
            return
        left = rest
