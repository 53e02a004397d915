"""The facts of one run of a task, and what it looks like in Redis."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import encoding
from ..types import ExceptionRecord, LockFacts, TaskCause, TaskState
from ..user_code import plain_text
from .entry import StoredEntry
from .order import RANKS, RETRY_WAITS, REVOKED_WAITING, RUNNING, UNSENT_RANKS, later_status, run_id_of

#: Fields of a run; new ones go to the end.
RUN_FIELDS = (
    "status", "name", "queue", "worker", "pid", "run", "retries", "root_id", "parent_id", "group", "eta",
    "published_at", "received_at", "started_at", "finished_at", "runtime", "exception", "args", "kwargs", "lock",
    "recoveries", "retry_at", "max_retries", "workflow", "depends_on", "never_ran", "cause",
    "stamps",
    "trace_id",
    "header",
)

#: Those of a body; their order is stored, and does not change.  First come those that most runs have: what is missing at the
#: end takes no room.
STORED_FIELDS = (*RUN_FIELDS[:5], *RUN_FIELDS[11:16], *RUN_FIELDS[5:11], *RUN_FIELDS[16:])

#: Those that are times, or last: position, name, and how many times a second their unit is.  Each time counts from the one
#: before.  Whole numbers take half the room of floats, and a fifth of the time to write.
_FIGURES = tuple(
    (STORED_FIELDS.index(name), name, 1e6 if name == "runtime" else 1e4)
    for name in ("published_at", "received_at", "started_at", "finished_at", "eta", "retry_at", "runtime"))

_RUNTIME, _RUN, _RETRIES, _ROOT = map(STORED_FIELDS.index, ("runtime", "run", "retries", "root_id"))

_NUMBERS = frozenset({int, float})

#: Nothing happens then, in seconds since the epoch, nor lasts as long.
TOO_LATE = 1e11

#: Types in JSON of the fields of a run that are no times.
_RUN_KINDS = (
    ("name", str), ("queue", str), ("worker", str), ("pid", int), ("run", str), ("retries", int), ("root_id", str),
    ("parent_id", str), ("group", str), ("exception", dict), ("args", str), ("kwargs", str), ("lock", dict),
    ("recoveries", int), ("max_retries", int), ("workflow", str), ("depends_on", list), ("never_ran", bool),
    ("cause", dict), ("stamps", dict), ("trace_id", str),
    ("header", str))

#: Longest message of an exception that is kept, in characters.
MAX_MESSAGE = 1000


@dataclass(frozen=True)
class TaskRun:
    """What Celery's signals record of a task: the facts of one run.

    Every later stage knows all that the earlier ones knew, so that a stage
    replaces the one before and nothing need be merged.

    Its fields are explained at :class:`~celery_memsync.TaskState`; None: it is not known, or there is none.
    """

    status: str
    name: str | None = None
    queue: str | None = None
    worker: str | None = None
    pid: int | None = None
    run: str | None = None
    retries: int = 0
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    eta: float | None = None
    published_at: float | None = None
    received_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    runtime: float | None = None
    exception: ExceptionRecord | None = None
    args: str | None = None
    kwargs: str | None = None
    lock: LockFacts | None = None
    recoveries: int | None = None
    retry_at: float | None = None
    max_retries: int | None = None
    workflow: str | None = None
    depends_on: list[str] | None = None
    never_ran: bool | None = None
    cause: TaskCause | None = None
    stamps: dict[str, Any] | None = None
    trace_id: str | None = None
    header: str | None = None

    @property
    def rank(self) -> str:
        """How far along its life it is, see :data:`~celery_memsync.models.order.RANKS`.

        A retry that a worker has received waits, as what it has received otherwise does.
        """
        status = self.status
        if self.never_ran is not None:
            return UNSENT_RANKS.get(status, RUNNING)
        if status == "REVOKED" and self.started_at is None:
            return REVOKED_WAITING
        return RETRY_WAITS if status == "RETRY" and self.is_waiting_retry else RANKS.get(status, RUNNING)

    @property
    def is_waiting_retry(self) -> bool:
        """Whether it is the next try of a task, which a worker has received and not begun."""
        return self.status == "RETRY" and self.started_at is None and self.received_at is not None

    @classmethod
    def of(cls, known: dict[str, Any]) -> TaskRun:
        """Return a run of which some fields are known, at a third of the constructor's cost."""
        new = object.__new__(cls)
        new.__dict__.update(known)
        return new

    def evolve(self, **changes: Any) -> TaskRun:
        """Return a copy with some fields changed."""
        new = object.__new__(TaskRun)
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        return new

    def encode(self, task_id: str, run_key: str = "") -> bytes:
        """Return it as a JSON list without the names, which would be half of it.

        Args:
            run_key: What its header will name it; the id of the run is left out if it is in there.  "": that is not known.
        """
        row = list(map(self.__dict__.get, STORED_FIELDS))
        before = 0
        for at, _, scale in _FIGURES:
            figure = row[at]
            if figure is not None:
                # Some have come with a message, where anybody may write anything.
                if type(figure) in _NUMBERS and -TOO_LATE < figure < TOO_LATE:
                    whole = round(figure * scale)
                    row[at], before = whole if at == _RUNTIME else whole - before, whole
                else:
                    row[at] = None
        row[_RETRIES] = row[_RETRIES] or None
        # What most runs have is left out; so that there is none has to be said.
        row[_ROOT] = None if row[_ROOT] == task_id else row[_ROOT] or False
        named = run_key.split(".")
        row[_RUN] = None if run_key and row[_RUN] == (named[2] if len(named) == 3 else None) else row[_RUN] or False
        while row[-1] is None:
            row.pop()
        return encoding.dumps(row)

    @classmethod
    def read(cls, stored: StoredEntry, task_id: str) -> TaskRun | None:
        """Return the run that an entry is of; None if it is no such entry."""
        return cls.from_row(stored.value, task_id, run_id_of(stored.header.run))

    @classmethod
    def from_row(cls, row: Any, task_id: str, run_id: str | None = None) -> TaskRun | None:
        """Read what :meth:`encode` wrote; None for anything else, and fields of newer versions are ignored."""
        if not isinstance(row, list) or not row or not isinstance(row[0], str):
            return None
        known = {"run": None, "root_id": None, **dict(zip(STORED_FIELDS, row))}
        before = 0
        for at, name, scale in _FIGURES:
            step = known.get(name)
            if step is not None:
                is_whole = type(step) is int
                before = (0 if at == _RUNTIME else before) + (step if is_whole else 0)
                known[name] = before / scale if is_whole and abs(before) < TOO_LATE * scale else None
        if known["root_id"] is None:
            known["root_id"] = task_id
        if known["run"] is None:
            known["run"] = run_id
        for name, kind in _RUN_KINDS:
            value = known.get(name)
            if value is not None and type(value) is not kind:
                del known[name]
        if known.get("retries") is None:
            known["retries"] = 0
        return cls.of(known)

    def as_dict(self) -> TaskState:
        """Return the fields that are known."""
        return {name: value for name in RUN_FIELDS if (value := getattr(self, name)) is not None}  # type: ignore[return-value]


def workflow_id_of(run: TaskRun) -> str | None:
    """Return the id of the workflow of a run: as it came with its message, or else that of its root."""
    return run.workflow or run.root_id


def describe_exception(exc: BaseException, redact: Callable[[str], str] | None = None) -> ExceptionRecord:
    """Return type and message of an exception; long messages are cut.

    Args:
        redact: Returns the message as it may be shown.
    """
    message = plain_text(lambda: str(exc) if redact is None else redact(str(exc)), "<its message can't be shown>")
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    return {"type": plain_text(lambda: type(exc).__qualname__, "Exception"), "message": message}


def with_cause(run: TaskRun, former: TaskRun | None) -> TaskRun:
    """Return a retry that waits with why the run before it, if that is known, is retried: the exception, the lock."""
    if former is None or former.status != "RETRY":
        return run
    return run.evolve(exception=former.exception, lock=former.lock, retry_at=run.retry_at or former.retry_at)


def merge_state(run: TaskRun | None, state_fields: TaskState | None) -> TaskState | None:
    """Return a task's state: what the signals know, then what users wrote.

    A status that a user wrote shows while the task is running; it does not
    hide a later stage that Celery's signals recorded.
    """
    if not isinstance(state_fields, dict):
        return None if run is None else run.as_dict()
    if run is None:
        return state_fields
    state: TaskState = {**run.as_dict(), **state_fields}
    if "status" in state_fields:
        state["status"] = later_status(run.status, state_fields["status"])  # type: ignore[typeddict-item]
    return state
