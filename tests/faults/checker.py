"""Judges the shared state by what tasks noted in a file, without the package's code."""
from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

#: Seconds after the end of a body in which the death of its process may still be the last record.
RETURNING = 2.0

#: Seconds from the begin of a body in which its start may be unrecorded if its worker is killed.
UNRECORDED = 1.0

#: What is shown of such a task.
UNPUBLISHED = {"PENDING", "RECEIVED"}

#: What may be shown of a task whose process was killed before its body had ended, if it did not run
#: again.
GIVEN_UP = {"FAILURE", "LOST"}


class Kill(NamedTuple):
    """The end of a process.

    Attributes:
        at: When, in seconds since the epoch.
        with_main: Whether the main process of its worker died with it, which else would have
            recorded it.
    """

    at: float = 0.0
    with_main: bool = False


class Wrong(NamedTuple):
    """A claim that does not hold.

    Attributes:
        claim: Which.
        about: The task or lock.
        facts: What contradicts it.
    """

    claim: str
    about: str
    facts: object


def judge(sent, notes, killed, recorded, received):
    """Yield what is wrong.

    Args:
        sent: Ids of all tasks.
        notes: What bodies noted, dicts with ``what``, ``id``, ``at``, ``pid``, and of locks ``key``, ``fence``, ``owned``.
        killed: The `Kill` of each process that was killed, by pid; of a main process its children's too.
        recorded: The record of each task: ``{"state": ..., "progress": ...}`` or None.
        received: The last status of each task that a subscriber received.
    """
    by_task = defaultdict(list)
    for row in notes:
        by_task[row["id"]].append(row)
    for task_id in sent:
        yield from judge_task(
            task_id, by_task[task_id], killed, recorded.get(task_id), received.get(task_id))
    by_key = defaultdict(list)
    for row in notes:
        if row["what"] in ("held", "left"):
            by_key[row["key"]].append(row)
    for key, rows in by_key.items():
        yield from judge_lock(key, rows)


def judge_task(task_id, notes, killed, record, received):
    """Yield what is wrong with the record of one task."""
    state = (record or {}).get("state") or {}
    status = state.get("status")
    ends = [row for row in notes if row["what"] == "end"]
    kills = [(row, killed[row["pid"]]) for row in notes if row["pid"] in killed]
    # A child that goes on without its main process may end before it has recorded that.
    safe = [row for row in ends if row["pid"] not in killed or killed[row["pid"]].at > row["at"] + RETURNING]
    if safe:
        allowed = {"SUCCESS"}
    elif ends or kills:
        allowed = {"SUCCESS", *GIVEN_UP} if ends else set(GIVEN_UP)
        if any(kill.with_main and 0 <= kill.at - row["at"] <= UNRECORDED
               for row, kill in kills if row["what"] == "begin"):
            allowed |= UNPUBLISHED
    else:
        # Its process was killed before it could note anything; if its main process was, too, it is unknown.
        allowed = set(GIVEN_UP) if killed else set()
        if any(kill.with_main for kill in killed.values()):
            allowed |= UNPUBLISHED
    if status not in allowed:
        yield Wrong("a task is recorded as it ran", task_id, (status, sorted(allowed), notes))
        return
    if status == "SUCCESS" and safe:
        # A child that is killed takes its last pending writes with it.
        steps, progress = safe[-1]["steps"], (record or {}).get("progress") or {}
        if (progress.get("current"), progress.get("progress")) != (steps, 100):
            yield Wrong("the progress of a task that has ended is its last", task_id, (progress, notes))
        if state.get("steps") != steps:
            yield Wrong("what a task wrote about itself is there", task_id, (state, notes))
    if received != status:
        yield Wrong("a subscriber ends at what is there", task_id, (received, status))


def judge_lock(key, rows):
    """Yield what is wrong with the holders of one lock."""
    held = sorted((row for row in rows if row["what"] == "held"), key=lambda row: row["fence"])
    for one, next_one in pairwise(held):
        if one["fence"] == next_one["fence"]:
            yield Wrong("no two have one fence", key, (one, next_one))
        if one["at"] > next_one["at"]:
            yield Wrong("fences grow in the order of holders", key, (one, next_one))
    # Until it left, and noted that it still owned it, no other did.
    for left in (row for row in rows if row["what"] == "left" and row["owned"]):
        for other in held:
            if other["fence"] > left["fence"] and other["at"] < left["at"]:
                yield Wrong("no two tasks hold one lock", key, (left, other))
