"""Groups and workflows: how far they are, and of which tasks they consist."""
from __future__ import annotations

from collections.abc import Iterable

from ..deadline import bounded, within
from ..keys import check_id, is_id
from ..models.workflow import UNLOCK, Group, Workflow, eta_of
from ..models.workflow_tree import KnownTask, workflow_of
from ..reading.projections import progress_of, state_of
from ..reading.reader import Reader
from ..store import GroupCounts, Task, in_chunks
from ..store.members import OPEN
from ..types import ListedTask
from .task_records import TASKS_PER_CALL

#: Most members that are read of one group, and most tasks of a workflow.
MAX_MEMBERS, MAX_TASKS = 100, 500

#: Most times to read what the groups hold that were found the time before.
MAX_ROUNDS = 10


class WorkflowRecords:
    """Reads what is recorded of groups and workflows."""

    def __init__(self, reader: Reader, timeout: float) -> None:
        self.reader = reader
        self.store = reader.store
        self.timeout = timeout

    @bounded
    def group(self, group_id: str) -> Group | None:
        """Return how far a group is, or None if it is unknown."""
        group_id = check_id(group_id, "group")
        self.reader.send_pending()
        return self._groups([group_id]).get(group_id)

    @bounded
    def workflow(self, given: str) -> Workflow | None:
        """Return the workflow of a task or group, or None if that is unknown."""
        given = check_id(given, "workflow")
        self.reader.send_pending()
        whole = self._whole(given)
        tasks: dict[str, KnownTask] = {}
        groups: dict[str, Group] = {}
        members: dict[str, list[str]] = {}
        looked_at: set[str] = set()
        new = {whole, given}
        for _ in range(MAX_ROUNDS):
            new = {one for one in new if is_id(one)} - looked_at
            if not new or len(tasks) >= MAX_TASKS:
                break
            looked_at |= new
            ids = self._read_sets(new, groups, members)
            read = self._tasks(list(dict.fromkeys([*sorted(new), *ids]))[:MAX_TASKS - len(tasks)])
            tasks.update(read)
            new = {one for one in ids if one not in read} | {
                one for known in read.values() for one in self._groups_of(known) if one not in tasks}
        if not tasks and not groups:
            return None
        return workflow_of(whole, tasks, groups, members, self.store.clock.now())

    def tasks(self, given: str, members_only: bool, limit: int) -> list[ListedTask]:
        """Return the tasks of a workflow, or of the members of a group, newest first.

        Args:
            given: The task or group with which the workflow began; the group.
        """
        found: list[ListedTask] = []
        for ids in in_chunks(self._ids(given, members_only, limit), TASKS_PER_CALL):
            for task_id, task in zip(ids, within(self.timeout, self.store.read_tasks, ids)):
                state = state_of(task_id, task.slots, task.former)
                if state is not None:
                    found.append({"id": task_id, "state": state, "progress": progress_of(task, state)})
        return sorted(found, key=_age)

    @bounded
    def _ids(self, given: str, members_only: bool, limit: int) -> list[str]:
        given = check_id(given, "group")
        self.reader.send_pending()
        if members_only:
            return self.store.read_members([given], limit)[0].members
        found: dict[str, None] = {given: None}
        new = {given}
        for _ in range(MAX_ROUNDS):
            if not new or len(found) > limit:
                break
            rows = self.store.read_members(sorted(new), limit)
            new = {one for row in rows for one in (*row.members, *row.others)} - found.keys()
            found.update(dict.fromkeys(sorted(new)))
        return list(found)[:limit]

    def _whole(self, given: str) -> str:
        """Return the id of the workflow of a task or group."""
        (task,), (found,) = self.store.read_tasks([given]), self.store.read_members([given], 1)
        state = state_of(given, task.slots)
        if state is None and (ids := [*found.members, *found.others][:1]):
            (task,) = self.store.read_tasks(ids)
            state, own = state_of(ids[0], task.slots) or {}, given
        else:
            state, own = state or {}, str((state or {}).get("group") or given)
        whole = state.get("workflow") or (own if own != given or found.members else state.get("root_id"))
        return str(whole) if is_id(whole) else given

    def _read_sets(self, new: Iterable[str], groups: dict[str, Group], members: dict[str, list[str]]) -> list[str]:
        """Read the sets of groups and workflows; return the ids that are in them."""
        ids = sorted(new)
        found = self.store.read_members(ids, MAX_MEMBERS)
        groups.update(self._groups([one for one, row in zip(ids, found) if row.members]))
        members.update((one, row.members) for one, row in zip(ids, found) if row.members)
        return [task_id for row in found for task_id in (*row.others, *row.members)]

    def _groups(self, group_ids: list[str]) -> dict[str, Group]:
        counts = self.store.read_group_counts(group_ids)
        now = self.store.clock.now()
        return {group_id: group_of(group_id, one, now) for group_id, one in zip(group_ids, counts) if one.total or one.known}

    def _tasks(self, task_ids: list[str]) -> dict[str, KnownTask]:
        read = zip(task_ids, self.store.read_tasks(task_ids))
        return {task_id: known for task_id, task in read if (known := _known(task_id, task)) is not None}

    def _groups_of(self, known: KnownTask) -> list[str]:
        state, before = known.state, known.state.get("depends_on")
        named = [state.get("group"), state.get("workflow"), *(before if isinstance(before, list) else ())]
        return [one for one in named if isinstance(one, str)]


def group_of(group_id: str, counts: GroupCounts, now: float) -> Group:
    """Return how far a group is.

    Args:
        now: Redis's time, in seconds.
    """
    # A task may add members to its own group.
    total = counts.known + 1 if counts.total == OPEN else max(counts.total, counts.known)
    percent = 0.0 if counts.total == OPEN else 100 * counts.done / total
    return Group(group_id, total, counts.done, counts.succeeded, counts.failed, counts.running, percent, counts.since,
                 eta_of(percent, counts.since, now))


def _age(one: ListedTask) -> float:
    published = (one["state"] or {}).get("published_at")
    return -published if isinstance(published, (int, float)) else 0.0


def _known(task_id: str, task: Task) -> KnownTask | None:
    state = state_of(task_id, task.slots, task.former)
    if state is None or state.get("name") == UNLOCK:
        return None
    progress = progress_of(task, state)
    return KnownTask(state, None if progress is None else progress["progress"])
