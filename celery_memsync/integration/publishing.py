"""The app that is sending a task: Celery's signals of publishing do not name it."""
from __future__ import annotations

import functools
from typing import Any

from .task_signals import publishing


def mark_publishing(app: Any) -> None:
    """Let the signals of publishing know which app sends; they do not tell."""
    send_task = app.send_task
    if hasattr(send_task, "marks_publishing"):
        return

    @functools.wraps(send_task)
    def send(*args: Any, **kwargs: Any) -> Any:
        token = publishing.set(app)
        try:
            return send_task(*args, **kwargs)
        finally:
            publishing.reset(token)

    send.marks_publishing = True  # type: ignore[attr-defined]
    app.send_task = send
