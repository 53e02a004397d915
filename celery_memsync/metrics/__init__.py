"""What is monitored: read from Redis when it is wanted, and shown as Prometheus takes it.

`reading.py` reads all of it in a handful of round trips, whatever the number of workers and tasks; `families.py` makes the
metrics of that, and `exporter_names.py` those that celery-exporter has.  Counters are counted in Redis, by the script that
accepts the stages of tasks (`store/lua/statistics.lua`), so any number of processes may show them.  Only `collector.py` and
`server.py` import prometheus_client, and only when they are used.  Start reading at `collector.py`.
"""
from __future__ import annotations

from .collector import MemsyncCollector

__all__ = ["MemsyncCollector"]
