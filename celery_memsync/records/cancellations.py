"""Cancel tasks, roots and groups."""
from __future__ import annotations

from collections.abc import Callable

from ..deadline import bounded
from ..exceptions import InvalidValue
from ..keys import check_id
from ..models.cancellation import Cancellation
from ..models.task import MAX_MESSAGE
from ..reading.cancelled import CancelledIds
from ..reading.projections import state_of
from ..reading.reader import Reader
from ..redaction import Redactor


class Cancellations:
    """Cancels ids in the name of this process.

    Args:
        running_task: Returns the id of the task whose body makes the call, or None.
        redact: Returns a reason as it may be shown.
    """

    def __init__(
        self, reader: Reader, cancelled: CancelledIds, worker_id: str, running_task: Callable[[], str | None],
        redact: Redactor | None,
    ) -> None:
        self.reader = reader
        self.store = reader.store
        self.timeout = reader.store.timeout
        self.cancelled = cancelled
        self.worker_id = worker_id
        self.running_task = running_task
        self.redact = redact

    @bounded
    def cancel(self, cancelled_id: str, reason: str | None, terminate: bool) -> str | None:
        """Cancel the task, the root or the group with an id; return the status of the task with that id before."""
        cancelled_id = check_id(cancelled_id, "cancelled")
        if reason is not None and not isinstance(reason, str):
            raise InvalidValue(f"the reason is a text, not {type(reason).__name__}")
        if reason and self.redact is not None:
            reason = self.redact(reason)
        task = self.reader.task(cancelled_id)
        state = state_of(cancelled_id, task.slots, task.former) or {}
        cancelled = Cancellation(
            cancelled_id, round(self.store.clock.now(), 3), self.worker_id, self.running_task(),
            reason[:MAX_MESSAGE] if reason else None, bool(terminate))
        self.store.cancel(cancelled)
        self.cancelled.note(cancelled)
        status = state.get("status")
        return status if isinstance(status, str) else None
