"""How far the demo is: bars on a terminal, a line now and then anywhere else."""
from __future__ import annotations

import sys
import time
from typing import Any, Protocol

#: Seconds between two lines about a thing that goes on.
PAUSE = 1.0


class Display(Protocol):
    """Something to show progress on."""

    def say(self, text: str) -> None:
        """Show a text, above what moves."""

    def show(self, what: str, current: int, total: int, message: str = "") -> None:
        """Show how far a thing is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """Plain lines, for pipes and files."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def say(self, text: str) -> None:
        """Print a text."""
        print(text, flush=True)

    def show(self, what: str, current: int, total: int, message: str = "") -> None:
        """Print a line every now and then, and at the end."""
        now = time.monotonic()
        shown, at = self._last.get(what, (-1, now - PAUSE))
        if current != shown and (current == total or now >= at + PAUSE):
            self._last[what] = current, now
            self.say(f"{what}: {current} of {total} modules ({100 * current // total} %) {message}".rstrip())

    def close(self) -> None:
        """Nothing to undo."""


class Bars:
    """Bars of rich."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        message = TextColumn("{task.fields[message]}", style="dim", table_column=Column(ratio=1, no_wrap=True))
        left = TimeRemainingColumn(elapsed_when_finished=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), left, message, expand=True)
        self._bars: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print a text above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, what: str, current: int, total: int, message: str = "") -> None:
        """Move the bar of that name."""
        if what not in self._bars:
            self._progress.start()
            self._bars[what] = self._progress.add_task(what, total=total, message="")
        self._progress.update(self._bars[what], completed=current, total=total, message=message)

    def close(self) -> None:
        """Draw no more."""
        self._progress.stop()


def display() -> Display:
    """Return what fits the standard output."""
    if sys.stdout.isatty():
        try:
            return Bars()
        except ImportError:
            pass
    return Lines()
