"""Ids that are abbreviated where that is unique."""
from __future__ import annotations

from itertools import islice
from typing import Iterable, Sequence

import click

from ..keys import check_id
from ..plugin import MemSync
from .output import visible

#: Length of the ids that Celery makes; what is as long is no abbreviation.
WHOLE = 36

#: Newest tasks among which an abbreviation is looked for.
LOOKED_AT = 100_000

#: Most candidates that an error names.
NAMED = 5


def whole_task_id(memsync: MemSync, typed: str) -> str:
    """Return the id of the one task that begins with what was typed; what was typed itself if there is none.

    Raises:
        UsageError: If several do.
    """
    if len(check_id(typed, "task")) >= WHOLE or memsync.get_task_state(typed) is not None:
        return typed
    return _the_one(typed, islice(memsync.task_ids(), LOOKED_AT), "tasks")


def whole_worker_id(ids: Sequence[str], typed: str) -> str:
    """Return the id of the one worker that begins with what was typed; what was typed itself if there is none.

    Raises:
        UsageError: If several do.
    """
    return typed if check_id(typed, "worker") in ids else _the_one(typed, ids, "workers")


def _the_one(typed: str, ids: Iterable[str], what: str) -> str:
    found = list(islice((one for one in ids if one.startswith(typed)), NAMED + 1))
    if len(found) > 1:
        names = ", ".join(visible(one) for one in found[:NAMED]) + (" and others" if len(found) > NAMED else "")
        raise click.UsageError(f"Several {what} begin with {visible(typed)}: {names}; type more of it.")
    return found[0] if found else typed
