"""`celery memsync queue`, `assignments` and `counters`: what all processes keep together."""
from __future__ import annotations

import click

from .command import command
from .output import json_option, limit_option, memory_of, print_facts, print_json, print_line, print_table, shown


@command(examples=["queue", "queue --limit 500 --json"])
@limit_option(50, 100_000, "Most tasks to show of each list.")
@json_option
@click.pass_context
def queue(ctx: click.Context, limit: int, as_json: bool) -> None:
    """Show running and pending tasks, oldest first."""
    with memory_of(ctx) as memsync:
        lists = memsync.get_queue(limit=limit)
        holders = {str(task_id): worker_id for worker_id, ids in memsync.get_assignments().items() for task_id in ids}
    if as_json:
        print_json(ctx, lists)
    elif not any(lists.values()):
        print_line(ctx, "No task is pending, and none is running.")
    else:
        print_table(ctx, ["LIST", "TASK", "WORKER"], [
            [name, task_id, holders.get(task_id, "-")]
            for name in ("processing", "pending") for task_id in lists[name]
        ])


@command(examples=["assignments"])
@json_option
@click.pass_context
def assignments(ctx: click.Context, as_json: bool) -> None:
    """Show which worker has which tasks."""
    with memory_of(ctx) as memsync:
        found = memsync.get_assignments()
    if as_json:
        print_json(ctx, found)
    elif not any(found.values()):
        print_line(ctx, "No worker has a task.")
    else:
        print_table(ctx, ["WORKER", "TASK"], [
            [worker_id, task_id] for worker_id, ids in sorted(found.items()) for task_id in ids])


@command(examples=["counters --json"])
@json_option
@click.pass_context
def counters(ctx: click.Context, as_json: bool) -> None:
    """Show the counters that all processes share."""
    with memory_of(ctx) as memsync:
        found = memsync.get_coordination_metrics()
    if as_json:
        print_json(ctx, found)
    elif not found:
        print_line(ctx, "Nothing has been counted yet.")
    else:
        print_facts(ctx, [(name, shown(value)) for name, value in sorted(found.items())])
