"""The progress of a task, and what it looks like in Redis."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import encoding
from ..types import TaskProgress
from .entry import MAX_FIGURE, StoredEntry
from .order import RUNNING, rank_of, run_id_of

#: Fields of a progress; new ones go to the end.  ``fields`` is a dict of the user's own.
PROGRESS_FIELDS = ("progress", "current", "total", "message", "status", "started_at", "updated_at", "run", "fields",
                   "phase", "phase_number", "phase_started_at", "stalled_at")

#: Those of a body; their order is stored, and does not change.
STORED_FIELDS = (*PROGRESS_FIELDS[:4], *PROGRESS_FIELDS[5:8], PROGRESS_FIELDS[4], *PROGRESS_FIELDS[8:])

#: Those that are times; a body has each as milliseconds since the one before.
_TIMES = ("started_at", "updated_at", "phase_started_at", "stalled_at")

#: Those that are numbers.
_FIGURES = ("progress", "current", "total", "started_at", "updated_at", "phase_number", "phase_started_at", "stalled_at")

#: Those that a task reports.
_REPORTED = ("progress", "current", "total", "message", "status", "phase")

#: The first phase of a run, which has no name unless it is given one.
FIRST_PHASE = 1


def encode_progress(row: Sequence[Any], newer: Sequence[Any] = ()) -> bytes:
    """Return the values of :data:`PROGRESS_FIELDS` as JSON.

    Args:
        newer: Values of what a newer version has stored.
    """
    known = dict(zip(PROGRESS_FIELDS, row))
    before = 0
    for name in _TIMES:
        if (time := known.get(name)) is not None:
            at = round(time * 1000)
            known[name], before = at - before, at
    stored = [*map(known.get, STORED_FIELDS), *newer]
    while stored and stored[-1] is None:
        stored.pop()
    return encoding.dumps(stored)


def decode_progress(body: Any) -> dict[str, Any]:
    """Return by name what :func:`encode_progress` wrote; a time that is none is unknown."""
    known: dict[str, Any] = {**dict.fromkeys(PROGRESS_FIELDS), **dict(zip(STORED_FIELDS, body))}
    before = 0
    for name in _TIMES:
        if (time := known[name]) is not None:
            before += time if type(time) is int else 0
            known[name] = before / 1000 if type(time) is int and abs(before) < MAX_FIGURE else None
    return known


def stalled(row: Any, at: float, since: float, run: str | None) -> bytes:
    """Return a progress with the note that it has stood still, which the next report replaces.

    Args:
        row: What is stored: a list, or a dict of a user's own; of anything else, nothing was reported.
        at: When that was found, in seconds of Redis's clock.
        since: When the run began, in seconds of Redis's clock.
        run: Id of the run, as shown.
    """
    if isinstance(row, dict):
        return encoding.dumps({**row, "stalled_at": at})
    is_ours = isinstance(row, list)
    known = decode_progress(row) if is_ours else {"started_at": since, "updated_at": since, "run": run}
    known["stalled_at"] = at
    return encode_progress([*map(known.get, PROGRESS_FIELDS)], row[len(PROGRESS_FIELDS):] if is_ours else ())


def progress_in(stored: StoredEntry) -> TaskProgress | None:
    """Return the progress that an entry holds, as users see it."""
    return progress_from(stored.value, run_id_of(stored.header.run))


def progress_from(row: Any, run_id: str | None = None) -> TaskProgress | None:
    """Return progress as users see it, with ``eta`` in seconds, None when unknown.

    Args:
        row: What :func:`encode_progress` wrote, or a dict of a user's own.
        run_id: Of the run that its header names.
    """
    if isinstance(row, list):
        known = decode_progress(row)
        known["run"] = run_id if known["run"] is None else known["run"] or None
    elif isinstance(row, dict):
        known = {**dict.fromkeys(PROGRESS_FIELDS), **row}
    else:
        return None
    extra = known.pop("fields")
    for name in _FIGURES:
        known[name] = known[name] if _is_number(known[name]) else None
    known["phase_number"] = known["phase_number"] or FIRST_PHASE
    known["phase_started_at"] = known["phase_started_at"] or known["started_at"]
    known["eta"] = _eta(known) if known["stalled_at"] is None else None
    return {**extra, **known} if isinstance(extra, dict) else known  # type: ignore[return-value]


def at_status(progress: TaskProgress, status: object) -> TaskProgress:
    """Return progress as it is shown of a task with a status: a success is 100 %; only a running task has an ETA, or stalls.

    A retried run that reports nothing has progress all the same, which hides that of the run before; it stays unknown.

    Args:
        status: None if it is unknown.
    """
    if status is None or rank_of(status) == RUNNING:
        return progress
    if status != "SUCCESS" or not any(progress.get(name) is not None for name in _REPORTED):
        return {**progress, "eta": None, "stalled_at": None}
    current = progress["current"] if progress["total"] is None else progress["total"]
    return {**progress, "eta": None, "stalled_at": None, "progress": 100.0, "current": current}


def percent_of(current: float | None, total: float | None) -> float | None:
    """Return how many percent are done, or None while the total is unknown."""
    if total is None or current is None:
        return None
    if current >= total:
        return 100.0
    return 100 * current / total if total else 0.0


def _is_number(figure: Any) -> bool:
    return isinstance(figure, (int, float)) and not isinstance(figure, bool) and abs(figure) < MAX_FIGURE


def _eta(known: dict[str, Any]) -> float | None:
    """Return how many seconds are left of the phase, or None if that is unknown."""
    counted = percent_of(known["current"], known["total"])
    percent = known["progress"] if counted is None else counted
    since, until = known["phase_started_at"], known["updated_at"]
    if percent is None or since is None or until is None:
        return None
    if percent >= 100:
        return 0.0
    elapsed = until - since
    return round(elapsed * (100 - percent) / percent, 3) if percent > 0 and elapsed > 0 else None
