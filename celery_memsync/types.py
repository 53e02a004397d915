"""The dicts that reads return, for type checkers; while the program runs they are plain dicts.

They stand in one module below all others, because what builds them is spread from ``exceptions.py`` to ``runtime.py``, and a
user looks for them in one place.  Each key is explained once: here, or at the class whose ``as_dict`` returns it.  A class
made of another adds the keys that may be missing, because ``NotRequired`` came with Python 3.11 only.

Times are seconds since the epoch on Redis's clock, durations are seconds.
"""
from __future__ import annotations

from typing import Any, TypedDict

# -- tasks


class ExceptionRecord(TypedDict):
    """An exception that is recorded of a task.

    Attributes:
        type: Name of its class.
        message: Its text, at most 1,000 characters.
    """

    type: str
    message: str


class _LockName(TypedDict):
    name: str


class LockFacts(_LockName, total=False):
    """A lock that was not acquired; only its name if its holder is not known.

    Attributes:
        name: As given to ``lock``.
        worker_id: The process that held it.
        task_id: The task that held it; None: a program outside of tasks.
        since: When that acquired it.
        fence: The number of that acquisition.
    """

    worker_id: str
    task_id: str | None
    since: float
    fence: int


class TaskCause(TypedDict):
    """The task because of which another one is never sent.

    Attributes:
        task_id: Its id.
        status: How it ended.
        name: Of the task; None if it is not known.
    """

    task_id: str
    status: str
    name: str | None


class TaskState(TypedDict, total=False):
    """The state of a task, or of one run of it: what Celery's signals have recorded; only what is known is there.

    That of a task has the fields, too, that ``sync_task_state`` has merged into it.  They are read by a class made of this
    one that names them, to which :func:`typing.cast` changes the state.

    Attributes:
        status: Celery's name of the stage, or ``LOST``, ``SKIPPED``, ...; see the page on task states.
        name: Of the task.
        queue: The queue to which it was sent.
        worker: The worker that received it.
        pid: The process that runs it.
        run: Id of this run, made when a worker received it.
        retries: Which retry it is; 0 of the first attempt.
        root_id: Id of the task from which all others of its workflow come.
        parent_id: Id of the task that sent it.
        group: Id of the group that it is a member of.
        eta: When it may start.
        published_at: When it was sent.
        received_at: When a worker received it.
        started_at: When its body began.
        finished_at: When it ended.
        runtime: How long its body took.
        exception: What it raised; of a run that is revoked or lost, why.
        args: Its arguments as Celery's log shows them; only with ``memsync_task_args``.
        kwargs: The same of its keyword arguments.
        lock: Of a run that was held back: which lock, and who had it.
        recoveries: How often it was sent again because its worker was lost.
        retry_at: When a run that is to be retried is tried again.
        max_retries: Most retries of a task that is retried; missing: any number.
        workflow: Id of the workflow that it is a part of, if that is not its root.
        depends_on: Ids of the tasks and groups that come before it in a chain or chord.
        never_ran: Of a step that was not sent: whether it never will be, because of its cause.
        cause: The task because of which it is never sent.
        stamps: What its sender has stamped it with.
        trace_id: Of the trace of OpenTelemetry with which its message came, 32 hexadecimal digits.
        header: Id of another group in which it is counted: the header around the chord of which its group is the body.
        revoke_requested_at: When ``revoke`` was called for it; whether a worker has received that, ``status`` says.
    """

    status: str
    name: str
    queue: str
    worker: str
    pid: int
    run: str
    retries: int
    root_id: str
    parent_id: str
    group: str
    eta: float
    published_at: float
    received_at: float
    started_at: float
    finished_at: float
    runtime: float
    exception: ExceptionRecord
    args: str
    kwargs: str
    lock: LockFacts
    recoveries: int
    retry_at: float
    max_retries: int
    workflow: str
    depends_on: list[str]
    never_ran: bool
    cause: TaskCause
    stamps: dict[str, Any]
    trace_id: str
    header: str
    revoke_requested_at: float


class RunProgress(TypedDict):
    """How far one run of a task is; every key is there.

    Attributes:
        progress: Percent, 0 to 100; None while the total is not known.
        current: How many items are done, as reported; after success the total.
        total: How many there are, as reported.
        message: The last text for people that was reported.
        status: The last word that was given to ``sync_task_progress``.
        started_at: When the run began.
        updated_at: When progress was last reported.
        run: Id of the run that reported it, as in :class:`TaskState`.
        phase: Name of the phase, if it has one.
        phase_number: 1 of the first phase of the run.
        phase_started_at: When the phase began.
        stalled_at: When a worker found that the task has stalled; None if it has not, and after the next report.
        eta: How many seconds are left of the phase; None if that is not known, or if the task does not run.
    """

    progress: float | None
    current: float | None
    total: float | None
    message: str | None
    status: str | None
    started_at: float | None
    updated_at: float | None
    run: str | None
    phase: str | None
    phase_number: int
    phase_started_at: float | None
    stalled_at: float | None
    eta: float | None


class TaskProgress(RunProgress, total=False):
    """How far a task is: :class:`RunProgress`, and the fields that it gave to ``progress()``.

    Those are read as the fields of users in :class:`TaskState`.

    Attributes:
        previous: The last progress of the run before, if that reported any.
    """

    previous: RunProgress | None


class ListedTask(TypedDict):
    """A task as lists have it.

    Attributes:
        id: Its id.
        state: As ``get_task_state`` returns it.
        progress: As ``get_task_progress`` returns it.
    """

    id: str
    state: TaskState | None
    progress: TaskProgress | None


class TaskRecord(ListedTask):
    """All that is known of a task: :class:`ListedTask`, and what else there is.

    Attributes:
        runs: The states of all its runs that are known, the oldest first.
        agents: What its agents have shared, by agent id.
    """

    runs: list[TaskState]
    agents: dict[str, Any]


# -- what processes share, and what one of them counts


class QueueLists(TypedDict):
    """The lists of the shared queue.

    Attributes:
        pending: Ids of the tasks that wait, the oldest first.
        processing: Ids of those that were taken.
    """

    pending: list[str]
    processing: list[str]


class CacheMetrics(TypedDict):
    """Counts of the local cache.

    Attributes:
        size: Copies that exist.
        max_size: Copies that may exist.
        invalidated: Copies that were dropped because of a change.
    """

    size: int
    max_size: int
    invalidated: int


class WriterCounts(TypedDict):
    """What the writer of a process has counted.

    Attributes:
        writes: Changes that Redis stored.
        syncs: Batches written.
        coalesced: Changes merged into one that was pending.
        conflicts: Conflicts settled.
        flush_failures: Batches that failed.
        dropped: Keys dropped while Redis was away.
    """

    writes: int
    syncs: int
    coalesced: int
    conflicts: int
    flush_failures: int
    dropped: int


class ProcessMetrics(WriterCounts):
    """What a process has counted since it started, or since its last ``shutdown()``: :class:`WriterCounts`, and the rest.

    Attributes:
        reads: Keys requested by ``read*`` and ``get_*``.
        cache_hits: Of these, found in the cache.
        cache_misses: Of these, not found there; reads that are never cached are in neither count.
        cache: Counts of the cache.
        subscriptions: Open subscriptions and watches.
        skipped: Changes not delivered, because a newer one of the same key came first.
        events_dropped: Events dropped because handlers were too slow.
        pending_writes: Changes that are not in Redis yet.
        last_flush_seconds: How long the last batch took.
        connected: Whether the last batch was written.
    """

    reads: int
    cache_hits: int
    cache_misses: int
    cache: CacheMetrics
    subscriptions: int
    skipped: int
    events_dropped: int
    pending_writes: int
    last_flush_seconds: float
    connected: bool


# -- records as dicts


class WorkerCapacity(TypedDict, total=False):
    """The slots of a worker; empty if they are not known.

    Attributes:
        total: All of them.
        active: Those of running tasks.
        reserved: Tasks that it has received and not begun.
        free: Slots in which nothing runs.
    """

    total: int
    active: int
    reserved: int
    free: int


class _RunningTask(TypedDict):
    id: str
    name: str
    started_at: float | None


class RunningTask(_RunningTask, total=False):
    """A task that a worker runs.

    Attributes:
        id: Its id.
        name: Of the task.
        started_at: When it began; None if that is not known.
        held: True if its message is not acknowledged yet, and is renewed.
    """

    held: bool


class WorkerWrites(TypedDict, total=False):
    """The writes of the main process of a worker; empty if they are not known.

    Attributes:
        pending: Changes that are not in Redis yet.
        dropped: As in :class:`WriterCounts`.
        conflicts: As in :class:`WriterCounts`.
    """

    pending: int
    dropped: int
    conflicts: int


class HeldMessages(TypedDict, total=False):
    """The messages that a worker renews at a Redis broker; empty if it renews none.

    Attributes:
        count: How many there were at the last renewal.
        renewed_at: When that was.
        interval: Seconds between two renewals.
        visibility_timeout: Seconds after which the broker delivers a message again.
    """

    count: int
    renewed_at: float
    interval: float
    visibility_timeout: float


class LockDict(TypedDict):
    """A :class:`~celery_memsync.LockRecord` as a dict."""

    name: str
    fence: int
    worker_id: str
    task_id: str | None
    since: float
    ttl: float
    waiters: int | None


class WorkerDict(TypedDict):
    """A :class:`~celery_memsync.WorkerRecord` as a dict, with lists for tuples."""

    worker_id: str
    status: str
    hostname: str
    pid: int
    pool: str
    concurrency: int
    capacity: WorkerCapacity
    queues: list[str]
    running: list[RunningTask]
    counters: dict[str, int]
    rss: int | None
    cpu: float | None
    load: list[float]
    started_at: float | None
    versions: dict[str, str]
    sequence: int
    round_trip: float | None
    consuming: bool | None
    last_beat: float | None
    depths: dict[str, int]
    empty_since: dict[str, float]
    stretch: float
    skew: float | None
    format: int | None
    writer: WorkerWrites
    held_messages: HeldMessages


class GroupDict(TypedDict):
    """A :class:`~celery_memsync.Group` as a dict."""

    id: str
    total: int
    done: int
    succeeded: int
    failed: int
    running: int
    percent: float
    started_at: float | None
    eta: float | None


class WorkflowNodeDict(TypedDict):
    """A :class:`~celery_memsync.WorkflowNode` as a dict."""

    kind: str
    id: str
    status: str
    progress: float
    name: str | None
    started_at: float | None
    finished_at: float | None
    worker: str | None
    group: GroupDict | None
    cause: TaskCause | None
    children: tuple[WorkflowNodeDict, ...]
    omitted: int


class WorkflowDict(TypedDict):
    """A :class:`~celery_memsync.Workflow` as a dict."""

    id: str
    root: WorkflowNodeDict
    progress: float
    eta: float | None
    status: str
