"""`celery memsync locks`."""
from __future__ import annotations

import sys

import click
from celery.bin.base import CeleryCommand, CeleryOption

from ..models.lock import LockRecord
from .output import ago, duration, fail, json_option, memory_of, print_error, print_json, print_line, print_table


@click.command(cls=CeleryCommand)
@click.argument("name")
@click.option("-y", "--yes", cls=CeleryOption, is_flag=True, help_group="Writing", help="Do not ask.")
@click.option("--fence", cls=CeleryOption, type=click.IntRange(0), help_group="Writing",
              help="Only if it is held with this fence.")
@json_option
@click.pass_context
def unlock(ctx: click.Context, name: str, yes: bool, fence: int | None, as_json: bool) -> None:
    """Free a lock for whoever holds it; its holder is not stopped."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; --yes frees the lock without a question")
    with memory_of(ctx) as memsync:
        held = memsync.get_lock(name)
        if held is None:
            fail(f"Nobody holds the lock {name}.")
        description = _describe(held, memsync.store.clock.now())
        if fence is not None and fence != held.fence:
            fail(f"Not freed, for its fence is not {fence}: {description}.")
        if not yes:
            print_error(ctx, description)
            click.confirm("Free it? Whatever its holder does goes on.", err=True, abort=True)
        if not memsync.free_lock(name, held.fence):
            fail(f"Nothing was freed: nobody holds the lock {name} "
                 f"with the fence {held.fence} any more.")
    if as_json:
        print_json(ctx, {"freed": True, **held.as_dict()})
    else:
        print_line(ctx, f"Freed: {description}")


def _describe(held: LockRecord, now: float) -> str:
    task = f" for task {held.task_id}" if held.task_id else ""
    return (f"the lock {held.name} of {held.worker_id}{task}, held for {ago(held.since, now)}, "
            f"{held.waiters or 0} waiting, fence {held.fence}")


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
