"""`celery memsync workers [ID]`."""
from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption

from ..models.worker import WorkerRecord
from .ids import worker_of
from .output import (ago, duration, fail, figure, json_option, mebibytes, memory_of, moment, print_facts, print_json,
                     print_line, print_table)


@click.command(cls=CeleryCommand)
@click.argument("worker_id", metavar="[ID]", required=False)
@click.option("-s", "--status", cls=CeleryOption, help_group="Selection", help="Only workers with this status.")
@json_option
@click.pass_context
def workers(ctx: click.Context, worker_id: str | None, status: str | None, as_json: bool) -> None:
    """Show what every worker told last, or everything about one."""
    if worker_id is not None:
        _say_one(ctx, worker_id, as_json)
        return
    with memory_of(ctx) as memsync:
        found = memsync.get_workers()
        now = memsync.store.clock.now()
    if status is not None:
        found = [one for one in found if one.status.lower() == status.lower()]
    if as_json:
        print_json(ctx, [one.as_dict() for one in found])
    elif not found:
        print_line(ctx, "No worker has told of itself yet." if status is None else
                   f"No worker has the status {status}.")
    else:
        titles = ["WORKER", "STATUS", "POOL", "FREE", "WAITING", "CONSUMING", "CPU", "MEMORY", "UP", "BEAT"]
        print_table(ctx, titles, [_row(one, now) for one in found], colour=1)


def _say_one(ctx: click.Context, worker_id: str, as_json: bool) -> None:
    with memory_of(ctx) as memsync:
        found = worker_of(memsync.get_workers(), worker_id)
        now = memsync.store.clock.now()
    if found is None:
        fail(f"No worker {worker_id} has told of itself, or it was long ago; "
             "`memsync workers` lists them.")
    if as_json:
        print_json(ctx, found.as_dict())
    else:
        print_facts(ctx, _facts(found, now))


def _row(one: WorkerRecord, now: float) -> list[str]:
    return [
        one.worker_id, one.status, one.pool or "-", _free(one),
        str(sum(figure(depth) or 0 for depth in one.depths.values())) if one.depths else "-",
        _yes_or_no(one.consuming), _percent(one.cpu), mebibytes(one.rss),
        ago(one.started_at, now), ago(one.last_beat, now),
    ]


def _facts(one: WorkerRecord, now: float) -> list[tuple[str, str]]:
    return [
        ("worker", one.worker_id),
        ("status", one.status),
        ("host", f"{one.hostname or '-'}, pid {one.pid or '-'}"),
        ("pool", f"{one.pool or '-'}, {one.concurrency} at once"),
        ("free", f"{_free(one)} slots, {one.capacity.get('reserved', '-')} reserved"),
        ("taken", f"{one.counters.get('total', '-')} since {moment(one.started_at)}"),
        ("consuming", _yes_or_no(one.consuming)),
        ("last beat", f"{ago(one.last_beat, now)} ago, number {one.sequence}, "
                      f"{duration(one.round_trip)} to Redis and back"),
        ("cpu", f"{_percent(one.cpu)} of a core; load of the host {' '.join(map(str, one.load)) or '-'}"),
        ("memory", mebibytes(one.rss)),
        ("versions", ", ".join(f"{name} {version}" for name, version in one.versions.items()) or "-"),
        *((f"queue {name}", _waiting(one.depths.get(str(name)))) for name in one.queues),
        *((f"task {task.get('id')}", f"{task.get('name')}, since {ago(task.get('started_at'), now)}")
          for task in one.running if isinstance(task, dict)),
    ]


def _free(one: WorkerRecord) -> str:
    return f"{one.capacity.get('free', '-')}/{one.capacity.get('total', '-')}"


def _waiting(depth: Any) -> str:
    return "-" if depth is None else f"{depth} waiting"


def _yes_or_no(claim: Any) -> str:
    return "yes" if claim is True else "no" if claim is False else "-"


def _percent(value: Any) -> str:
    return "-" if figure(value) is None else f"{value:.0f}%"
