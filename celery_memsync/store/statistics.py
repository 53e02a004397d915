"""Statistics of the runs of tasks: how a write refers to what it counts, and how they are read."""
from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

from .. import encoding
from ..keys import is_id
from ..models.statistics import (
    FORGOTTEN,
    MAX_EXCEPTIONS,
    MAX_RECORDS,
    RECORD_SIZE,
    RunCounts,
    RunStatistics,
    RunSums,
    name_of,
)
from .errors import redis_call
from .queue_reading import expires_at
from .script_caller import ScriptCaller

#: Pending tasks, and held locks, that are looked at.
OLDEST = 200

#: What stands for the waiting time and the words of a write that counts nothing.
NO_COUNTS = "0\n"


class CountedLines:
    """The lines to which the words of the writes of one call refer, see ``store/lua/statistics.lua``.

    Args:
        with_exceptions: Whether failures are counted by exception.
    """

    def __init__(self, with_exceptions: bool) -> None:
        self._with_exceptions = with_exceptions
        #: Numbers of the first line of names of records, and of the lines of exceptions.
        self._numbers: dict[str, int] = {}
        self._next = 1
        #: Names of the records, and of those to which exceptions are counted.
        self.records: dict[str, bool] = {}

    def words(self, counts: RunCounts) -> str:
        """Return the waiting time and the words of a write, a line each."""
        name, words, wait, exception = counts
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = self._next
            self._next += 2
            self.records[name] = False
        if not exception or not self._with_exceptions:
            return f"{wait}\n{number} {words} "
        self.records[name] = True
        cause = self._numbers.get(f"{exception}\n")
        if cause is None:
            cause = self._numbers[f"{exception}\n"] = self._next
            self._next += 1
        return f"{wait}\n{number} {words} {cause}"

    def text(self) -> str:
        """Return the lines, each with a line feed after it."""
        return "".join(self._numbers)

    def keys(self, statistics: str) -> list[str]:
        """Return the keys of the records, and of the exceptions that are counted.

        Args:
            statistics: The key of the set of all records.
        """
        return [f"{statistics}/{name[:-1]}{end}" for name, failed in self.records.items() for end in ("", "\n")[:1 + failed]]


#: Ms for which the totals of a minute, and those of tasks of ten minutes, are kept.
MINUTE_TTL, NAMES_TTL = 86_400_000, 3 * 86_400_000

#: Minutes between two times at which the sums of tasks are kept.
NAMES_INTERVAL = 10


class Totals(NamedTuple):
    """How much of each kind there is.

    Attributes:
        pending, processing: Tasks in the lists of the queue, also some that have expired.
        oldest: Ids of the first pending tasks, in the order in which they were sent.
        locks: Held locks.
        lock_paths: Paths of the first of them to expire.
        workers_lost: How many workers were lost.
        counters: As :meth:`CoordinationStore.read_metrics` returns them.
    """

    pending: int
    processing: int
    oldest: list[str]
    locks: int
    counters: dict[str, bytes]
    lock_paths: Sequence[str] = ()
    workers_lost: int = 0


class StatisticsStore(ScriptCaller):
    """What is about statistics."""

    @redis_call
    def read_statistics(self) -> list[RunStatistics]:
        """Return the statistics of all tasks by queue, in two round trips; what has no name of ours is left out."""
        key = self.keys.statistics
        pipeline = self._pipeline()
        # Also those that are to be forgotten: the script that does so keeps the sums.
        pipeline.zrange(key, -MAX_RECORDS - 1, -1)
        (members,) = self._answers(pipeline)
        names = [name for member in members or () if (name := _record_of(member)) is not None]
        pipeline = self._pipeline()
        for queue, task in names:
            # Another program may have put anything of any size there.
            pipeline.getrange(f"{key}/{queue}\n{task}", 0, RECORD_SIZE - 1)
            pipeline.hrandfield(f"{key}/{queue}\n{task}\n", 2 * MAX_EXCEPTIONS, withvalues=True)
        answers = self._answers(pipeline) if names else []
        return [RunStatistics.parse(queue, task, record, _failures(failures))
                for (queue, task), record, failures in zip(names, answers[::2], answers[1::2])]

    @redis_call
    def read_totals(self) -> Totals:
        """Return how much of each kind there is, in one round trip."""
        own = self.keys
        pipeline = self._pipeline()
        pipeline.zcount(own.pending, "-inf", "+inf")
        pipeline.zcount(own.processing, "-inf", "+inf")
        pipeline.zrangebyscore(own.pending, "-inf", "+inf", start=0, num=OLDEST, withscores=True)
        held = f"({self.clock.now() * 1000:.0f}", "+inf"
        pipeline.zcount(own.locks, *held)
        pipeline.zrangebyscore(own.locks, *held, start=0, num=OLDEST)
        pipeline.hgetall(own.metrics)
        pipeline.hget(own.worker_totals, "lost")
        pending, processing, rows, locks, paths, counters, lost = self._answers(pipeline)
        now = self.clock.now() * 1000
        oldest = [task_id for name, score in rows or ()
                  if expires_at(score) > now and is_id(task_id := name.decode(errors="replace"))]
        bodies = {name.decode(errors="replace"): body for name, body in (counters or {}).items()}
        lock_paths = [path.decode(errors="surrogateescape") for path in paths or ()]
        return Totals(pending or 0, processing or 0, oldest, locks or 0, bodies, lock_paths, _count(lost))

    def _history(self, kind: str, number: int) -> str:
        return f"{self.keys.statistics}/{kind}/{number}"

    @redis_call
    def claim_history(self, minute: int) -> list[str]:
        """Return the keys of what is to be kept of a minute since the epoch; no other process gets them."""
        claims = {self._history("minute", minute): MINUTE_TTL, self._history("names", minute // NAMES_INTERVAL): NAMES_TTL}
        pipeline = self._pipeline()
        for key, ttl_ms in claims.items():
            pipeline.set(key, b"", nx=True, px=ttl_ms)
        return [key for key, is_new in zip(claims, self._answers(pipeline)) if is_new]

    @redis_call
    def write_history(self, keys: Sequence[str], statistics: Sequence[RunStatistics]) -> None:
        """Keep the sums of all tasks, and of each, as far as they are wanted.

        Args:
            keys: As :meth:`claim_history` returned them.
        """
        by_name = {f"{one.queue}\n{one.task}": RunSums.of(one) for one in statistics}
        whole = reduce(RunSums.plus, by_name.values(), RunSums())
        pipeline = self._pipeline()
        for key in keys:
            if "/minute/" in key[len(self.keys.statistics):]:
                pipeline.set(key, encoding.dumps(whole), px=MINUTE_TTL)
            else:
                pipeline.set(key, encoding.dumps(by_name), px=NAMES_TTL)
        self._answers(pipeline)

    @redis_call
    def read_minutes(self, minutes: Sequence[int]) -> dict[int, RunSums]:
        """Return the sums of all tasks at the begin of minutes since the epoch, of those that are kept."""
        pipeline = self._pipeline()
        for minute in minutes:
            pipeline.get(self._history("minute", minute))
        rows = zip(minutes, self._answers(pipeline) if minutes else [])
        return {minute: sums for minute, body in rows if (sums := RunSums.parse(_decoded(body))) is not None}

    @redis_call
    def read_names(self, minute: int) -> dict[tuple[str, str], RunSums] | None:
        """Return the sums of each queue and task about a minute since the epoch, or None if they are not kept."""
        pipeline = self._pipeline()
        pipeline.get(self._history("names", minute // NAMES_INTERVAL))
        (body,) = self._answers(pipeline)
        rows = _decoded(body)
        if not isinstance(rows, dict):
            return None
        pairs = ((_record_of(name.encode(errors="replace")), RunSums.parse(row)) for name, row in rows.items())
        return {name: sums for name, sums in pairs if name is not None and sums is not None}


def _decoded(body: bytes | None) -> Any:
    try:
        return encoding.decode(body) if body else None
    except encoding.UNREADABLE:
        return None


def _record_of(member: bytes) -> tuple[str, str] | None:
    """Return queue and task of a record, or None if that is no name of ours."""
    try:
        queue, _, task = member.decode().partition("\n")
    except UnicodeDecodeError:
        return None
    is_ours = task and _is_name(task) and (not queue or _is_name(queue))
    return (queue, task) if is_ours else None


def _is_name(name: str) -> bool:
    return name == FORGOTTEN or name_of(name) == name


def _failures(stored: Sequence[bytes] | None) -> dict[str, int]:
    """Return failures by exception, of names and counts in turn."""
    pairs = zip((stored or ())[::2], (stored or ())[1::2])
    rows = ((name_of(name.decode(errors="replace")), count) for name, count in pairs)
    counts: dict[str, int] = {}
    for name, count in sorted(rows)[:2 * MAX_EXCEPTIONS]:
        if _count(count):
            counts[name] = counts.get(name, 0) + _count(count)
    return counts


def _count(text: bytes | None) -> int:
    """Return a count, or 0 for what is none."""
    return int(text) if text and len(text) < 16 and text.isdigit() else 0
