"""Reads what is monitored, in a handful of round trips."""
from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..deadline import within
from ..keys import PROGRESS, STAGE, is_id
from ..manager import MemorySyncManager
from ..models.entry import MAX_FIGURE
from ..models.order import RUNNING, run_key_of
from ..models.progress import progress_in
from ..models.statistics import MAX_WAIT, RunStatistics, name_of
from ..models.task import TaskRun
from ..models.worker import GONE, WorkerRecord
from ..store import Task
from ..store.statistics import Totals

#: Running tasks of which it is looked whether they have stalled.
MAX_RUNNING = 200


@dataclass(frozen=True)
class Reading:
    """What was read at one time.

    Attributes:
        at: Seconds of Redis's clock.
        latency: Seconds that Redis took for an answer.
        info: What Redis reports of itself; {} if that may not be read.
        oldest: Seconds for which the longest waiting task of each queue has waited.
        stalled: Running tasks whose progress has stalled, of the first that began.
        lock_waiters: Callers that wait for held locks.
    """

    at: float
    latency: float
    info: Mapping[str, Any]
    workers: list[WorkerRecord]
    statistics: list[RunStatistics]
    totals: Totals
    oldest: dict[str, float]
    stalled: int = 0
    lock_waiters: int = 0


def read(memsync: MemorySyncManager) -> Reading:
    """Read all of it: at most nine round trips, within ``memsync_timeout``.

    Raises:
        StoreError: If Redis is away.
    """
    return within(memsync.settings.timeout, _read, memsync)


def _read(memsync: MemorySyncManager) -> Reading:
    store = memsync.runtime.store
    store.connect()
    asked = time.monotonic()
    info = store.read_server_info()
    latency = time.monotonic() - asked
    workers = memsync.get_workers()
    statistics = memsync.runtime.statistics.all()
    totals = store.read_totals()
    now = store.clock.now()
    running = _running_longest(workers)
    tasks = store.read_tasks([*totals.oldest, *running])
    oldest = _oldest(totals.oldest, tasks, now)
    stalled = sum(map(_has_stalled, tasks[len(totals.oldest):]))
    waiters = store.count_waiters(totals.lock_paths)
    return Reading(now, latency, info, workers, statistics, totals, oldest, stalled, waiters)


def _running_longest(workers: Iterable[WorkerRecord]) -> list[str]:
    """Return the ids of the tasks that run for the longest time, by the last heartbeats."""
    running = [(float(began), one["id"]) for worker in workers if worker.status not in GONE for one in worker.running
               if isinstance(one, dict) and is_id(one.get("id"))
               and isinstance(began := one.get("started_at"), (int, float)) and 0 < began <= MAX_FIGURE]
    return list(dict.fromkeys(task_id for _, task_id in heapq.nsmallest(MAX_RUNNING, running)))


def _has_stalled(task: Task) -> bool:
    stage, progress = task.slots.get(STAGE), task.slots.get(PROGRESS)
    if stage is None or progress is None or stage.header.rank != RUNNING:
        return False
    run, known = run_key_of(progress.header.run), progress_in(progress)
    return run in (run_key_of(stage.header.run), "-") and known is not None and known["stalled_at"] is not None


def _oldest(task_ids: Iterable[str], tasks: Iterable[Task], now: float) -> dict[str, float]:
    """Return how long the longest waiting task of each queue has waited; one that waits for its time does not count."""
    oldest: dict[str, float] = {}
    for task_id, task in zip(task_ids, tasks):
        stage = task.slots.get(STAGE)
        run = None if stage is None else TaskRun.read(stage, task_id)
        if stage is None or run is None or run.queue is None:
            continue
        published, recorded = run.published_at, stage.header.time / 1000
        if published is None or recorded - published > MAX_WAIT:  # it came with the message and may be anything
            published = recorded
        since = max(published, run.eta or 0.0, run.retry_at or 0.0)
        if since <= now:
            queue = name_of(run.queue)
            oldest[queue] = max(oldest.get(queue, 0.0), now - since)
    return oldest
