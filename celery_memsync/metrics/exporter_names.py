"""The same figures under the names that celery-exporter has, for its dashboards and alerts."""
from __future__ import annotations

from collections.abc import Callable, Iterator

from ..models.statistics import OTHER, RunStatistics
from ..models.worker import GONE
from .families import MAX_WORKERS, Family, figure, queues_of
from .reading import Reading

#: Label of all that is not of one worker, as celery-exporter has it with ``--generic-hostname-task-sent-metric``.
HOSTNAME = "generic"

_LABELS = ("name", "hostname", "queue_name")

#: Counters by name: what they count, and how many of it there are.
_COUNTERS: dict[str, tuple[str, Callable[[RunStatistics], int]]] = {
    "sent": ("Tasks that were sent.", lambda one: one.created),
    "received": ("Runs that have begun; they are not counted when they are received.", lambda one: one.started),
    "started": ("Runs that have begun.", lambda one: one.started),
    "succeeded": ("Runs that have succeeded.", lambda one: one.outcomes["succeeded"]),
    "rejected": ("Runs that were rejected or ignored.", lambda one: one.outcomes["ignored"]),
    "revoked": ("Runs that were revoked.", lambda one: one.outcomes["revoked"]),
    "retried": ("Runs that are tried again.", lambda one: one.outcomes["retried"]),
}


def families_of(reading: Reading, per_worker: bool = False) -> list[Family]:
    """Return the metrics of what was read; those of workers are there in any case, for the dashboards choose by them."""
    shown = [one for one in reading.statistics if not one.is_forgotten]
    return [*_of_runs(shown), *_of_workers(reading), *_of_queues(reading)]


def _of_runs(statistics: list[RunStatistics]) -> Iterator[Family]:
    for name, (help, value) in _COUNTERS.items():
        counter = Family(f"celery_task_{name}", "counter", help, _LABELS)
        for one in statistics:
            counter.add(value(one), one.task, HOSTNAME, one.queue)
        yield counter
    failed = Family("celery_task_failed", "counter", "Runs that have failed.", (*_LABELS, "exception"))
    runtime = Family("celery_task_runtime", "histogram", "Runtime of runs.", _LABELS)
    wait = Family("celery_task_queue_wait_time", "histogram", "Time from sending a task to its begin.", _LABELS)
    for one in statistics:
        others = one.outcomes["failed"] - sum(one.failures.values())
        for exception, count in {**one.failures, OTHER: one.failures.get(OTHER, 0) + max(0, others)}.items():
            failed.add(count, one.task, HOSTNAME, one.queue, exception)
        runtime.add(one.runtime, one.task, HOSTNAME, one.queue)
        wait.add(one.wait, one.task, HOSTNAME, one.queue)
    yield from (failed, runtime, wait)


def _of_workers(reading: Reading) -> Iterator[Family]:
    up = Family("celery_worker_up", "gauge", "Whether a worker is alive.", ("hostname",))
    active = Family("celery_worker_tasks_active", "gauge", "Running tasks of a worker.", ("hostname",))
    for one in reading.workers[:MAX_WORKERS]:
        is_alive = one.status not in GONE
        up.add(float(is_alive), one.worker_id)
        active.add((figure(one.capacity.get("active")) or 0) if is_alive else 0, one.worker_id)
    yield from (up, active)


def _of_queues(reading: Reading) -> Iterator[Family]:
    length = Family("celery_queue_length", "gauge", "Messages that wait in the broker.", ("queue_name",))
    consumers = Family("celery_active_consumer_count", "gauge", "Workers that consume a queue.", ("queue_name",))
    workers = Family("celery_active_worker_count", "gauge", "Workers that consume a queue.", ("queue_name",))
    processes = Family("celery_active_process_count", "gauge", "Slots of these workers.", ("queue_name",))
    for queue, one in queues_of(reading).items():
        alive = one.consumers.values()
        length.add(one.depth, queue)
        consumers.add(len(alive), queue)
        workers.add(len(alive), queue)
        processes.add(sum(figure(worker.capacity.get("total")) or 0 for worker in alive), queue)
    yield from (length, consumers, workers, processes)
