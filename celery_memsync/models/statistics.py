"""Statistics of the runs of tasks: what a stage counts, and what a record of them holds.

Redis has a record for each task of each queue: 40 counters of 40 bits, two sums of 56 bits in us, and the day of its last
run in 16 bits.  ``store/lua/statistics.lua`` adds to it when a stage is accepted.  The counters are: tasks that were sent,
runs that began, seven outcomes, runs that had another outcome before, buckets of the waiting time, buckets of the runtime.
"""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from .order import RANKS, WAITING
from .task import TOO_LATE, TaskRun

#: Upper bounds of the buckets of histograms, in seconds; there is another one for what is longer.
WAIT_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

RUNTIME_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

#: Outcomes of runs, in the order of their counters, which is that of the first digit of a rank from 3 on.
OUTCOMES = ("lost", "retried", "revoked", "failed", "ignored", "skipped", "succeeded")

#: Name of all tasks, queues and exceptions that are too many, or have a name that can't be shown.
OTHER = "(other)"

#: Most records, and most exceptions of one, before :data:`OTHER`.
MAX_RECORDS, MAX_EXCEPTIONS = 500, 10

#: Longest name, in bytes.
MAX_NAME = 200

#: Bytes of a record: 40 counters, two sums, the day.
RECORD_SIZE = 40 * 5 + 2 * 7 + 2

#: Longest time that a task is taken to have waited, in seconds; a time that came with its message may be anything.
MAX_WAIT = 30 * 86400.0


class RunCounts(NamedTuple):
    """What a stage of a run counts, if Redis accepts it.

    Attributes:
        name: Queue and task, a line each.
        words: As ``run_words`` in ``store/lua/statistics.lua`` takes them, between the first and the last.
        wait: Microseconds that the run has waited, or 0.
        exception: Type of the exception, or "".
    """

    name: str
    words: str
    wait: int
    exception: str


#: Words of a run of which only is known that it is there.
_NO_WORDS = "0  "


def name_of(value: object) -> str:
    """Return a name as it is counted: :data:`OTHER` for what is no text, empty, too long, or can't be printed."""
    is_fit = type(value) is str and 0 < len(value) <= MAX_NAME and value.isprintable() and len(value.encode()) <= MAX_NAME
    return str(value) if is_fit else OTHER


@lru_cache(1024)
def _record_name(queue: object, task: object) -> str:
    return f"{'' if queue is None else name_of(queue)}\n{name_of(task)}\n"


def counts_of(run: TaskRun, rank: str) -> RunCounts | None:
    """Return what a stage of a run counts, or None if it names no task.

    A task that was to wait, for its ETA or as a retry, has no waiting time.
    """
    if run.name is None:
        return None
    try:
        name = _record_name(run.queue, run.name)
    except TypeError:  # they came with a message and may be anything
        name = _record_name(OTHER, OTHER)
    began, runtime, exception = run.started_at, run.runtime, run.exception
    if rank in WAITING or began is None and exception is None:
        return RunCounts(name, _NO_WORDS, 0, "")
    waited, bucket, wait = "", "", 0.0
    published = run.published_at
    if type(published) is float and began is not None and run.eta is None and not run.retries and not run.recoveries \
            and -MAX_WAIT < began - published < MAX_WAIT:
        wait = max(0.0, began - published)
        waited = str(bisect_left(WAIT_BOUNDS, wait))
    if runtime is not None and 0 <= runtime < TOO_LATE:
        bucket = str(bisect_left(RUNTIME_BOUNDS, runtime))
    cause = name_of(exception.get("type")) if exception is not None and rank == RANKS["FAILURE"] else ""
    return RunCounts(name, f"{0 if began is None else 1} {waited} {bucket}", round(wait * 1e6), cause)


@dataclass(frozen=True)
class Histogram:
    """How often a time was in each bucket.

    Attributes:
        bounds: Upper bounds of the buckets but for the last, in seconds.
        counts: By bucket; each counted in one only.
        sum: Of all times, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many times there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean, in seconds, or None if there are none."""
        return self.sum / self.count if self.count else None

    def quantile(self, part: float) -> float | None:
        """Return about the time below which a part (0 to 1) of all is, as Prometheus does; None if there are none.

        What is beyond the last bound is taken to be at it.
        """
        wanted, below, lower = part * self.count, 0, 0.0
        if not self.count:
            return None
        for bound, count in zip(self.bounds, self.counts):
            if count and below + count >= wanted:
                return lower + (bound - lower) * (wanted - below) / count
            below, lower = below + count, bound
        return self.bounds[-1]

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.bounds, tuple(map(sum, zip(self.counts, other.counts))), self.sum + other.sum)

    def __sub__(self, other: Histogram) -> Histogram:
        counts = tuple(max(0, mine - its) for mine, its in zip(self.counts, other.counts))
        return Histogram(self.bounds, counts, max(0.0, self.sum - other.sum))


@dataclass(frozen=True)
class RunStatistics:
    """Statistics of the runs of a task that came from a queue.

    Attributes:
        task, queue: Their names; :data:`OTHER` together for what is too many, "" of a task without a queue.
        created: Tasks that were sent, or recorded first in another way.
        started: Runs whose body began.
        outcomes: How many runs ended, by :data:`OUTCOMES`.  It never gets less.
        revised: Runs that are counted under an outcome that they had before another one: a lost worker that came back.
        wait: Waiting times, from being sent to the begin, without retries and tasks with an ETA.
        runtime: Runtimes, of bodies that ended.
        failures: Failures by type of exception, with ``memsync_failure_types``.
    """

    task: str
    queue: str
    created: int
    started: int
    outcomes: dict[str, int]
    revised: int
    wait: Histogram
    runtime: Histogram
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """How many runs have ended, each counted once."""
        return sum(self.outcomes.values()) - self.revised

    @classmethod
    def parse(cls, queue: str, task: str, record: bytes | None, failures: dict[str, int]) -> RunStatistics:
        """Read a record; what is too short, as one that has expired, counts as zeros."""
        text = (record or b"")[:RECORD_SIZE].ljust(RECORD_SIZE, b"\0")
        counters = [int.from_bytes(text[at:at + 5], "big") for at in range(0, 200, 5)]
        waited, took = (int.from_bytes(text[at:at + 7], "big") / 1e6 for at in (200, 207))
        return cls(
            task, queue, counters[0], counters[1], dict(zip(OUTCOMES, counters[2:9])), counters[9],
            Histogram(WAIT_BOUNDS, tuple(counters[10:25]), waited), Histogram(RUNTIME_BOUNDS, tuple(counters[25:40]), took),
            failures)

    def __add__(self, other: RunStatistics) -> RunStatistics:
        """Return the sum of both, under the names of the first."""
        failures = {name: self.failures.get(name, 0) + other.failures.get(name, 0)
                    for name in {**self.failures, **other.failures}}
        outcomes = {name: count + other.outcomes[name] for name, count in self.outcomes.items()}
        return RunStatistics(
            self.task, self.queue, self.created + other.created, self.started + other.started, outcomes,
            self.revised + other.revised, self.wait + other.wait, self.runtime + other.runtime, failures)


class RunSums(NamedTuple):
    """What the runs of a task, or of all tasks, came to until a moment, or between two.

    Attributes:
        started, ended, failed: Numbers of runs.
        runtimes, runtime: How many runtimes there are, and their sum in us.
        waits, wait: The same of waiting times.
    """

    started: int = 0
    ended: int = 0
    failed: int = 0
    runtimes: int = 0
    runtime: int = 0
    waits: int = 0
    wait: int = 0

    @classmethod
    def of(cls, one: RunStatistics) -> RunSums:
        """Return the sums of a record."""
        return cls(one.started, one.ended, one.outcomes["failed"], one.runtime.count, round(one.runtime.sum * 1e6),
                   one.wait.count, round(one.wait.sum * 1e6))

    @classmethod
    def parse(cls, row: object) -> RunSums | None:
        """Read sums that were stored, or return None for anything else."""
        is_sound = isinstance(row, list) and len(row) == len(cls._fields) and all(
            type(number) is int and 0 <= number < 2 ** 63 for number in row)
        return cls(*row) if is_sound and isinstance(row, list) else None

    def plus(self, other: RunSums) -> RunSums:
        """Return the sums of both."""
        return RunSums(*map(sum, zip(self, other)))

    def since(self, before: RunSums) -> RunSums:
        """Return what was added since other sums; if one is less, Redis has lost its data, and all of it was."""
        added = RunSums(*(mine - its for mine, its in zip(self, before)))
        return added if min(added) >= 0 else self


def sums_by(
    statistics: Iterable[RunStatistics], name: Callable[[RunStatistics], str], most: int = MAX_RECORDS,
) -> dict[str, RunStatistics]:
    """Return the sums of statistics by a name; those of the names that are too many are :data:`OTHER`."""
    sums: dict[str, RunStatistics] = {}
    for one in sorted(statistics, key=lambda one: (name(one) == OTHER, name(one))):
        key = name(one) if name(one) in sums or len(sums) < most else OTHER
        sums[key] = sums[key] + one if key in sums else one
    return sums
