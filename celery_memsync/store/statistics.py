"""Statistics of the runs of tasks: how a write refers to what it counts, and how they are read."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.statistics import MAX_EXCEPTIONS, MAX_RECORDS, RunCounts, RunStatistics, name_of
from .errors import redis_call
from .script_caller import ScriptCaller


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
        """Return the words of a write."""
        name, words, exception = counts
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = self._next
            self._next += 2
            self.records[name] = False
        if not exception or not self._with_exceptions:
            return f"{number} {words} "
        self.records[name] = True
        cause = self._numbers.get(f"{exception}\n")
        if cause is None:
            cause = self._numbers[f"{exception}\n"] = self._next
            self._next += 1
        return f"{number} {words} {cause}"

    def text(self) -> str:
        """Return the lines, each with a line feed after it."""
        return "".join(self._numbers)

    def keys(self, statistics: str) -> list[str]:
        """Return the keys of the records, and of the exceptions that are counted.

        Args:
            statistics: The key of the set of all records.
        """
        return [f"{statistics}/{name[:-1]}{end}" for name, failed in self.records.items() for end in ("", "\n")[:1 + failed]]


class StatisticsStore(ScriptCaller):
    """What is about statistics."""

    @redis_call
    def read_statistics(self) -> list[RunStatistics]:
        """Return the statistics of all tasks by queue, in two round trips; what has no name of ours is left out."""
        key = self.keys.statistics
        pipeline = self._pipeline(None)
        pipeline.zrangebyscore(key, round(self.clock.now() * 1000), "+inf", start=0, num=MAX_RECORDS + 1)
        (members,) = self._answers(pipeline)
        names = [name for member in members or () if (name := _record_of(member)) is not None]
        pipeline = self._pipeline(None)
        for queue, task in names:
            pipeline.get(f"{key}/{queue}\n{task}")
            pipeline.hgetall(f"{key}/{queue}\n{task}\n")
        answers = self._answers(pipeline) if names else []
        return [RunStatistics.parse(queue, task, record, _failures(failures))
                for (queue, task), record, failures in zip(names, answers[::2], answers[1::2])]


def _record_of(member: bytes) -> tuple[str, str] | None:
    """Return queue and task of a record, or None if that is no name of ours."""
    try:
        queue, _, task = member.decode().partition("\n")
    except UnicodeDecodeError:
        return None
    is_ours = task and name_of(task) == task and (not queue or name_of(queue) == queue)
    return (queue, task) if is_ours else None


def _failures(stored: Mapping[bytes, bytes] | Any) -> dict[str, int]:
    rows = ((name_of(name.decode(errors="replace")), count) for name, count in (stored or {}).items())
    counts: dict[str, int] = {}
    for name, count in sorted(rows)[:2 * MAX_EXCEPTIONS]:
        if count.isdigit() and len(count) < 16:
            counts[name] = counts.get(name, 0) + int(count)
    return counts
