"""Running tasks of this worker whose progress stands still for too long."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..background_loop import BackgroundLoop
from ..events import Events
from ..keys import PROGRESS, STAGE, new_token
from ..models.entry import StoredEntry
from ..models.order import RUNNING, run_key_of
from ..models.progress import progress_in, stalled
from ..store import EntryWrite, HeartbeatReply, Store, Task, in_chunks, ms, raise_unanswered
from ..store.clock import UNNOTICED

logger = logging.getLogger(__name__)

#: Tasks that are read, and written, in one round trip.
TASKS_PER_BATCH = 200

#: Rank of the progress of a run that has reported none: any report follows it, and the next run has no ``previous``.
NOTHING_REPORTED = "0"


class WatchedTask(NamedTuple):
    """A running task that stalls if it reports nothing for too long.

    Attributes:
        run: Id of its run.
        run_key: Names the run, and its place among the runs of the task.
        started_at: When the run began, in seconds of Redis's clock.
        limit: Seconds without new progress after which it is stalled.
    """

    task_id: str
    name: str
    run: str
    run_key: str
    started_at: float
    limit: float


class _Look:
    """What was found when a run was looked at last.

    Attributes:
        due: When to look again, in seconds of Redis's clock.
        suspected: Version of the progress that stood still then, and the time of the heartbeat before; None: it did not.
        reported: Whether the present stall was reported.
    """

    def __init__(self, due: float) -> None:
        self.due = due
        self.suspected: tuple[int, float] | None = None
        self.reported = False


class StallMonitor:
    """Records that running tasks of this worker have stalled, and reports each stall once.

    A task costs nothing before it has run for its limit; then its record is read, once for each limit.  The progress of
    pool processes is in Redis only, so that is where it is looked up, by Redis's clock.  A time in which this worker did
    not reach Redis, or stood still itself, does not count.  Two looks, a heartbeat apart, must find the same: what a
    process could not write in such a time is there at the second one.

    Args:
        store: Its token is used by this alone.
        watched_tasks: Returns the running tasks that may stall.
        lag: Seconds by which what is stored may be behind: the batch interval.
        ttl: Seconds that a progress is valid if the task has reported none.
    """

    def __init__(
        self, store: Store, events: Events, watched_tasks: Callable[[], Iterable[WatchedTask]], lag: float, ttl: float,
    ) -> None:
        self.store = store.with_token(new_token())
        self.events = events
        self.watched_tasks = watched_tasks
        self.lag = lag
        self.ttl = ttl
        self._reply: HeartbeatReply | None = None
        #: By run id.
        self._looks: dict[str, _Look] = {}
        self._thread = BackgroundLoop("memsync-stalls", self.check, 0, on_demand=True)

    def note_reply(self, reply: HeartbeatReply) -> None:
        """Take the reply to a heartbeat; tasks that may have stalled are looked at soon."""
        if self.take_reply(reply):
            self._thread.wake()

    def take_reply(self, reply: HeartbeatReply) -> bool:
        """Take the reply to a heartbeat; return whether there are tasks to look at."""
        self._reply = reply
        return next(iter(self.watched_tasks()), None) is not None

    def stop(self, timeout: float | None = None) -> None:
        """Look no more."""
        self._thread.stop(timeout)

    def check(self) -> None:
        """Look at the tasks that are due.

        Raises:
            StoreError: If Redis is away; they are looked at again after the next heartbeat.
        """
        for tasks in in_chunks(self._find_due(), TASKS_PER_BATCH):
            found = self.store.read_tasks([task.task_id for task in tasks])
            self._record([(task, _progress_in(known, task)) for task, known in zip(tasks, found)
                          if self._has_stalled(task, known)])

    def _find_due(self) -> list[WatchedTask]:
        running = list(self.watched_tasks())
        # Of runs that have ended nothing is remembered.
        self._looks = {task.run: self._looks.get(task.run) or _Look(task.started_at + task.limit + self.lag)
                       for task in running}
        now = self.store.clock.now()
        return [task for task in running if self._looks[task.run].due <= now]

    def _has_stalled(self, task: WatchedTask, known: Task) -> bool:
        """Return whether a stall of a task is to be recorded, and note when to look at it again."""
        look, now, progress = self._looks[task.run], self.store.clock.now(), _progress_in(known, task)
        if not _is_running(known, task):
            look.due = now + task.limit
        elif _is_stalled(progress):
            look.due = now + task.limit
            if not look.reported:  # the answer to the write was lost
                self._report(task, progress)
        else:
            look.reported = False
            return self._stands_still(look, task, progress)
        return False

    def _stands_still(self, look: _Look, task: WatchedTask, progress: StoredEntry | None) -> bool:
        """Return whether nothing was reported for too long, at two looks."""
        reply, now, reported_at = self._reply, self.store.clock.now(), _reported_at(task, progress)
        assert reply is not None
        # If it is still to come, Redis's clock was set back since.
        since = reply.since if reported_at > now + UNNOTICED else max(reported_at, reply.since)
        look.due = since + task.limit + self.lag
        if look.due > now:
            look.suspected = None
            return False
        version = 0 if progress is None else progress.header.version
        if look.suspected is None or look.suspected[0] != version:
            look.suspected = version, reply.at
        return look.suspected[1] < reply.at

    def _record(self, stalls: list[tuple[WatchedTask, StoredEntry | None]]) -> None:
        if not stalls:
            return
        at = round(self.store.clock.now(), 3)
        outcomes = self.store.write_entries([self._write(task, progress, at) for task, progress in stalls])
        raise_unanswered(outcomes)
        for (task, progress), outcome in zip(stalls, outcomes):
            self._looks[task.run].suspected = None
            if outcome.status in ("ok", "again"):
                self._report(task, progress)

    def _write(self, task: WatchedTask, progress: StoredEntry | None, at: float) -> EntryWrite:
        """Return the write that notes a stall, if nothing was reported since the progress was read."""
        location, serial = self.store.keys.task_location(task.task_id, PROGRESS), next(self.store.serials)
        if progress is None:
            body = stalled(None, at, round(task.started_at, 3), task.run)
            return EntryWrite(
                location, "run", task.run_key, NOTHING_REPORTED, 0, time.monotonic(), ms(self.ttl), serial, body)
        header = progress.header
        body = stalled(progress.value, at, round(task.started_at, 3), task.run)
        return EntryWrite(
            location, str(header.version), "", header.rank, header.fence, time.monotonic(), header.ttl_ms, serial, body)

    def _report(self, task: WatchedTask, progress: StoredEntry | None) -> None:
        look, since = self._looks[task.run], _reported_at(task, progress)
        look.reported, look.due = True, self.store.clock.now() + task.limit
        logger.warning("Task %s[%s] has stalled: it reported nothing for %.3g s", task.name, task.task_id,
                       self.store.clock.now() - since)
        self.events.emit("task-stalled", task_id=task.task_id, name=task.name, worker_id=self.store.worker_id, since=since)


def _is_running(known: Task, task: WatchedTask) -> bool:
    """Whether a run is recorded as running: it may have ended, or not be recorded yet."""
    stage = known.slots.get(STAGE)
    return stage is not None and stage.header.rank == RUNNING and run_key_of(stage.header.run) == task.run_key


def _progress_in(known: Task, task: WatchedTask) -> StoredEntry | None:
    """Return the progress of a run, or None if it has reported none."""
    progress = known.slots.get(PROGRESS)
    # What another process, or a thread of the task, reported of it by its id has no run.
    return progress if progress is not None and run_key_of(progress.header.run) in (task.run_key, "-") else None


def _is_stalled(progress: StoredEntry | None) -> bool:
    known = None if progress is None else progress_in(progress)
    return known is not None and known["stalled_at"] is not None


def _reported_at(task: WatchedTask, progress: StoredEntry | None) -> float:
    """Return when a run reported something last, or began, in seconds of Redis's clock."""
    known = None if progress is None else progress_in(progress)
    return (known and known["updated_at"]) or round(task.started_at, 3)
