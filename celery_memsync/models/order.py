"""The order of stages and runs: statuses by rank, runs by a sortable key."""
from __future__ import annotations

from typing import TypeGuard

#: How far along its life a status is, within one run.  The store compares
#: ranks as text.  Below "2" nothing ran yet and nothing is kept of it; "9"
#: absorbs whatever comes after.
RANKS = {
    "PENDING": "0",
    "RECEIVED": "1",
    "STARTED": "2",
    "LOST": "3",
    "RETRY": "4",
    "FAILURE": "5",
    "REVOKED": "6",
    "IGNORED": "7",
    "REJECTED": "7",
    "SKIPPED": "8",
    "SUCCESS": "9",
}

#: Ranks of tasks that have never run.
WAITING = frozenset({"0", "1"})

#: Rank of a task that is at work: started, or with a status of the user's own.
AT_WORK = "2"

#: Statuses after which nothing more is expected of a task.
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "SKIPPED"})


def rank_of(status: object) -> str:
    """Return how far along its life a task with this status is."""
    return RANKS.get(status, AT_WORK) if isinstance(status, str) else AT_WORK


def is_run_key(text: object) -> TypeGuard[str]:
    """Whether this is what :func:`run_key` makes; what travels with messages may be anything."""
    return isinstance(text, str) and len(text) == 16 and text.isascii() and text.isdigit()


def run_key(retries: int, since: float) -> str:
    """Return a text that sorts the runs of one task by time.

    Args:
        retries: Celery's count, which rules over the time.
        since: Redis's time when the run was received, in seconds.
    """
    return "%03d%013d" % (min(retries, 999), since * 1000)


def later_status(first: object, second: object) -> object:
    """Return which of two statuses is further along; the second if neither is."""
    return first if rank_of(first) > rank_of(second) else second
