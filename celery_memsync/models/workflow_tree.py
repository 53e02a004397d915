"""Put the tree of a workflow together from the records of its tasks.

A record says on what its task depends, of which group it is a member, and which task has sent it.  The tree is read
backward: from each task that nothing depends on, to what comes before it.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from .order import FINAL, rank_of
from .task import TOO_LATE
from .workflow import Group, Workflow, WorkflowNode, eta_of

T = TypeVar("T")

#: Members of a group in which is looked for what they have in common before them.
LOOKED_AT = 20

#: Most rounds to find what comes before groups that are members of others.
MAX_ROUNDS = 5

#: How deep a tree is at most, and how many steps are shown as one chain.
MAX_DEPTH, MAX_STEPS = 50, 1000


class KnownTask(NamedTuple):
    """A task of a workflow as it is recorded.

    Attributes:
        state: As :meth:`MemorySyncManager.get_task_state` has it.
        progress: Percent that it has reported.
    """

    state: Mapping[str, Any]
    progress: float | None


def workflow_of(
    whole: str, tasks: Mapping[str, KnownTask], groups: Mapping[str, Group], members: Mapping[str, Sequence[str]],
    now: float,
) -> Workflow:
    """Return a workflow.

    Args:
        whole: Its id.
        tasks: Its tasks by id, in any order.
        groups: Its groups by id.
        members: Ids of members by group, as far as they were read.
        now: Redis's time, in seconds.
    """
    root = _Tree(tasks, groups, members).root(whole)
    return Workflow(whole, root, root.progress, 0.0 if root.status in FINAL else eta_of(root.progress, root.started_at, now))


class _Tree:
    def __init__(
        self, tasks: Mapping[str, KnownTask], groups: Mapping[str, Group], members: Mapping[str, Sequence[str]],
    ) -> None:
        self.tasks = tasks
        self.groups = groups
        self._known = {group: [one for one in ids if one in tasks] for group, ids in members.items()}
        # A body that is a group is one part of the header around its chord.
        self.members = {group: list(dict.fromkeys(self._part(one, group) for one in ids))
                        for group, ids in self._known.items()}
        self._runtimes = _runtimes(tasks)
        self._is_member = {one for ids in self.members.values() for one in ids}
        self._drawn: set[str] = set()
        self._before: dict[str, tuple[str, ...]] = {}
        for unit in tasks:
            self._before[unit] = tuple(one for one in _ids(tasks[unit].state.get("depends_on"))
                                       if one in tasks or one in groups)
        for _ in range(MAX_ROUNDS):  # what comes before a group follows from what comes before those in it
            found = {group: self._before_group(group) for group in groups}
            if found.items() <= self._before.items():
                break
            self._before.update(found)
        self._children: dict[str, list[str]] = {}
        for unit in (*tasks, *groups):
            parent = None if self._before[unit] else self._parent_of(unit)
            if parent is not None:
                self._children.setdefault(parent, []).append(unit)

    def _part(self, task_id: str, group: str) -> str:
        own = self.tasks[task_id].state.get("group")
        is_other = self.tasks[task_id].state.get("header") == group != own
        return own if is_other and isinstance(own, str) and own in self.groups else task_id

    def root(self, whole: str) -> WorkflowNode:
        """Return the whole tree."""
        followed = {one for before in self._before.values() for one in before}
        sent = {one for ones in self._children.values() for one in ones}
        units = sorted((*self.groups, *self.tasks), key=lambda unit: (unit != whole, self._since(unit), unit))
        ends = [unit for unit in units if unit not in followed | sent | self._is_member]
        # What is left then is of a circle, which no sender of Celery's makes.
        nodes = [*self._sequences(ends, (), 0), *self._sequences(units, (), 0)]
        return nodes[0] if len(nodes) == 1 else _joined("group", "", tuple(nodes), [1.0] * len(nodes))

    def _since(self, unit: str) -> float:
        published = self.tasks[unit].state.get("published_at") if unit in self.tasks else self.groups[unit].started_at
        return published if isinstance(published, float) else float("inf")

    def _before_group(self, group: str) -> tuple[str, ...]:
        """Return what comes before a group: what all members have in common before them."""
        lines = [self._line(member)[:-1] for member in self.members.get(group, ())[:LOOKED_AT]]
        common: tuple[str, ...] = ()
        for units in zip(*lines):
            if len(set(units)) == 1:
                common = (units[0],)
        return () if common and self.tasks.get(common[0]) and not self._leads_to(common[0], group) else common

    def _leads_to(self, unit: str, group: str) -> bool:
        """Whether a task was sent before a group, and not as the begin of one of its members."""
        return len(self.members[group]) > 1 or self.tasks[unit].state.get("workflow") != group

    def _line(self, unit: str) -> list[str]:
        """Return the units up to one, as far as each depends on one other only."""
        line, known = [unit], {unit}
        while len(before := self._before.get(line[-1], ())) == 1 and before[0] not in known and len(line) < MAX_STEPS:
            line.append(before[0])
            known.add(before[0])
        return line[::-1]

    def _parent_of(self, unit: str) -> str | None:
        """Return the task that has sent a unit while it ran, if that is one of the tree."""
        task_id = unit if unit in self.tasks else next(iter(self._known.get(unit, ())), None)
        if task_id is None or unit in self.tasks and unit in self._is_member:
            return None
        parent = self.tasks[task_id].state.get("parent_id")
        return parent if isinstance(parent, str) and parent in self.tasks and parent != unit else None

    def _sequences(self, ends: Iterable[str], outside: tuple[str, ...], depth: int) -> list[WorkflowNode]:
        """Return what ends with units that are not in the tree yet."""
        return [self._sequence(end, outside, depth) for end in ends
                if depth < MAX_DEPTH and end not in self._drawn and end not in outside]

    def _sequence(self, end: str, outside: tuple[str, ...], depth: int) -> WorkflowNode:
        """Return what ends with a unit, but for what comes before the group around it."""
        units: list[str] = []
        unit: str | None = end
        while unit is not None and unit not in outside and unit not in self._drawn and len(units) < MAX_STEPS:
            self._drawn.add(unit)
            units.insert(0, unit)
            before = [one for one in self._before[unit] if one not in self._drawn]
            unit = before[0] if before else None
        nodes: list[WorkflowNode] = []
        for unit in units:
            node = self._unit(unit, depth)
            header = nodes[-1] if nodes else None
            if header is not None and header.kind == "group" and node.kind == "task":
                # A group that comes before a task is the header of a chord.
                weights = [self._weight(header), self._weight(node)]
                nodes[-1] = _joined("chord", node.id, (header, node), weights)
            else:
                nodes.append(node)
        if len(nodes) == 1:
            return nodes[0]
        return _joined("chain", nodes[-1].id, tuple(nodes), [self._weight(node) for node in nodes])

    def _unit(self, unit: str, depth: int) -> WorkflowNode:
        if unit in self.groups:
            return self._group(unit, depth)
        known = self.tasks[unit]
        state = known.state
        children = tuple(self._sequences(self._children.get(unit, ()), (), depth + 1))
        return WorkflowNode(
            "task", unit, str(state.get("status")), _progress(known), _of_kind(str, state.get("name")),
            _moment(state.get("started_at")), _moment(state.get("finished_at")), _of_kind(str, state.get("worker")),
            cause=_of_kind(dict, state.get("cause")), children=children)  # type: ignore[arg-type]

    def _group(self, group: str, depth: int) -> WorkflowNode:
        outside = tuple(self._line(group)[:-1])
        nodes = tuple(self._sequences(self.members.get(group, ()), outside, depth + 1))
        node = _joined("group", group, nodes, [self._weight(one) for one in nodes])
        counts = self.groups[group]
        omitted = max(0, counts.total - len(self._known.get(group, ())))
        status = node.status if not omitted else _group_status(counts)
        progress = node.progress if not omitted else counts.percent
        return WorkflowNode("group", group, status, progress, None, node.started_at or counts.started_at, node.finished_at,
                            group=counts, children=nodes, omitted=omitted)

    def _weight(self, node: WorkflowNode) -> float:
        """Return for how many seconds a part is expected to run, by what tasks of the same names have taken."""
        if node.kind == "task":
            return self._runtimes.get(node.name or "", self._runtimes[""])
        weights = [self._weight(child) for child in node.children]
        if node.kind == "group":  # its members run side by side
            return sum(weights) / len(weights) if weights else self._runtimes[""]
        return sum(weights)


def _runtimes(tasks: Mapping[str, KnownTask]) -> dict[str, float]:
    """Return the mean runtime of the tasks that have ended by name; under "" that of all, 1 if none has."""
    sums: dict[str, list[float]] = {}
    for known in tasks.values():
        runtime = known.state.get("runtime")
        if isinstance(runtime, (int, float)) and 0 <= runtime < 1e11:
            for name in (str(known.state.get("name")), ""):
                sums.setdefault(name, []).append(max(runtime, 0.001))
    return {"": 1.0, **{name: sum(figures) / len(figures) for name, figures in sums.items()}}


def _progress(known: KnownTask) -> float:
    if str(known.state.get("status")) in FINAL:
        return 100.0
    return min(100.0, max(0.0, known.progress or 0.0))


def _joined(kind: str, node_id: str, nodes: tuple[WorkflowNode, ...], weights: Sequence[float]) -> WorkflowNode:
    """Return what consists of parts."""
    total = sum(weights)
    progress = sum(node.progress * weight for node, weight in zip(nodes, weights)) / total if total else 0.0
    starts = [node.started_at for node in nodes if node.started_at is not None]
    ends = [node.finished_at for node in nodes if node.finished_at is not None]
    status = _status([node.status for node in nodes])
    return WorkflowNode(kind, node_id, status, round(progress, 3), None, min(starts, default=None),
                        max(ends, default=None) if status in FINAL else None, children=nodes)


def _status(statuses: Sequence[str]) -> str:
    """Return the status of what consists of parts."""
    left = [status for status in statuses if status not in FINAL]
    if left:
        begun = len(left) < len(statuses) or any(rank_of(status) >= "2" for status in left)
        return "STARTED" if begun else "PENDING"
    return next((status for status in statuses if status != "SUCCESS"), "SUCCESS" if statuses else "PENDING")


def _group_status(counts: Group) -> str:
    if counts.done < counts.total:
        return "STARTED" if counts.done or counts.running else "PENDING"
    return "SUCCESS" if counts.succeeded == counts.total else "FAILURE" if counts.failed else "CANCELLED"


def _of_kind(kind: type[T], fact: Any) -> T | None:
    """Return a fact of a task, None if it is of another type: users may report anything under its name."""
    return fact if isinstance(fact, kind) else None


def _moment(fact: Any) -> float | None:
    return fact if type(fact) in (int, float) and abs(fact) < TOO_LATE else None


def _ids(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
