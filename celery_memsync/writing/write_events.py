"""The events of what was written."""
from __future__ import annotations

from typing import Any

from .. import encoding
from ..events import Events
from ..models.order import run_id_of
from ..models.progress import progress_from
from .changes import Change, MergeFields, SetValue, StageChange, SyncMetrics, SyncQueue
from .progress import Progress, ProgressChange


class WriteEvents:
    """Emits ``write`` and ``delete``, and the event of the call that made a change."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def written(self, change: Change, body: bytes = b"") -> None:
        """Emit what is to be known of a change that was written.

        Args:
            body: What was sent, if it is an entry.
        """
        if not self.events.has_handlers:
            return
        location = change.location
        if isinstance(change, SetValue) and not change.body:
            self.events.emit("delete", key=location.path)
            return
        synced = _synced(change)
        if not self.events.wanted("write") and (synced is None or not self.events.wanted(synced)):
            return
        value = _value_of(change, body)
        self.events.emit("write", key=location.path, value=value)
        if synced == "task-state-synced":
            self.events.emit(synced, task_id=location.task_id, state=value)
        elif synced == "agent-coordinated":
            self.events.emit(synced, task_id=location.task_id, agent_id=location.field, data=value)
        elif synced == "worker-status-synced":
            self.events.emit(synced, worker_id=location.field.rpartition("/")[0], status=value)
        elif synced == "queue-synced":
            self.events.emit(synced, queue=value)


def _synced(change: Change) -> str | None:
    """Return the event of the call that made a change, if it has one."""
    location = change.location
    if isinstance(change, SyncQueue):
        return "queue-synced"
    if isinstance(change, (MergeFields, StageChange)) and location.task_id:
        return "task-state-synced"
    if isinstance(change, SetValue) and location.task_id and not location.slot:
        return "agent-coordinated"
    return "worker-status-synced" if isinstance(change, SetValue) and location.field.endswith("/status") else None


def _value_of(change: Change, body: bytes) -> Any:
    if isinstance(change, SyncQueue):
        return change.lists
    if isinstance(change, SyncMetrics):
        return {name: _counter(text, more) for name, (text, more) in change.steps.items()}
    if isinstance(change, StageChange):
        return change.task_run.as_dict()
    if isinstance(change, MergeFields):
        return {name: encoding.decode(text) for name, text in change.fields.items()}
    if isinstance(change, (Progress, ProgressChange)):
        # Its times as written: the clock may have been corrected since.
        return progress_from(encoding.decode(body), run_id_of(change.run_key))
    return encoding.decode(body)


def _counter(text: bytes | None, more: float) -> Any:
    value = 0 if text is None else encoding.decode(text)
    return value + more if isinstance(value, (int, float)) and not isinstance(value, bool) else value
