"""Settings that a task has as attributes of its own, such as ``@app.task(memsync_recover="requeue")``."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import ImproperlyConfigured

from ..settings import TASK_SETTINGS, allowed_for, short, unknown


def check_tasks(tasks: Mapping[str, Any]) -> None:
    """Check the attributes of all tasks whose names begin as those of settings do.

    Raises:
        ImproperlyConfigured: If there is no such attribute, or its value is wrong; it names the task.
    """
    for task_name, task in sorted(tasks.items()):
        for attribute in dir(task):
            if attribute.startswith("memsync_"):
                _check(task_name, attribute.removeprefix("memsync_"), getattr(task, attribute))


def _check(task_name: str, name: str, value: object) -> None:
    if name not in TASK_SETTINGS:
        raise ImproperlyConfigured(f"the task {task_name}: {unknown(name, TASK_SETTINGS, 'attribute')}")
    allowed = allowed_for(name, value)
    if value is not None and allowed is not None:
        raise ImproperlyConfigured(f"memsync_{name} of the task {task_name} is {short(value)}; it must be {allowed}")
