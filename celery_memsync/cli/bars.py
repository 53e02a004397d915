"""Bars of tasks on a terminal, with rich."""
from __future__ import annotations

import contextlib
import sys
from typing import Any, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from .output import safe, width_of
from .screen import bars

#: A task's id, status, progress and what there is to say of it, as :func:`bars` takes them.
Row = tuple[str, str, "dict[str, Any] | None"]


class Bars:
    """A bar for each task that has not ended; those that have are left above."""

    def __init__(self, live: Live, console: Console, id_width: int) -> None:
        self._live = live
        self._console = console
        self._id_width = id_width
        self._rows: dict[str, Row] = {}

    def say(self, found: dict[str, Any], ended: bool) -> None:
        """Show what is known of a task, as `follow` has it."""
        row = row_of(found, ended)
        if ended:
            self._rows.pop(row[0], None)
            self._console.print(self._drawn([row]))
        else:
            self._rows[row[0]] = row
        self._live.update(self._drawn(list(self._rows.values())), refresh=True)

    def leave(self) -> None:
        """Leave those that have not ended as they are."""
        if self._rows:
            self._console.print(self._drawn(list(self._rows.values())))

    def _drawn(self, rows: list[Row]) -> RenderableType:
        return bars(rows, self._id_width, self._console.width, self._console.options.ascii_only)


@contextlib.contextmanager
def shown(task_ids: Sequence[str], no_color: bool) -> Iterator[Bars]:
    """Give bars of some tasks, which are drawn anew until the end."""
    console = Console(no_color=no_color or None)
    live = Live(console=console, transient=True, redirect_stderr=sys.stderr.isatty())
    page = Bars(live, console, max(width_of(safe(task_id)) for task_id in task_ids))
    try:
        with live:
            yield page
    finally:
        page.leave()


def row_of(found: dict[str, Any], ended: bool) -> Row:
    """Return what a bar shows of a task; of one that has failed, why in the place of its message."""
    state, progress = found["state"] or {}, found["progress"]
    exception = state.get("exception")
    if ended and progress is not None:
        progress = {**progress, "eta": None}
    if isinstance(exception, dict):
        progress = {**(progress or {}), "message": f"{exception.get('type')}: {exception.get('message')}"}
    return str(found["id"]), str(state.get("status", "-")), progress
