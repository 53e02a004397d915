"""`celery memsync follow TASK...`: tasks to their ends."""
from __future__ import annotations

import shutil
import sys
from typing import Any, Iterator

import click
from celery.bin.base import CeleryCommand

from ..keys import check_id
from ..plugin import MemSync
from ..records import FINAL
from .ids import task_id_of
from .output import EX_TIMEOUT, json_option, memory_of, progress_words, say_json, timeout_option, visible
from .watch import deadline_of, heard, patiently

#: Puts the cursor of a terminal back to the begin of its line and empties that.
REWRITE = "\r\x1b[K"


@click.command(cls=CeleryCommand)
@click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
@timeout_option
@json_option
@click.pass_context
def follow(ctx: click.Context, task_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Show how far tasks are until they end, one after the other."""
    deadline = deadline_of(timeout)
    with memory_of(ctx) as memsync:
        memsync.store.ping()
        meant = [task_id_of(memsync, task_id) for task_id in task_ids]
        ctx.exit(max([follow_task(ctx, memsync, task_id, deadline, as_json) for task_id in meant]))


def follow_task(ctx: click.Context, memsync: MemSync, task_id: str, deadline: float, as_json: bool) -> int:
    """Print how far a task is until it ends, or until a monotonic time; a task that nobody told of yet is waited for.

    Returns:
        The exit code: 0 if it succeeded, 1 if it ended in another way or is forgotten, `EX_TIMEOUT`.

    Raises:
        StoreError: If Redis is away at the beginning or at the end.
    """
    check_id(task_id, "task")
    memsync.store.ping()
    page = _Page(ctx)
    for found in _states(ctx, memsync, task_id, deadline):
        if found is None:
            page.end()
            ctx.obj.error(f"Nobody knows of the task {visible(task_id)} any more.")
            return 1
        status = str((found["state"] or {}).get("status", "-"))
        if as_json:
            say_json(ctx, found)
        else:
            page.say(status, _line(status, found))
        if status in FINAL:
            page.end()
            return 0 if status == "SUCCESS" else 1
    page.end()
    ctx.obj.error(f"The task {visible(task_id)} has not ended in time.")
    return EX_TIMEOUT


def _states(ctx: click.Context, memsync: MemSync, task_id: str, deadline: float) -> Iterator[dict[str, Any] | None]:
    """Yield what is known of a task whenever that has changed; None when it is forgotten."""
    before = None
    with memsync.watch(f"tasks/{task_id}/*") as changes:
        found = patiently(ctx, lambda: memsync.get_task(task_id), deadline)
        if found is not None:
            yield found
        # It is looked at also while nothing is told: of what goes without a word before the first look nobody hears.
        for _ in heard(ctx, memsync, changes, deadline):
            before, found = found, patiently(ctx, lambda: memsync.get_task(task_id), deadline)
            if found != before:
                yield found


class _Page:
    """Lines on a terminal, of which the last is written anew while the status is the same; in a pipe, lines."""

    def __init__(self, ctx: click.Context) -> None:
        self._ctx = ctx
        self._live = sys.stdout.isatty()
        self._status: str | None = None
        self._text: str | None = None

    def say(self, status: str, text: str) -> None:
        """Show a text, unless it is there already."""
        if text == self._text:
            return
        if self._live:
            if self._status not in (None, status):
                self._ctx.obj.echo()
            width = shutil.get_terminal_size().columns - 1
            self._ctx.obj.echo(REWRITE + visible(text, limit=max(10, width)), nl=False)
        else:
            self._ctx.obj.echo(text)
        self._status, self._text = status, text

    def end(self) -> None:
        """Leave the last line as it is."""
        if self._live and self._text is not None:
            self._ctx.obj.echo()


def _line(status: str, found: dict[str, Any]) -> str:
    parts = [visible(status).ljust(8)]
    if found["progress"] is not None:
        parts.append(progress_words(found["progress"]))
    exception = (found["state"] or {}).get("exception")
    if isinstance(exception, dict):
        parts.append(visible(f"{exception.get('type')}: {exception.get('message')}"))
    return "  ".join(parts).rstrip()
