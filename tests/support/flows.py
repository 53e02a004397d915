"""Signatures of the tasks of workflows."""
from __future__ import annotations

FLOWS = "tests.support.flow_tasks"


def sig(fleet, name, *args, **kwargs):
    """Return the signature of a task as the app of a fleet has it."""
    return fleet.app.tasks[f"{FLOWS}.{name}"].s(*args, **kwargs)
