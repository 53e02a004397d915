"""Statistics of the runs of tasks, as callers use them."""
from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from itertools import pairwise

from ..deadline import bounded
from ..models.statistics import OTHER, RunStatistics, RunSums, sums_by
from ..reading.reader import Reader


class Statistics:
    """Reads what was counted of the runs of tasks in the last week; it is the home of what is usual for a task."""

    def __init__(self, reader: Reader, timeout: float) -> None:
        self.reader = reader
        self.timeout = timeout

    @bounded
    def all(self) -> list[RunStatistics]:
        """Return the statistics of each task by queue."""
        self.reader.send_pending()
        return self.reader.store.read_statistics()

    def by_task(self) -> dict[str, RunStatistics]:
        """Return the statistics of tasks, of all queues together."""
        return sums_by(self.all(), lambda one: one.task)

    def usual_runtimes(self, names: Iterable[str]) -> dict[str, float]:
        """Return the median runtime of tasks in seconds, by name; a task of which none has ended is left out."""
        known = self.by_task()
        medians = {name: known[name].runtime.quantile(0.5) for name in set(names) & known.keys() - {OTHER}}
        return {name: median for name, median in medians.items() if median is not None}

    @bounded
    def recent(self, seconds: float = 3600.0) -> dict[str, RunSums] | None:
        """Return what the runs of each task came to in the last hour, or None without ``memsync_history``.

        Args:
            seconds: Another span, of at most three days; what is kept is of each ten minutes.
        """
        now = self.all()
        before = self.reader.store.read_names(int((self.reader.store.clock.now() - seconds) // 60))
        if before is None:
            return None
        sums: dict[str, RunSums] = {}
        for one in now:
            added = RunSums.of(one).since(before.get((one.queue, one.task), RunSums()))
            sums[one.task] = added.plus(sums.get(one.task, RunSums()))
        return sums

    @bounded
    def minutes(self, count: int = 5) -> list[tuple[int, RunSums]]:
        """Return what all runs came to in each of the last whole minutes that are kept, oldest first.

        Args:
            count: Most minutes, up to 1440.

        Returns:
            The minute since the epoch at which it ended, and what was added in it, and in minutes before that are not kept.
        """
        last = int(self.reader.store.clock.now() // 60)
        kept = sorted(self.reader.store.read_minutes(range(last - min(count, 1440), last + 1)).items())
        return [(minute, sums.since(before)) for (_, before), (minute, sums) in pairwise(kept)]


def total(sums: Iterable[RunSums]) -> RunSums:
    """Return the sum of sums."""
    return reduce(RunSums.plus, sums, RunSums())
