"""`celery memsync cancel`."""
from __future__ import annotations

import click
from celery.bin.base import CeleryOption

from ..models.order import FINAL, RUNNING, rank_of
from .command import command
from .ids import task_id_of
from .output import json_option, memory_of, print_json, print_line, shorten


@command(examples=["cancel <id>", "cancel <root id> --reason 'wrong file'", "cancel <group id> --terminate"])
@click.argument("task_id", metavar="ID")
@click.option("--reason", cls=CeleryOption, metavar="TEXT", help_group="Writing", help="Why, for people.")
@click.option("--terminate", cls=CeleryOption, is_flag=True, help_group="Writing",
              help="Terminate the processes of running tasks.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, task_id: str, reason: str | None, terminate: bool, as_json: bool) -> None:
    """Cancel a task, or all tasks of a root or a group."""
    with memory_of(ctx) as memsync:
        task_id = task_id_of(memsync, task_id)
        status = memsync.cancel(task_id, reason, terminate=terminate)
    if as_json:
        print_json(ctx, {"id": task_id, "status": status, "ended": status in FINAL, "reason": reason,
                         "terminate": terminate})
    else:
        print_line(ctx, _words(task_id, status, terminate))


def _words(task_id: str, status: str | None, terminate: bool) -> str:
    """Return what becomes of the task with the cancelled id."""
    if status is None:
        return (f"No task with the id {task_id} is known. If that is a root or a group, or is sent "
                "later, workers skip its tasks.")
    if status in FINAL:
        return f"The task {task_id} had ended before, as {status}. Workers skip other tasks of this root."
    if rank_of(status) == RUNNING:
        end = "is terminated" if terminate else "ends at its next track() or check_cancelled(), or by --terminate"
        return f"Cancelled {task_id}: it is running, and {end}."
    return f"Cancelled {task_id}: it was {shorten(status)}, and workers skip it."
