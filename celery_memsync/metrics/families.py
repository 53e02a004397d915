"""The metrics, made of what was read; not yet in the form of any library."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import __version__, encoding
from ..models.entry import MAX_FIGURE
from ..models.statistics import OTHER, Histogram, RunStatistics, name_of, sums_by
from ..models.worker import GONE, WorkerRecord
from .reading import Reading

#: First part of each name.
PREFIX = "celery_memsync_"

#: Most values of a label of gauges: of names of queues, tasks, counters and workers.
MAX_QUEUES, MAX_TASKS, MAX_COUNTERS, MAX_WORKERS = 100, 500, 100, 200

#: Statuses of workers, all of which are shown.
STATUSES = ("active", "busy", "draining", "offline", "lost")


class Sample(NamedTuple):
    """A value of a metric.

    Attributes:
        labels: Values of its labels, in their order.
    """

    labels: tuple[str, ...]
    value: float | Histogram


@dataclass
class Family:
    """A metric, and its values.

    Attributes:
        kind: ``gauge``, ``counter`` or ``histogram``.
        labels: Names of its labels.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float | Histogram | None, *labels: str) -> None:
        """Add a value, unless it is None."""
        if value is not None:
            self.samples.append(Sample(labels, value))


def gauge(name: str, help: str, values: Mapping[Any, float | None] | float | None, *labels: str) -> Family:
    """Return a gauge.

    Args:
        values: By value of the label, or by a tuple of those; the value itself without labels.
    """
    family = Family(PREFIX + name, "gauge", help, labels)
    for key, value in (values.items() if isinstance(values, Mapping) else [((), values)]):
        family.add(value, *((key,) if isinstance(key, str) else key))
    return family


def families_of(reading: Reading, per_worker: bool = False) -> list[Family]:
    """Return the metrics of what was read.

    Args:
        per_worker: Whether there are metrics of each worker.
    """
    alive = [one for one in reading.workers if one.status not in GONE]
    return [*_of_runs(reading.statistics), *_of_workers(reading, alive), *_of_queues(reading, alive),
            *_of_tasks(reading, alive), *(_of_each_worker(reading) if per_worker else ()), *_of_redis(reading)]


def _of_runs(statistics: list[RunStatistics]) -> Iterator[Family]:
    # As many names as are counted: if some were put together here, what they come to would get less with each that is new.
    tasks = sums_by(statistics, lambda one: one.task)
    runs = Family(PREFIX + "runs", "counter", "Runs that have ended, by outcome.", ("task", "outcome"))
    failures = Family(PREFIX + "failures", "counter", "Failures by type of exception.", ("task", "exception"))
    simple: dict[str, tuple[str, Callable[[RunStatistics], int]]] = {
        "tasks_created": ("Tasks that were sent.", lambda one: one.created),
        "runs_started": ("Runs whose body has begun.", lambda one: one.started),
        "runs_revised": ("Runs that are counted under a second outcome.", lambda one: one.revised)}
    counters = {name: Family(PREFIX + name, "counter", help, ("task",)) for name, (help, _) in simple.items()}
    runtime = Family(PREFIX + "run_seconds", "histogram", "Runtime of runs that have ended.", ("task",))
    wait = Family(PREFIX + "wait_seconds", "histogram", "Time from sending a task to its begin.", ("queue",))
    for task, one in tasks.items():
        runtime.add(one.runtime, task)
        for outcome, count in one.outcomes.items():
            runs.add(count, task, outcome)
        for exception, count in ({OTHER: sum(one.failures.values())} if task == OTHER else one.failures).items():
            failures.add(count, task, exception)
        for name, (_, value) in simple.items():
            counters[name].add(value(one), task)
    for queue, one in sums_by(statistics, lambda one: one.queue).items():
        wait.add(one.wait, queue)
    yield from (runs, runtime, wait, *counters.values(), failures)


def _of_workers(reading: Reading, alive: list[WorkerRecord]) -> Iterator[Family]:
    statuses = Counter(one.status for one in reading.workers)
    yield gauge("workers", "Workers by status.", {name: statuses[name] for name in STATUSES}, "status")
    lost = Family(PREFIX + "workers_lost", "counter", "Workers that were lost.")
    lost.add(reading.totals.workers_lost)
    yield lost
    yield gauge("workers_not_consuming", "Live workers that take no messages.",
                sum(one.consuming is False and one.status != "draining" for one in alive))
    yield gauge("slots", "Slots of live workers for tasks.", _slots(alive), "state")
    yield gauge("clock_skew_seconds", "Greatest difference between the clock of a worker and Redis's.",
                max((abs(skew) for one in alive if (skew := figure(one.skew)) is not None), default=0.0))
    for name, help in (("pending", "Writes that wait in live workers."), ("dropped", "Writes that live workers dropped."),
                       ("conflicts", "Conflicts that live workers met.")):
        yield gauge(f"writer_{name}", help, sum(figure(one.writer.get(name)) or 0 for one in alive))


def _slots(workers: Iterable[WorkerRecord]) -> dict[str, float]:
    rows = [one.capacity for one in workers]
    free = sum(figure(row.get("free")) or 0 for row in rows)
    return {"busy": max(0, sum(figure(row.get("total")) or 0 for row in rows) - free), "free": free}


@dataclass(frozen=True)
class QueueFigures:
    """What is known of a queue.

    Attributes:
        depth: How many messages wait in the broker, or None if that is not known.
        age: How many seconds ago that was looked at.
        consumers: The live workers that consume it, by id.
        oldest: Seconds for which its longest waiting task has waited.
    """

    depth: float | None = None
    age: float = 0.0
    consumers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    oldest: float = 0.0

    def plus(self, other: QueueFigures) -> QueueFigures:
        """Return the figures of both queues together."""
        depths = [depth for depth in (self.depth, other.depth) if depth is not None]
        return QueueFigures(sum(depths) if depths else None, max(self.age, other.age),
                            {**self.consumers, **other.consumers}, max(self.oldest, other.oldest))


def queues_of(reading: Reading) -> dict[str, QueueFigures]:
    """Return what is known of the queues that workers consume or in which tasks wait, by name.

    Those that are too many, or have no name that can be shown, are :data:`OTHER`: first of them queues that no live worker
    consumes, for their names came with messages.
    """
    found: dict[str, QueueFigures] = {}
    for one in sorted(reading.workers, key=lambda one: figure(one.last_beat) or 0.0):
        for queue in {queue if isinstance(queue, str) else OTHER for queue in one.queues}:
            known, depth = found.get(queue, QueueFigures()), figure(one.depths.get(queue))
            if depth is not None:
                known = replace(known, depth=depth, age=_age(one, reading.at) or 0.0)
            consumers = {one.worker_id: one} if one.status not in GONE else {}
            found[queue] = replace(known, consumers={**known.consumers, **consumers})
    for queue, seconds in reading.oldest.items():
        found[queue] = replace(found.get(queue, QueueFigures()), oldest=seconds)
    return _bounded_queues(found)


def _bounded_queues(found: dict[str, QueueFigures]) -> dict[str, QueueFigures]:
    shown: dict[str, QueueFigures] = {}
    for queue in sorted(found, key=lambda queue: (not found[queue].consumers, queue)):
        name = name_of(queue) if len(shown) < MAX_QUEUES else OTHER
        shown[name] = shown.get(name, QueueFigures()).plus(found[queue])
    return shown


def _of_queues(reading: Reading, alive: list[WorkerRecord]) -> Iterator[Family]:
    queues = queues_of(reading)
    yield gauge("queue_messages", "Messages that wait in the broker.",
                {name: one.depth for name, one in queues.items()}, "queue")
    yield gauge("queue_messages_age_seconds", "Age of the report of queue_messages.",
                {name: one.age for name, one in queues.items() if one.depth is not None}, "queue")
    yield gauge("queue_consumers", "Live workers that consume a queue.",
                {name: len(one.consumers) for name, one in queues.items()}, "queue")
    slots = {(name, state): count for name, one in queues.items() for state, count in _slots(one.consumers.values()).items()}
    yield gauge("queue_slots", "Slots of the workers that consume a queue.", slots, "queue", "state")
    yield gauge("queue_oldest_seconds", "Age of the longest waiting task of a queue.",
                {name: one.oldest for name, one in queues.items()}, "queue")


def _running_by_name(reading: Reading, alive: list[WorkerRecord]) -> dict[str, float]:
    """Return how many tasks run, by name; 0 of those that are counted and do not run."""
    running = Counter(name_of(one.get("name")) for worker in alive for one in worker.running if isinstance(one, dict))
    counted = sorted({one.task for one in reading.statistics if not one.is_forgotten})
    names = dict.fromkeys([*(name for name, _ in running.most_common(MAX_TASKS)), *counted])
    shown: dict[str, float] = {name: running[name] for name in [*names][:MAX_TASKS]}
    rest = sum(running.values()) - sum(shown.values())
    return {**shown, OTHER: shown.get(OTHER, 0) + rest} if rest else shown


def _of_tasks(reading: Reading, alive: list[WorkerRecord]) -> Iterator[Family]:
    totals = reading.totals
    yield gauge("tasks", "Tasks by list.", {"pending": totals.pending, "processing": totals.processing}, "list")
    yield gauge("tasks_running", "Running tasks.", _running_by_name(reading, alive), "task")
    yield gauge("tasks_stalled", "Running tasks whose progress has stalled.", reading.stalled)
    yield gauge("lock_waiters", "Callers that wait for held locks.", reading.lock_waiters)
    yield gauge("locks", "Held locks.", totals.locks)
    numbers = {name_of(name): number for name, body in sorted(totals.counters.items())
               if (number := _number(body)) is not None}
    yield gauge("counter", "Counters that all processes share.", dict(list(numbers.items())[:MAX_COUNTERS]), "counter")


def _of_each_worker(reading: Reading) -> Iterator[Family]:
    workers = {name_of(one.worker_id): one for one in reading.workers[:MAX_WORKERS]}
    columns: dict[str, tuple[str, Callable[[WorkerRecord], float | None]]] = {
        "up": ("Whether a worker is alive.", lambda one: float(one.status not in GONE)),
        "slots_busy": ("Busy slots of a worker.", lambda one: figure(one.capacity.get("active"))),
        "slots_total": ("Slots of a worker.", lambda one: figure(one.capacity.get("total"))),
        "rss_bytes": ("Resident memory of the main process of a worker.", lambda one: figure(one.rss)),
        "heartbeat_age_seconds": ("Age of the last heartbeat of a worker.", lambda one: _age(one, reading.at)),
        "consuming": ("Whether a worker takes messages.",
                      lambda one: None if one.consuming is None else float(one.consuming is True))}
    for name, (help, value) in columns.items():
        yield gauge(f"worker_{name}", help, {worker_id: value(one) for worker_id, one in workers.items()}, "worker")
    yield gauge("series_dropped", "Workers that have no series of their own.", max(0, len(reading.workers) - MAX_WORKERS))


def _age(worker: WorkerRecord, now: float) -> float | None:
    last = figure(worker.last_beat)
    return None if last is None else max(0.0, now - last)


def _of_redis(reading: Reading) -> Iterator[Family]:
    yield gauge("redis_latency_seconds", "Time that Redis took for an answer.", reading.latency)
    yield gauge("redis_used_bytes", "Memory that Redis uses.", figure(reading.info.get("used_memory")))
    evicted = Family(PREFIX + "redis_evicted", "counter", "Keys that Redis has evicted.")
    evicted.add(figure(reading.info.get("evicted_keys")))
    yield evicted


def own_families(is_up: bool, seconds: float) -> list[Family]:
    """Return the metrics that are there also if Redis is away.

    Args:
        seconds: That reading took.
    """
    return [gauge("redis_up", "Whether Redis answers.", float(is_up)),
            gauge("scrape_seconds", "Time that reading took.", seconds),
            gauge("build_info", "Version of celery-memsync.", {__version__: 1.0}, "version")]


def figure(value: Any) -> float | None:
    """Return a number that was read, or None for anything else and for what is no finite number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FIGURE else None


def _number(body: bytes) -> float | None:
    try:
        return figure(encoding.decode(body))
    except encoding.UNREADABLE:
        return None
