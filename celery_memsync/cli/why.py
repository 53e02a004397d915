"""`celery memsync why ID`: why a task is where it is."""
from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from .ids import task_id_of
from .output import json_option, memory_of, print_json, print_line
from .reasons import Known, reason_of


@click.command(cls=CeleryCommand)
@click.argument("task_id", metavar="ID")
@json_option
@click.pass_context
def why(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Say why a task is where it is."""
    with memory_of(ctx) as memsync:
        task_id = task_id_of(memsync, task_id)
        known = Known(task_id, memsync.get_task(task_id), memsync.get_workers(), memsync.get_awaited_lock(task_id),
                      memsync.get_queue_position(task_id), memsync.store.clock.now())
    found = reason_of(known)
    if as_json:
        print_json(ctx, {"id": task_id, **found._asdict()})
    else:
        print_line(ctx, found.answer)
    if found.reason == "unknown":
        ctx.exit(1)
