"""Reads what is monitored, in a handful of round trips."""
from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..deadline import within
from ..keys import STAGE
from ..manager import MemorySyncManager
from ..models.statistics import RunStatistics, name_of
from ..models.task import TaskRun
from ..models.worker import WorkerRecord
from ..store import Task
from ..store.statistics import Totals

#: Statuses of workers that are not there any more.
GONE = ("lost", "offline")


@dataclass(frozen=True)
class Reading:
    """What was read at one time.

    Attributes:
        at: Seconds of Redis's clock.
        latency: Seconds that Redis took for an answer.
        info: What Redis reports of itself; {} if that may not be read.
        oldest: Seconds for which the longest waiting task of each queue has waited.
    """

    at: float
    latency: float
    info: Mapping[str, Any]
    workers: list[WorkerRecord]
    statistics: list[RunStatistics]
    totals: Totals
    oldest: dict[str, float]


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
    oldest = _oldest(totals.oldest, store.read_tasks(totals.oldest), now)
    return Reading(now, latency, info, workers, statistics, totals, oldest)


def _oldest(task_ids: Iterable[str], tasks: Iterable[Task], now: float) -> dict[str, float]:
    """Return how long the longest waiting task of each queue has waited; one that waits for its time does not count."""
    oldest: dict[str, float] = {}
    for task_id, task in zip(task_ids, tasks):
        stage = task.slots.get(STAGE)
        run = None if stage is None else TaskRun.from_row(stage.value, task_id)
        if run is None or run.queue is None:
            continue
        since = max(run.published_at or now, run.eta or 0.0, run.retry_at or 0.0)
        if since <= now:
            queue = name_of(run.queue)
            oldest[queue] = max(oldest.get(queue, 0.0), now - since)
    return oldest
