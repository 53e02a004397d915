"""What readers see of groups and workflows: how far they are, and of which parts they consist."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..types import GroupDict, TaskCause, WorkflowDict

#: The task that sends the body of a chord if the result backend does not count; no step of a workflow.
UNLOCK = "celery.chord_unlock"


@dataclass(frozen=True)
class Group:
    """How far a group is, or the header of a chord.

    Attributes:
        id: The id of the group.
        total: How many members it has.
        done: How many have ended, in any way.
        succeeded: How many of them succeeded.
        failed: How many of them failed; members that never ran because of a failure have failed, too.
        running: How many were begun, and do not wait for another try.
        percent: How many in a hundred have ended; it does not fall.
        started_at: When it was sent, in seconds since the epoch on Redis's clock; None if that is not known.
        eta: Seconds until the last member ends, if they go on ending as they did; None if that is not known.
    """

    id: str
    total: int
    done: int
    succeeded: int
    failed: int
    running: int
    percent: float
    started_at: float | None = None
    eta: float | None = None

    def as_dict(self) -> GroupDict:
        """Return the same as a dict."""
        return asdict(self)  # type: ignore[return-value]


@dataclass(frozen=True)
class WorkflowNode:
    """A part of a workflow: a task, or what consists of others.

    Attributes:
        kind: ``task``, ``chain``, ``group`` or ``chord``.
        id: Id of the task or group; of a chain that of its last task, of a chord that of its body.  "" if it has none.
        status: Of the task; of others ``PENDING``, ``STARTED``, ``SUCCESS``, or how the first part ended that failed.
        progress: Percent; what has ended in any way is at 100.
        name: Of the task.
        started_at: When its first task began, in seconds since the epoch on Redis's clock.
        finished_at: When its last task ended.
        worker: Of the task.
        group: Of a group, its counts.
        cause: Of a task that never ran, the task because of which it did not.
        children: The parts, in their order: steps of a chain, members of a group, header and body of a chord; of a task
            what it has sent while it ran.
        omitted: How many members are not among the children, because there are too many.
    """

    kind: str
    id: str
    status: str
    progress: float
    name: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    group: Group | None = None
    cause: TaskCause | None = None
    children: tuple[WorkflowNode, ...] = ()
    omitted: int = 0

    def walk(self) -> Iterator[WorkflowNode]:
        """Yield this and all its parts, each before its own."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Workflow:
    """All tasks that come from one that was sent from outside of a task.

    Attributes:
        id: What was sent first: a group, or the first task of a chain.
        root: The whole of it.
        progress: Percent.
        eta: Seconds until it ends, if it goes on as it did; None if that is not known.
    """

    id: str
    root: WorkflowNode
    progress: float
    eta: float | None = None

    @property
    def status(self) -> str:
        """The status of the whole."""
        return self.root.status

    def find(self, node_id: str) -> WorkflowNode | None:
        """Return the task or group of that id, or None if it is no part of this."""
        return next((one for one in self.root.walk() if one.id == node_id and one.kind in ("task", "group")), None)

    def as_dict(self) -> WorkflowDict:
        """Return the same as a dict."""
        return {**asdict(self), "status": self.status}  # type: ignore[typeddict-item]


def eta_of(percent: float, started_at: float | None, now: float) -> float | None:
    """Return how many seconds are left, or None if that is not known."""
    if percent >= 100:
        return 0.0
    if started_at is None or percent <= 0 or now <= started_at:
        return None
    return round((now - started_at) * (100 - percent) / percent, 3)
