"""A collector of prometheus_client that reads Redis when it is scraped."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from ..exceptions import StoreError
from ..manager import MemorySyncManager
from ..models.statistics import Histogram
from . import exporter_names, families
from .families import Family, Sample, own_families
from .reading import Reading, read

logger = logging.getLogger(__name__)

#: Sets of names of metrics, by name.
NAMES: dict[str, Callable[[Reading, bool], list[Family]]] = {
    "celery-memsync": families.families_of, "celery-exporter": exporter_names.families_of}


class MemsyncCollector:
    """Shows what Redis has of tasks, queues and workers to Prometheus.

    Register it in any process, and in as many as you like: they show the same. ::

        from prometheus_client import REGISTRY
        REGISTRY.register(MemsyncCollector(app.memsync))

    Args:
        memsync: Reads Redis.
        names: ``"celery-memsync"``, or ``"celery-exporter"`` for the names that celery-exporter has.
        per_worker: Whether there are metrics of each worker, of at most 200.

    Raises:
        ValueError: For other ``names``.
    """

    def __init__(self, memsync: MemorySyncManager, names: str = "celery-memsync", per_worker: bool = False) -> None:
        if names not in NAMES:
            raise ValueError(f"names is {names!r}; it must be one of {', '.join(NAMES)}")
        self._memsync = memsync
        self._families_of = NAMES[names]
        self._per_worker = per_worker
        #: Counters and histograms that were shown, by name and labels; None: none were read yet.
        self._shown: set[tuple[str, tuple[str, ...]]] | None = None

    def describe(self) -> Iterable[Any]:
        """Return no metrics, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of prometheus_client, read now; it never raises.

        While Redis is away there are ``redis_up 0`` and what needs no Redis.  A counter that is new since the last time is
        shown as 0 once, so that ``rate`` sees what it has counted first.
        """
        return map(_metric, self._with_zeros(self.families()))

    def families(self) -> list[Family]:
        """Return what is collected, as it was counted; it never raises."""
        began = time.monotonic()
        found: list[Family] = []
        is_up = False
        try:
            found = self._families_of(read(self._memsync), self._per_worker)
            is_up = True
        except StoreError as exc:
            logger.debug("Could not read what is monitored: %s", exc)
        except Exception:
            # A scrape that fails would hide what is known, and whatever else its registry has.
            logger.exception("Could not read what is monitored")
        return [*found, *own_families(is_up, time.monotonic() - began)]

    def _with_zeros(self, found: list[Family]) -> list[Family]:
        shown = self._shown
        counted = [one for one in found if one.kind != "gauge"]
        if counted:
            self._shown = {(one.name, sample.labels) for one in counted for sample in one.samples}
        if shown is not None:
            for one in counted:
                one.samples = [sample if (one.name, sample.labels) in shown else _zero(sample) for sample in one.samples]
        return found


def _zero(sample: Sample) -> Sample:
    value = sample.value
    return Sample(sample.labels, value - value if isinstance(value, Histogram) else 0.0)


def _metric(family: Family) -> Any:
    """Return a metric of prometheus_client."""
    from prometheus_client import core

    kinds: dict[str, Any] = {
        "gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily, "histogram": core.HistogramMetricFamily}
    metric = kinds[family.kind](family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            metric.add_metric(labels, buckets=buckets_of(value), sum_value=value.sum)
        else:
            metric.add_metric(labels, value)
    return metric


def buckets_of(histogram: Histogram) -> list[tuple[str, int]]:
    """Return the buckets as Prometheus has them: upper bound, and how many times are not above it."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts)))
