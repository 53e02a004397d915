"""The tasks of groups and workflows, and how many of them have ended."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..keys import is_id
from ..models.task import TaskRun, workflow_id_of
from .errors import redis_call
from .script_caller import ScriptCaller

#: Names of notes in a set of members, see ``store/lua/members.lua``, and what the number of members is added to.
TOTAL, SINCE, TOTAL_FROM = "//total", "//since", 1000

#: The total of a group whose members come from a generator that has not made the last one yet.
OPEN = -1

#: Ranges of scores that are counted, by name: see ``store/lua/members.lua``.
COUNTED = {
    "known": (0, 9), "running": (1, 1), "done": (2, 9), "succeeded": (9, 9), "failed": (6, 6), "never_ran": (3, 3)}


class GroupCounts(NamedTuple):
    """How many members of a group there are, by how far they are.

    Attributes:
        total: As it was sent; 0 if that is not known, and `OPEN` while a generator still makes members.
        since: When it was sent, in seconds of Redis's clock, or None.
        known: Of whom something is recorded.
        running: That were begun, and do not wait for another try.
        done: That have ended, in any way.
        succeeded, failed: By a success, by a failure; members that never ran because of a failure have failed, too.
    """

    total: int
    since: float | None
    known: int
    running: int
    done: int
    succeeded: int
    failed: int


class Members(NamedTuple):
    """Ids in the set of a group or workflow.

    Attributes:
        members: Of a group.
        others: Of what else belongs to it.
    """

    members: list[str]
    others: list[str]


def note(name: str, score: int = -1) -> str:
    """Return the line by which a script takes a note; of an id, a slash and that is the name."""
    return f"{name} {score}"


def parts_of(task_id: str, run: TaskRun) -> tuple[tuple[str, str], ...]:
    """Return of which group or workflow a task is a part, and how: as a script takes it."""
    if run.group is not None:
        return tuple((str(group), task_id) for group in (run.group, run.header) if is_id(group))
    whole = workflow_id_of(run)
    return () if whole is None or whole == task_id or not is_id(whole) else ((whole, note(f"/{task_id}")),)


class MemberStore(ScriptCaller):
    """What is about the tasks of groups and workflows."""

    @redis_call
    def read_group_counts(self, group_ids: Sequence[str]) -> list[GroupCounts]:
        """Return the counts of groups, in one round trip; of an unknown one all are 0."""
        pipeline = self._pipeline()
        for group_id in group_ids:
            key = self.keys.members(group_id)
            pipeline.zscore(key, TOTAL)
            pipeline.zscore(key, SINCE)
            for lowest, highest in COUNTED.values():
                pipeline.zcount(key, lowest, highest)
        answers = self._answers(pipeline) if group_ids else []
        size = 2 + len(COUNTED)
        return [_counts(*answers[at:at + size]) for at in range(0, size * len(group_ids), size)]

    @redis_call
    def read_members(self, group_ids: Sequence[str], limit: int) -> list[Members]:
        """Return ids of what belongs to groups and workflows, at most ``limit`` members and as many others of each."""
        pipeline = self._pipeline()
        for group_id in group_ids:
            key = self.keys.members(group_id)
            pipeline.zrangebyscore(key, 0, 9, start=0, num=limit)
            pipeline.zrangebyscore(key, -1, -1, start=0, num=limit)
        answers = self._answers(pipeline) if group_ids else []
        return [Members(_ids(answers[at], ""), _ids(answers[at + 1], "/")) for at in range(0, 2 * len(group_ids), 2)]


def _counts(total: float | None, since: float | None, *counts: int | None) -> GroupCounts:
    by_name = dict(zip(COUNTED, (count or 0 for count in counts)))
    by_name["failed"] += by_name.pop("never_ran")
    planned = int(total) - TOTAL_FROM if total is not None and TOTAL_FROM < total < 1e12 else 0
    sent_at = -since / 1000 if since is not None and -1e15 < since < 0 else None
    return GroupCounts(OPEN if total == TOTAL_FROM else planned, sent_at, **by_name)


def _ids(names: Sequence[bytes] | None, prefix: str) -> list[str]:
    texts = (name.decode(errors="replace") for name in names or ())
    return [text[len(prefix):] for text in texts if text.startswith(prefix) and is_id(text[len(prefix):])]
