"""`celery memsync follow ID...`: tasks and groups to their ends."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import click

from ..app import MemSync
from ..background_loop import Wakeup
from ..models.order import ends_at
from ..models.progress import progress_from
from ..models.workflow import Group
from ..types import TaskRecord
from .command import command
from .ids import task_id_of
from .output import (
    EX_TIMEOUT,
    as_lost,
    figure,
    json_option,
    memory_of,
    named,
    padded,
    print_error,
    print_json,
    print_line,
    progress_words,
    safe,
    shorten,
    timeout_option,
    width_of,
)
from .terminal import is_terminal, orderly_end
from .watch import POLL_INTERVAL, deadline_of, patiently

#: Most tasks whose changes are subscribed to, a thread for each; more are read every second.
MAX_SUBSCRIPTIONS = 50

#: Seconds after which a line says which tasks are unknown, and are waited for.
UNKNOWN_GRACE = 2.0


@command(examples=["follow <id>", "follow <id> <id> --timeout 60"],
         exit_codes={0: "all tasks succeeded", 1: "a task ended in another way", EX_TIMEOUT: "the time was over"})
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@timeout_option
@json_option
@click.pass_context
def follow(ctx: click.Context, task_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Show how far tasks and groups are until all have ended."""
    deadline = deadline_of(timeout)
    with memory_of(ctx) as memsync:
        memsync.runtime.store.ping()
        ids = list(dict.fromkeys(task_id_of(memsync, task_id) for task_id in task_ids))
        with _page(ctx, ids, as_json) as page:
            code = follow_tasks(ctx, memsync, ids, deadline, page)
        ctx.exit(code)


class Page(Protocol):
    """Where it is shown how far tasks are."""

    def report(self, found: TaskRecord, ended: bool) -> None:
        """Show what is known of a task.

        Args:
            found: As :meth:`MemorySyncManager.get_task` has it.
            ended: Whether nothing more comes.
        """


def follow_tasks(ctx: click.Context, memsync: MemSync, task_ids: Iterable[str], deadline: float, page: Page) -> int:
    """Show how far tasks are until all have ended, or until a monotonic time; unknown ones are waited for.

    Returns:
        The exit code: 0 if all succeeded, 1 if one ended in another way or is forgotten, `EX_TIMEOUT`.

    Raises:
        StoreError: If Redis is away at the beginning or at the end.
    """
    remaining = dict.fromkeys(task_ids)
    code = 0
    for task_id, found in _news(ctx, memsync, remaining, deadline):
        status = None if found is None else status_of(found)
        if found is None:
            print_error(ctx, f"The record of task {task_id} has expired.")
        else:
            page.report(found, has_ended(found, memsync))
        if found is None or has_ended(found, memsync):
            del remaining[task_id]
            code = max(code, 0 if status == "SUCCESS" else 1)
    if not remaining:
        return code
    print_error(ctx, f"The task {named(list(remaining))} has not ended in time." if len(remaining) == 1 else
                f"The tasks {named(list(remaining))} have not ended in time.")
    return EX_TIMEOUT


def status_of(found: TaskRecord) -> str:
    """Return the status of a task."""
    return str((found["state"] or {}).get("status", "-"))


def has_ended(found: TaskRecord, memsync: MemSync) -> bool:
    """Return whether nothing more is expected of a task."""
    return memsync.runtime.store.clock.now() >= ends_at(found["state"] or {})


def _news(
    ctx: click.Context, memsync: MemSync, remaining: dict[str, None], deadline: float,
) -> Iterator[tuple[str, TaskRecord | None]]:
    """Yield what is known of tasks whenever that has changed; None for one that is forgotten.

    Args:
        remaining: Who is looked at; they may be taken out on the way.
    """
    changed: set[str] = set()
    bell = Wakeup()

    def teller(task_id: str) -> Callable[..., None]:
        def notify(*_: object) -> None:
            changed.add(task_id)
            bell.set()

        return notify

    known: dict[str, TaskRecord] = {}
    with contextlib.ExitStack() as stack:
        for task_id in list(remaining)[:MAX_SUBSCRIPTIONS]:
            notify = teller(task_id)
            stack.callback(memsync.unsubscribe, memsync.subscribe(f"tasks/{task_id}/*", _on_change(notify), notify))
        began = looked_at = time.monotonic()
        asked = list(remaining)
        unknown = False
        while True:
            for task_id in asked:
                found = patiently(ctx, partial(_read, memsync, task_id), deadline)
                if found != known.get(task_id) or found is not None and has_ended(found, memsync):
                    yield task_id, found
                if found is not None:
                    known[task_id] = found
            if not remaining or time.monotonic() >= deadline:
                return
            if not unknown and time.monotonic() >= began + UNKNOWN_GRACE:
                unknown = True
                _say_unknown(ctx, [task_id for task_id in remaining if task_id not in known])
            # All are read also while nothing is published: what expires is not published.
            due = looked_at + POLL_INTERVAL
            bell.wait(max(0.0, min(deadline, due) - time.monotonic()))
            asked = [task_id for task_id in remaining if task_id in changed]
            changed.difference_update(asked)
            if time.monotonic() >= min(due, deadline):
                looked_at, asked = time.monotonic(), list(remaining)


def _say_unknown(ctx: click.Context, task_ids: list[str]) -> None:
    if task_ids:
        print_error(ctx, f"Unknown so far, and waited for: {named(task_ids)}")


def _read(memsync: MemSync, given: str) -> TaskRecord | None:
    """Return what is known of a task, or of a group in the form of a task: its members are what it counts."""
    found = memsync.get_task(given)
    if found is not None:
        return _as_it_is(memsync, found)
    group = memsync.get_group(given)
    return None if group is None else group_document(group)


def _as_it_is(memsync: MemSync, found: TaskRecord) -> TaskRecord:
    """Return a task, LOST if its worker is, which is looked at if nothing was recorded for as long as that may live."""
    state, progress = found["state"] or {}, found["progress"]
    reported_at = None if progress is None else figure(progress["updated_at"])
    at = reported_at or figure(state.get("started_at"))
    if at is None or memsync.runtime.store.clock.now() - at < memsync.settings.worker_ttl:
        return found
    return as_lost(found, memsync.get_workers())


def group_document(group: Group) -> TaskRecord:
    """Return a group in the form of a task."""
    if group.done < group.total:
        status = "STARTED" if group.done or group.running else "PENDING"
    else:
        status = "SUCCESS" if group.succeeded == group.total else "FAILURE"
    others = group.done - group.succeeded - group.failed
    counts = {"running": group.running, "failed": group.failed, "revoked or ignored": others}
    message = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or None
    progress = progress_from({
        "progress": group.percent, "current": group.done, "total": group.total, "message": message,
        "started_at": group.started_at})
    if progress is not None:
        progress["eta"] = group.eta
    return {"id": group.id, "state": {"status": status}, "progress": progress, "runs": [], "agents": {}}


def _on_change(notify: Callable[..., None]) -> Callable[[str, Any], None]:
    return lambda key, value: notify()


@contextlib.contextmanager
def _page(ctx: click.Context, task_ids: list[str], as_json: bool) -> Iterator[Page]:
    """Give where to show: bars on a terminal, lines in a pipe."""
    if as_json:
        yield Documents(ctx)
        return
    if is_terminal():
        try:
            from .screen import shown
        except ImportError:
            print_error(ctx, "Bars need rich: pip install 'celery-memsync[cli]'")
        else:
            with orderly_end(), shown(task_ids, ctx.obj.no_color) as bars:
                yield bars
            return
    yield Lines(ctx, task_ids)


class Documents:
    """A JSON document on a line for each change."""

    def __init__(self, ctx: click.Context) -> None:
        self._ctx = ctx

    def report(self, found: TaskRecord, ended: bool) -> None:
        """Print it."""
        print_json(self._ctx, found)


class Lines:
    """A line for each change; the id is there if there are several tasks."""

    def __init__(self, ctx: click.Context, task_ids: list[str]) -> None:
        self._ctx = ctx
        widths = [width_of(safe(task_id)) for task_id in task_ids]
        self._width = max(widths) if len(widths) > 1 else 0
        self._said: dict[str, str] = {}

    def report(self, found: TaskRecord, ended: bool) -> None:
        """Print it, unless it was printed just now."""
        task_id, text = found["id"], _line(found)
        if text != self._said.get(task_id):
            self._said[task_id] = text
            first = f"{padded(safe(task_id), self._width)}  " if self._width else ""
            print_line(self._ctx, first + text)


def _line(found: TaskRecord) -> str:
    parts = [shorten(status_of(found)).ljust(8)]
    if found["progress"] is not None:
        parts.append(progress_words(found["progress"]))
    exception = (found["state"] or {}).get("exception")
    if isinstance(exception, dict):
        parts.append(shorten(f"{exception.get('type')}: {exception.get('message')}"))
    return "  ".join(parts).rstrip()
