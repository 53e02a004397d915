"""What a task reports by Celery's own ``update_state`` is recorded, too: as progress, and as its status."""
from __future__ import annotations

import functools
import time
from typing import Any

from ..models.order import RANKS
from ..user_code import ends_here
from ..writing.progress import RESERVED
from .runs import ActiveRun, active_run

#: What is taken out of ``meta``; all else becomes fields of the task's own.
TAKEN = frozenset({"current", "total", "percent", "description", "message", "status", "phase"})


def take_over(task: Any) -> None:
    """Record from now on what a task reports by ``update_state``; doing so twice does nothing more.

    Celery has no signal for it.  The one task object is wrapped and no class, so that tasks of other apps and what users'
    classes override stay as they are.
    """
    if "update_state" in vars(task):
        return
    update_state = task.update_state

    @functools.wraps(update_state)
    def record_and_update(*args: Any, **kwargs: Any) -> Any:
        try:
            _record(task, *args, **kwargs)
        except Exception as exc:  # whatever is in there, it was meant for the result backend
            if not ends_here(exc):
                raise
        return update_state(*args, **kwargs)

    task.update_state = record_and_update


def _record(task: Any, task_id: str | None = None, state: Any = None, meta: Any = None, **_: Any) -> None:
    """Record a report of the run of a task that is running here; the arguments are Celery's."""
    active = _find_run(task.request.id if task_id is None else task_id)
    if active is None:
        return
    if isinstance(state, str) and state not in RANKS:
        _show_status(active, state)
    if isinstance(meta, dict):
        _report(active, meta)


def _find_run(task_id: str | None) -> ActiveRun | None:
    """Return the run of a task; it may have called another task eagerly."""
    active = active_run.get()
    while active is not None and active.task_id != task_id:
        active = active.outer
    return active


def _show_status(active: ActiveRun, status: str) -> None:
    """Let a status be shown while the task runs; it is written when it is new, and before it expires."""
    memsync, now = active.memsync, time.monotonic()
    shown, until = active.shown_status
    if memsync is None or status == shown and now < until:
        return
    memsync.sync_task_state(active.task_id, {"status": status})
    active.shown_status = status, now + memsync.settings.default_ttl / 2


def _report(active: ActiveRun, meta: dict[Any, Any]) -> None:
    progress, memsync = active.progress, active.memsync
    fields = {name: value for name, value in meta.items()
              if isinstance(name, str) and name not in TAKEN and name not in RESERVED}
    to_queue = progress.report(
        meta.get("current"), meta.get("total"), meta.get("description", meta.get("message")), meta.get("status"),
        meta.get("percent"), fields, phase=meta.get("phase"), silent=True)
    if to_queue and memsync is not None:
        memsync.runtime.writer.put(progress)
