"""`celery memsync tasks`, `task ID` and `agents TASK`."""
from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.exceptions import CeleryCommandException

from ..plugin import MemSync
from .output import (ago, duration, figure, json_option, limit_option, memory_of, moment, percent, progress_words,
                     say_json, say_table, shown, visible)

#: How many of the newest tasks are looked at for those with a status, until there are enough of them.
LOOKED_AT = (1000, 10_000, 100_000)


@click.command(cls=CeleryCommand)
@limit_option(50, 100_000, "Most tasks to show.")
@click.option("-s", "--status", cls=CeleryOption, help_group="Selection", help="Only tasks with this status.")
@json_option
@click.pass_context
def tasks(ctx: click.Context, limit: int, status: str | None, as_json: bool) -> None:
    """Show tasks, newest first."""
    with memory_of(ctx) as memsync:
        found = memsync.get_tasks(limit=limit) if status is None else _of_status(memsync, status, limit)
        now = memsync.store.clock.now()
    if as_json:
        say_json(ctx, found)
    elif not found:
        ctx.obj.echo(
            "No task has been told of yet." if status is None else f"No task has the status {visible(status)}.")
    else:
        say_table(ctx, ["ID", "STATUS", "NAME", "DONE", "RUNTIME", "SINCE", "WORKER"],
                  [_row(one, now) for one in found], colour=1)


@click.command(cls=CeleryCommand)
@click.argument("task_id")
@json_option
@click.pass_context
def task(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show everything about one task."""
    with memory_of(ctx) as memsync:
        found = memsync.get_task(task_id)
    if found is None:
        raise CeleryCommandException(f"Nobody has told of a task {visible(task_id)}, or it was long ago.", exit_code=1)
    if as_json:
        say_json(ctx, found)
        return
    state, progress = found["state"] or {}, found["progress"]
    rows = [["id", task_id], *([name, _shown(name, value)] for name, value in state.items())]
    if progress is not None:
        rows.append(["progress", progress_words(progress)])
    rows += [[f"run {run.get('run', '-')}",
              visible(f"{run['status']} since {moment(run.get('started_at') or run.get('received_at'))}")]
             for run in found["runs"] if len(found["runs"]) > 1]
    rows += [[f"agent {agent}", visible(data)] for agent, data in sorted(found["agents"].items())]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        ctx.obj.echo(f"{ctx.obj.style(visible(name).ljust(width), bold=True)}  {value}")


@click.command(cls=CeleryCommand)
@click.argument("task_id", metavar="TASK")
@json_option
@click.pass_context
def agents(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show what the agents of a task share."""
    with memory_of(ctx) as memsync:
        found = memsync.get_task(task_id)
    told = {} if found is None else found["agents"]
    if as_json:
        say_json(ctx, told)
    elif not told:
        ctx.obj.echo("No agent of that task has told anything.")
    else:
        say_table(ctx, ["AGENT", "DATA"], [[visible(name), shown(data)] for name, data in sorted(told.items())])


def _of_status(memsync: MemSync, status: str, limit: int) -> list[dict[str, Any]]:
    """Return the newest tasks with a status; most of the time they are among the newest of all."""
    found: list[dict[str, Any]] = []
    for many in LOOKED_AT:
        newest = memsync.get_tasks(limit=many)
        found = [one for one in newest if str((one["state"] or {}).get("status", "")).upper() == status.upper()]
        if len(found) >= limit or len(newest) < many:
            break
    return found[:limit]


def _row(one: dict[str, Any], now: float) -> list[str]:
    state = one["state"] or {}
    since = next((state[name] for name in ("finished_at", "started_at", "received_at", "published_at") if state.get(name)),
                 None)
    return [
        visible(one["id"]), visible(state.get("status", "-")), visible(state.get("name") or "-"),
        percent(one["progress"]), duration(state.get("runtime")), ago(since, now), visible(state.get("worker") or "-"),
    ]


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float) and (name.endswith("_at") or name == "eta"):
        return moment(value)
    if name == "runtime" and figure(value) is not None:
        return duration(value)
    if name == "exception" and isinstance(value, dict):
        return visible(f"{value.get('type')}: {value.get('message')}")
    return visible(value)
