"""What all commands share: the memory of the app, tables, times, errors."""
from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from typing import Any, Iterator, Sequence

import click
from celery.exceptions import CeleryCommandException, ImproperlyConfigured
from celery.platforms import EX_UNAVAILABLE, EX_USAGE
from kombu.utils import json

from ..exceptions import InvalidKey, StoreError
from ..plugin import MemSync, activate

#: Colour of a status on a terminal.
COLOURS = {
    "SUCCESS": "green", "active": "green", "STARTED": "cyan", "busy": "cyan", "RECEIVED": "blue", "RETRY": "yellow",
    "draining": "yellow", "FAILURE": "red", "LOST": "red", "lost": "red", "REVOKED": "magenta",
}


@contextlib.contextmanager
def memory_of(ctx: click.Context) -> Iterator[MemSync]:
    """Give the memory of the command's app; turn errors into one line and an exit code."""
    try:
        memsync = activate(ctx.obj.app)
        memsync.check()
        yield memsync
    except ImproperlyConfigured as exc:
        raise CeleryCommandException(str(exc), exit_code=os.EX_CONFIG) from exc
    except InvalidKey as exc:
        raise CeleryCommandException(str(exc), exit_code=EX_USAGE) from exc
    except StoreError as exc:
        raise CeleryCommandException(str(exc), exit_code=EX_UNAVAILABLE) from exc


def say_json(ctx: click.Context, data: Any) -> None:
    """Print data as one JSON document."""
    ctx.obj.echo(json.dumps(data))  # type: ignore[no-untyped-call]


def say_table(ctx: click.Context, titles: Sequence[str], rows: Sequence[Sequence[str]], colour: int = -1) -> None:
    """Print rows in aligned columns, without trailing blanks.

    Arguments:
        colour: Index of the column that holds a status.
    """
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    for number, row in enumerate((titles, *rows)):
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        cells[-1] = row[-1]
        if number == 0:
            cells = [ctx.obj.style(cell, bold=True) for cell in cells]
        elif colour >= 0 and row[colour] in COLOURS:
            cells[colour] = ctx.obj.style(cells[colour], fg=COLOURS[row[colour]])
        ctx.obj.echo("  ".join(cells).rstrip())


def moment(seconds: float | None) -> str:
    """Return a time of day with its date, in UTC."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def ago(seconds: float | None, now: float) -> str:
    """Return how long ago a time was."""
    return "-" if seconds is None else duration(max(0.0, now - seconds))


def duration(seconds: float | None) -> str:
    """Return a span of time in its largest fitting unit."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def percent(progress: dict[str, Any] | None) -> str:
    """Return how far a task is."""
    if progress is None:
        return "-"
    if progress["progress"] is not None:
        return f"{progress['progress']:.0f}%"
    return "-" if progress["current"] is None else f"{progress['current']:g}"


def visible(text: str, limit: int = 200) -> str:
    """Return a text on one line, without what a terminal would act on."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
