"""How far the census is: bars on a terminal, lines anywhere else."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

#: Seconds between two lines about progress.
PAUSE = 1.0


class Bar(NamedTuple):
    """How far one thing is."""

    name: str
    current: float
    total: float

    @property
    def percent(self) -> int:
        """The same in percent."""
        return int(100 * self.current / self.total)


class Display(Protocol):
    """Shows texts and progress."""

    def say(self, text: str) -> None:
        """Show a text, above what moves."""

    def show(self, whole: Bar, parts: Sequence[Bar]) -> None:
        """Show how far the whole is, and those of its parts that run now."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """Plain lines, for pipes and files."""

    def __init__(self) -> None:
        self._shown = -1.0
        self._next = 0.0
        self._before_text = ""

    def say(self, text: str) -> None:
        """Print a text, with an empty line between progress and it."""
        print(f"{self._before_text}{text}", flush=True)
        self._before_text = ""

    def show(self, whole: Bar, parts: Sequence[Bar]) -> None:
        """Print a line each second, and when the whole is done."""
        done = whole.current == whole.total
        if self._shown == whole.total or not done and time.monotonic() < self._next:
            return
        self._shown, self._next = whole.current, time.monotonic() + PAUSE
        running = "".join(f"; {part.name} {part.percent} %" for part in parts)
        print(f"{whole.name}: {whole.current} of {whole.total} modules "
              f"({whole.percent} %){running}", flush=True)
        self._before_text = "\n"

    def close(self) -> None:
        """Nothing to undo."""


class Bars:
    """Bars of rich."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(40), TaskProgressColumn())
        self._bars: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print a text above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, whole: Bar, parts: Sequence[Bar]) -> None:
        """Move the bars; remove those of parts that do not run any more."""
        bars = {bar.name: bar for bar in (whole, *parts)}
        for name in self._bars.keys() - bars.keys():
            self._progress.remove_task(self._bars.pop(name))
        for name, bar in bars.items():
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name)
            self._progress.update(self._bars[name], completed=bar.current, total=bar.total)
        self._progress.start()

    def close(self) -> None:
        """Draw no more."""
        with contextlib.suppress(OSError):  # the terminal was closed
            self._progress.stop()


def display() -> Display:
    """Return what fits the standard output."""
    if sys.stdout.isatty():
        try:
            return Bars()
        except ImportError:
            pass
    return Lines()
