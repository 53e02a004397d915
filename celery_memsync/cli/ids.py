"""Ids that are abbreviated: the begin of one stands for it if no other begins so."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery.platforms import EX_USAGE

from ..app import MemSync
from ..keys import check_id
from ..models.worker import WorkerRecord
from .output import fail, named

#: Ids that are read in one round trip, and most that are looked at.
PAGE_SIZE, MOST = 500, 100_000

#: Length of the ids that Celery makes: what is as long is no abbreviation.
WHOLE = 36


def task_id_of(memsync: MemSync, given: str) -> str:
    """Return the id of the task that is meant: the one that begins so, or what was given if none does.

    Only the index of tasks is read, not their records.

    Raises:
        CeleryCommandException: If several begin so.
        InvalidKey: If no id begins so.
        StoreError: If Redis is away.
    """
    check_id(given, "task")
    if len(given) >= WHOLE or memsync.runtime.store.read_tasks([given])[0].slots:
        return given
    found = _beginning_with(memsync, given)
    tasks = memsync.runtime.store.read_tasks(found)
    return _one_of([task_id for task_id, task in zip(found, tasks) if task.slots], given, "task")


def worker_of(workers: Sequence[WorkerRecord], given: str) -> WorkerRecord | None:
    """Return the worker that is meant by its id, or by the begin of that; None if none is.

    Raises:
        CeleryCommandException: If several begin so.
        InvalidKey: If no id begins so.
    """
    check_id(given, "worker")
    by_id = {one.worker_id: one for one in workers}
    if given in by_id:
        return by_id[given]
    return by_id.get(_one_of(sorted(name for name in by_id if name.startswith(given)), given, "worker"))


def _beginning_with(memsync: MemSync, given: str) -> list[str]:
    """Return the newest ids that begin so, as many as an error names and some more, for some may be expired."""
    found: dict[str, None] = {}
    before: str | None = "+"
    for _ in range(MOST // PAGE_SIZE):
        if before is None or len(found) > PAGE_SIZE:
            break
        recent, before = memsync.runtime.store.read_recent_tasks(PAGE_SIZE, before)
        found.update((task_id, None) for task_id in recent if task_id.startswith(given))
    return list(found)


def _one_of(found: Iterable[str], given: str, what: str) -> str:
    candidates = list(found)
    if len(candidates) > 1:
        fail(f"Several {what}s begin with {given}: {named(candidates)}; give more of the id.", EX_USAGE)
    return candidates[0] if candidates else given
