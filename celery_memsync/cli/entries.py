"""`celery memsync search`, `get`, `set` and `delete`: keys and what is stored under them."""
from __future__ import annotations

import json
from dataclasses import asdict

import click
from celery.bin.base import CeleryOption

from ..exceptions import ConflictError, InvalidValue
from .command import command
from .output import (
    Seconds,
    confirm,
    confirmable,
    duration,
    fail,
    indented,
    json_option,
    limit_option,
    memory_of,
    moment,
    print_error,
    print_facts,
    print_json,
    print_line,
    shown,
    yes_option,
)


@command(examples=["search 'tasks/*/state'", "search --limit 10"])
@click.argument("pattern", default="*")
@limit_option(1000, 100_000, "Most keys to show.")
@json_option
@click.pass_context
def search(ctx: click.Context, pattern: str, limit: int, as_json: bool) -> None:
    """List the keys that match a glob, such as 'tasks/*/state'. Without one, all."""
    with memory_of(ctx) as memsync:
        found = memsync.search(pattern, limit=limit)
    if as_json:
        print_json(ctx, found)
        return
    for path in found:
        print_line(ctx, path)
    # Not among the keys, which may go into a pipe.
    if not found:
        print_error(ctx, f"No key matches {pattern}.")
    elif len(found) == limit:
        print_error(ctx, f"There may be more than these {limit}; --limit shows them.")


@command(examples=["get tasks/<id>/state", "get coordination/metrics --json"],
         exit_codes={1: "nothing is stored under the key"})
@click.argument("name", metavar="KEY")
@json_option
@click.pass_context
def get(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what is stored under a key, who wrote it, and when."""
    with memory_of(ctx) as memsync:
        entry = memsync.read_entry(name, consistent=True)
        now = memsync.runtime.store.clock.now()
    if entry is None:
        fail(f"Nothing is stored under {name}, or it has expired; "
             "`memsync search` lists what there is.")
    if as_json:
        print_json(ctx, asdict(entry))
        return
    print_facts(ctx, [
        ("key", entry.key), ("version", str(entry.version)), ("written", moment(entry.timestamp)),
        ("by", entry.worker_id), ("time left", duration(max(0.0, entry.timestamp + entry.ttl - now))),
    ])
    for line in indented(entry.value):
        print_line(ctx, line)


@command("set", examples=["set flags/maintenance true --ttl 600", "set limits '{\"api\": 5}' --expected-version 3"],
         exit_codes={1: "the key is at another version, or the value is too large"})
@click.argument("name", metavar="KEY")
@click.argument("value", metavar="JSON")
@click.option("--ttl", cls=CeleryOption, type=Seconds(0, min_open=True), help_group="Writing",
              help="Seconds that it is kept.")
@click.option("--expected-version", cls=CeleryOption, type=click.IntRange(0), help_group="Writing",
              help="Only if the key is at this version; 0: only if there is nothing.")
@json_option
@click.pass_context
def set_(
    ctx: click.Context, name: str, value: str, ttl: float | None, expected_version: int | None, as_json: bool,
) -> None:
    """Store a value under a key: JSON, so that a text is in quotes."""
    try:
        decoded = json.loads(value)
    except ValueError as exc:
        raise click.BadParameter(f"it is no JSON ({exc}); a text is written in quotes, as in '\"text\"'") from None
    with memory_of(ctx) as memsync:
        try:
            memsync.write(name, decoded, ttl=ttl, expected_version=expected_version)
        except (ConflictError, InvalidValue) as exc:
            fail(str(exc))
        memsync.force_sync()
        entry = memsync.read_entry(name, consistent=True)
    if entry is None:
        return
    if as_json:
        print_json(ctx, asdict(entry))
    else:
        print_line(ctx, f"{entry.key} is at version {entry.version}.")


@command(examples=["delete flags/maintenance", "delete flags/maintenance --yes"],
         exit_codes={1: "nothing is stored under the key, or the answer was no"})
@click.argument("name", metavar="KEY")
@yes_option
@click.pass_context
def delete(ctx: click.Context, name: str, yes: bool) -> None:
    """Delete what is stored under a key, once that was confirmed."""
    confirmable(yes, "deletes the entry")
    with memory_of(ctx) as memsync:
        entry = memsync.read_entry(name, consistent=True)
        if entry is None:
            fail(f"Nothing is stored under {name}.")
        if not yes:
            confirm(ctx, f"{entry.key}, version {entry.version}, written {moment(entry.timestamp)} by {entry.worker_id}: "
                         f"{shown(entry.value)}", "Delete it?")
        memsync.delete(name)
        memsync.force_sync()
    print_line(ctx, f"Deleted: {entry.key}")
