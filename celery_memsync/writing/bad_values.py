"""What becomes of a bad value that a task reports: it is raised, or logged once."""
from __future__ import annotations

import logging

from ..exceptions import MemSyncError
from ..user_code import message_of

logger = logging.getLogger(__name__)

#: Most names of tasks that are remembered; what others report is not logged.
MAX_NAMES = 1000

#: The names under which something was logged in this process.
_logged: set[str] = set()


#: For a task whose bad values are not even logged.
SILENT = ""


def refuse(error: MemSyncError, task_name: str | None) -> None:
    """Raise the error, or log it if it must not fail a task.

    Args:
        task_name: Name of the task that goes on, under which one error is logged; or `SILENT`.  None: the error is raised.

    Raises:
        MemSyncError: The error, without a name.
    """
    if task_name is None:
        raise error
    if task_name != SILENT and task_name not in _logged and len(_logged) < MAX_NAMES:
        _logged.add(task_name)
        logger.warning(
            "Ignored a report of the task %s: %s. Further ones are not logged; memsync_strict = True raises them.",
            task_name, message_of(error))
