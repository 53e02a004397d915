"""The progress of a task, and what it looks like in Redis."""
from __future__ import annotations

from typing import Any, Sequence

from .. import encoding
from .entry import MAX_FIGURE

#: Fields of a progress body, in this order for ever; a dict of the user's own fields comes last.
PROGRESS_FIELDS = ("progress", "current", "total", "message", "status", "started_at", "updated_at", "run", "fields")


def encode_progress(row: Sequence[Any]) -> bytes:
    """Return the values of :data:`PROGRESS_FIELDS` as JSON."""
    last = len(row)
    while last and row[last - 1] is None:
        last -= 1
    return encoding.dumps(row[:last])


def progress_from(row: Any) -> dict[str, Any] | None:
    """Return progress as users see it, with ``eta`` in seconds, None when unknown.

    Args:
        row: What :func:`encode_progress` wrote, or a dict of a user's own.
    """
    known: dict[str, Any] = dict.fromkeys(PROGRESS_FIELDS)
    if isinstance(row, list):
        known.update(zip(PROGRESS_FIELDS, row))
    elif isinstance(row, dict):
        known.update(row)
    else:
        return None
    extra = known.pop("fields")
    for name in ("progress", "current", "total", "started_at", "updated_at"):
        known[name] = known[name] if _is_number(known[name]) else None
    known["eta"] = _eta(known["progress"], known["started_at"], known["updated_at"])
    return {**extra, **known} if isinstance(extra, dict) else known


def _is_number(figure: Any) -> bool:
    return isinstance(figure, (int, float)) and not isinstance(figure, bool) and abs(figure) < MAX_FIGURE


def _eta(percent: float | None, started_at: float | None, updated_at: float | None) -> float | None:
    if percent is None or started_at is None or updated_at is None:
        return None
    if percent >= 100:
        return 0.0
    elapsed = updated_at - started_at
    return round(elapsed * (100 - percent) / percent, 3) if percent > 0 and elapsed > 0 else None
