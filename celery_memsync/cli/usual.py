"""What is usual for tasks and queues, as commands show it."""
from __future__ import annotations

from typing import Any

from ..app import MemSync
from ..models.statistics import OTHER, Histogram, RunStatistics, RunSums, sums_by
from .output import duration, shorten

#: Most tasks that are named for their failures.
NAMED = 3


def usual_of(memsync: MemSync, name: object) -> dict[str, Any] | None:
    """Return what the runs of a task come to, or None if it is not known."""
    one = memsync.runtime.statistics.by_task().get(name) if isinstance(name, str) and name != OTHER else None
    return None if one is None else runs_of(one)


def runs_of(one: RunStatistics) -> dict[str, Any]:
    """Return how many runs have ended and failed, and their runtimes in seconds: median, and that below which 95 % are."""
    return {"runs": one.ended, "failed": one.outcomes["failed"], **_times("runtime", one.runtime)}


def _times(name: str, times: Histogram) -> dict[str, float | None]:
    return {name: times.quantile(0.5), f"{name}_95": times.quantile(0.95)}


def _recent(one: RunSums) -> dict[str, Any]:
    """Return how many runs have ended and failed, and the means of their runtimes and waiting times in seconds."""
    return {"runs": one.ended, "failed": one.failed, "runtime": one.runtime / 1e6 / one.runtimes if one.runtimes else None,
            "wait": one.wait / 1e6 / one.waits if one.waits else None}


def usual_words(usual: dict[str, Any]) -> str:
    """Return what the runs of a task come to in a line."""
    words = f"{usual['runs']:,} runs ended, {usual['failed']:,} failed"
    if usual["runtime"] is not None:
        words = f"{duration(usual['runtime'])}, 95 % below {duration(usual['runtime_95'])}; {words}"
    return words


def statistics_of(memsync: MemSync) -> dict[str, Any]:
    """Return what the runs of all tasks come to, by task, and the waiting times by queue; with the history the last hour."""
    found = memsync.runtime.statistics.all()
    queues = sums_by(found, lambda one: one.queue)
    recent = memsync.runtime.statistics.recent()
    return {
        "last_hour": None if recent is None else {name: _recent(one) for name, one in recent.items()},
        "tasks": {name: runs_of(one) for name, one in sums_by(found, lambda one: one.task).items()},
        "queues": {name: {"waits": one.wait.count, **_times("wait", one.wait)} for name, one in queues.items()}}


def statistics_lines(statistics: dict[str, Any]) -> list[str]:
    """Return them in at most three lines: waiting times by queue, the tasks of which most have failed, the last hour."""
    waits = [f"{shorten(name)} {duration(one['wait'])} (95 % below {duration(one['wait_95'])})"
             for name, one in statistics["queues"].items() if one["waits"]]
    tasks = statistics["tasks"]
    runs, failed = (sum(one[name] for one in tasks.values()) for name in ("runs", "failed"))
    worst = sorted((name for name in tasks if tasks[name]["failed"]), key=lambda name: -tasks[name]["failed"])[:NAMED]
    named = ", ".join(f"{shorten(name)} {tasks[name]['failed']:,} of {tasks[name]['runs']:,}" for name in worst)
    lines = [f"Usual waiting time: {', '.join(waits[:NAMED])}"] if waits else []
    if runs > 0:
        lines.append(f"Failures: {failed / runs:.1%} of {runs:,} runs" + (f" ({named})" if named else ""))
    if statistics["last_hour"] is not None:
        rows = statistics["last_hour"].values()
        lines.append(f"Last hour: {sum(one['runs'] for one in rows):,} runs, {sum(one['failed'] for one in rows):,} failed")
    return lines
