"""`celery memsync locks` and `unlock NAME`."""
from __future__ import annotations

import sys

import click
from celery.bin.base import CeleryCommand, CeleryOption
from celery.exceptions import CeleryCommandException

from ..records import LockRecord
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


@click.command(cls=CeleryCommand)
@click.argument("name")
@click.option("-y", "--yes", cls=CeleryOption, is_flag=True, help_group="Selection", help="Do not ask.")
@click.option("--fence", cls=CeleryOption, type=click.IntRange(1), help_group="Selection",
              help="Only if it is held with this fence, as `memsync locks` shows it.")
@json_option
@click.pass_context
def unlock(ctx: click.Context, name: str, yes: bool, fence: int | None, as_json: bool) -> None:
    """Take a lock away from whoever holds it; who waits for it gets it."""
    with memory_of(ctx) as memsync:
        memsync.lock(name.removeprefix("tasks/"))  # whether it is a name at all
        held = next((one for one in memsync.locks() if one.name == name), None)
        if held is None:
            raise CeleryCommandException(f"Nobody holds the lock {visible(name)}; `memsync locks` shows what is held.",
                                         exit_code=1)
        if fence not in (None, held.fence):
            raise CeleryCommandException(f"The lock {visible(name)} is held with the fence {held.fence}, not {fence}: "
                                         "somebody else has it by now. Nothing was changed.", exit_code=1)
        if not yes:
            _ask(held, memsync.store.clock.now())
        freed = memsync.unlock(name, held.fence)
    if not freed:
        raise CeleryCommandException(f"The lock {visible(name)} was given back meanwhile; nothing was changed.", exit_code=1)
    if as_json:
        say_json(ctx, held.as_dict())
    else:
        ctx.obj.echo(f"{visible(name)} is taken from {visible(held.worker_id)}.")


def _ask(held: LockRecord, now: float) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is there to be asked; --yes takes the lock away without asking.")
    task = f" for task {visible(held.task_id)}" if held.task_id else ""
    click.echo(f"{visible(held.worker_id)} holds it{task} since {ago(held.since, now)}, with the fence {held.fence}. "
               "What it does under the lock may go on for a while.", err=True)
    click.confirm("Take it away?", abort=True, err=True)
