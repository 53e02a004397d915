"""Send the tasks of `lock_tasks`, and wait until they hold their locks."""
from __future__ import annotations

from tests.support.waiting import eventually

TASKS = "tests.support.lock_tasks"


def task(fleet, name):
    return fleet.app.tasks[f"{TASKS}.{name}"]


def send(fleet, task_name, *args, **options):
    return task(fleet, task_name).apply_async(args, **options)


def wait_begun(fleet, result, times=1, timeout=15):
    return eventually(lambda: len(rows := fleet.notes("begin", result.id)) >= times and rows, timeout)
