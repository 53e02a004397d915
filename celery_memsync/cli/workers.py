"""`celery memsync workers [ID]`."""
from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryOption

from ..models.worker import GONE, WorkerRecord
from .command import command
from .ids import worker_of
from .output import (
    ago,
    duration,
    fail,
    figure,
    heartbeat_words,
    held_words,
    json_option,
    mebibytes,
    memory_of,
    moment,
    print_facts,
    print_json,
    print_line,
    print_table,
)

#: Statuses of workers.
STATUSES = ("active", "busy", "draining", "offline", "lost")


@command(examples=["workers", "workers w1@host", "workers --status lost"],
         exit_codes={1: "there is no such worker"})
@click.argument("worker_id", metavar="[ID]", required=False)
@click.option("-s", "--status", cls=CeleryOption, type=click.Choice(STATUSES, case_sensitive=False),
              help_group="Selection", help="Only workers with this status.")
@json_option
@click.pass_context
def workers(ctx: click.Context, worker_id: str | None, status: str | None, as_json: bool) -> None:
    """Show every worker by its last heartbeat, or one in full."""
    if worker_id is not None:
        _say_one(ctx, worker_id, as_json)
        return
    with memory_of(ctx) as memsync:
        found = memsync.get_workers()
        interval = memsync.settings.heartbeat_interval
        now = memsync.runtime.store.clock.now()
    if status is not None:
        found = [one for one in found if one.status.lower() == status.lower()]
    if as_json:
        print_json(ctx, [one.as_dict() for one in found])
    elif not found:
        print_line(ctx, "No workers found." if status is None else
                   f"No worker has the status {status}.")
    else:
        titles = ["WORKER", "STATUS", "POOL", "FREE", "WAITING", "CONSUMING", "CPU", "MEMORY", "UP", "HEARTBEAT"]
        print_table(ctx, titles, [_row(one, now, interval) for one in found], colour=1)


def _say_one(ctx: click.Context, worker_id: str, as_json: bool) -> None:
    with memory_of(ctx) as memsync:
        found = worker_of(memsync.get_workers(), worker_id)
        now = memsync.runtime.store.clock.now()
    if found is None:
        fail(f"Unknown worker {worker_id}: it never sent a heartbeat, or its record has expired; "
             "`memsync workers` lists those that there are.")
    if as_json:
        print_json(ctx, found.as_dict())
    else:
        print_facts(ctx, _facts(found, now))


def _row(one: WorkerRecord, now: float, interval: float) -> list[str]:
    if one.status in GONE:  # what it reported last is true no longer
        return [one.worker_id, one.status, one.pool or "-", *["-"] * 6, ago(one.last_beat, now)]
    return [
        one.worker_id, one.status, one.pool or "-", _free(one),
        str(sum(figure(depth) or 0 for depth in one.depths.values())) if one.depths else "-",
        _yes_or_no(one.consuming), _percent(one.cpu), mebibytes(one.rss),
        ago(one.started_at, now), heartbeat_words(one, now, interval),
    ]


def _facts(one: WorkerRecord, now: float) -> list[tuple[str, str]]:
    return [
        ("worker", one.worker_id),
        ("status", one.status),
        ("host", f"{one.hostname or '-'}, pid {one.pid or '-'}"),
        ("pool", f"{one.pool or '-'}, {one.concurrency} at once"),
        ("free", f"{_free(one)} slots, {one.capacity.get('reserved', '-')} reserved"),
        ("received", f"{one.counters.get('total', '-')} since {moment(one.started_at)}"),
        ("consuming", _yes_or_no(one.consuming)),
        *([("held messages", held_words([one], now))] if one.held_messages else []),
        ("last heartbeat", f"{ago(one.last_beat, now)} ago, number {one.sequence}, "
                           f"{duration(one.round_trip)} to Redis and back"),
        ("cpu", f"{_percent(one.cpu)} of a core; load of the host {' '.join(map(str, one.load)) or '-'}"),
        ("memory", mebibytes(one.rss)),
        ("format", "-" if one.format is None else str(one.format)),
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
