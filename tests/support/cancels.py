"""Send the tasks of `cancel_tasks.py`, and see them begin."""
from __future__ import annotations

from tests.support.waiting import eventually

CANCEL_TASKS = "tests.support.cancel_tasks"


def signature(fleet, name, *args, **options):
    """Return the signature of a task as the app of a fleet has it."""
    return fleet.app.tasks[f"{CANCEL_TASKS}.{name}"].si(*args).set(**options)


def begun(fleet, result):
    """Wait until the body of a task has begun."""
    return eventually(lambda: fleet.notes("begin", result.id), message=f"{result.id} has not begun")
