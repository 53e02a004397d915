"""Tasks whose progress an endpoint shows."""
from __future__ import annotations


def path_of(app, task_id="t1", **options):
    """Return the path under which the endpoint shows a task."""
    return f"/progress/{app.token(task_id, **options)}"


def publish(app, task_id="t1", percent=None, **state):
    """Write the progress and the state of a task, and return when they are in Redis."""
    if percent is not None:
        app.sync_task_progress(task_id, percent, message=f"at {percent}")
    app.sync_task_state(task_id, state)
    app.force_sync()
