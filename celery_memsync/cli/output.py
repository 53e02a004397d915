"""What all commands share: the memory of the app, tables, times, errors."""
from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from datetime import datetime, timezone
from json import dumps
from typing import Any, Callable, Iterator, Sequence, TypeVar

import click
from celery.bin.base import CeleryOption
from celery.exceptions import CeleryCommandException, ImproperlyConfigured
from celery.platforms import EX_UNAVAILABLE, EX_USAGE
from kombu.utils import json

from ..exceptions import InvalidKey, StoreError
from ..plugin import MemSync, activate
from ..records import MAX_FIGURE

F = TypeVar("F", bound=Callable[..., Any])

#: Exit code of a command whose time was over before what it waited for.
EX_TIMEOUT = os.EX_TEMPFAIL

#: Exit code of a command that was ended by Ctrl-C, as shells have it.
EX_INTERRUPTED = 130

#: How often is looked how fast Redis answers.
LATENCY_TRIES = 5

json_option = click.option(
    "-j", "--json", "as_json", cls=CeleryOption, is_flag=True, help_group="Output", help="Print JSON.")

timeout_option = click.option(
    "-t", "--timeout", cls=CeleryOption, type=click.FloatRange(0), help_group="Selection",
    help="End after so many seconds.")

#: Colour of a status on a terminal.
COLOURS = {
    "SUCCESS": "green", "active": "green", "STARTED": "cyan", "busy": "cyan", "RECEIVED": "blue", "RETRY": "yellow",
    "draining": "yellow", "FAILURE": "red", "LOST": "red", "lost": "red", "REVOKED": "magenta",
}


def limit_option(default: int, most: int, help: str) -> Callable[[F], F]:
    """Give a command the option that limits how much it shows."""
    return click.option(
        "-n", "--limit", cls=CeleryOption, type=click.IntRange(1, most), default=default, show_default=True,
        help_group="Selection", help=help)


@contextlib.contextmanager
def memory_of(ctx: click.Context) -> Iterator[MemSync]:
    """Give the memory of the command's app; turn errors into one line and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Texts of users are shown on every terminal, whatever letters it has.
        sys.stdout.reconfigure(errors="backslashreplace")
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
    except KeyboardInterrupt:
        ctx.exit(EX_INTERRUPTED)


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


def say_facts(ctx: click.Context, facts: Sequence[tuple[str, str]]) -> None:
    """Print names and what they stand for, a line each."""
    width = max(len(visible(name)) for name, _ in facts)
    for name, value in facts:
        ctx.obj.echo(f"{ctx.obj.style(visible(name).ljust(width), bold=True)}  {visible(value, limit=None)}")


def figure(value: Any) -> float | None:
    """Return a number that can be reckoned with, None for anything else that somebody may have told."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_FIGURE
    return value if sound else None


def moment(seconds: Any) -> str:
    """Return a time of day with its date, in UTC; "-" if it is none."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if figure(seconds) is not None:
            return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
    return "-"


def ago(seconds: Any, now: float) -> str:
    """Return how long ago a time was; "-" if it is none."""
    return "-" if figure(seconds) is None else duration(max(0.0, now - seconds))


def duration(seconds: Any) -> str:
    """Return a span of time in its largest fitting unit; "-" if it is none."""
    if figure(seconds) is None:
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


def progress_words(progress: dict[str, Any], ended: bool = False) -> str:
    """Return all that is to be said of how far a task is, or came."""
    parts = [percent(progress)]
    if progress["current"] is not None and progress["total"] is not None:
        parts.append(f"{progress['current']:g} of {progress['total']:g}")
    if progress["message"]:
        parts.append(visible(progress["message"]))
    if progress["eta"] and not ended:
        parts.append(f"{duration(progress['eta'])} left")
    return ", ".join(parts)


def latency_of(memsync: MemSync) -> float:
    """Return how many seconds a question to Redis takes, at best of some.

    Raises:
        StoreError: If Redis is away.
    """
    memsync.store.connect()
    times = []
    for _ in range(LATENCY_TRIES):
        asked = time.monotonic()
        memsync.store.ping()
        times.append((time.monotonic() - asked) / 2)  # it asks twice
    return round(min(times), 6)


def mebibytes(size: Any) -> str:
    """Return a number of bytes in MiB; "-" if it is none."""
    return "-" if figure(size) is None else f"{size / 2**20:.1f} MiB"


def visible(text: object, limit: int | None = 200) -> str:
    """Return a text, or anything else as one, on one line, without what a terminal would act on.

    Arguments:
        limit: Most characters.  None: as many as there are.
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 3] + "..."


def shown(value: Any) -> str:
    """Return a value as JSON on one line that is not too long."""
    return visible(dumps(value, ensure_ascii=False, default=str))


def indented(value: Any) -> Iterator[str]:
    """Yield a value as lines of JSON, without what a terminal would act on."""
    for line in dumps(value, ensure_ascii=False, default=str, indent=2).split("\n"):
        yield visible(line, limit=None)
