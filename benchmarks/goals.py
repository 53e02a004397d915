"""The goals: what each kind of work should cost at most, and whether it does."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from common import FLOOR, OURS, Table, again


class Goal(NamedTuple):
    """The goal of one kind of work.

    Attributes:
        work, peer: How the report names them.
        benchmark, table, figure: Where the figure is.
        most: What the work should cost at most: a ratio to the peer, or a number of ``unit``.
        unit: What ``most`` counts, such as bytes; "" for a ratio.
    """

    work: str
    peer: str
    benchmark: str
    table: str
    figure: str
    most: float
    unit: str = ""


TIME, CLIENT, SERVER = "time, µs", "CPU of the client, µs", "CPU of Redis, µs"
CELERY, PIPELINE, LRU = "plain Celery", "redis-py's pipeline", "an LRU under a lock"

GOALS = (
    Goal("a no-op task: CPU of its worker", CELERY,
         "overhead", "A no-op task", "CPU of the worker, µs", 1.05),
    Goal("a no-op task: time to the next one", CELERY, "overhead", "A no-op task", TIME, 1.04),
    Goal("a no-op task: CPU of Redis, broker included", CELERY,
         "overhead", "A no-op task", SERVER, 1.15),
    Goal("a no-op task: our calls in main", "",
         "calls", "Calls of our functions for a no-op task", "in main", 15, "calls"),
    Goal("a no-op task: our calls in a child", "",
         "calls", "Calls of our functions for a no-op task", "in a child", 35, "calls"),
    Goal("a progress call", "`update_state`", "progress", "A progress call", TIME, 0.0016),
    Goal("writing new keys: time", PIPELINE, "writes", "New keys", TIME, 1.2),
    Goal("writing new keys: CPU of the client", PIPELINE, "writes", "New keys", CLIENT, 0.7),
    Goal("writing new keys: CPU of Redis", PIPELINE, "writes", "New keys", SERVER, 7),
    Goal("counting", PIPELINE, "writes", "Increments", TIME, 0.66),
    Goal("a cached read, flat", LRU, "reads", "Cached, flat", TIME, 1.4),
    Goal("a cached read, nested", LRU, "reads", "Cached, nested", TIME, 3),
    Goal("a read that misses the cache", "redis-py's GET", "reads", "Not cached", TIME, 1.2),
    Goal("a lock acquired and released", "redis-py's lock",
         "locks", "Acquiring and releasing a free lock", TIME, 0.85),
    Goal("a lock handed over", "BLPOP", "locks", "Handing a lock to another process", TIME, 1.0),
    *(Goal(f"a change to the handler, {count} listening", "`psubscribe`",
           "subscriptions", f"{count} listening", TIME, most)
      for count, most in ((1, 1.3), (10, 1.5), (100, 2.0))),
    Goal("who is alive, 4 workers", "`inspect ping`",
         "fleet", "Which of 4 workers are alive", TIME, 0.0001),
    Goal("who is alive, 10,000 workers", "HVALS of JSON",
         "fleet", "Reading 10,000 simulated workers", TIME, 1.0),
    Goal("a task's record", "three strings", "memory", "A task's record", "bytes", 600, "bytes"),
    Goal("memory added to main", CELERY,
         "memory", "Private memory of a worker", "added to main, MB", 3.5, "MB"),
    Goal("memory added to a child", CELERY,
         "memory", "Private memory of a worker", "added to a child, MB", 3.5, "MB"),
    *(Goal(f"a cluster: how far a node's share of {figure} is from a third", "",
           "scale", "The node farthest from a third", figure, 0.2, "of it")
      for figure in ("commands", "CPU")),
)


class Result(NamedTuple):
    """What was measured beside a goal: ratios to the peer, or numbers of the goal's unit.

    Attributes:
        ours: Of this package.
        again: Of the peer, measured a second time; None if it was not.
        floor: Of the floor; None if there is none.
        noise: How far from ``ours`` the truth may be, by how far the peer is from itself.
    """

    goal: Goal
    ours: float
    again: float | None
    floor: float | None
    noise: float

    @property
    def missed_by(self) -> float:
        """The part of the goal by which it is missed; negative if it is met."""
        return self.ours / self.goal.most - 1

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ours <= self.goal.most

    @property
    def within_noise(self) -> bool:
        """Whether noise may have met or missed the goal."""
        return abs(self.ours - self.goal.most) < self.noise

    @property
    def verdict(self) -> str:
        """Whether the goal is met, in words."""
        words = "met" if self.met else f"missed by {percent(self.missed_by)}"
        return f"{words}, within noise" if self.within_noise else words


def percent(part: float) -> str:
    """Return a part as a percentage."""
    return f"{part * 100:.2g} %" if part < 0.1 else f"{part * 100:,.0f} %"


def judge(goal: Goal, results: Mapping[str, Any]) -> Result | None:
    """Compare a goal with the results of all benchmarks; return None if it was not measured."""
    table: Table = results.get(goal.benchmark, {}).get("tables", {}).get(goal.table, {})
    rows = {name: row[goal.figure] for name, row in table.items() if goal.figure in row}
    if OURS not in rows:
        return None
    fact = "median" if goal.unit else "ratio"
    peer = next(iter(rows))
    second = rows.get(again(peer))
    if second is None:
        noise = 0.0
    elif goal.unit:
        noise = abs(second["median"] - rows[peer]["median"])
    else:
        noise = rows[OURS]["ratio"] * max(abs(second["low"] - 1), abs(second["high"] - 1))
    return Result(
        goal, rows[OURS][fact], None if second is None else second[fact],
        rows[FLOOR][fact] if FLOOR in rows else None, noise)


def judge_all(results: Mapping[str, Any]) -> list[Result]:
    """Return all goals that were measured, and what was."""
    return [found for goal in GOALS if (found := judge(goal, results)) is not None]
