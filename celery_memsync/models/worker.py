"""What a worker reports, and what it looks like in Redis."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..types import HeldMessages, RunningTask, WorkerCapacity, WorkerDict, WorkerWrites

#: Statuses of workers that are not there any more: figures of theirs are old.
GONE = ("lost", "offline")


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker records of itself with each heartbeat.

    Attributes:
        worker_id: Its name, a Celery node name for Celery's workers.
        status: ``active``, ``busy`` (no free slot), ``draining`` (finishes what
            it has), ``offline`` (has shut down) or ``lost`` (sends no heartbeats).
        pool: Kind of pool, such as ``prefork``.
        concurrency: Most tasks at once.
        capacity: Its slots.
        queues: Names of the queues it consumes.
        running: The tasks that it runs.
        counters: Tasks accepted since the start: ``{"total": n}``.
        rss: Resident memory of the main process, in bytes.
        cpu: Percent of one core that the main process used since the last heartbeat.
        load: The host's load averages over 1, 5 and 15 minutes.
        started_at: Like ``last_beat``: seconds since the epoch on Redis's clock.
        versions: Of Python, celery, redis-py and this package.
        sequence: Number of this heartbeat.
        round_trip: Seconds that the last heartbeat took to Redis and back.
        consuming: Whether it takes messages: it is connected to its broker, has queues, and not been idle while
            messages waited.
        last_beat: Time of its last heartbeat on Redis's clock.
        depths: How many messages wait in the broker, by queue that it consumes; empty if that is not known.
        empty_since: When the first of the last two looks was, by queue that was empty at both; on Redis's clock.
        stretch: How many times longer than ``memsync_heartbeat_interval`` it pauses between heartbeats, for the
            workers are many; so many times longer is its timeout.
        skew: Seconds that the clock of its host is ahead of Redis's.
        format: Newest format of what is shared that it knows, see ``models/formats.py``.
        writer: The writes of its main process, not of pool children.
        held_messages: What it renews at a Redis broker.
    """

    worker_id: str
    status: str = "active"
    hostname: str = ""
    pid: int = 0
    pool: str = ""
    concurrency: int = 0
    capacity: WorkerCapacity = field(default_factory=WorkerCapacity)
    queues: tuple[str, ...] = ()
    running: tuple[RunningTask, ...] = ()
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
    empty_since: dict[str, float] = field(default_factory=dict)
    stretch: float = 1.0
    skew: float | None = None
    format: int | None = None
    writer: WorkerWrites = field(default_factory=WorkerWrites)
    held_messages: HeldMessages = field(default_factory=HeldMessages)

    def evolve(self, **changes: Any) -> WorkerRecord:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> WorkerDict:
        """Return all fields, lists for tuples."""
        return {  # type: ignore[return-value]
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
        }

    def is_late(self, now: float, interval: float) -> bool:
        """Return whether it has missed a heartbeat, and is not lost yet.

        Args:
            now: Redis's time, in seconds.
            interval: Seconds between two heartbeats, as in ``memsync_heartbeat_interval``.
        """
        return (self.status not in GONE and self.last_beat is not None
                and now - self.last_beat > 2 * interval * self.stretch)

    def pulse(self) -> str:
        """Return ``<status>:<stretch>``, which shows with the heartbeat's time if it is alive."""
        return f"{self.status}:{self.stretch:g}"

    @classmethod
    def from_dict(cls, worker_id: str, known: Any, last_beat: float | None = None) -> WorkerRecord:
        """Read what :meth:`as_dict` gave; fields of newer versions, and of another shape, are ignored.

        Args:
            last_beat: Time of its last heartbeat on Redis's clock.  None: what was given.
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

#: What makes a value of its own for a field that is not recorded.
_WORKER_OWN = tuple(
    (name, one.default_factory) for name, one in _WORKER_FIELDS.items() if one.default_factory is not dataclasses.MISSING)

#: What a field is if it is not recorded; None where a value of its own is made.
_WORKER_DEFAULTS = {
    name: None if one.default is dataclasses.MISSING else one.default for name, one in _WORKER_FIELDS.items()}

#: Type in JSON of a field; None: any.
_WORKER_KINDS = {
    "worker_id": str, **{name: _json_type(default) for name, default in _WORKER_DEFAULTS.items() if name != "worker_id"},
    **{name: type(make()) for name, make in _WORKER_OWN}}
