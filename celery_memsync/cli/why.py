"""`celery memsync why ID`: why a task is where it is."""
from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from ..reasons import Known, reason_of
from .ids import whole_task_id
from .output import json_option, memory_of, moment, say_facts, say_json, shown, visible

#: Tasks that wait among which its place is looked for.
LOOKED_AT = 1000


@click.command(cls=CeleryCommand)
@click.argument("task_id")
@json_option
@click.pass_context
def why(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Tell why a task is where it is: what it waits for, or what became of it."""
    with memory_of(ctx) as memsync:
        task_id = whole_task_id(memsync, task_id)
        known = Known(
            memsync.get_task(task_id), memsync.get_queue(LOOKED_AT)["pending"], memsync.get_workers(), memsync.locks(),
            memsync.store.clock.now())
    found = reason_of(task_id, known)
    if as_json:
        say_json(ctx, {"id": task_id, **found.as_dict()})
    else:
        ctx.obj.echo(visible(found.answer, limit=None))
        if found.evidence:
            ctx.obj.echo()
            say_facts(ctx, [("task", task_id), *((name, _shown(name, value)) for name, value in found.evidence.items())])
    if found.reason == "unknown":
        ctx.exit(1)


def _shown(name: str, value: object) -> str:
    if isinstance(value, float) and (name.endswith("_at") or name in ("eta", "last_beat")):
        return moment(value)
    return shown(value) if isinstance(value, (dict, list)) else str(value)
