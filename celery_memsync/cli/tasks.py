"""`celery memsync tasks`, `task ID` and `agents TASK`."""
from __future__ import annotations

import re
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Callable, Iterator

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.exceptions import CeleryCommandException

from ..manager import TASKS_AT_ONCE
from ..plugin import MemSync
from .ids import whole_task_id
from .output import (ago, duration, figure, json_option, limit_option, memory_of, moment, percent, progress_words,
                     say_json, say_table, shown, visible)

#: Newest tasks that are looked at for those that are asked for.
LOOKED_AT = 100_000

#: Seconds of a unit of time.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: What tasks may be sorted by, and what of each is compared; what is not known comes last.
ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "newest": lambda one: 0,
    "runtime": lambda one: -(figure(one.get("runtime")) or 0),
    "started": lambda one: -(figure(one.get("started_at")) or 0),
    "finished": lambda one: -(figure(one.get("finished_at")) or 0),
    "name": lambda one: str(one.get("name") or "~"),
    "status": lambda one: str(one.get("status") or "~"),
    "worker": lambda one: str(one.get("worker") or "~"),
}


def _span(ctx: click.Context, param: click.Parameter, typed: str | None) -> float | None:
    """Return a span of time such as ``90s``, ``10m``, ``2h`` or ``1d`` in seconds; a mere number is of seconds."""
    if typed is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", typed)
    if found is None:
        raise click.BadParameter(f"{visible(typed)} is no span of time, such as 90s, 10m, 2h or 1d.")
    return float(found[1]) * UNITS[found[2] or "s"]


@click.command(cls=CeleryCommand)
@limit_option(50, 100_000, "Most tasks to show.")
@click.option("-s", "--status", cls=CeleryOption, help_group="Selection", help="Only tasks with this status.")
@click.option("--name", cls=CeleryOption, metavar="GLOB", help_group="Selection", help="Only tasks with such a name.")
@click.option("-w", "--worker", cls=CeleryOption, metavar="ID", help_group="Selection",
              help="Only tasks of a worker, or of those whose ids begin so.")
@click.option("--since", cls=CeleryOption, callback=_span, metavar="SPAN", help_group="Selection",
              help="Only tasks that were sent in the last 90s, 10m, 2h, 1d.")
@click.option("--sort", cls=CeleryOption, type=click.Choice(list(ORDERS)), default="newest", show_default=True,
              help_group="Output", help="Which come first.")
@json_option
@click.pass_context
def tasks(
    ctx: click.Context, limit: int, status: str | None, name: str | None, worker: str | None, since: float | None,
    sort: str, as_json: bool,
) -> None:
    """Show tasks, newest first."""
    with memory_of(ctx) as memsync:
        all_ = status is None and name is None and worker is None and sort == "newest"
        found = _selected(memsync, since, limit if all_ else LOOKED_AT, status, name, worker)
        chosen = list(islice(found, limit) if sort == "newest" else
                      sorted(found, key=lambda one: ORDERS[sort](one["state"] or {}))[:limit])
        now = memsync.store.clock.now()
    if as_json:
        say_json(ctx, chosen)
    elif not chosen:
        told = (status, name, worker, since) == (None, None, None, None)
        ctx.obj.echo("No task has been told of yet." if told else
                     f"No task has the status {visible(status)}." if (name, worker, since) == (None, None, None) else
                     "No task is like that.")
    else:
        say_table(ctx, ["ID", "STATUS", "NAME", "DONE", "RUNTIME", "SINCE", "WORKER"],
                  [_row(one, now) for one in chosen], colour=1)


def _selected(
    memsync: MemSync, since: float | None, look_at: int, status: str | None, name: str | None, worker: str | None,
) -> Iterator[dict[str, Any]]:
    """Yield the newest tasks that are like that."""
    at_once = min(look_at, TASKS_AT_ONCE)
    for sent_at, one in islice(memsync.newest_tasks(at_once), look_at):
        if since is not None and sent_at < memsync.store.clock.now() - since:
            return
        state = one["state"] or {}
        if (
            (status is None or str(state.get("status", "")).upper() == status.upper())
            and (name is None or fnmatchcase(str(state.get("name") or ""), name))
            and (worker is None or str(state.get("worker") or "").startswith(worker))
        ):
            yield one


@click.command(cls=CeleryCommand)
@click.argument("task_id")
@json_option
@click.pass_context
def task(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show everything about one task."""
    with memory_of(ctx) as memsync:
        task_id = whole_task_id(memsync, task_id)
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
        found = memsync.get_task(whole_task_id(memsync, task_id))
    told = {} if found is None else found["agents"]
    if as_json:
        say_json(ctx, told)
    elif not told:
        ctx.obj.echo("No agent of that task has told anything.")
    else:
        say_table(ctx, ["AGENT", "DATA"], [[visible(name), shown(data)] for name, data in sorted(told.items())])


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
