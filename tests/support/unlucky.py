"""A writer whose every round of conflict resolution is lost."""
from __future__ import annotations

from celery_memsync import Resolution


def write_unlucky(memsync, make_memsync):
    """Return a manager with a pending write of ``a``; while it settles the conflict ``memsync`` writes ``a`` again."""
    def meddle(entries):
        memsync.write("a", len(entries[0].value) * "x" + "x")
        memsync.force_sync()
        return Resolution("mine", "meddle")

    unlucky = make_memsync(batch_interval=60.0, conflict_resolver=meddle)
    memsync.write("a", "x")
    memsync.force_sync()
    unlucky.write("a", "mine")
    return unlucky
