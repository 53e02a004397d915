"""`celery memsync why ID`: why a task is where it is."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..app import MemSync
from ..exceptions import TaskCancelled
from ..models.cancellation import ids_of
from ..models.lock import LockRecord
from ..models.order import FINAL, RUNNING, rank_of
from ..models.worker import GONE, WorkerRecord
from ..models.workflow import Workflow, WorkflowNode
from .command import command
from .ids import task_id_of
from .output import (
    ago,
    duration,
    figure,
    is_stalled,
    json_option,
    memory_of,
    moment,
    print_json,
    print_line,
    progress_words,
    shorten,
    unknown_task,
)
from .workflow import part_words

#: Reasons of which there is nothing more to come, by status.
ENDS = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "revoked", "SKIPPED": "skipped"}


class KnownTask(NamedTuple):
    """What is known of a task and its surroundings.

    Attributes:
        task_id: Its id.
        task: As of ``get_task``; None if it is unknown.
        workers: All of them.
        awaited: The lock in whose queue it stands.
        position: How many wait before it, in all queues; None: it is not among those that wait.
        now: Redis's time, in seconds.
        workflow: What it is a part of, if it is not sent yet.
        cancelled: By whom and why it is cancelled, or None.
        interval: Seconds between two heartbeats of a worker.
    """

    task_id: str
    task: Mapping[str, Any] | None
    workers: Sequence[WorkerRecord] = ()
    awaited: LockRecord | None = None
    position: int | None = None
    now: float = 0.0
    workflow: Workflow | None = None
    cancelled: TaskCancelled | None = None
    interval: float = math.inf

    @property
    def state(self) -> Mapping[str, Any]:
        """Its state, as far as it is known."""
        return (self.task or {}).get("state") or {}


class Reason(NamedTuple):
    """Why a task is where it is.

    Attributes:
        answer: A sentence.
        reason: A code, the same from version to version.
        evidence: What it was judged by.
    """

    answer: str
    reason: str
    evidence: dict[str, Any]


def reason_of(known: KnownTask) -> Reason:
    """Return why a task is where it is, and who holds its message."""
    reason, held = _reason_of(known), _held_message(known)
    if held is None:
        return reason
    answer = f"{reason.answer} Its message is held by {_worker(known)}, renewed {ago(held['renewed_at'], known.now)} ago."
    return reason._replace(answer=answer, evidence={**reason.evidence, "message": held})


def _held_message(known: KnownTask) -> dict[str, Any] | None:
    """Return which worker renews the message of a task at a Redis broker, and since when; None if none does."""
    one = _record(known)
    if one is None or one.status in GONE or figure(one.held_messages.get("renewed_at")) is None:
        return None
    is_running = any(isinstance(task, dict) and task.get("id") == known.task_id and task.get("held") is True
                     for task in one.running)
    # A message is acknowledged at the earliest when its task starts.
    if not is_running and known.state.get("status") != "RECEIVED":
        return None
    return {"held_by": one.worker_id, "renewed_at": one.held_messages["renewed_at"]}


def _reason_of(known: KnownTask) -> Reason:
    if known.task is None:
        return Reason(unknown_task(known.task_id), "unknown", {})
    if known.state.get("status") is None:
        return _revoke_sent(known) or _without_status(known)
    status = str(known.state["status"])
    if known.state.get("never_ran"):
        return _never_ran(known, status)
    if status in FINAL:
        return _ended(known, status)
    if known.state.get("never_ran") is False:
        return _revoke_sent(known) or _depends(known)
    if status == "LOST":
        return Reason(f"Its worker {_worker(known)} was lost while it ran the task"
                      f"{_error(known.state)}.",
                      "worker-lost", _facts(known, "exception"))
    if status == "RETRY":
        return _retried(known)
    if rank_of(status) >= RUNNING:
        return _running(known)
    return _waits(known)


def _without_status(known: KnownTask) -> Reason:
    """Return that users have recorded something of a task, and Celery nothing: it was not sent, or by another app."""
    progress = (known.task or {}).get("progress")
    done = f"; its progress is {progress_words(progress)}" if progress else ""
    return Reason(f"No producer and no worker has recorded a status of it{done}.", "no-status", {"progress": progress})


def _ended(known: KnownTask, status: str) -> Reason:
    state = known.state
    lock = state.get("lock")
    ends = {
        "SUCCESS": "It succeeded", "FAILURE": "It failed", "REVOKED": "It was revoked",
        "SKIPPED": "It was skipped"}
    answer = ends.get(status, f"It ended as {status}")
    if figure(state.get("finished_at")) is not None:
        answer += f" {ago(state['finished_at'], known.now)} ago"
    if figure(state.get("runtime")) is not None:
        answer += f", after {duration(state['runtime'])} on {_worker(known)}"
    answer += _error(state)
    if isinstance(lock, dict):
        answer += f", held back by {_describe_lock(lock, known.now)}"
    return Reason(answer + ".", ENDS.get(status, "ended"), _facts(known, "finished_at", "runtime", "exception", "lock"))


def _never_ran(known: KnownTask, status: str) -> Reason:
    """Return that a step of a workflow is not sent, because one before it did not succeed."""
    cause = known.state.get("cause")
    facts = _facts(known, "cause", "exception", "depends_on")
    if not isinstance(cause, dict):
        return Reason("It was revoked before it was sent.", "never-ran", facts)
    name, task_id, ended = (shorten(cause.get(field) or "-") for field in ("name", "task_id", "status"))
    return Reason(f"It never ran, and is {shorten(status)}: {name} ({task_id}), before it, ended as {ended}"
                  f"{_error(known.state)}.", "never-ran", facts)


def _depends(known: KnownTask) -> Reason:
    """Return on which step of its workflow a task depends that is not sent yet."""
    facts = _facts(known, "depends_on", "workflow")
    path = [] if known.workflow is None else path_to(known.workflow.root, known.task_id)
    for outer, inner in zip(path[-2::-1], path[:0:-1]):
        before = () if outer.kind not in ("chain", "chord") else outer.children[:outer.children.index(inner)]
        for number, node in enumerate(before, 1):
            if node.status not in FINAL:
                facts.update(step=node.id, progress=round(node.progress, 3))
                which = f"step {number} of {len(outer.children)}" if outer.kind == "chain" else "the header of its chord"
                return Reason(f"It depends on {which} ({part_words(node)}){_step_words(node, known.now)}.", "depends", facts)
    return Reason("It was not sent yet; the task before it has ended.", "depends", facts)


def _step_words(node: WorkflowNode, now: float) -> str:
    if node.kind != "task":
        return f", {node.progress:.0f}%"
    if rank_of(node.status) < RUNNING:
        return ", which waits"
    if rank_of(node.status) > RUNNING:
        return f", which is {shorten(node.status)}"
    done = f", {node.progress:.0f}%" if node.progress else ""
    return f", running on {shorten(node.worker or 'a worker')} for {ago(node.started_at, now)}{done}"


def path_to(node: WorkflowNode, task_id: str) -> list[WorkflowNode]:
    """Return the parts that lead to a task, the whole first; [] if it is not among them."""
    if node.kind == "task" and node.id == task_id:
        return [node]
    below = next((path for child in node.children if (path := path_to(child, task_id))), [])
    return [node, *below] if below else []


def _retried(known: KnownTask) -> Reason:
    return _revoke_sent(known) or _held_back(known, known.state) or Reason(
        f"It is tried again{_when(known)}{_attempt(known)}{_error(known.state)}.", "retrying",
        _facts(known, "retries", "max_retries", "retry_at", "eta", "exception"))


def _attempt(known: KnownTask) -> str:
    """Return which attempt comes next, and of how many."""
    retries, most = known.state.get("retries"), known.state.get("max_retries")
    # Of the run that called retry(), or of the next one.
    begun = known.state.get("started_at") is not None
    if type(retries) is not int or type(most) is not int:
        return ""
    return f", attempt {retries + 1 + begun} of {most + 1}"


def _revoke_sent(known: KnownTask) -> Reason | None:
    """Return that a task that waits is to be skipped: it is cancelled, or no worker has confirmed a revoke yet."""
    if known.cancelled is not None:
        return Reason(f"It is {shorten(known.cancelled)}. A worker skips it when it gets there.", "cancelled",
                      _facts(known, "root_id", "group"))
    sent = figure(known.state.get("revoke_requested_at"))
    published = figure(known.state.get("published_at"))
    if sent is None or published is not None and sent < published:
        return None
    return Reason(f"A revoke was sent at {moment(sent)}, and no worker has confirmed it.", "revoke-sent",
                  _facts(known, "revoke_requested_at"))


def _held_back(known: KnownTask, run: Mapping[str, Any]) -> Reason | None:
    """Return that a lock held a run back which is tried again, if one did."""
    lock = run.get("lock")
    if run.get("status") != "RETRY" or not isinstance(lock, dict):
        return None
    return Reason(f"It was held back by {_describe_lock(lock, known.now)}, and is tried again"
                  f"{_when(known)}.", "locked", {**_facts(known, "retries", "eta"), "lock": lock})


def _running(known: KnownTask) -> Reason:
    state, progress = known.state, (known.task or {}).get("progress")
    facts = _facts(known, "started_at")
    lost = _worker_gone(known)
    if lost is not None:
        return lost
    if known.awaited is not None:
        held = known.awaited
        return Reason(f"It runs on {_worker(known)}, and is held back by "
                      f"{_describe_lock(held.as_dict(), known.now)}.",
                      "locked", {**facts, "lock": held.as_dict()})
    if known.cancelled is not None:
        return Reason(f"It runs on {_worker(known)}, and is {shorten(known.cancelled)}. It ends when it looks whether it is "
                      "cancelled.", "cancelled", {**facts, "progress": progress})
    words = progress_words({**progress, "stalled_at": None}) if progress else "-"
    done = "" if words == "-" else f", {words}"
    facts["progress"] = progress
    reported_at = figure((progress or {}).get("updated_at"))
    late = _worker_late(known)
    if late is not None:
        return Reason(f"It runs on {_worker(known)}{done}, {late}.", "worker-late", {**facts, **_last_beat(known)})
    if is_stalled(progress):
        return Reason(f"It runs on {_worker(known)}{done}, but has stalled: it has reported nothing for "
                      f"{ago(reported_at, known.now)}.", "stalled", facts)
    last = f"; it reported last {ago(reported_at, known.now)} ago" if reported_at is not None else ""
    return Reason(f"It has run on {_worker(known)} for {ago(state.get('started_at'), known.now)}{done}{last}.",
                  "running", facts)


def _waits(known: KnownTask) -> Reason:
    state = known.state
    eta = figure(state.get("eta"))
    lost = _revoke_sent(known) or _worker_gone(known)
    if lost is not None:
        return lost
    before = (known.task or {}).get("runs", [])[-2:-1]
    held_back = _held_back(known, before[0]) if before else None
    if held_back is not None:
        return held_back
    if eta is not None and eta > known.now:
        return Reason(f"It is not to start before {moment(eta)}, in {duration(eta - known.now)}.", "eta",
                      _facts(known, "eta"))
    if state.get("status") == "RECEIVED":
        return _reserved(known)
    queue = state.get("queue")
    alive = [one for one in known.workers if one.status not in GONE]
    there = [one for one in alive if queue is None or queue in one.queues]
    facts = {**_facts(known, "queue", "published_at"), "position": known.position,
             "workers": [one.worker_id for one in there]}
    where = "its queue" if queue is None else f"the queue {shorten(queue)}"
    if not alive:
        return Reason("It waits, and no worker is alive.", "no-worker", facts)
    if not there:
        return Reason(f"It waits, and no worker consumes {where}.", "no-consumer", facts)
    if not any(one.consuming is not False and one.status != "draining" for one in there):
        return Reason(f"It waits, and none of the workers of {where} takes messages.", "not-consuming", facts)
    if _has_left(known, there):
        return Reason(f"It is not in {where} any more, which was empty at the last two looks: its message was purged or "
                      "refused, or taken by a worker without celery-memsync.", "message-gone", facts)
    location = "" if known.position is None else f" at position {known.position + 1} of all that wait"
    free = sum(int(figure(one.capacity.get("free")) or 0) for one in there)
    return Reason(f"It waits in {where}{location}; {len(there)} worker{'s' * (len(there) > 1)} of it, {free} slots free.",
                  "waiting", {**facts, "free": free})


def _has_left(known: KnownTask, there: Sequence[WorkerRecord]) -> bool:
    """Return whether workers have looked into its queue twice since it was sent, and have found nothing."""
    published = figure(known.state.get("published_at"))
    looks = [figure(one.empty_since.get(str(known.state.get("queue")))) for one in there]
    return published is not None and any(look is not None and look > published for look in looks)


def _reserved(known: KnownTask) -> Reason:
    one = _record(known)
    facts = _facts(known, "received_at")
    late = _worker_late(known)
    if late is not None:
        return Reason(f"{_worker(known)} has it, {late}.", "worker-late", {**facts, **_last_beat(known)})
    if one is not None and one.status == "busy":
        return Reason(f"{_worker(known)} has it, and all its {one.capacity.get('total', '-')} slots are taken.",
                      "reserved", {**facts, "running": [task.get("id") for task in one.running if isinstance(task, dict)]})
    return Reason(f"{_worker(known)} has had it for {ago(known.state.get('received_at'), known.now)}, "
                  "and has not begun yet.", "reserved", facts)


def _worker_gone(known: KnownTask) -> Reason | None:
    """Return that the worker of a task is lost or has shut down, or None if it is alive."""
    one = _record(known)
    if one is None or one.status not in GONE:
        return None
    facts = {**_facts(known), **_last_beat(known)}
    since = ago(one.last_beat, known.now)
    if one.status == "lost":
        return Reason(f"Its worker {_worker(known)} is lost: it has sent no heartbeat for {since}.",
                      "worker-lost", facts)
    if rank_of(known.state.get("status")) < RUNNING:
        return Reason(
            f"Its message is back in the broker: {_worker(known)}, which had received it, "
            f"left {since} ago.", "worker-gone", facts)
    return Reason(f"Its worker {_worker(known)} shut down {since} ago.", "worker-gone", facts)


def _worker_late(known: KnownTask) -> str | None:
    """Return that the worker of a task has missed a heartbeat and is not lost yet, or None if it has not."""
    one = _record(known)
    if one is None or not one.is_late(known.now, known.interval):
        return None
    return f"which has sent no heartbeat for {ago(one.last_beat, known.now)}, and is lost if none comes"


def _last_beat(known: KnownTask) -> dict[str, Any]:
    one = _record(known)
    return {} if one is None else {"last_beat": one.last_beat}


def _record(known: KnownTask) -> WorkerRecord | None:
    worker_id = known.state.get("worker")
    return next((one for one in known.workers if one.worker_id == worker_id), None)


def _worker(known: KnownTask) -> str:
    return shorten(known.state.get("worker") or "a worker")


def _facts(known: KnownTask, *names: str) -> dict[str, Any]:
    shown_fields = ("status", "name", "worker", *names)
    return {name: known.state[name] for name in shown_fields if known.state.get(name) is not None}


def _error(state: Mapping[str, Any]) -> str:
    error = state.get("exception")
    if not isinstance(error, dict):
        return ""
    return f": {shorten(error.get('type'))}: {shorten(error.get('message'))}"


def _when(known: KnownTask) -> str:
    eta = figure(known.state.get("retry_at") or known.state.get("eta"))
    return f" in {duration(eta - known.now)}" if eta is not None and eta > known.now else ""


def _describe_lock(lock: Mapping[str, Any], now: float) -> str:
    name = f"the lock {shorten(lock['name'])}" if lock.get("name") else "a lock"
    task = f" of task {shorten(lock['task_id'])}" if lock.get("task_id") else ""
    since = f" since {moment(lock['since'])}" if figure(lock.get("since")) is not None else ""
    return f"{name}{task} on {shorten(lock.get('worker_id', '-'))}{since}"


def _cancelled(memsync: MemSync, known: KnownTask) -> TaskCancelled | None:
    """Return by whom and why a task is cancelled, or None."""
    memsync.runtime.cancelled.read()
    waits = rank_of(known.state.get("status")) < RUNNING
    found = memsync.runtime.cancelled.find(ids_of(known.task_id, known.state, known.state, waits))
    return None if found is None else found.error()


@command(examples=["why <id>", "why <id> --json"], exit_codes={1: "there is no such task"})
@click.argument("task_id", metavar="ID")
@json_option
@click.pass_context
def why(ctx: click.Context, task_id: str, as_json: bool) -> None:
    """Explain why a task is in its state."""
    with memory_of(ctx) as memsync:
        task_id = task_id_of(memsync, task_id)
        known = KnownTask(task_id, memsync.get_task(task_id), memsync.get_workers(), memsync.get_awaited_lock(task_id),
                          memsync.get_queue_position(task_id), memsync.runtime.store.clock.now())
        if known.state.get("never_ran") is False:
            known = known._replace(workflow=memsync.get_workflow(task_id))
        known = known._replace(
            cancelled=_cancelled(memsync, known), interval=memsync.settings.heartbeat_interval)
    found = reason_of(known)
    if as_json:
        print_json(ctx, {"id": task_id, **found._asdict()})
    else:
        print_line(ctx, found.answer)
    if found.reason == "unknown":
        ctx.exit(1)
