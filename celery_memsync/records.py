"""What is shared, and how it looks in Redis: entries, runs of tasks, progress, locks, workers."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Callable, NamedTuple, Sequence, TypeGuard

from . import values
from .keys import is_id

#: Fields of a run's body, in this order for ever: new ones go to the end.
RUN_FIELDS = (
    "status", "name", "queue", "worker", "pid", "run", "retries", "root_id", "parent_id", "eta", "published_at",
    "received_at", "started_at", "finished_at", "runtime", "exception", "args", "kwargs", "lock",
    "recoveries",
)

#: Those that are times, or last: position, name, and how many times a second their unit is.  Whole numbers take half the
#: room of floats, and a fifth of the time to write.
_FIGURES = tuple(
    (RUN_FIELDS.index(name), name, 1e6 if name == "runtime" else 1e4)
    for name in ("eta", "published_at", "received_at", "started_at", "finished_at", "runtime"))

_NUMBERS = frozenset({int, float})

#: Nothing happens then, in seconds since the epoch, nor lasts as long.
TOO_LATE = 1e11

#: Types in JSON of the fields of a run that are no times.
_RUN_KINDS = (
    ("name", str), ("queue", str), ("worker", str), ("pid", int), ("run", str), ("retries", int), ("root_id", str),
    ("parent_id", str), ("exception", dict), ("args", str), ("kwargs", str), ("lock", dict), ("recoveries", int))

_ROW = itemgetter(*RUN_FIELDS)

_UNKNOWN_RUN = {**dict.fromkeys(RUN_FIELDS), "retries": 0}

#: How far along its life a status is, within one run.  The store compares
#: ranks as text.  Below "2" nothing ran yet and nothing is kept of it; "9"
#: absorbs whatever comes after.
RANKS = {
    "PENDING": "0",
    "RECEIVED": "1",
    "STARTED": "2",
    "LOST": "3",
    "RETRY": "4",
    "FAILURE": "5",
    "REVOKED": "6",
    "IGNORED": "7",
    "REJECTED": "7",
    "SKIPPED": "8",
    "SUCCESS": "9",
}
#: Ranks of tasks that have never run.
WAITING = frozenset({"0", "1"})

#: Rank of a task that is at work: started, or with a status of the user's own.
AT_WORK = "2"

#: Statuses after which nothing more is expected of a task.
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "SKIPPED"})

#: Longest message of an exception that is kept, in characters.
MAX_MESSAGE = 1000


def rank_of(status: object) -> str:
    """Return how far along its life a task with this status is."""
    return RANKS.get(status, AT_WORK) if isinstance(status, str) else AT_WORK


class Stamp(NamedTuple):
    """Which state of an entry this is; a later one is greater.

    The version alone does not tell: when a key is gone its versions begin anew.

    Attributes:
        stored_at: When Redis took it, in milliseconds; 0: never.
        version: Number of accepted writes.
    """

    stored_at: int
    version: int


#: The state of an entry that nobody has written.
NEVER = Stamp(0, 0)

#: Largest number that is taken for a figure, such as a progress.
MAX_FIGURE = 2 ** 62

#: Above any number of a header, and above any fence: scripts count exactly up to there (``lua/validation.lua``).
MAX_HEADER_FIGURE = 10 ** 15
MAX_FENCE = 2 ** 53


class Header(NamedTuple):
    """The first line of an entry as Redis keeps it; what the scripts look at.

    Attributes:
        version: Number of accepted writes.
        run: Which run of a task wrote it, sortable by time; "-" for none.
        rank: How far along within the run, sortable; "-" for none.
        fence: The highest fence that has written.
        time: Redis's time of the write, in milliseconds.
        ttl_ms: Milliseconds that it is valid from then on.
        lag: Milliseconds from ``time`` until Redis took it.
        writes: Ids of the last writes, one a writer.
        worker_id: Who wrote it.
    """

    version: int
    run: str
    rank: str
    fence: int
    time: int
    ttl_ms: int
    lag: int
    writes: str
    worker_id: str

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Read a header line.

        Raises:
            ValueError: If this is no header.
        """
        version, run, rank, fence, time, ttl_ms, lag, writes, worker_id = line.decode(errors="replace").split(" ", 8)
        header = cls(int(version), run, rank, int(fence), int(time), int(ttl_ms), int(lag), writes, worker_id)
        if not (0 <= header.version < MAX_HEADER_FIGURE and 0 <= header.time < MAX_HEADER_FIGURE
                and 0 <= header.ttl_ms < MAX_HEADER_FIGURE and 0 <= header.fence < MAX_FENCE
                and abs(header.lag) < MAX_HEADER_FIGURE):
            raise ValueError("a figure is too large for a header")
        return header

    @property
    def stored_at(self) -> int:
        """When Redis took it, in milliseconds: in the order in which the entry was written."""
        return self.time + self.lag

    @property
    def stamp(self) -> Stamp:
        """Which state of the entry it is of."""
        return Stamp(self.time + self.lag, self.version)

    @property
    def over_at(self) -> int:
        """When its ttl is over, in milliseconds."""
        return self.time + self.ttl_ms


#: Stands for a body that can not be read.
_UNREADABLE: Any = object()


@dataclass(frozen=True)
class Stored:
    """An entry as Redis keeps it: a header, and a body that no script looks into."""

    header: Header
    body: bytes

    @classmethod
    def parse(cls, text: bytes) -> Stored:
        """Read what a hash field holds.

        Raises:
            ValueError: If something else than an entry is kept there.
        """
        line, _, body = text.partition(b"\n")
        return cls(Header.parse(line), body)

    @property
    def deleted(self) -> bool:
        """Whether only the version is left of it."""
        return not self.body

    @property
    def value(self) -> Any:
        """What the body holds; None if it is somebody else's data."""
        value = self._decoded()
        return None if value is _UNREADABLE else value

    @property
    def readable(self) -> bool:
        """Whether the body is empty, or JSON that this version can read."""
        return self.deleted or self._decoded() is not _UNREADABLE

    def _decoded(self) -> Any:
        if "decoded" not in self.__dict__:
            self.__dict__["decoded"] = self._decode()
        return self.__dict__["decoded"]

    def _decode(self) -> Any:
        try:
            return values.decode(self.body)
        except values.UNREADABLE:
            return _UNREADABLE

    def gone(self, now: float) -> bool:
        """Whether it is deleted, over, or nothing that can be read; only its version counts then."""
        return self.over(now) or not self.readable

    def over(self, now: float) -> bool:
        """Whether it is deleted, or its ttl over."""
        return self.deleted or self.expired(now)

    def expired(self, now: float) -> bool:
        """Whether its ttl is over.

        Arguments:
            now: Redis's time, in seconds.
        """
        return self.header.over_at <= now * 1000

    def entry(self, key: str, value: Any = _UNREADABLE) -> Entry:
        """Return it as the user sees it, with another value if one is given."""
        header = self.header
        value = self.value if value is _UNREADABLE else value
        return Entry(key, value, header.version, header.time / 1000, header.worker_id, header.ttl_ms / 1000)


@dataclass(frozen=True)
class Entry:
    """A thing that is shared.

    Attributes:
        key: Its full path.
        value: What it holds.
        version: Number of accepted writes of that key; 0: not in Redis yet.
        timestamp: When it was written, seconds since the epoch on Redis's clock.
        worker_id: Who wrote it.
        ttl: Seconds that it is valid from then on.
    """

    key: str
    value: Any
    version: int
    timestamp: float
    worker_id: str
    ttl: float

    def evolve(self, value: Any) -> Entry:
        """Return a copy with another value, at half of what :func:`dataclasses.replace` costs."""
        return Entry(self.key, value, self.version, self.timestamp, self.worker_id, self.ttl)


@dataclass(frozen=True)
class TaskRun:
    """What Celery's signals tell of a task: the facts of one run.

    Every later stage knows all that the earlier ones knew, so that a stage
    replaces the one before and nothing need be merged.

    Attributes:
        status: Celery's name of the stage, or ``LOST``, ``SKIPPED``.
        run: Id of this run of the task, made when a worker received it.
        eta: When it may start, seconds since the epoch.
        published_at: Like the other times: seconds since the epoch on Redis's clock.
        runtime: Seconds that the body took.
        exception: ``{"type": ..., "message": ...}``.
        recoveries: How often it was sent again because its worker was lost.
        args: Arguments as Celery shows them in its log; kept only with ``memsync_task_args``.
        lock: Of a run that was held back: which lock, and who had it (``worker_id``, ``task_id``, ``since``).
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
    eta: float | None = None
    published_at: float | None = None
    received_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    runtime: float | None = None
    exception: dict[str, str] | None = None
    args: str | None = None
    kwargs: str | None = None
    lock: dict[str, Any] | None = None
    recoveries: int | None = None

    @classmethod
    def of(cls, known: dict[str, Any]) -> TaskRun:
        """Return a run of which some fields are known, at a third of the constructor's cost."""
        new = object.__new__(cls)
        new.__dict__.update(_UNKNOWN_RUN)
        new.__dict__.update(known)
        return new

    def evolve(self, **changes: Any) -> TaskRun:
        """Return a copy with some fields changed."""
        new = object.__new__(TaskRun)
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        return new

    def encode(self, task_id: str) -> bytes:
        """Return it as a JSON list without the names, which would be half of it."""
        row = list(_ROW(self.__dict__))
        for at, _, scale in _FIGURES:
            figure = row[at]
            if figure is not None:
                # Some have come with a message, where anybody may write anything.
                sound = type(figure) in _NUMBERS and -TOO_LATE < figure < TOO_LATE
                row[at] = round(figure * scale) if sound else None
        if row[7] == task_id:
            row[7] = True
        while row[-1] is None:
            row.pop()
        return values.dumps(row)

    @classmethod
    def from_row(cls, row: Any, task_id: str) -> TaskRun | None:
        """Read what :meth:`encode` wrote; None for anything else, and fields of newer versions are ignored."""
        if not isinstance(row, list) or not row or not isinstance(row[0], str):
            return None
        known = dict(zip(RUN_FIELDS, row))
        for _, name, scale in _FIGURES:
            figure = known.get(name)
            if figure is not None:
                sound = type(figure) is int and abs(figure) < TOO_LATE * scale
                known[name] = figure / scale if sound else None
        if known.get("root_id") is True:
            known["root_id"] = task_id
        for name, kind in _RUN_KINDS:
            value = known.get(name)
            if value is not None and type(value) is not kind:
                del known[name]
        return cls.of(known)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


def describe_exception(exc: BaseException) -> dict[str, str]:
    """Return type and message of an exception; long messages are cut."""
    message = _plain_text(lambda: str(exc), "<its message can't be shown>")
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    return {"type": _plain_text(lambda: type(exc).__qualname__, "Exception"), "message": message}


def _plain_text(make: Callable[[], str], otherwise: str) -> str:
    """Return a text that a user's class makes, free of that class.

    Its methods may do anything: a SystemExit from one of them must not end the worker.
    """
    try:
        return str.__str__(make())
    except BaseException:
        return otherwise


def is_run_key(text: object) -> TypeGuard[str]:
    """Whether this is what :func:`run_key` makes; what travels with messages may be anything."""
    return isinstance(text, str) and len(text) == 16 and text.isascii() and text.isdigit()


def run_key(retries: int, since: float) -> str:
    """Return a text that sorts the runs of one task by time.

    Arguments:
        retries: Celery's count, which rules over the time.
        since: Redis's time when the run was received, in seconds.
    """
    return "%03d%013d" % (min(retries, 999), since * 1000)


def merge_state(run: TaskRun | None, told: Any) -> dict[str, Any] | None:
    """Return a task's state: what the signals know, then what users told.

    A status that a user told shows while the task is at work; it does not
    hide a later stage that Celery told.
    """
    if not isinstance(told, dict):
        return None if run is None else run.as_dict()
    if run is None:
        return told
    state = {**run.as_dict(), **told}
    if "status" in told:
        state["status"] = later_status(run.status, told["status"])
    return state


def later_status(first: object, second: object) -> object:
    """Return which of two statuses is further along; the second if neither is."""
    return first if rank_of(first) > rank_of(second) else second


#: Fields of a progress body, in this order for ever; a dict of the user's own fields comes last.
PROGRESS_FIELDS = ("progress", "current", "total", "message", "status", "started_at", "updated_at", "run", "fields")


def encode_progress(row: Sequence[Any]) -> bytes:
    """Return the values of :data:`PROGRESS_FIELDS` as JSON."""
    last = len(row)
    while last and row[last - 1] is None:
        last -= 1
    return values.dumps(row[:last])


def progress_from(row: Any) -> dict[str, Any] | None:
    """Return progress as users see it, with ``eta`` in seconds, None when unknown.

    Arguments:
        row: What :func:`encode_progress` wrote, or a dict of a user's own.
    """
    known: dict[str, Any] = dict.fromkeys(PROGRESS_FIELDS)
    if isinstance(row, list):
        known.update(zip(PROGRESS_FIELDS, row))
    elif isinstance(row, dict):
        known.update(row)
    else:
        return None
    extra = known.pop("fields")
    for name in ("progress", "current", "total", "started_at", "updated_at"):
        known[name] = known[name] if _is_number(known[name]) else None
    known["eta"] = _eta(known["progress"], known["started_at"], known["updated_at"])
    return {**extra, **known} if isinstance(extra, dict) else known


def _is_number(figure: Any) -> bool:
    return isinstance(figure, (int, float)) and not isinstance(figure, bool) and abs(figure) < MAX_FIGURE


def _eta(percent: float | None, started_at: float | None, updated_at: float | None) -> float | None:
    if percent is None or started_at is None or updated_at is None:
        return None
    if percent >= 100:
        return 0.0
    elapsed = updated_at - started_at
    return round(elapsed * (100 - percent) / percent, 3) if percent > 0 and elapsed > 0 else None


@dataclass(frozen=True)
class LockRecord:
    """A lock that is held.

    Attributes:
        name: As given to ``lock``; ``tasks/<task_id>`` for the lock of a task.
        fence: The number of this acquisition; a later one has a higher one.
        worker_id: The process that holds it.
        task_id: The task that holds it; None: a program outside of tasks.
        since: When it was taken, seconds since the epoch on Redis's clock.
        ttl: Seconds until its lease ends, if it is not renewed.
        waiters: How many wait for it; None: that was not looked at.
    """

    name: str
    fence: int
    worker_id: str
    task_id: str | None
    since: float
    ttl: float
    waiters: int | None = None

    @classmethod
    def of(cls, name: str, stored: Stored, now: float, waiters: int | None = None) -> LockRecord | None:
        """Read a lock's entry, or return None if it is free; it is held whatever its body says.

        Arguments:
            now: Redis's time, in seconds.
        """
        header, about = stored.header, stored.value
        if stored.over(now):
            return None
        ttl = round(header.over_at / 1000 - now, 3)
        task_id = about.get("task_id") if isinstance(about, dict) else None
        task_id = task_id if is_id(task_id) else None
        return cls(name, header.fence, header.worker_id, task_id, header.time / 1000, ttl, waiters)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker tells of itself at every beat.

    Attributes:
        worker_id: Its name, a Celery node name for Celery's workers.
        status: ``active``, ``busy`` (no free slot), ``draining`` (finishes what
            it has), ``offline`` (said goodbye) or ``lost`` (went silent).
        pool: Kind of pool, such as ``prefork``.
        concurrency: Most tasks at once.
        capacity: Slots: ``{"total", "active", "reserved", "free"}``.
        queues: Names of the queues it consumes.
        running: ``{"id", "name", "started_at"}`` of every task at work.
        counters: Tasks accepted since the start: ``{"total": n}``.
        rss: Resident memory of the main process, in bytes.
        cpu: Percent of one core that the main process used since the last beat.
        load: The host's load averages over 1, 5 and 15 minutes.
        started_at: Like ``last_beat``: seconds since the epoch on Redis's clock.
        versions: Of Python, celery, redis-py and this package.
        sequence: Number of this beat.
        round_trip: Seconds that the last beat took to Redis and back.
        consuming: Whether it takes messages: it is connected to its broker, has queues, and not been idle while
            messages waited.
        last_beat: When Redis heard of it last.
        depths: How many messages wait in the broker, by queue that it consumes; empty if that is not known.
        stretch: How many times longer than ``memsync_heartbeat_interval`` it pauses between beats, for the
            workers are many; so many times longer it may be silent.
        skew: Seconds that the clock of its host is ahead of Redis's.
        writer: Of its main process, not of pool children: writes that are ``pending``, were ``dropped``, and
            ``conflicts`` that it met.
    """

    worker_id: str
    status: str = "active"
    hostname: str = ""
    pid: int = 0
    pool: str = ""
    concurrency: int = 0
    capacity: dict[str, int] = field(default_factory=dict)
    queues: tuple[str, ...] = ()
    running: tuple[dict[str, Any], ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    rss: int | None = None
    cpu: float | None = None
    load: tuple[float, ...] = ()
    started_at: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    sequence: int = 0
    round_trip: float | None = None
    consuming: bool | None = None
    last_beat: float | None = None
    depths: dict[str, int] = field(default_factory=dict)
    stretch: float = 1.0
    skew: float | None = None
    writer: dict[str, int] = field(default_factory=dict)

    def evolve(self, **changes: Any) -> WorkerRecord:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, lists for tuples."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
        }

    def pulse(self) -> str:
        """Return what tells, with the time of the beat, whether the worker is alive: ``<status>:<stretch>``."""
        return f"{self.status}:{self.stretch:g}"

    @classmethod
    def from_dict(cls, worker_id: str, known: Any, last_beat: float | None = None) -> WorkerRecord:
        """Read what :meth:`as_dict` gave; fields of newer versions, and of another shape, are ignored.

        Arguments:
            last_beat: When Redis heard of it last.  None: what was given.
        """
        # At an eighth of the constructor's cost: a fleet may be large.
        new = object.__new__(cls)
        fields = new.__dict__
        fields.update(_WORKER_DEFAULTS)
        for name, value in known.items() if isinstance(known, dict) else ():
            kinds = _WORKER_KINDS.get(name, _NoField)
            if value is not None and (kinds is None or isinstance(value, kinds)):
                fields[name] = tuple(value) if kinds is list else value
        for name, make in _WORKER_OWN:
            if fields[name] is None:
                fields[name] = make()
        fields["worker_id"] = worker_id
        fields["last_beat"] = fields["last_beat"] if last_beat is None else last_beat
        return new


class _NoField:
    """What no value of a field is an instance of."""


def _json_type(default: object) -> type | None:
    return None if default is None else list if isinstance(default, tuple) else type(default)


_WORKER_FIELDS = {one.name: one for one in dataclasses.fields(WorkerRecord)}

#: What makes a value of its own for a field that is not told.
_WORKER_OWN = tuple(
    (name, one.default_factory) for name, one in _WORKER_FIELDS.items() if one.default_factory is not dataclasses.MISSING)

#: What a field is if it is not told; None where a value of its own is made.
_WORKER_DEFAULTS = {
    name: None if one.default is dataclasses.MISSING else one.default for name, one in _WORKER_FIELDS.items()}

#: Type in JSON of a field; None: any.
_WORKER_KINDS = {
    "worker_id": str, **{name: _json_type(default) for name, default in _WORKER_DEFAULTS.items() if name != "worker_id"},
    **{name: type(make()) for name, make in _WORKER_OWN}}
