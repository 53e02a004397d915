"""Why a task is where it is, in words with evidence."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Mapping, Sequence

from .records import FINAL, LockRecord, WorkerRecord, rank_of

#: Seconds without a word of a running task after which it is said to stand still.
STALLED_AFTER = 600.0

#: Seconds by which a moment has to lie ahead to be waited for.
SOON = 1.0

#: Stage of a task that is at work, as :func:`rank_of` tells it.
_AT_WORK = "2"


@dataclass(frozen=True)
class Reason:
    """Why a task is where it is.

    Attributes:
        reason: One word for programs: ``unknown``, ``scheduled``, ``no-consumer``, ``waiting``, ``received``, ``held-back``,
            ``retrying``, ``running``, ``stalled``, ``worker-lost``, ``lost``, or how it ended, in small letters.
        answer: A sentence for people.
        evidence: What it was read from, by name.
    """

    reason: str
    answer: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


@dataclass(frozen=True)
class Known:
    """What there is to judge by.

    Attributes:
        task: As ``get_task`` returns it; None: nobody told of it.
        pending: Ids of the tasks that wait, first come first; there may be more.
        workers: Every worker that has told of itself.
        locks: The locks that are held.
        now: Redis's time, in seconds.
    """

    task: Mapping[str, Any] | None
    pending: Sequence[str]
    workers: Sequence[WorkerRecord]
    locks: Sequence[LockRecord]
    now: float


def reason_of(task_id: str, known: Known) -> Reason:
    """Return why a task is where it is."""
    state = (known.task or {}).get("state")
    if not state:
        return Reason("unknown", "Nobody has told of this task, or it was so long ago that it is forgotten; was it sent "
                                 "by an app that takes part, and is the id right?")
    status = str(state.get("status"))
    if status in FINAL:
        return _ended(status, state)
    if status == "LOST":
        return _lost(state, known)
    if rank_of(status) == _AT_WORK:
        return _at_work(task_id, status, state, known)
    return _held_back(state, known) or \
        (_retrying(state) if status == "RETRY" else _not_begun(task_id, status, state, known))


def _ended(status: str, state: Mapping[str, Any]) -> Reason:
    lock, error = _dict(state, "lock"), _dict(state, "exception")
    words = {"SUCCESS": "It has succeeded", "FAILURE": "It has failed", "REVOKED": "It was revoked, or it had expired",
             "IGNORED": "It has ended without a result", "REJECTED": "Its message was rejected",
             "SKIPPED": "It was skipped"}
    answer = words[status] + (f": {error.get('type')}: {error.get('message')}" if error else "")
    if status == "SKIPPED" and lock:
        answer += f", for {_held(lock)}"
    return Reason(status.lower(), answer + ".", _some(
        state, "finished_at", "runtime", "worker", "exception", "lock", "retries"))


def _lost(state: Mapping[str, Any], known: Known) -> Reason:
    return Reason("lost", f"Its worker {state.get('worker')} went silent while it ran, and nobody has run it again; send it "
                          "again, or let tasks like it be sent again by memsync_recover.",
                  {**_some(state, "worker", "started_at", "recoveries"), **_about_worker(state, known)})


def _retrying(state: Mapping[str, Any]) -> Reason:
    error = _dict(state, "exception")
    why = f" after {error.get('type')}: {error.get('message')}" if error else ""
    return Reason("retrying", f"It waits to be tried again{why}.", _some(state, "exception", "lock", "retries", "eta"))


def _held_back(state: Mapping[str, Any], known: Known) -> Reason | None:
    """Return that a lock holds it back, if one does: its last attempt told which it was."""
    assert known.task is not None
    told = next((lock for run in reversed(known.task.get("runs") or [state]) if (lock := _dict(run, "lock"))), {})
    held = next((one for one in known.locks if one.name == told.get("name")), None)
    if held is None:
        return None
    return Reason("held-back", f"It is held back: {_held(held.as_dict(), known.now)}; it is tried again until that is over.",
                  {"lock": held.as_dict(), **_some(state, "retries", "eta")})


def _not_begun(task_id: str, status: str, state: Mapping[str, Any], known: Known) -> Reason:
    eta, queue = state.get("eta"), state.get("queue")
    evidence = _some(state, "queue", "eta", "published_at", "received_at", "worker")
    if isinstance(eta, (int, float)) and eta > known.now + SOON:
        return Reason("scheduled", f"It is not to begin before {_span(eta - known.now)} from now.", evidence)
    worker = _worker(state, known)
    if status == "RECEIVED" and worker is not None:
        evidence.update(_about_worker(state, known))
        if worker.status == "lost":
            return Reason("worker-lost", f"Worker {worker.worker_id}, which had received it, has been silent for "
                          f"{_ago(worker.last_beat, known)}; its broker gives it to another one.", evidence)
        return Reason("received", f"Worker {worker.worker_id} has received it; it waits there for a free slot "
                      f"({_slots(worker)}).", evidence)
    consumers = [one for one in known.workers if _alive(one) and queue in one.queues]
    if not consumers:
        return Reason("no-consumer", f"No worker that is alive consumes its queue {queue}; start one with -Q {queue}, or "
                      "see whether the queue is the one that was meant.",
                      {**evidence, "workers": [one.worker_id for one in known.workers if _alive(one)]})
    return _waiting(task_id, consumers, evidence, known)


def _waiting(task_id: str, consumers: Sequence[WorkerRecord], evidence: dict[str, Any], known: Known) -> Reason:
    evidence["consumers"] = [one.worker_id for one in consumers]
    deaf = [one.worker_id for one in consumers if one.consuming is False]
    if len(deaf) == len(consumers):
        return Reason("no-consumer", f"It waits, and {', '.join(deaf[:3])} beat, but take no messages; see their logs.",
                      evidence)
    if task_id in known.pending:
        evidence["position"] = known.pending.index(task_id) + 1
        where = f"at position {evidence['position']} of all tasks that wait"
    else:
        where = f"behind more than {len(known.pending)} others"
    return Reason("waiting", f"It waits {where}; workers that consume its queue: {len(consumers)}.", evidence)


def _at_work(task_id: str, status: str, state: Mapping[str, Any], known: Known) -> Reason:
    assert known.task is not None
    progress = known.task.get("progress") or {}
    told_at = max(_number(state.get("started_at")), _number(progress.get("updated_at")))
    evidence = {**_some(state, "status", "worker", "pid", "started_at"), **_about_worker(state, known)}
    if progress:
        evidence["progress"] = _some(progress, "progress", "current", "total", "message", "updated_at")
    locks = [one.as_dict() for one in known.locks if one.task_id == task_id]
    if locks:
        evidence["locks"] = locks
    worker, since = _worker(state, known), _ago(state.get("started_at"), known)
    if worker is not None and worker.status in ("lost", "offline"):
        return Reason("worker-lost", f"Worker {worker.worker_id}, which ran it, is {worker.status}: its last word was "
                      f"{_ago(worker.last_beat, known)} ago.", evidence)
    where = f"on {state.get('worker')} for {since}" if state.get("started_at") else f"with status {status}"
    quiet = known.now - told_at
    if told_at and quiet > STALLED_AFTER:
        what = "has told no progress" if progress else "tells no progress"
        return Reason("stalled", f"It runs {where} and {what} for {_span(quiet)}; py-spy dump --pid {state.get('pid')} on "
                      "its host shows what it does.", evidence)
    return Reason("running", f"It runs {where}{_far(progress)}.", evidence)


def _worker(state: Mapping[str, Any], known: Known) -> WorkerRecord | None:
    return next((one for one in known.workers if one.worker_id == state.get("worker")), None)


def _about_worker(state: Mapping[str, Any], known: Known) -> dict[str, Any]:
    worker = _worker(state, known)
    return {} if worker is None else {
        "worker_status": worker.status, "last_beat": worker.last_beat, "capacity": dict(worker.capacity)}


def _alive(worker: WorkerRecord) -> bool:
    return worker.status not in ("lost", "offline", "draining")


def _slots(worker: WorkerRecord) -> str:
    return f"{worker.capacity.get('free', '-')} of {worker.capacity.get('total', '-')} free"


def _held(lock: Mapping[str, Any], now: float | None = None) -> str:
    task = f" for task {lock.get('task_id')}" if lock.get("task_id") else ""
    since = lock.get("since")
    span = f" since {_span(now - since)}" if now is not None and isinstance(since, (int, float)) else ""
    return f"lock {lock.get('name')} is held by {lock.get('worker_id')}{task}{span}"


def _far(progress: Mapping[str, Any]) -> str:
    percent, current = progress.get("progress"), progress.get("current")
    if percent is not None:
        return f" and is at {_number(percent):.0f} %"
    return f" and has counted to {_number(current):g}" if current is not None else ""


def _some(state: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: state[name] for name in names if state.get(name) is not None}


def _dict(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = state.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _ago(moment: Any, known: Known) -> str:
    return _span(known.now - _number(moment)) if _number(moment) else "a time that is not known"


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
