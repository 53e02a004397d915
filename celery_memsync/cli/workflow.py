"""`celery memsync workflow ID`: the tree of a workflow."""
from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import click
from celery.bin.base import CeleryOption
from celery.platforms import EX_UNAVAILABLE

from ..app import MemSync
from ..background_loop import Wakeup
from ..models.order import FINAL
from ..models.workflow import Workflow, WorkflowNode
from .command import command
from .ids import task_id_of
from .output import (
    EX_TIMEOUT,
    duration,
    fail,
    figure,
    json_option,
    memory_of,
    print_error,
    print_json,
    print_line,
    print_table,
    rewind,
    shorten,
    timeout_option,
    unknown_task,
)
from .terminal import is_terminal
from .watch import deadline_of, patiently

#: Seconds between two reads of a workflow that is followed.
INTERVAL = 1.0

#: Columns of what a part is, with its indentation, and of its id: others of 80 are for status, progress and runtime.
PART, ID = 42, 8


@command(examples=["workflow <id>", "workflow <id> --follow"],
         exit_codes={0: "done; with --follow: all of it succeeded",
                     1: "there is no such task or group; with --follow: a part of it did not succeed",
                     EX_TIMEOUT: "the time was over"})
@click.argument("workflow_id", metavar="ID")
@click.option("-f", "--follow", "follows", cls=CeleryOption, is_flag=True, help_group="Selection",
              help="Show it again whenever it has changed, until it has ended.")
@timeout_option
@json_option
@click.pass_context
def workflow(ctx: click.Context, workflow_id: str, follows: bool, timeout: float | None, as_json: bool) -> None:
    """Show the chain, group or chord of a task as a tree."""
    deadline = deadline_of(timeout)
    with memory_of(ctx) as memsync:
        memsync.runtime.store.ping()
        given = task_id_of(memsync, workflow_id)
        shown = _Shown(ctx, as_json, memsync.runtime.store.clock.now)
        found = memsync.get_workflow(given)
        if found is None:
            fail(unknown_task(given))
        shown.show(found)
        if follows:
            ctx.exit(_follow(ctx, memsync, given, found, deadline, shown))


def _follow(
    ctx: click.Context, memsync: MemSync, given: str, found: Workflow, deadline: float, shown: _Shown,
) -> int:
    """Show a workflow until it has ended; return the exit code."""
    pause = Wakeup()
    while found.status not in FINAL:
        if time.monotonic() >= deadline:
            print_error(ctx, "The workflow has not ended in time.")
            return EX_TIMEOUT
        pause.wait(max(0.0, min(INTERVAL, deadline - time.monotonic())))
        new = patiently(ctx, partial(memsync.get_workflow, given), deadline)
        if new is None:
            fail("The records of the workflow have expired.", EX_UNAVAILABLE)
        found = new
        shown.show(found)
    return 0 if found.status == "SUCCESS" else 1


class _Shown:
    """What was shown of a workflow; no figure of it goes back."""

    def __init__(self, ctx: click.Context, as_json: bool, now: Any) -> None:
        self._ctx = ctx
        self._as_json = as_json
        self._now = now
        self._best: dict[tuple[str, str], float] = {}
        self._last: Any = None
        self._lines = 0

    def show(self, found: Workflow) -> None:
        """Show a workflow, unless it is as it was."""
        root = self._rising(found.root)
        found = replace(found, root=root, progress=max(found.progress, root.progress))
        rows = [_row(node, depth, self._now()) for node, depth in _walk(found.root)]
        facts = [row[:3] for row in rows]
        if facts == self._last:
            return
        self._last = facts
        if self._as_json:
            print_json(self._ctx, found.as_dict())
            return
        if self._lines and is_terminal():
            rewind(self._lines)
        elif self._lines:
            print_line(self._ctx, "")
        print_table(self._ctx, ["PART", "STATUS", "PROGRESS", "RUNTIME", "ID"], rows, colour=1)
        left = "" if not found.eta else f", {duration(found.eta)} left"
        failed = found.status in FINAL and found.status != "SUCCESS"
        print_line(self._ctx, f"Ended as {shorten(found.status)}." if failed else f"{found.progress:.0f}%{left}")
        self._lines = len(rows) + 2

    def _rising(self, node: WorkflowNode) -> WorkflowNode:
        key = node.kind, node.id
        best = self._best[key] = max(self._best.get(key, 0.0), node.progress)
        return replace(node, progress=best, children=tuple(map(self._rising, node.children)))


def _walk(node: WorkflowNode, depth: int = 0) -> Iterator[tuple[WorkflowNode, int]]:
    yield node, depth
    for child in node.children:
        yield from _walk(child, depth + 1)


def _row(node: WorkflowNode, depth: int, now: float) -> list[object]:
    part = "  " * depth + part_words(node)
    began, ended = figure(node.started_at), figure(node.finished_at)
    took = None if began is None else (now if ended is None else ended) - began
    failed = node.status in FINAL and node.status != "SUCCESS"
    progress = "-" if failed else f"{node.progress:.0f}%"
    return [shorten(part, PART), node.status, progress, duration(took), shorten(node.id, ID + 3)[:ID]]


def part_words(node: WorkflowNode) -> str:
    """Return what a part of a workflow is."""
    if node.kind == "task":
        return str(node.name or "-")
    if node.group is None:
        return node.kind
    group = node.group
    failed = f", {group.failed} failed" if group.failed else ""
    shown = f", {node.omitted} not shown" if node.omitted else ""
    return f"{node.kind} {group.done}/{group.total}{failed}{shown}"
