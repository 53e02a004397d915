"""`celery memsync locks`."""
from __future__ import annotations

import click
from celery.bin.base import CeleryOption

from ..models.lock import LockRecord
from .command import command
from .output import (
    ago,
    confirm,
    confirmable,
    duration,
    fail,
    json_option,
    memory_of,
    print_json,
    print_line,
    print_table,
    yes_option,
)


@command(examples=["unlock invoice:7", "unlock invoice:7 --fence 12 --yes"],
         exit_codes={1: "no process holds the lock, its fence is another, or the answer was no"})
@click.argument("name")
@yes_option
@click.option("--fence", cls=CeleryOption, type=click.IntRange(0), help_group="Writing",
              help="Only if it is held with this fence.")
@json_option
@click.pass_context
def unlock(ctx: click.Context, name: str, yes: bool, fence: int | None, as_json: bool) -> None:
    """Free a lock on behalf of its holder, which is not stopped."""
    confirmable(yes, "frees the lock")
    with memory_of(ctx) as memsync:
        held = memsync.get_lock(name)
        if held is None:
            fail(f"No process holds the lock {name}.")
        description = _describe(held, memsync.runtime.store.clock.now())
        if fence is not None and fence != held.fence:
            fail(f"Not freed, for its fence is not {fence}: {description}.")
        if not yes:
            confirm(ctx, description, "Free it? Whatever its holder does goes on.")
        if not memsync.free_lock(name, held.fence):
            fail(f"Nothing was freed: the lock {name} is no longer held with the fence {held.fence}.")
    if as_json:
        print_json(ctx, {"freed": True, **held.as_dict()})
    else:
        print_line(ctx, f"Freed: {description}")


def _describe(held: LockRecord, now: float) -> str:
    task = f" for task {held.task_id}" if held.task_id else ""
    return (f"the lock {held.name} of {held.worker_id}{task}, held for {ago(held.since, now)}, "
            f"{held.waiters or 0} waiting, fence {held.fence}")


@command(examples=["locks", "locks --json"])
@json_option
@click.pass_context
def locks(ctx: click.Context, as_json: bool) -> None:
    """Show the locks that are held, by whom, and how many wait."""
    with memory_of(ctx) as memsync:
        found = memsync.locks()
        now = memsync.runtime.store.clock.now()
    if as_json:
        print_json(ctx, [one.as_dict() for one in found])
    elif not found:
        print_line(ctx, "No lock is held.")
    else:
        print_table(ctx, ["LOCK", "HELD BY", "FOR TASK", "AGE", "LEASE", "WAITING", "FENCE"], [
            [one.name, one.worker_id, one.task_id or "-", ago(one.since, now),
             duration(max(0.0, one.ttl)), "-" if one.waiters is None else str(one.waiters), str(one.fence)]
            for one in found
        ])
