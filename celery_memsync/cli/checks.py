"""What `celery memsync doctor` finds in clocks, times, indexes and locks."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..app import MemSync
from ..fleet.unacked import sweep_of
from ..models.lock import LockRecord
from ..models.order import FINAL
from ..models.worker import GONE, WorkerRecord
from ..reading.projections import state_of
from ..settings import Settings
from ..store import TOLERATED_SKEW
from ..types import TaskState
from .output import duration, figure, named

#: Seconds above which Redis answers slowly, even at its best.
SLOW = 0.05

#: Seconds that the clock of a host may differ from Redis's.
SKEW = 2.0

#: Newest tasks, tasks in the queue and locks that are looked at.
LOOKED_AT = 500

#: Seconds that what belongs to a task may stay behind its end.
AFTER = 10.0

#: Seconds after which brokers that count them deliver a message again, unless `visibility_timeout` says otherwise.
VISIBILITY = {"redis": 3600.0, "sqs": 1800.0}


#: Part of the visibility timeout after which a renewal is late: two of three were missed.
LATE_RENEWAL = 0.9

#: Seconds above which a visibility timeout is longer than it need be, and a sweep above which that counts.
LONG_VISIBILITY, SHORT_SWEEP = 300.0, 10.0


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        fine: Whether it is as it should be.
        what: What was found.
        advice: What to do if it is not fine.
    """

    fine: bool
    what: str
    advice: str = ""


class Scene(NamedTuple):
    """What there is to be looked at.

    Attributes:
        settings: Of this app.
        visibility: Seconds after which the broker delivers again; None: it does not.
        sweep: Seconds between two looks of a Redis broker for what is to be delivered again; None for other brokers.
        late: Whether the app acknowledges tasks after they ran.
        workers: All of them.
        newest: States of the newest tasks by id; None for those that have expired.
        processing: States of tasks that are running according to the queue.
        locks: Those held.
        holders: States of the tasks that hold them.
        now: Redis's time, in seconds.
    """

    settings: Settings
    visibility: float | None
    late: bool
    workers: Sequence[WorkerRecord]
    newest: Mapping[str, TaskState | None]
    processing: Mapping[str, TaskState | None]
    locks: Sequence[LockRecord]
    holders: Mapping[str, TaskState | None]
    now: float
    sweep: float | None = None

    @property
    def alive(self) -> list[WorkerRecord]:
        """The workers that are neither lost nor have left."""
        return [one for one in self.workers if one.status not in GONE]

    @property
    def is_renewed(self) -> bool:
        """Whether all workers renew their messages at the broker."""
        return bool(self.alive) and all(one.held_messages for one in self.alive)


def read_scene(app: Any, memsync: MemSync, workers: Sequence[WorkerRecord]) -> Scene:
    """Read what is to be looked at.

    Raises:
        StoreError: If Redis is away.
    """
    store = memsync.runtime.store
    held = memsync.locks()[:LOOKED_AT]
    newest = store.read_recent_tasks(LOOKED_AT).task_ids
    processing = memsync.get_queue(limit=LOOKED_AT)["processing"]
    holders = [str(one.task_id) for one in held if one.task_id]
    ids = list(dict.fromkeys([*newest, *processing, *holders]))
    states = {task_id: state_of(task_id, task.slots, task.former) for task_id, task in zip(ids, store.read_tasks(ids))}

    def of(some: Sequence[str]) -> dict[str, TaskState | None]:
        return {task_id: states[task_id] for task_id in some}

    visibility, sweep = _times_of_broker(app)
    return Scene(memsync.settings, visibility, bool(app.conf.task_acks_late), workers, of(newest),
                 of(processing), held, of(holders), store.clock.now(), sweep)


def _times_of_broker(app: Any) -> tuple[float | None, float | None]:
    try:
        with app.connection_for_read() as connection:
            usual = VISIBILITY.get(connection.transport.driver_type)
            value = figure(connection.transport_options.get("visibility_timeout"))
            sweep = sweep_of(connection)
    except Exception:
        return None, None  # the transport is not installed here; what is to be found is none of its doings
    return usual if usual is None or value is None else value, sweep


def examine_persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether Redis can save what it is to save."""
    for name, what in (("rdb_last_bgsave_status", "snapshot"), ("aof_last_write_status", "append-only file")):
        if info.get(name, "ok") != "ok":
            yield Finding(False, f"Redis could not write its {what}", "see its log; by default it takes no writes then")


def examine_latency(latency: float) -> Iterator[Finding]:
    """Yield how fast Redis answers."""
    if latency > SLOW:
        yield Finding(False, f"Redis answers in {duration(latency)} at best",
                      "see its SLOWLOG and the network; locks and reads wait that long")
    else:
        yield Finding(True, f"Redis answers in {latency * 1000:.1f}ms")


def examine_names(processes: Mapping[str, int]) -> Iterator[Finding]:
    """Yield which workers have a name that is another's, too."""
    shared = sorted(worker_id for worker_id, count in processes.items() if count > 1)
    if shared:
        yield Finding(False, f"several live workers have the name: {named(shared)}",
                      "give each its own by -n; right after a restart it goes by itself, within memsync_worker_ttl")


def examine_queues(scene: Scene) -> Iterator[Finding]:
    """Yield in which queues tasks wait that no worker consumes."""
    waiting = unconsumed(scene.workers, scene.newest.values())
    if waiting:
        listed = named([f"{queue} ({count})" for queue, count in waiting.most_common()])
        yield Finding(False, f"no worker consumes queues in which tasks wait: {listed}",
                      "start a worker with -Q and the queue, let one consume it (celery control add_consumer), "
                      "or correct the route of the tasks")


def unconsumed(workers: Sequence[WorkerRecord], states: Iterable[Mapping[str, Any] | None]) -> Counter[str]:
    """Return how many of some tasks are pending by queue, of queues that no live worker consumes."""
    consumed = {str(queue) for one in workers if one.status not in GONE for queue in one.queues}
    return Counter(
        queue for state in states if state is not None and state.get("status") == "PENDING"
        and isinstance(queue := state.get("queue"), str) and queue not in consumed)


def examine_clocks(workers: Sequence[WorkerRecord]) -> Iterator[Finding]:
    """Yield whose clocks are wrong."""
    wrong = [one.worker_id for one in workers
             if one.status not in GONE and abs(figure(one.skew) or 0.0) > SKEW]
    if wrong:
        yield Finding(False, f"clocks differ from Redis's by more than {SKEW:.0f}s: {named(wrong)}",
                      "let NTP set them; Celery starts tasks with an eta by these clocks")


def examine_nodes(skews: Mapping[str, float]) -> Iterator[Finding]:
    """Yield whether the clocks of a cluster's nodes are the same.

    Args:
        skews: By how many seconds the clock of each node is ahead of one of them; {} without a cluster.
    """
    if not skews:
        return
    spread = max(skews.values()) - min(skews.values())
    if spread > TOLERATED_SKEW:
        wrong = [f"{node} ({skew:+.1f}s)" for node, skew in skews.items() if abs(skew) > TOLERATED_SKEW]
        yield Finding(False, f"the clocks of the cluster's nodes differ by {duration(spread)}: {named(wrong)}",
                      f"let NTP set them; up to {TOLERATED_SKEW:.0f}s is tolerated")
    else:
        yield Finding(True, f"the clocks of the cluster's nodes differ by {spread * 1000:.0f}ms")


def examine_settings(scene: Scene) -> Iterator[Finding]:
    """Yield which times do not go together."""
    settings = scene.settings
    if settings.worker_ttl < 2 * settings.heartbeat_interval:
        yield Finding(False, f"memsync_worker_ttl ({settings.worker_ttl:g}s) is less than two of "
                             f"memsync_heartbeat_interval ({settings.heartbeat_interval:g}s)",
                      "one late heartbeat makes a worker lost; make it three of them")
    if settings.default_ttl < settings.worker_ttl:
        yield Finding(False, f"memsync_default_ttl ({settings.default_ttl:g}s) is less than memsync_worker_ttl "
                             f"({settings.worker_ttl:g}s)",
                      "states expire before the loss of a worker is noticed; make it longer")


def examine_visibility(scene: Scene) -> Iterator[Finding]:
    """Yield whether the broker delivers tasks again that still run, or wait for their eta."""
    most = scene.visibility
    if most is None:
        return
    yield from _examine_skews(scene, most)
    if not scene.is_renewed:
        yield from _examine_lasting(scene, most)


def _examine_lasting(scene: Scene, most: float) -> Iterator[Finding]:
    states = [state for state in scene.newest.values() if state is not None]
    runs = [figure(state.get("runtime")) or 0.0 for state in states]
    runs += [scene.now - since for one in scene.alive for task in one.running
             if isinstance(task, dict) and (since := figure(task.get("started_at")))]
    longest = max(runs, default=0.0)
    if scene.late and longest > most:
        yield Finding(False, f"a task ran for {duration(longest)}, and the broker delivers again after {duration(most)}",
                      "raise visibility_timeout in broker_transport_options, or guard tasks by exclusive")
    ahead = [eta - value for state in states if str(state.get("status")) not in FINAL
             and (eta := figure(state.get("eta"))) and (value := figure(state.get("published_at")))]
    if max(ahead, default=0.0) > most:
        yield Finding(False, f"a task has its eta {duration(max(ahead))} ahead, and the broker delivers again after "
                             f"{duration(most)}",
                      "raise visibility_timeout in broker_transport_options above that")


def _examine_skews(scene: Scene, most: float) -> Iterator[Finding]:
    skews = [figure(one.skew) or 0.0 for one in scene.alive]
    apart = max(skews, default=0.0) - min(skews, default=0.0)
    if apart > most / 10:
        yield Finding(False, f"the clocks of workers are {duration(apart)} apart, and the broker delivers again after "
                             f"{duration(most)} by these clocks",
                      "let NTP set them, or raise visibility_timeout in broker_transport_options")


def examine_renewal(scene: Scene) -> Iterator[Finding]:
    """Yield whether workers renew their messages at a Redis broker, and when those of a dead one come back."""
    most, sweep = scene.visibility, scene.sweep
    if most is None or sweep is None:
        return
    late = [one.worker_id for one in scene.alive if one.held_messages
            and (figure(one.last_beat) or scene.now) - (figure(one.held_messages.get("renewed_at")) or 0.0)
            > LATE_RENEWAL * most]
    if late:
        yield Finding(False, f"messages at the broker are not renewed in time by {named(late)}",
                      f"see their logs; after {duration(most)} the broker delivers them again")
    if scene.is_renewed:
        advice = []
        if most > LONG_VISIBILITY:
            advice.append("workers renew their messages, so visibility_timeout in broker_transport_options may be a minute")
        if sweep > most / 2 or advice and sweep > SHORT_SWEEP:
            advice.append("unacked_restore_interval and unacked_restore_throttle of kombu 5.7 shorten the sweep")
        yield Finding(True, f"messages of a dead worker come back after {duration(most)} and a sweep of up to "
                            f"{duration(sweep)}", "; ".join(advice))


def examine_indexes(scene: Scene) -> Iterator[Finding]:
    """Yield what indexes name that is not there any more."""
    ended = [task_id for task_id, state in scene.processing.items() if _ended(state, scene.now)]
    if ended:
        yield Finding(False, f"the queue has running tasks that have ended: {named(ended)}",
                      "their last change was lost; complete(task_id) takes one out")
    lost = sum(state is None for state in scene.newest.values())
    if lost * 2 > len(scene.newest) >= LOOKED_AT // 10:
        yield Finding(False,
                      f"{lost} of the newest {len(scene.newest)} tasks in the index have no record",
                      "see whether Redis has evicted them, or whether they are written with a short ttl")


def examine_locks(scene: Scene) -> Iterator[Finding]:
    """Yield locks whose tasks have ended, or whose workers are lost."""
    lost = [one.worker_id for one in scene.workers if one.status == "lost"]
    orphans = []
    for one in scene.locks:
        state = scene.holders.get(str(one.task_id)) or {}
        if one.worker_id in lost or state.get("worker") in lost or _ended(state, scene.now):
            orphans.append(one.name)
    if orphans:
        yield Finding(False, f"locks whose holders have ended or are lost: {named(orphans)}",
                      "they end with their leases; memsync unlock frees one at once")


def _ended(state: Mapping[str, Any] | None, now: float) -> bool:
    at = figure((state or {}).get("finished_at"))
    return bool(state and str(state.get("status")) in FINAL and at is not None and now - at > AFTER)
