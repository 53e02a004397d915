"""The order of stages and runs: statuses by rank, runs by what caused them.

What is published for a task from outside begins a chain of runs; a retry, a replacement or a requeue is the next step of the
chain of the run that it comes from.  A run key names this: ``<chain>.<step>`` what was published, ``<chain>.<step>.<run>``
what a worker has received of it.  Clocks and Celery's count of retries do not matter.

Of two runs of one chain that of the later step is later.  Of two chains, and of two deliveries of one message, that is later
whose first write Redis has accepted later: the script (``store/lua/run_order.lua``) numbers both, and keeps
``<number of the chain>.<number of the delivery>:<run key>``.  A record keeps the numbers of twelve entries of earlier
runs, of as many chains as possible; a run of a chain that is forgotten would begin a new one.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

#: Most steps that are counted in a chain of runs; those after them are in the order in which Redis accepts them.
MAX_STEPS = 999_999

#: A run key: chain, step, and which delivery it is, for what was received.
_NAMED = r"([A-Za-z0-9_-]{1,24})\.(0|[1-9][0-9]{0,5})(?:\.([A-Za-z0-9_-]{1,24}))?"
_RUN_KEY = re.compile(_NAMED).fullmatch

#: A run key as the script keeps it: the numbers of chain and delivery, the step.
_STORED_RUN = re.compile(rf"([0-9]{{1,8}})\.([0-9]{{1,8}}):{_NAMED}").fullmatch

#: In the run key of a run that comes from no other: it is no retry, no replacement, and was not requeued.
FIRST_STEP = ".0."

#: How far along its life a status is, within one run.  The store compares
#: ranks as text.  Below "2" nothing ran yet and nothing is kept of it; "9"
#: absorbs whatever comes after.
RANKS = {
    "PENDING": "0",
    "RECEIVED": "1",
    "STARTED": "2",
    "LOST": "3",
    "RETRY": "4",
    "REVOKED": "5",  # a signal that ends no process lets the body go on
    "CANCELLED": "5",
    "FAILURE": "6",
    "IGNORED": "7",
    "REJECTED": "7",
    "SKIPPED": "8",
    "SUCCESS": "9",
}

#: The same of tasks that were not sent: below all others, so that they follow nothing, and are neither counted nor queued.
UNSENT_RANKS = {"PENDING": "+", "CANCELLED": ",", "REVOKED": "-", "FAILURE": "."}

#: Rank of a task that was revoked while it waited, as far as was known: its run may have begun all the same, and follows.
REVOKED_WAITING = "50"

#: Rank of a task that is to be sent.
PLANNED = UNSENT_RANKS["PENDING"]

#: Ranks of tasks that have never run.
WAITING = frozenset({"0", "1"})

#: Rank of a retry that a worker has received and not begun.
RETRY_WAITS = "1"

#: Rank of a running task: started, or with a status of the user's own.
RUNNING = "2"

#: Statuses after which nothing more is expected of a task.
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "SKIPPED", "CANCELLED"})

#: Seconds after which a lost task that no worker has requeued counts as ended: that follows at once.
LOST_GRACE = 10.0


def ends_at(state: Mapping[str, Any]) -> float:
    """Return when nothing more is expected of a task, on Redis's clock: 0.0 if it has ended, infinity while it goes on.

    Args:
        state: As :meth:`MemorySyncManager.get_task_state` returns it.
    """
    status, lost_at = state.get("status"), state.get("finished_at")
    if status == "LOST" and isinstance(lost_at, (int, float)):
        return lost_at + LOST_GRACE
    return 0.0 if isinstance(status, str) and status in FINAL else float("inf")


def rank_of(status: object) -> str:
    """Return how far along its life a task with this status is."""
    return RANKS.get(status, RUNNING) if isinstance(status, str) else RUNNING


def is_run_key(text: object) -> TypeGuard[str]:
    """Whether this names a run, or the publishing of a task; what travels with messages may be anything."""
    return isinstance(text, str) and _RUN_KEY(text) is not None


def is_delivered(text: object) -> TypeGuard[str]:
    """Whether this names a run that a worker has received, and not only its publishing."""
    return isinstance(text, str) and (named := _RUN_KEY(text)) is not None and named[3] is not None


def published_key(chain: str, before: object = None) -> str:
    """Return what names the publishing of a task.

    Args:
        chain: Unique id of a new chain of runs.
        before: The run key of the run that it comes from, if there is one: it is the next step of that chain.
    """
    named = _RUN_KEY(before) if isinstance(before, str) else None
    return f"{chain}.0" if named is None else f"{named[1]}.{min(int(named[2]) + 1, MAX_STEPS)}"


def delivered_key(published: object, run: str) -> str:
    """Return the run key of a run, from what came with its message; a chain of its own if that is no run key.

    Args:
        published: What :func:`published_key` made.
        run: Id of the run, unique among those of its task.
    """
    named = _RUN_KEY(published) if isinstance(published, str) else None
    return f"{run}.0.{run}" if named is None else f"{named[1]}.{named[2]}.{run}"


def run_key_of(stored: str) -> str:
    """Return the run key in the header of an entry, without the numbers that the script gave it."""
    return stored.rpartition(":")[2]


def run_id_of(stored: str) -> str | None:
    """Return the id of the run in the header of an entry, or None for what no worker has received."""
    named = _RUN_KEY(run_key_of(stored))
    return None if named is None else named[3]


def run_order(stored: str) -> tuple[int, int, int]:
    """Return what sorts the runs of a task, from the header of an entry; it is the order of ``store/lua/run_order.lua``."""
    named = _STORED_RUN(stored)
    return (0, 0, 0) if named is None else (int(named[1]), int(named[4]), int(named[2]))


def is_earlier_step(run_key: str, other: str) -> bool:
    """Whether a run is an earlier step of the same chain as another; of other runs only the script knows."""
    ours, theirs = _RUN_KEY(run_key), _RUN_KEY(other)
    return ours is not None and theirs is not None and ours[1] == theirs[1] and int(ours[2]) < int(theirs[2])


def later_status(first: object, second: object) -> object:
    """Return which of two statuses is further along; the second if neither is."""
    return first if rank_of(first) > rank_of(second) else second
