"""The `celery memsync` commands, and what makes every worker take part.

Celery imports this module in every process that its command line starts: that
is how a worker is activated by the setting alone.
"""
from __future__ import annotations

from typing import Any

import click
from celery.platforms import EX_USAGE

from .. import plugin  # noqa: F401  (its import listens for workers)
from .doctor import doctor
from .follow import follow
from .keys import delete, get, search, set_
from .locks import locks
from .status import status
from .tasks import agents, task, tasks
from .together import assignments, metrics, queue
from .unlock import unlock
from .watch import watch
from .why import why
from .workers import workers


class Commands(click.Group):
    """A group whose commands end with the code of `sysexits.h` when they are used wrongly."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            exc.exit_code = EX_USAGE  # type: ignore[misc]
            raise


@click.group(name="memsync", cls=Commands)
def memsync() -> None:
    """Look into the shared memory of an app."""


for _command in (status, workers, tasks, task, why, agents, follow, queue, assignments, metrics, locks, unlock,
                 get, set_, delete, search, watch, doctor):
    memsync.add_command(_command)
