"""What all commands share: the memory of the app, safe output, times, errors.

Whatever a command prints passes through this module.  Texts come from Redis, where any
client may have written them, so nothing in them may act on the terminal: see :func:`safe`.
"""
from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from json import dumps
from typing import Any, NoReturn, TypeVar

import click
from celery.bin.base import CeleryOption
from celery.exceptions import CeleryCommandException, ImproperlyConfigured
from celery.platforms import EX_UNAVAILABLE, EX_USAGE
from kombu.utils import json

from ..activation import activate
from ..app import MemSync
from ..exceptions import InvalidKey, StoreError
from ..models.entry import MAX_FIGURE
from ..models.order import RUNNING, rank_of
from ..models.progress import at_status
from ..models.worker import WorkerRecord
from ..types import ListedTask

F = TypeVar("F", bound=Callable[..., Any])

AnyTask = TypeVar("AnyTask", bound=ListedTask)

#: A part of a line: a text, or a text with its style, which is "bold", a colour or "" for none.
Part = str | tuple[str, str]

#: Exit code of a command whose time was over before what it waited for.
EX_TIMEOUT = os.EX_TEMPFAIL

#: Exit code of a command that was ended by Ctrl-C, as shells have it.
EX_INTERRUPTED = 130

#: How often is looked how fast Redis answers.
LATENCY_TRIES = 5

#: Characters that are invisible though `str.isprintable` accepts them: fillers, joiners and
#: variation selectors.  U+FE0E and U+FE0F are not among them because emoji need them.
INVISIBLE = frozenset(map(chr, (
    0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, *range(0xFE00, 0xFE0E),
    0xFFA0, *range(0xE0100, 0xE01F0))))

#: Moves the cursor of a terminal to the begin of its line and empties the line.
REWRITE = "\r\x1b[K"

json_option = click.option(
    "-j", "--json", "as_json", cls=CeleryOption, is_flag=True, help_group="Output", help="Print JSON.")


class Seconds(click.FloatRange):
    """A number of seconds; ``nan``, which is neither below nor above any limit, is refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        seconds = super().convert(value, param, ctx)
        return self.fail("it is no number of seconds", param, ctx) if seconds != seconds else seconds


timeout_option = click.option(
    "-t", "--timeout", cls=CeleryOption, type=Seconds(0), help_group="Selection",
    help="End after so many seconds.")

yes_option = click.option(
    "-y", "--yes", cls=CeleryOption, is_flag=True, help_group="Writing", help="Do not ask.")

#: Most names that a line lists.
NAMED = 5

#: Colour of a status on a terminal.
COLOURS = {
    "SUCCESS": "green", "active": "green", "STARTED": "cyan", "busy": "cyan", "RECEIVED": "blue", "RETRY": "yellow",
    "draining": "yellow", "CANCELLED": "magenta", "FAILURE": "red", "LOST": "red", "lost": "red", "REVOKED": "magenta",
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
    # The command itself says what is wrong, in one line.
    logging.getLogger("celery_memsync").addHandler(logging.NullHandler())
    try:
        memsync = activate(ctx.obj.app)
        memsync.check()
        yield memsync
    except ImproperlyConfigured as exc:
        _fail_unconfigured(ctx, exc)
    except InvalidKey as exc:
        fail(str(exc), EX_USAGE)
    except StoreError as exc:
        fail(str(exc), EX_UNAVAILABLE)
    except KeyboardInterrupt:
        ctx.exit(EX_INTERRUPTED)


def _fail_unconfigured(ctx: click.Context, error: ImproperlyConfigured) -> NoReturn:
    """End a command whose app has no valid settings, which mostly is because it names none."""
    if ctx.obj.app.main == "default" and not ctx.obj.app.conf.get("memsync_backend"):
        fail("no app is named, and the default one has no Redis; name yours: celery -A proj memsync ...", EX_USAGE)
    fail(str(error), os.EX_CONFIG)


def confirmable(yes: bool, what: str) -> None:
    """See that there is a terminal to ask on, or nothing to be asked.

    Args:
        what: What the command does, such as ``"frees the lock"``.

    Raises:
        UsageError: If there is none.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"there is no terminal to ask on; --yes {what} without a question")


def confirm(ctx: click.Context, description: str, question: str) -> None:
    """Describe what is about to change, and ask whether to go on.

    Raises:
        Abort: If the answer is no.
    """
    print_error(ctx, description)
    click.confirm(question, err=True, abort=True)


def unknown_task(task_id: str) -> str:
    """Return what to say of a task that has no record."""
    return (f"Unknown task {task_id}: never sent, or its record has expired (see memsync_default_ttl), "
            "or its sender has no MemSync(app) and no worker has received it.")


def as_lost(task: AnyTask, workers: Iterable[WorkerRecord]) -> AnyTask:
    """Return a task as it is: one that runs on a lost worker is lost, though no live worker has marked it yet.

    Args:
        task: As of ``get_task``.
    """
    state = task["state"] or {}
    if state.get("status") is None or rank_of(state["status"]) != RUNNING:
        return task
    worker = next((one for one in workers if one.worker_id == state.get("worker") and one.status == "lost"), None)
    if worker is None:
        return task
    progress = None if task["progress"] is None else at_status(task["progress"], "LOST")
    lost = {**task, "state": {**state, "status": "LOST", "finished_at": worker.last_beat}, "progress": progress}
    return lost  # type: ignore[return-value]


def safe(text: object) -> str:
    """Return a text as a terminal can show it: on one line, each unsafe character as "?".

    Unsafe are control characters, surrogates, private and unassigned characters, separators
    other than the blank, format characters (bidi controls, zero width) and :data:`INVISIBLE`.
    Combining marks and emoji stay.
    """
    given = str(text)
    if given.isascii() and given.isprintable():
        return given
    return "".join(one if one.isprintable() and one not in INVISIBLE else "?" for one in given)


def shorten(text: object, limit: int = 200) -> str:
    """Return a text with at most so many characters."""
    given = str(text)
    return given if len(given) <= limit else given[: limit - 3] + "..."


def cell(value: object) -> str:
    """Return a value as a cell of a table shows it: safe and short."""
    return safe(shorten(value))


def width_of(text: str) -> int:
    """Return how many columns of a terminal a safe text takes."""
    if text.isascii():
        return len(text)
    return sum(
        1 + (unicodedata.east_asian_width(one) in "WF") for one in text
        if unicodedata.category(one) not in ("Mn", "Me"))


def padded(text: str, width: int) -> str:
    """Return a safe text with as many blanks behind it as fill so many columns."""
    return text + " " * (width - width_of(text))


def print_line(ctx: click.Context, *parts: Part) -> None:
    """Print a line of texts, some with a style, without trailing blanks."""
    line = ""
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        line += _styled(ctx, safe(text), style)
    ctx.obj.echo(line.rstrip())


def _styled(ctx: click.Context, text: str, style: str) -> str:
    if not style:
        return text
    options: dict[str, Any] = {"bold": True} if style == "bold" else {"fg": style}
    return str(ctx.obj.style(text, **options))


def print_table(
    ctx: click.Context, titles: Sequence[str], rows: Sequence[Sequence[object]], colour: int = -1,
) -> None:
    """Print rows in aligned columns.

    Args:
        colour: Index of the column that holds a status.
    """
    lines = [[cell(value) for value in row] for row in (titles, *rows)]
    widths = [max(map(width_of, column)) for column in zip(*lines)]
    for number, line in enumerate(lines):
        parts: list[Part] = []
        for index, (text, width) in enumerate(zip(line, widths)):
            status = COLOURS.get(text, "") if index == colour else ""
            # The last cell is not padded: a style would keep its blanks from being stripped.
            shown = text if index == len(line) - 1 else padded(text, width)
            parts += [(shown, status if number else "bold"), "  "]
        print_line(ctx, *parts)


def print_facts(ctx: click.Context, facts: Sequence[tuple[object, object]]) -> None:
    """Print names and values, a line each."""
    names = [cell(name) for name, _ in facts]
    width = max(map(width_of, names))
    for name, (_, value) in zip(names, facts):
        print_line(ctx, (padded(name, width), "bold"), f"  {value}")


def print_json(ctx: click.Context, data: Any) -> None:
    """Print data as one JSON document on a line."""
    ctx.obj.echo(json_text(data))


def json_text(data: Any) -> str:
    """Return data as JSON in ASCII; a number that JSON lacks becomes null."""
    try:
        return str(json.dumps(data, allow_nan=False))  # type: ignore[no-untyped-call]
    except ValueError:
        return str(json.dumps(_finite(data), allow_nan=False))  # type: ignore[no-untyped-call]


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def print_error(ctx: click.Context, text: str) -> None:
    """Print a line on standard error."""
    ctx.obj.error(safe(text))


def rewrite_line(text: str) -> None:
    """Replace the current line of a terminal at standard error."""
    print(end=REWRITE + safe(text), file=sys.stderr, flush=True)


def rewind(lines: int) -> None:
    """Empty the last lines of a terminal at standard output, and go on in the first of them."""
    print(end=f"\x1b[{lines}A\x1b[J", flush=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with an error of one line and an exit code.

    Raises:
        CeleryCommandException: Always.
    """
    raise CeleryCommandException(safe(message), exit_code=code)


def figure(value: Any) -> float | None:
    """Return a finite number, or None for anything else that may be stored."""
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


def held_words(workers: Sequence[WorkerRecord], now: float) -> str:
    """Return how many messages workers hold at a Redis broker, and when they last renewed them; at least one does."""
    count = sum(int(figure(one.held_messages.get("count")) or 0) for one in workers)
    oldest = min((figure(one.held_messages.get("renewed_at")) or 0.0 for one in workers), default=0.0)
    timeouts = [figure(one.held_messages.get("visibility_timeout")) or 0.0 for one in workers]
    return f"{count}, renewed {ago(oldest, now)} ago; visibility_timeout {duration(min(timeouts, default=0.0))}"


def named(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(shorten(name) for name in names[:NAMED]) + more


def heartbeat_words(worker: WorkerRecord, now: float, interval: float) -> str:
    """Return how old the last heartbeat of a worker is, and whether the next is late."""
    return ago(worker.last_beat, now) + (" late" if worker.is_late(now, interval) else "")


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


def is_stalled(progress: Mapping[str, Any] | None) -> bool:
    """Whether a task was found to have reported nothing for too long, and has reported nothing since."""
    return figure((progress or {}).get("stalled_at")) is not None


def percent_cell(progress: Mapping[str, Any] | None) -> str:
    """Return how far a task is, and whether it has stalled, for a cell of a table."""
    if not is_stalled(progress):
        return percent(progress)
    done = percent(progress)
    return "stalled" if done == "-" else f"{done} stalled"


def percent(progress: Mapping[str, Any] | None) -> str:
    """Return how far a task is."""
    if progress is None:
        return "-"
    if progress["progress"] is not None:
        return f"{progress['progress']:.0f}%"
    return "-" if progress["current"] is None else f"{progress['current']:g}"


def progress_words(progress: Mapping[str, Any]) -> str:
    """Return all that is to be said of how far a task is, or came."""
    parts = [percent(progress)]
    if progress["current"] is not None and progress["total"] is not None:
        parts.append(f"{progress['current']:g} of {progress['total']:g}")
    parts += [shorten(progress[name]) for name in ("phase", "message") if progress.get(name)]
    if progress["eta"]:
        parts.append(f"{duration(progress['eta'])} left")
    if is_stalled(progress):
        parts.append(f"stalled since {moment(progress['updated_at'])}")
    return ", ".join(parts)


def latency_of(memsync: MemSync) -> float:
    """Return how many seconds a question to Redis takes, at best of some.

    Raises:
        StoreError: If Redis is away.
    """
    memsync.runtime.store.connect()
    times = []
    for _ in range(LATENCY_TRIES):
        asked = time.monotonic()
        memsync.runtime.store.ping()
        times.append((time.monotonic() - asked) / 2)  # it asks twice
    return round(min(times), 6)


def mebibytes(size: Any) -> str:
    """Return a number of bytes in MiB; "-" if it is none."""
    return "-" if figure(size) is None else f"{size / 2**20:.1f} MiB"


def shown(value: Any) -> str:
    """Return a value as JSON on one line that is not too long."""
    return shorten(dumps(value, ensure_ascii=False, default=str))


def indented(value: Any) -> list[str]:
    """Return a value as lines of JSON."""
    return dumps(value, ensure_ascii=False, default=str, indent=2).split("\n")
