"""`celery memsync tasks`, `task ID` and `agents TASK`."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import click
from celery.bin.base import CeleryOption
from celery.platforms import EX_USAGE

from ..app import MemSync
from ..globs import matcher
from ..models.order import RANKS
from ..models.stamps import texts_of
from ..types import ListedTask, TaskState
from .command import command
from .ids import task_id_of
from .output import (
    ago,
    duration,
    fail,
    figure,
    json_option,
    limit_option,
    memory_of,
    moment,
    percent_cell,
    print_facts,
    print_json,
    print_line,
    print_table,
    progress_words,
    shorten,
    shown,
    unknown_task,
)
from .usual import usual_of, usual_words

#: Most tasks that are looked at for those that are asked for.
LOOKED_AT = 100_000

#: Most that are looked at to be sorted: every one of them is read before the first is shown.
SORTED = 10_000

#: By what tasks are sorted: the names of the fields of their states, and whether the greatest comes first.
ORDERS = {"newest": None, "oldest": None, "runtime": True, "started": True, "finished": True, "name": False,
          "status": False, "worker": False}

FIELDS = {"started": "started_at", "finished": "finished_at"}


class Span(click.ParamType):  # type: ignore[type-arg]
    """A span of time, as seconds: ``90``, ``90s``, ``10m``, ``2h``, ``1d``."""

    name = "SPAN"
    units: ClassVar = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", str(value))
        if found is None:
            self.fail(f"{shorten(value)} is no span of time, such as 90s, 10m, 2h or 1d", param, ctx)
        return float(found[1]) * self.units[found[2] or "s"]


class Stamp(click.ParamType):  # type: ignore[type-arg]
    """A stamp and its value: ``tenant=acme``."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the name and the value."""
        name, sign, text = str(value).partition("=")
        if not name or not sign:
            self.fail(f"{shorten(value)} is no stamp with its value, such as tenant=acme", param, ctx)
        return name, text


class Wanted(NamedTuple):
    """Which tasks are asked for.

    Attributes:
        status: In capitals or not.
        name: Glob of Redis's.
        worker: Glob of Redis's.
        root: Id of the task or group with which their workflow began.
        group: Id of the group that they are members of.
        stamps: Names and values of stamps that they all have.
    """

    status: str | None = None
    name: str | None = None
    worker: str | None = None
    root: str | None = None
    group: str | None = None
    stamps: tuple[tuple[str, str], ...] = ()

    def picks(self) -> Callable[[ListedTask], bool]:
        """Return a function that returns whether a task is one of them.

        Raises:
            InvalidKey: If a glob has a ``[`` without its ``]``.
        """
        given = {"name": self.name, "worker": self.worker}
        globs = [(field, matcher(glob)) for field, glob in given.items() if glob is not None]
        status = None if self.status is None else self.status.upper()

        def picked(one: ListedTask) -> bool:
            state = one["state"] or {}
            if status is not None and str(state.get("status", "")).upper() != status:
                return False
            stamps = _stamps(state)
            if not all(name in stamps and value in texts_of(stamps[name]) for name, value in self.stamps):
                return False
            return all(matches(str(state.get(field) or "")) for field, matches in globs)

        return picked


@command(examples=["tasks --status failure --since 1h", "tasks --name 'shop.*' --sort runtime"])
@limit_option(50, 100_000, "Most tasks to show.")
@click.option("-s", "--status", cls=CeleryOption, help_group="Selection", help="Only tasks with this status.")
@click.option("--name", cls=CeleryOption, metavar="GLOB", help_group="Selection", help="Only tasks with such names.")
@click.option("--worker", cls=CeleryOption, metavar="GLOB", help_group="Selection", help="Only tasks of such workers.")
@click.option("--since", cls=CeleryOption, type=Span(), help_group="Selection",
              help="Only tasks that were first recorded within this time, such as 10m.")
@click.option("--root", cls=CeleryOption, metavar="ID", help_group="Selection",
              help="Only tasks of the workflow that began with this task or group.")
@click.option("--group", cls=CeleryOption, metavar="ID", help_group="Selection", help="Only members of this group.")
@click.option("--stamp", "stamps", cls=CeleryOption, type=Stamp(), multiple=True, help_group="Selection",
              help="Only tasks with this stamp; may be given several times.")
@click.option("--sort", cls=CeleryOption, type=click.Choice(list(ORDERS)), default="newest", show_default=True,
              help_group="Output", help="What comes first, of the newest 10,000.")
@json_option
@click.pass_context
def tasks(
    ctx: click.Context, limit: int, status: str | None, name: str | None, worker: str | None, since: float | None,
    root: str | None, group: str | None, stamps: tuple[tuple[str, str], ...], sort: str, as_json: bool,
) -> None:
    """Show tasks, newest first."""
    with memory_of(ctx) as memsync:
        memsync.runtime.store.connect()
        found = _select(memsync, Wanted(status, name, worker, root, group, stamps), since, sort, limit)
        now = memsync.runtime.store.clock.now()
    if not found and status is not None:
        status = _known_status(status)
    if as_json:
        print_json(ctx, found)
    elif not found:
        print_line(
            ctx, f"No task has the status {status}." if status is not None else
            "No task is like that." if name or worker or since or root or group or stamps else "No tasks found.")
    else:
        print_table(ctx, ["ID", "STATUS", "NAME", "PROGRESS", "RUNTIME", "AGE", "WORKER"],
                    [_row(one, now) for one in found], colour=1)


@command(examples=["task <id>", "task 4f1c"], exit_codes={1: "there is no such task"})
@click.argument("task_id")
@json_option
@click.pass_context
def task(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show everything about one task."""
    with memory_of(ctx) as memsync:
        task_id = task_id_of(memsync, task_id)
        found = memsync.get_task(task_id)
        usual = None if found is None else usual_of(memsync, (found["state"] or {}).get("name"))
    if found is None:
        fail(unknown_task(task_id))
    if as_json:
        print_json(ctx, found)
        return
    state, progress = found["state"] or {}, found["progress"]
    rows = [("id", task_id), *((name, _shown(name, value)) for name, value in state.items())]
    if progress is not None:
        rows.append(("progress", progress_words(progress)))
    if usual is not None:
        rows.append(("usual runtime", usual_words(usual)))
    if len(found["runs"]) > 1:
        rows += [(f"run {run.get('run', '-')}", _since(run)) for run in found["runs"]]
    rows += [(f"agent {agent}", shown(data)) for agent, data in sorted(found["agents"].items())]
    print_facts(ctx, rows)


@command(examples=["agents <id>"])
@click.argument("task_id", metavar="TASK")
@json_option
@click.pass_context
def agents(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Show what the agents of a task share."""
    with memory_of(ctx) as memsync:
        found = memsync.get_task(task_id_of(memsync, task_id))
    agents = {} if found is None else found["agents"]
    if as_json:
        print_json(ctx, agents)
    elif not agents:
        print_line(ctx, "No agent of that task has shared anything.")
    else:
        rows = [[name, shown(data)] for name, data in sorted(agents.items())]
        print_table(ctx, ["AGENT", "DATA"], rows)


def _known_status(status: str) -> str:
    """Return a status in capitals that no task has; end the command if there is none like that.

    Statuses of a user's own are found by their tasks only.
    """
    known = sorted(RANKS)
    if status.upper() not in known:
        close = get_close_matches(status.upper(), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "there are: " + ", ".join(known)
        fail(f"No task has the status {status}, and it is none of Celery's; {hint}", EX_USAGE)
    return status.upper()


def _select(memsync: MemSync, wanted: Wanted, since: float | None, sort: str, limit: int) -> list[ListedTask]:
    """Return tasks of those looked at; the newest are taken as they come, for any other order all are seen first."""
    if wanted == Wanted() and since is None and sort == "newest":
        return memsync.get_tasks(limit=limit)
    begin = None if since is None else memsync.runtime.store.clock.now() - since
    picked = filter(wanted.picks(), islice(_candidates(memsync, wanted, begin), LOOKED_AT if sort == "newest" else SORTED))
    if sort == "newest":
        return list(islice(picked, limit))
    if sort == "oldest":
        return list(picked)[:-limit - 1:-1]
    return sorted(picked, key=lambda one: _rank(one, sort))[:limit]


def _candidates(memsync: MemSync, wanted: Wanted, since: float | None) -> Iterator[ListedTask]:
    """Yield tasks, newest first, of a workflow or group if one is asked for."""
    whole = wanted.group or wanted.root
    if whole is None:
        yield from memsync.iter_tasks(since)
        return
    for one in memsync.runtime.workflows.tasks(task_id_of(memsync, whole), wanted.group is not None, SORTED):
        published = figure((one["state"] or {}).get("published_at"))
        if since is None or published is None or published >= since:
            yield one


def _rank(one: ListedTask, sort: str) -> tuple[bool, Any]:
    """Return what sorts a task: those of which it is not known come last."""
    value = (one["state"] or {}).get(FIELDS.get(sort, sort))
    if ORDERS[sort]:
        number = figure(value)
        return number is None, -(number or 0)
    return value is None, str(value)


def _row(one: ListedTask, now: float) -> list[object]:
    state = one["state"] or {}
    since = next((state[name] for name in ("finished_at", "started_at", "received_at", "published_at") if state.get(name)),
                 None)
    return [
        one["id"], state.get("status", "-"), state.get("name") or "-",
        percent_cell(one["progress"]), duration(state.get("runtime")), ago(since, now),
        state.get("worker") or "-",
    ]


def _since(run: TaskState) -> str:
    began = moment(run.get("started_at") or run.get("received_at"))
    return shorten(f"{run['status']} since {began}")


def _stamps(state: TaskState) -> dict[str, Any]:
    stamps = state.get("stamps")
    return stamps if isinstance(stamps, dict) else {}


def _shown(name: str, value: Any) -> str:
    if name == "stamps" and isinstance(value, dict):
        return shorten(", ".join(f"{stamp}={text}" for stamp, known in sorted(value.items()) for text in texts_of(known)))
    if isinstance(value, float) and (name.endswith("_at") or name == "eta"):
        return moment(value)
    if name == "runtime" and figure(value) is not None:
        return duration(value)
    if name == "exception" and isinstance(value, dict):
        return shorten(f"{value.get('type')}: {value.get('message')}")
    return shorten(value)
