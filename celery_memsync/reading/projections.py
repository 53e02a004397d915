"""What readers see: entries put together to states, progress, tasks and workers."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..keys import PROGRESS, STAGE, STATE, Location
from ..models.entry import Entry, StoredEntry
from ..models.order import run_order
from ..models.progress import at_status, progress_in
from ..models.task import TaskRun, merge_state, with_cause
from ..models.worker import GONE, WorkerRecord
from ..store import Task
from ..types import TaskProgress, TaskState


def state_of(
    task_id: str, slots: Mapping[int, StoredEntry | None], former: Mapping[int, Sequence[StoredEntry]] | None = None,
) -> TaskState | None:
    """Return the state of a task from its slots, or None if it is unknown.

    Args:
        former: Entries of earlier runs by slot: why a task is retried.
    """
    stage, state = slots.get(STAGE), slots.get(STATE)
    run = None if stage is None or stage.deleted else TaskRun.read(stage, task_id)
    before = (former or {}).get(STAGE)
    if run is not None and run.is_waiting_retry and before:
        run = with_cause(run, TaskRun.read(before[-1], task_id))
    fields = None if state is None or state.deleted else state.value
    if isinstance(fields, dict) and stage is not None and state is not None and _is_of_earlier_run(state, stage):
        fields = {name: value for name, value in fields.items() if name != "status"}
    return merge_state(run, fields)


def _is_of_earlier_run(state: StoredEntry, stage: StoredEntry) -> bool:
    """Whether what users reported is of an earlier run than the stage; its status is not that of the later one."""
    return (0, 0, 0) < run_order(state.header.run) < run_order(stage.header.run)


def progress_of(task: Task, state: TaskState | None) -> TaskProgress | None:
    """Return how far a task is, with ``previous`` if an earlier run reported too, or None.

    Args:
        state: Of the task, from :func:`state_of`.
    """
    if PROGRESS not in task.slots:
        return None
    progress = progress_in(task.slots[PROGRESS])
    if progress is None:
        return None
    former = task.former.get(PROGRESS)
    if former:
        before = progress_in(former[-1])
        progress["previous"] = None if before is None else at_status(before, "RETRY")
    return at_status(progress, (state or {}).get("status"))


def runs_of(task_id: str, task: Task) -> list[TaskState]:
    """Return all runs of a task that are known, oldest first."""
    stored_records = [*task.former.get(STAGE, []), *([task.slots[STAGE]] if STAGE in task.slots else [])]
    stored_records.sort(key=lambda stored: run_order(stored.header.run))
    return [run.as_dict() for one in stored_records if (run := TaskRun.read(one, task_id)) is not None]


def entry_of(location: Location, parts: Mapping[int, StoredEntry | None], now: float) -> Entry | None:
    """Return what is stored at a place, put together of its parts by slot, or None.

    Its version is that of all parts together, of those too that are deleted or
    over, so that it only grows.

    Args:
        now: Redis's time, in seconds.
    """
    alive: dict[int, StoredEntry] = {}
    latest, version = None, 0
    for slot, stored in parts.items():
        if stored is not None:
            version += stored.header.version
            if not stored.absent(now):
                alive[slot] = stored
                latest = stored if latest is None or stored.header.time > latest.header.time else latest
    if latest is None:
        return None
    value = latest.value
    if location.task_id and location.slot == STATE and (STAGE in alive or isinstance(value, dict)):
        value = state_of(location.task_id, alive)
    elif location.task_id and location.slot == PROGRESS and isinstance(value, list):
        value = progress_in(latest)
    header = latest.header
    return Entry(location.path, value, version, header.time / 1000, header.worker_id, header.ttl_ms / 1000)


def as_written(parts: Mapping[int, StoredEntry | None]) -> tuple[dict[int, StoredEntry], float]:
    """Return the parts of an entry, not decoded yet, and Redis's time of its last write, in seconds."""
    own: dict[int, StoredEntry] = {}
    stored_at = written_at = 0
    for slot, stored in parts.items():
        if stored is not None:
            header = stored.header
            own[slot] = StoredEntry(header, stored.body)
            if header.time + header.lag > stored_at:
                stored_at, written_at = header.time + header.lag, header.time
    return own, written_at / 1000


def expires_at(parts: Iterable[StoredEntry | None], now: float) -> float:
    """Return when the first of some parts is over that is not yet, in seconds of Redis's clock."""
    return min((stored.header.expires_at / 1000 for stored in parts if stored is not None and not stored.absent(now)),
               default=float("inf"))


def worker_records(stored_records: Mapping[str, StoredEntry], since: float, ttl: float = 0.0) -> list[WorkerRecord]:
    """Return a record for every worker, of its heartbeats and of what was written by hand; see :func:`worker_record`."""
    heartbeats, by_hand = _split_records(stored_records)
    records = {worker_id: worker_record(worker_id, heartbeat, since, ttl)
               for worker_id, heartbeat in heartbeats.items() if heartbeat.readable}
    for worker_id in by_hand.keys() - records.keys():
        last_beat = by_hand[worker_id].header.time / 1000
        records[worker_id] = WorkerRecord(worker_id, "active" if last_beat > since else "lost", last_beat=last_beat)
    return [records[worker_id] for worker_id in sorted(records)]


def active_workers(stored_records: Mapping[str, StoredEntry], since: float, ttl: float = 0.0) -> list[str]:
    """Return the ids of those whom :func:`worker_records` calls neither lost nor offline; most bodies need not be read."""
    heartbeats, by_hand = _split_records(stored_records)
    alive = {worker_id for worker_id, heartbeat in heartbeats.items() if _is_alive(heartbeat, since, ttl)}
    alive |= {worker_id for worker_id in by_hand.keys() - heartbeats.keys() if by_hand[worker_id].header.time / 1000 > since}
    return sorted(alive)


def _split_records(stored_records: Mapping[str, StoredEntry]) -> tuple[dict[str, StoredEntry], dict[str, StoredEntry]]:
    """Return the heartbeats, and the statuses that were written by hand, by worker."""
    by_thing: dict[str, dict[str, StoredEntry]] = {"heartbeat": {}, "status": {}}
    for name, stored in stored_records.items():
        worker_id, _, thing = name.rpartition("/")
        if thing in by_thing and "/" not in worker_id and not stored.deleted:
            by_thing[thing][worker_id] = stored
    return by_thing["heartbeat"], by_thing["status"]


def _is_alive(heartbeat: StoredEntry, since: float, ttl: float) -> bool:
    status, _, stretch = heartbeat.header.rank.partition(":")
    try:
        return status != "offline" and not _is_late(heartbeat, float(stretch), since, ttl)
    except ValueError:  # it was written by hand, or by an earlier version: the body has it
        return heartbeat.readable and worker_record("", heartbeat, since, ttl).status not in GONE


def _is_late(heartbeat: StoredEntry, stretch: float, since: float, ttl: float) -> bool:
    return heartbeat.header.time / 1000 + ttl * (max(1.0, stretch) - 1) <= since


def worker_record(worker_id: str, stored: StoredEntry, since: float, ttl: float = 0.0) -> WorkerRecord:
    """Return a worker's record from its last heartbeat; ``lost`` if that was not after ``since``.

    Args:
        ttl: How long ago ``since`` is, in seconds: one that sends heartbeats less often has that many times longer.
    """
    record = WorkerRecord.from_dict(worker_id, stored.value, stored.header.time / 1000)
    lost = _is_late(stored, record.stretch, since, ttl) and record.status != "offline"
    return record.evolve(status="lost", consuming=False) if lost else record
