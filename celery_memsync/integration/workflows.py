"""Workflows: which tasks belong together, and what is known of steps before they are sent.

A workflow is named by what was sent first from outside of a task: a group, or the first task of a chain.  Its id travels
with each message, also for cancels: the members of a first group have no root in common.  The process that sends that
records all steps that come later (`steps.py`); the worker whose task does not succeed records that they never run.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celery.exceptions import Reject

from ..keys import STAGE, is_id
from ..models.task import TaskRun, workflow_id_of
from ..models.workflow import UNLOCK
from ..runtime import Runtime
from ..store.members import note
from ..writing.changes import StageChange
from .child_outcomes import unwrapped, verdict
from .endings import REPLACED
from .runs import ActiveRun, ReceivedRun, active_run, known_of, lifetime
from .sent_groups import sent_group, size_notes, sizes_of
from .steps import Step, Steps, embed_of, has_steps, last_id

#: Workflows of which a process remembers that it has recorded their steps, or that they are never sent.
MAX_REMEMBERED = 1000

#: What travels with each run of a task as it came with the first.
CARRIED = ("awaits", "depends_on", "group", "header", "member", "replaced", "sizes")

#: Statuses after which what follows is sent, or may be.
GOES_ON = frozenset({"SUCCESS", "RETRY", "PENDING"})


class Workflows:
    """Records the steps of the workflows of one app."""

    def __init__(self) -> None:
        #: Of workflows whose steps were recorded, the status of the task before them, by the id of the last step: members of
        #: a group have the same steps after them.
        self._recorded: OrderedDict[str, str] = OrderedDict()
        self._failed: OrderedDict[str, str] = OrderedDict()

    # -- where a task is sent

    def sent_along(self, headers: Mapping[str, Any], body: Any, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what travels with a message: the id of its workflow, and what it depends on.

        Args:
            before: What came with the run of the same task that sends it, if it is to be retried or replaced.
        """
        if before is not None:
            known = {name: before[name] for name in CARRIED if name in before}
            return {**known, **_workflow_in(before)}
        awaited = _awaited_by(body) if headers.get("task") == UNLOCK else None
        known = {} if awaited is None else {"awaits": awaited}
        active, embed = active_run.get(), embed_of(body)
        if active is not None:
            return {**known, **_sent_by(active, headers, embed)}
        group = sent_group.get()
        if group is not None:
            return {**known, "workflow": group.outermost, "sizes": group.sizes}
        if awaited is not None:
            return {**known, "workflow": awaited}
        if not has_steps(embed):
            return {}
        # Of a chord that something else than a group sends.
        is_in_group = not embed.get("chain") and is_id(headers.get("group"))
        return {"workflow": headers["group"] if is_in_group else headers["id"]}

    def record(self, services: Runtime, run: TaskRun, task_id: str, body: Any) -> None:
        """Record the steps that come after a task that was just sent, once.

        Args:
            run: What is recorded of that task.
        """
        embed = embed_of(body)
        last = last_id(embed)
        if not has_steps(embed) or run.depends_on is not None or not _is_new(self._recorded, last, run.status):
            return
        steps = Steps(task_id, run.group, embed)
        notes = tuple(one for group, size in steps.sizes.items() for one in (
            *size_notes(group, size, None), *_part_notes(run, task_id, group)))
        for change in _unsent(services, steps, run, task_id):
            change.notes, notes = notes, ()
            services.writer.put(change)

    # -- where a task has ended: the main process of its worker

    def record_outcome(self, services: Runtime, request: Any, received: ReceivedRun, error: BaseException) -> None:
        """Record that the steps after a task are never sent, where it came back from the pool of this worker.

        Args:
            error: What its body raised.
        """
        embed = embed_of(request._payload)
        if not has_steps(embed):
            return
        status, exception = verdict(error, services.redact)
        error = unwrapped(error)
        if error.args != REPLACED and not (isinstance(error, Reject) and error.requeue):
            known = known_of(services, received.task_id, received.facts, received.sent)
            run = TaskRun.of({**known, "status": status, "exception": exception})
            self._record_never_sent(services, received.task_id, embed, run)

    def record_end(
        self, services: Runtime, task_id: str, request: Any, facts: Mapping[str, Any], run: TaskRun,
    ) -> None:
        """Record that the steps after a task are never sent, where the main process has recorded how it has ended.

        Args:
            request: Of the task; None if this process has none, and then facts hold what comes after it.
        """
        self._record_never_sent(services, task_id, facts if request is None else embed_of(request._payload), run)

    def begin_again(self, embed: Mapping[str, Any]) -> None:
        """Take note that a task runs again, so that what was recorded of the steps after it may change."""
        self._failed.pop(last_id(embed) or "", None)

    def _record_never_sent(self, services: Runtime, task_id: str, embed: Any, run: TaskRun) -> None:
        """Record that the steps after a task are never sent, because it did not succeed.

        Celery stores a failure for what comes after one, and after a revoked task for the body of its chord.

        Args:
            embed: ``chain`` and ``chord`` of its request.
            run: How it has ended.
        """
        if run.status in GOES_ON or not has_steps(embed) or not _is_new(self._failed, last_id(embed), run.status):
            return
        for change in _never_sent(services, Steps(task_id, run.group, embed), task_id, run):
            services.writer.put(change)
        # Celery has stored it already, before this process knew.
        services.writer.hurry()


def _sent_by(active: ActiveRun, headers: Mapping[str, Any], embed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what travels with a message that a running task sends, or Celery when it has ended."""
    known, group, sent = _workflow_in(active.sent), headers.get("group"), sent_group.get()
    step, awaited = active.steps.get(headers["id"]), _awaited_in(active)
    if not known and (step is not None or sent is not None or has_steps(embed)):
        known["workflow"] = headers["root_id"]
    before = list(step.depends_on) if step is not None else [] if awaited is None else [awaited]
    if before:
        known.update(_sizes_around(active.sent, before), depends_on=before)
    known.update(_replaced_by(active, step, headers, embed))
    if sent is not None:
        known["sizes"] = {**known.get("sizes", {}), **sent.sizes}
    if sent is not None and group not in (None, sent.group_id):
        known["group"] = sent.group_id  # the body of a chord, whose members have the id of its header
        if group != (active.facts.get("group") if awaited is None else awaited):
            known["header"] = group  # or of the one around the chord, where they count
    elif group is not None and headers.get("group_index") is None and embed.get("chord"):
        known["member"] = True  # by ``add_to_chord``
    return known


def _sizes_around(sent: Mapping[str, Any], before: Sequence[str]) -> dict[str, Any]:
    """Return the sizes of groups that came with a message, but for those that come before a step: it is no part of them."""
    around = {name: size for name, size in sizes_of(sent).items() if name not in before}
    return {"sizes": around} if around else {}


def _awaited_in(active: ActiveRun) -> str | None:
    """Return the group after which a task of Celery's sends the body of a chord, None for any other task."""
    awaited = active.sent.get("awaits") if active.name == UNLOCK else None
    return awaited if is_id(awaited) else None


def _replaced_by(
    active: ActiveRun, step: Step | None, headers: Mapping[str, Any], embed: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the id and the run key of the run that a workflow replaces, which travel to its task of that id.

    So that task is known to come after the run, whatever is recorded first of the two.
    """
    replaced = active.sent.get("replaced")
    if replaced is not None or step is not None or not has_steps(embed):
        return {} if replaced is None else {"replaced": replaced}
    comes_again = active.task_id in Steps(headers["id"], headers.get("group"), embed).by_id
    return {"replaced": [active.task_id, active.run_key]} if comes_again else {}


def replaced_key(task_id: str, sent: Mapping[str, Any]) -> Any:
    """Return the run key of the run that a task replaces, as it came with its message; None if it replaces none."""
    replaced = sent.get("replaced")
    return replaced[1] if isinstance(replaced, list) and len(replaced) == 2 and replaced[0] == task_id else None


def _workflow_in(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the workflow that came with a message: anybody may send anything."""
    workflow = sent.get("workflow")
    return {"workflow": workflow} if is_id(workflow) else {}


def _awaited_by(body: Any) -> str | None:
    """Return the group whose members a task of Celery's waits for, where the result backend does not count them."""
    args = body[0] if isinstance(body, (list, tuple)) and body else None
    group = args[0] if isinstance(args, (list, tuple)) and args else None
    return group if is_id(group) else None


def record_unsent(services: Runtime, request: Any, run: TaskRun) -> None:
    """Record the steps after a task again that a worker has, so that they outlive their ttl."""
    embed = embed_of(request._payload)
    if has_steps(embed):
        for change in _unsent(services, Steps(request.id, run.group, embed), run, request.id):
            services.writer.put(change)


def _unsent(services: Runtime, steps: Steps, run: TaskRun, task_id: str) -> list[StageChange]:
    """Return the changes that record the steps after a task as pending: what it depends on was not sent yet.

    Args:
        run: The task before them.
    """
    known = {"status": "PENDING", "root_id": run.root_id, "workflow": workflow_id_of(run), "never_ran": False}
    ttl = lifetime(services, run.eta)
    return [_change(services, step, known, ttl) for step in steps if step.task_id != task_id]


def _never_sent(services: Runtime, steps: Steps, task_id: str, run: TaskRun) -> Iterator[StageChange]:
    """Yield the changes that record steps which are never sent, because of how a task has ended."""
    is_rejected = run.exception is not None and run.exception["type"] == "Reject"
    cause = {"task_id": task_id, "status": "REJECTED" if is_rejected else run.status, "name": run.name}
    known: dict[str, Any] = {
        "root_id": run.root_id, "workflow": workflow_id_of(run), "never_ran": True, "cause": cause}
    failed = {**known, "status": "FAILURE", "exception": run.exception}
    of_chord = {**failed, "exception": _chord_error(task_id, run)}
    cancelled = {**known, "status": "CANCELLED"}
    for step in steps:
        if step.is_body and run.status in ("FAILURE", "REVOKED"):
            end = of_chord
        else:
            end = failed if run.status == "FAILURE" else cancelled
        yield _change(services, step, end, services.settings.default_ttl)


def _is_new(remembered: OrderedDict[str, str], last: str | None, status: str) -> bool:
    """Return whether something is not remembered of a workflow, and remember it; of one that can't be named nothing is."""
    if last is None:
        return True
    if remembered.get(last) == status:
        return False
    remembered[last] = status
    if len(remembered) > MAX_REMEMBERED:
        remembered.popitem(last=False)
    return True


def _change(services: Runtime, step: Step, known: Mapping[str, Any], ttl: float) -> StageChange:
    run = TaskRun.of({
        **known, "name": step.name, "group": step.group, "depends_on": list(step.depends_on), "stamps": step.stamps})
    return StageChange(services.keys.task_location(step.task_id, STAGE), run, "", ttl)


def _chord_error(task_id: str, run: TaskRun) -> dict[str, str]:
    """Return the exception that Celery stores for the body of a chord."""
    error = run.exception or {"type": "TaskRevokedError", "message": ""}
    return {"type": "ChordError", "message": f"Dependency {task_id} raised {error['type']}({error['message']!r})"}


def _part_notes(run: TaskRun, task_id: str, group: str) -> tuple[tuple[str, str], ...]:
    whole = workflow_id_of(run) or task_id
    return () if whole == group else ((whole, note(f"/{group}")),)
