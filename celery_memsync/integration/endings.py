"""How a run has ended, where the state that Celery's signal names is not the whole answer."""
from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery.exceptions import Ignore, Reject, WorkerShutdown, WorkerTerminate
from celery.states import READY_STATES

from ..exceptions import TaskCancelled
from .child_outcomes import STORED_END
from .runs import ActiveRun

logger = logging.getLogger(__name__)

#: Arguments of the Ignore by which ``Task.replace`` ends a run.
REPLACED = ("Replaced by new task",)


def end_of_unwound(active: ActiveRun) -> tuple[str | None, BaseException | None]:
    """Return the status and the exception of a run that Celery has given no state.

    Its body was left by what is no Exception, or a hook of its task has raised one.

    No status: the worker's main process records it, which has lost a child, or has killed a greenlet.
    """
    error = sys.exc_info()[1]
    if isinstance(error, Exception):
        return "REJECTED" if isinstance(error, Reject) else "FAILURE", error
    if active.sent.get("pid", os.getpid()) != os.getpid() or type(error).__name__ == "GreenletExit" or error is None:
        return None, None
    # The worker itself ends, as in the solo pool by a signal: how far the body came is unknown.
    return "LOST" if isinstance(error, (WorkerShutdown, WorkerTerminate)) else "FAILURE", error


def end_of_ignored(active: ActiveRun, task: Any, error: Ignore) -> str:
    """Return the status of a run whose body has raised Ignore; Celery has stored nothing of that."""
    if active.stored_state in READY_STATES and error.args != REPLACED:
        # The Ignore keeps Celery from storing an end, so that the one that the body has stored stays.
        setattr(error, STORED_END, active.stored_state)  # for the worker's main process
        return str(active.stored_state)
    if isinstance(error, TaskCancelled):
        _store_revoked(task, error)
        return "REVOKED"
    return "IGNORED"


def _store_revoked(task: Any, error: TaskCancelled) -> None:
    """Store in the result backend that the running task is revoked, as Celery does for those that it skips."""
    request = task.request
    if request.is_eager and not task.store_eager_result:
        return
    ignored = request.ignore_result if request.ignore_result is not None else task.ignore_result
    try:
        task.backend.mark_as_revoked(
            request.id, str(error), request=request, store_result=not ignored or task.store_errors_even_if_ignored)
    except Exception:  # also a soft time limit: the body has ended, and its end is still to be recorded
        logger.warning("Could not store in the result backend that the task %s was cancelled", request.id, exc_info=True)


def is_unstored(task: Any, task_id: str, error: BaseException) -> bool:
    """Whether Celery stores as the result of a task the error that was raised behind its body.

    That is so if its callbacks, or the rest of its chain, could not be sent.  A hook is called after the result was stored,
    and before 5.7 what it raises replaces a failure.
    """
    if not isinstance(error, Exception) or not _leaves_tracer(error):
        return False
    request = task.request
    return not request.is_eager and not request.ignore_result and stored_state(task, task_id) != "SUCCESS"


def _leaves_tracer(error: BaseException) -> bool:
    """Whether an error leaves Celery's function that runs a task; a body may run a task eagerly while it handles one."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "celery.app.trace":
        frame = frame.f_back
    return error.__traceback__ is not None and error.__traceback__.tb_frame is frame


def stored_state(task: Any, task_id: str) -> Any:
    """Return what the result backend has of a task, or None if there is no backend, or it is away."""
    try:
        return task.backend.get_state(task_id)
    except Exception:
        # No result backend, or it is away: no success is known.  A soft time limit that strikes here is of a body that has
        # ended, whose end is still to be recorded.
        logger.debug("Could not read what the result backend has of the task %s", task_id, exc_info=True)
        return None


class _Harmless:
    """Logs what goes wrong in recording: Celery's own callback comes next, and must."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        log_unrecorded(error)
        return True


HARMLESS = _Harmless()


def log_unrecorded(error: Exception) -> None:
    """Log that the end of a task could not be recorded."""
    logger.error("Could not record the outcome of a task", exc_info=error)
