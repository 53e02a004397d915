"""`celery memsync keys` and `celery memsync key KEY`."""
from __future__ import annotations

from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand
from celery.exceptions import CeleryCommandException

from .output import duration, indented, json_option, limit_option, memory_of, moment, say_facts, say_json, visible


@click.command(cls=CeleryCommand)
@click.argument("pattern", default="*")
@limit_option(1000, 100_000, "Most keys to show.")
@json_option
@click.pass_context
def keys(ctx: click.Context, pattern: str, limit: int, as_json: bool) -> None:
    """List the keys that match a glob, such as 'tasks/*/state'; all if there is none."""
    with memory_of(ctx) as memsync:
        found = memsync.search(pattern, limit=limit)
    if as_json:
        say_json(ctx, found)
        return
    for path in found:
        ctx.obj.echo(visible(path, limit=None))
    # Not among the keys, which may go into a pipe.
    if not found:
        ctx.obj.error(f"No key matches {visible(pattern)}.")
    elif len(found) == limit:
        ctx.obj.error(f"There may be more than these {limit}; --limit shows them.")


@click.command(cls=CeleryCommand)
@click.argument("name", metavar="KEY")
@json_option
@click.pass_context
def key(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what is stored under a key, who wrote it, and when."""
    with memory_of(ctx) as memsync:
        entry = memsync.read_entry(name, consistent=True)
        now = memsync.store.clock.now()
    if entry is None:
        raise CeleryCommandException(
            f"Nothing is stored under {visible(name)}, or its time is over; `memsync keys` lists what there is.",
            exit_code=1)
    if as_json:
        say_json(ctx, asdict(entry))
        return
    say_facts(ctx, [
        ("key", entry.key), ("version", str(entry.version)), ("written", moment(entry.timestamp)),
        ("by", entry.worker_id), ("time left", duration(max(0.0, entry.timestamp + entry.ttl - now))),
    ])
    for line in indented(entry.value):
        ctx.obj.echo(line)
