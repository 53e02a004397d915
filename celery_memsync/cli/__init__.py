"""The `celery memsync` commands, and what makes every worker take part.

Celery imports this module in every process that its command line starts: that
is how a worker is activated by the setting alone.
"""
from __future__ import annotations

import click

from .. import plugin  # noqa: F401  (its import listens for workers)
from .doctor import doctor
from .keys import key, keys
from .locks import locks
from .status import status
from .tasks import task, tasks
from .together import metrics, queue
from .watch import watch
from .workers import worker, workers


@click.group(name="memsync")
def memsync() -> None:
    """Look into the shared memory of an app."""


for _command in (status, tasks, task, workers, worker, locks, queue, metrics, keys, key, watch, doctor):
    memsync.add_command(_command)
