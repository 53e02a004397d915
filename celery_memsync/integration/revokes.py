"""Revokes: recorded where one is sent, and where a worker receives one."""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

from celery.app.control import Control

from ..background_loop import BackgroundLoop
from ..exceptions import TaskCancelled
from ..fleet.dependents import cancellations
from ..keys import STAGE, is_id, new_token
from ..models.entry import StoredEntry
from ..models.order import PLANNED, WAITING
from ..models.task import TaskRun, describe_exception
from ..store import in_chunks
from ..user_code import ends_here
from .app_manager import AppManager

logger = logging.getLogger(__name__)

#: Most revoked tasks that wait to be looked at; a worker remembers as many.
MAX_REVOKED = 50_000

#: Seconds after the next batch when a revoked task is read: its worker may record only now that it runs, its sender that it
#: is pending, and another worker may receive it.
LOOKS = (0.3, 1.2, 4.0)

#: Tasks that are read and written in one round trip.
TASKS_PER_CALL = 100

#: What is revoked in a process that is no worker; ids may be anything, also what no set can hold.
NOTHING: Any = ()

#: Name of the field of a task's state with the time when a revoke was sent, in seconds of Redis's clock.
REQUESTED_AT = "revoke_requested_at"


class RevokedTasks:
    """Records as revoked what a worker is not to run: pending tasks, here or elsewhere.

    It works in a thread of its own: the worker's consumer must not wait for Redis.
    """

    def __init__(self, memsync: AppManager) -> None:
        self.memsync = memsync
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: what the parent has received it records itself."""
        #: When the next batch after the revoke of each task is sent (monotonic), how often it was looked at since, and why
        #: it was cancelled, if it was.
        self._looks: dict[str, tuple[float, int, TaskCancelled | None]] = {}
        #: Ids of the tasks that this worker is not to run; Celery's.
        self.known = NOTHING
        self._thread = BackgroundLoop("memsync-revokes", self.record, 0, on_demand=True)

    def add(self, task_ids: Any, cause: TaskCancelled | None = None) -> None:
        """Take the ids that a revoke names, which may be anything, or those of cancelled tasks."""
        batch = time.monotonic() + self.memsync.settings.batch_interval
        for task_id in task_ids if isinstance(task_ids, (list, tuple, set, frozenset)) else [task_ids]:
            if is_id(task_id) and len(self._looks) < MAX_REVOKED:
                self._looks[task_id] = batch, 0, cause
        if self._looks:
            self._thread.wake()

    def skip(self, task_id: str, cause: TaskCancelled) -> None:
        """Let Celery not run a task of this worker, which is cancelled."""
        if self.known is not NOTHING:  # not by !=, for before 5.7 Celery's set can be compared with its like only
            self.known.add(task_id)
            self.add([task_id], cause)

    def stop(self, timeout: float) -> None:
        """Record no more; return after ``timeout`` seconds at the latest."""
        self._thread.stop(timeout)

    def record(self) -> float | None:
        """Look at those for which it is time; return in how many seconds to look again.

        Raises:
            StoreError: If Redis is away; the next call does the rest.
        """
        now = time.monotonic()
        due = {task_id: look for task_id, look in self._looks.copy().items() if now >= look[0] + LOOKS[look[1]]}
        for chunk in in_chunks(due, TASKS_PER_CALL):
            self._record({task_id: due[task_id][2] for task_id in chunk})
            for task_id in chunk:
                since, number, cause = due[task_id]
                if self._looks.get(task_id) == due[task_id]:  # unless it was revoked once more meanwhile
                    self._looks[task_id] = since, number + 1, cause
                    if number + 1 == len(LOOKS):
                        self._looks.pop(task_id, None)
        times = [since + LOOKS[number] for since, number, _ in self._looks.copy().values()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _record(self, causes: Mapping[str, TaskCancelled | None]) -> None:
        store = self.memsync.runtime.store.with_token(new_token())
        # What runs here may not be recorded yet.
        begun = {one.id for one in self.memsync.signals.requests.unended() if one.time_start is not None}
        waiting = [task_id for task_id in causes if task_id not in begun]
        ended: dict[str, TaskRun] = {}
        # Each at the version that was read, for a run may begin meanwhile; then it is looked at again.
        while waiting:
            stages = [task.slots.get(STAGE) for task in store.read_tasks(waiting)]
            rows = [(task_id, stage, run) for task_id, stage in zip(waiting, stages) if stage is not None
                    and (run := self._revoked(stage, task_id, store.clock.now(), causes[task_id])) is not None]
            results = store.write_entries([
                store.stage_write(task_id, stage, run, str(stage.header.version))
                for task_id, stage, run in rows])
            waiting = [task_id for (task_id, *_), result in zip(rows, results) if result.status == "conflict"]
            ended.update((task_id, run) for (task_id, _, run), result in zip(rows, results)
                         if result.status in ("ok", "again"))
        store.write_entries(cancellations(store, ended.items()))

    def _revoked(self, stage: StoredEntry, task_id: str, now: float, cause: TaskCancelled | None) -> TaskRun | None:
        """Return a run as it is revoked, or None if the task is running, or has ended."""
        run = TaskRun.read(stage, task_id)
        if run is None or stage.header.rank not in (*WAITING, PLANNED) and run.status != "RETRY":
            return None
        exception = run.exception if cause is None else describe_exception(cause, self.memsync.runtime.redact)
        never_ran = run.never_ran is not None or None
        return run.evolve(status="REVOKED", finished_at=now, exception=exception, never_ran=never_ran)


def record_received_revokes(panel: Any) -> None:
    """Let the workers of this process record the revokes that they receive.

    Args:
        panel: Celery's remote control commands; there is no signal.
    """
    for name in ("revoke", "terminate"):
        command = panel.data[name]
        if not hasattr(command, "records_revokes"):
            panel.data[name] = _recording(command)


def _recording(command: Any) -> Any:
    @functools.wraps(command)
    def record(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = command(state, *args, **kwargs)
        memsync = getattr(state.app, "memsync", None)
        if isinstance(memsync, AppManager) and memsync.enabled:
            memsync.signals.revoked.add(kwargs.get("task_id"))
        return answer

    record.records_revokes = True  # type: ignore[attr-defined]
    return record


def record_sent_revokes() -> None:
    """Let ``app.control.revoke`` of every app with a memory record when it was called; there is no signal."""
    if hasattr(Control.revoke, "records_revokes"):
        return
    revoke = Control.revoke

    @functools.wraps(revoke)
    def record(self: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
        memsync = getattr(self.app, "memsync", None)
        if isinstance(memsync, AppManager):
            _record_request(memsync, task_id)
        return revoke(self, task_id, *args, **kwargs)

    record.records_revokes = True  # type: ignore[attr-defined]
    Control.revoke = record


def _record_request(memsync: AppManager, task_ids: Any) -> None:
    try:
        if not memsync.enabled:
            return
        now = round(memsync.runtime.store.clock.now(), 3)
        for task_id in task_ids if isinstance(task_ids, (list, tuple, set, frozenset)) else [task_ids]:
            if is_id(task_id):
                memsync.sync_task_state(task_id, {REQUESTED_AT: now})
    except Exception as exc:
        if not ends_here(exc):
            raise
        logger.warning("Could not record when a revoke was sent", exc_info=True)
