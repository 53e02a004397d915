"""`celery memsync locks`."""
from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from .output import ago, duration, json_option, memory_of, print_json, print_line, print_table


@click.command(cls=CeleryCommand)
@json_option
@click.pass_context
def locks(ctx: click.Context, as_json: bool) -> None:
    """Show the locks that are held, by whom, and how many wait."""
    with memory_of(ctx) as memsync:
        found = memsync.locks()
        now = memsync.store.clock.now()
    if as_json:
        print_json(ctx, [one.as_dict() for one in found])
    elif not found:
        print_line(ctx, "No lock is held.")
    else:
        print_table(ctx, ["LOCK", "HELD BY", "FOR TASK", "SINCE", "LEASE", "WAITING", "FENCE"], [
            [one.name, one.worker_id, one.task_id or "-", ago(one.since, now),
             duration(max(0.0, one.ttl)), "-" if one.waiters is None else str(one.waiters), str(one.fence)]
            for one in found
        ])
