"""Progress of the run before, which travels with a retry: the next run may start before that is in Redis."""
from __future__ import annotations

from typing import Any

from .. import encoding
from ..keys import PROGRESS
from ..models.order import is_earlier_step, is_run_key
from ..runtime import Runtime
from ..writing.progress import ProgressChange
from .requests import count_of
from .runs import ActiveRun

#: Longest progress that travels with a retry, in bytes of JSON.
MAX_PREVIOUS = 4096


def sent_along(active: ActiveRun | None) -> dict[str, Any]:
    """Return what a retried run sends to the next: its progress and number of requeues."""
    if active is None:
        return {}
    recoveries = count_of(active.sent.get("recoveries"))
    known = {"recoveries": recoveries} if recoveries else {}
    body = b"" if active.reports is None else active.reports.entry_write(active.services.store.clock).body
    return {"previous": [active.run_key, encoding.decode(body)], **known} if 0 < len(body) <= MAX_PREVIOUS else known


def record(services: Runtime, task_id: str, previous: Any, present: str) -> None:
    """Record the progress of an earlier run, as it came with the message of this one.

    Args:
        previous: What came; anybody may send anything.
        present: The run key of this one.
    """
    key, row = previous if isinstance(previous, list) and len(previous) == 2 else (None, None)
    if not is_run_key(key) or not is_earlier_step(key, present):
        return
    try:
        encoding.encode(row, "an earlier progress", MAX_PREVIOUS)
    except ValueError:
        return
    location = services.keys.task_location(task_id, PROGRESS)
    change = ProgressChange.from_row(location, row, key, services.settings.default_ttl, services.store.clock)
    if change is not None:
        services.writer.put(change)
