"""`celery memsync locks`."""
from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from .output import ago, duration, json_option, memory_of, say_json, say_table, visible


@click.command(cls=CeleryCommand)
@json_option
@click.pass_context
def locks(ctx: click.Context, as_json: bool) -> None:
    """Show the locks that are held, by whom, and how many wait."""
    with memory_of(ctx) as memsync:
        found = memsync.locks()
        now = memsync.store.clock.now()
    if as_json:
        say_json(ctx, [one.as_dict() for one in found])
    elif not found:
        ctx.obj.echo("No lock is held.")
    else:
        say_table(ctx, ["LOCK", "HELD BY", "FOR TASK", "SINCE", "LEASE", "WAITING", "FENCE"], [
            [visible(one.name), visible(one.worker_id), visible(one.task_id or "-"), ago(one.since, now),
             duration(max(0.0, one.ttl)), "-" if one.waiters is None else str(one.waiters), str(one.fence)]
            for one in found
        ])
