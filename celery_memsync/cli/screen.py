"""What `celery memsync top` and `follow` draw, with rich: functions of what is to be shown and of the room there is."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..models.worker import WorkerRecord
from ..records.statistics import total
from ..types import TaskRecord
from .output import (
    COLOURS,
    Part,
    ago,
    cell,
    duration,
    figure,
    is_stalled,
    mebibytes,
    moment,
    percent,
    percent_cell,
    safe,
    shorten,
    width_of,
)
from .snapshot import MOST, Event, Running, Snapshot, View, load_of

#: A task's id, status, progress and what there is to say of it, as :func:`bars` takes them.
Row = tuple[str, str, "Mapping[str, Any] | None"]


class Bars:
    """A bar for each task that has not ended; those that have are left above."""

    def __init__(self, live: Live, console: Console, id_width: int) -> None:
        self._live = live
        self._console = console
        self._id_width = id_width
        self._rows: dict[str, Row] = {}

    def report(self, found: TaskRecord, ended: bool) -> None:
        """Show what is known of a task, as `follow` has it."""
        row = row_of(found)
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


def row_of(found: TaskRecord) -> Row:
    """Return what a bar shows of a task; of one that has failed, why in the place of its message."""
    state = found["state"] or {}
    progress: Mapping[str, Any] | None = found["progress"]
    exception = state.get("exception")
    if isinstance(exception, dict):
        progress = {**(progress or {}), "message": f"{exception.get('type')}: {exception.get('message')}"}
    return str(found["id"]), str(state.get("status", "-")), progress


#: Characters of a bar: what is done, and the rest.
LINES = ("━", "─")

PLAIN_LINES = ("#", "-")

#: Columns of a bar.
BAR = 10

#: Columns of a task's id beside its name and message, and on a wide terminal.
ID, ID_WIDE = 14, 36

#: Columns of a status.
STATUS = 8

#: Width of a terminal from which on a task's worker is shown, and longer bars.
WIDE = 110

#: Lines that are there however little there is to show: two on top, three titles, one at the bottom.
FRAME = 6


def screen(snapshot: Snapshot, view: View, width: int, height: int, plain: bool = False) -> RenderableType:
    """Return what fills a terminal.

    Args:
        plain: Whether it has no other letters than ASCII's.
    """
    workers, tasks, events = view.workers(snapshot), view.tasks(snapshot), view.events(snapshot)
    room = _share(max(0, height - FRAME), len(workers), len(tasks), len(events))
    parts: list[RenderableType] = [
        *_head(snapshot),
        _workers(workers, room[0], snapshot.at, plain),
        _tasks(tasks, room[1], snapshot.at, plain, wide=width >= WIDE),
        _events(events[:room[2]], snapshot.at),
    ]
    shown = sum(min(count, lines) for count, lines in zip((len(workers), len(tasks), len(events)), room))
    parts += [Text("")] * max(0, height - FRAME - shown)
    return Group(*parts, _foot(view))


def _share(lines: int, workers: int, tasks: int, events: int) -> tuple[int, int, int]:
    """Share lines out: what one does not need goes to the tasks first, then to the events."""
    for_workers = min(workers, max(lines * 3 // 10, lines - tasks - events))
    for_events = min(events, max(lines * 3 // 10, lines - for_workers - tasks))
    return for_workers, max(0, lines - for_workers - for_events), for_events


def _head(snapshot: Snapshot) -> list[Text]:
    counts = ", ".join(
        f"{sum(one.status == status for one in snapshot.workers)} {shorten(status)}"
        for status in dict.fromkeys(one.status for one in snapshot.workers)) or "none"
    first = _line(
        ("celery memsync", "bold"),
        f"  {shorten(snapshot.namespace, limit=40)}  Redis {snapshot.version} at {snapshot.address}, "
        f"{mebibytes(snapshot.used_memory)}, {duration(snapshot.latency)}  {moment(snapshot.at)[11:19]} UTC")
    if snapshot.away:
        return [first, _line((f"Trying again: {shorten(snapshot.away)}", "bold red"))]
    return [first, _line(f"workers: {counts}   tasks: {_many(len(snapshot.running))} running, "
                         f"{_many(snapshot.pending)} waiting{_rates(snapshot)}")]


def _rates(snapshot: Snapshot) -> str:
    """Return how many runs have ended a minute in the last minutes, and how many of them have failed."""
    sums = total(added for _, added in snapshot.minutes)
    if not snapshot.minutes or not sums.ended:
        return ""
    span = snapshot.minutes[-1][0] - snapshot.minutes[0][0] + 1
    return f"   runs: {sums.ended / span:.3g} a minute, {sums.failed / sums.ended:.1%} failed"


def _many(count: int) -> str:
    return f"{count}+" if count >= MOST else str(count)


def _workers(workers: Sequence[WorkerRecord], room: int, now: float, plain: bool) -> Table:
    table = _table((_title("WORKER", len(workers) - room), 3), ("STATUS", 0), ("LOAD", 0), ("FREE", 0),
                   ("WAITING", 0), ("CPU", 0), ("MEMORY", 0), ("HEARTBEAT", 0))
    for one in workers[:room]:
        cpu = figure(one.cpu)
        waiting = sum(figure(depth) or 0 for depth in one.depths.values())
        table.add_row(
            _text(one.worker_id), _status(one.status), bar(load_of(one), plain),
            _text(f"{one.capacity.get('free', '-')}/{one.capacity.get('total', '-')}"),
            _text(f"{waiting:g}" if one.depths else "-"), _text("-" if cpu is None else f"{cpu:.0f}%"),
            _text(mebibytes(one.rss)), _text(ago(one.last_beat, now)))
    return table


def _tasks(tasks: Sequence[Running], room: int, now: float, plain: bool, wide: bool) -> Table:
    where = (("WORKER", 2),) if wide else ()
    table = _table((_title("TASK", len(tasks) - room), 0), ("NAME", 3), *where, ("PROGRESS", 0), ("", 0),
                   ("RUNTIME", 0), ("LEFT", 0), ("MESSAGE", 3))
    # The begin of an id is enough for all commands; names and messages are what is read.
    table.columns[0].max_width = ID_WIDE if wide else ID
    for one in tasks[:room]:
        progress = one.progress or {}
        table.add_row(
            _text(one.task_id), _text(one.name), *([_text(one.worker)] if wide else []), bar(one.done / 100, plain),
            _text(_percent(one.progress, True)), _text(_runtime(one, now)), _text(duration(progress.get("eta"))),
            _text(progress.get("message") or ""))
    return table


def _runtime(one: Running, now: float) -> str:
    """Return how long a task has run, and behind a slash how long its runs usually take."""
    shown = ago(one.started_at, now)
    return shown if one.usual is None else f"{shown}/{duration(one.usual)}"


def _events(events: Sequence[Event], now: float) -> Table:
    table = _table(("AGO", 0), ("EVENT", 0), ("OF", 3), ("", 2))
    for one in events:
        table.add_row(_text(ago(one.at, now)), _status(one.what), _text(one.subject), _text(one.detail))
    return table


def _title(name: str, more: int) -> str:
    return f"{name}, {more} more" if more > 0 else name


def _foot(view: View) -> Text:
    if view.typing:
        return _line((f"show only: {view.text}_", "reverse"), "  Enter: done  Esc: all")
    return _line(
        ("q", "bold"), " quit  ", ("s", "bold"), f" tasks by {view.task_order}{', reversed' if view.reverse else ''}  ",
        ("r", "bold"), " reverse  ", ("w", "bold"), f" workers by {view.worker_order}  ", ("/", "bold"),
        f" {'only ' + view.text if view.text else 'filter'}")


def bars(
    rows: Sequence[tuple[str, str, Mapping[str, Any] | None]], id_width: int, width: int, plain: bool = False,
) -> Table:
    """Return a bar for each of some tasks: their ids, statuses and progress.

    Args:
        id_width: Columns of an id, given because tables may be drawn apart.
        width: Columns of the terminal.
        plain: As in :func:`screen`.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    length = 2 * BAR if width >= WIDE else BAR
    for columns in (min(id_width, width // 2), STATUS, length, 4, None):
        table.add_column(no_wrap=True, overflow="ellipsis", width=columns, ratio=None if columns else 1)
    for task_id, status, known in rows:
        done = figure((known or {}).get("progress")) or 0.0
        table.add_row(_text(task_id), _status(status), bar(done / 100, plain, length), _text(_percent(known)),
                      _text(_words(known or {})))
    return table


def _words(progress: Mapping[str, Any]) -> str:
    current, total, left = (figure(progress.get(name)) for name in ("current", "total", "eta"))
    parts = [f"{current:g} of {total:g}" if current is not None and total is not None else "",
             f"{duration(left)} left" if left else "",
             f"stalled since {moment(progress.get('updated_at'))}" if is_stalled(progress) else "",
             *(shorten(progress.get(name) or "") for name in ("phase", "message"))]
    return ", ".join(filter(None, parts))


def bar(part: float, plain: bool = False, width: int = BAR) -> Text:
    """Return a bar of which a part, 0 to 1, is full."""
    full, rest = PLAIN_LINES if plain else LINES
    done = min(width, max(0, int(part * width)))
    return Text.assemble((full * done, "green"), (rest * (width - done), "dim"))


def _percent(progress: Mapping[str, Any] | None, marked: bool = False) -> str:
    """Return how far a task is, and whether it has stalled if there is room for that."""
    if progress is None:
        return "-"
    known = {name: figure(progress.get(name)) for name in ("progress", "current", "stalled_at")}
    return percent_cell(known) if marked else percent(known)


def _table(*columns: tuple[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    for title, ratio in columns:
        table.add_column(_text(title), no_wrap=True, overflow="ellipsis", ratio=ratio or None)
    return table


def _status(status: object) -> Text:
    return Text(safe(shorten(status, limit=12)), style=COLOURS.get(str(status), ""))


def _text(value: object) -> Text:
    return Text(cell(value))


def _line(*parts: Part) -> Text:
    pieces = [(part, "") if isinstance(part, str) else part for part in parts]
    texts = ((safe(text), style) for text, style in pieces)
    return Text.assemble(*texts, no_wrap=True, overflow="ellipsis")
