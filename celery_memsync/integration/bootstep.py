"""The heartbeat's place in a Celery worker."""
from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import click
from celery import bootsteps, signals
from celery.exceptions import ImproperlyConfigured
from celery.utils.nodenames import node_format
from celery.worker import state
from celery.worker.control import Panel

from ..deadline import remaining, within
from ..exceptions import InvalidKey, StoreError
from ..fleet.heartbeat import Heartbeat
from ..fleet.history import HistoryWriter
from ..fleet.lost_workers import LostWorkerMonitor
from ..fleet.probe_file import ProbeFile
from ..fleet.stalled_tasks import StallMonitor
from ..keys import check_id
from ..models.worker import WorkerRecord
from ..settings import Settings
from ..store import HeartbeatReply
from ..store.clock import UNNOTICED
from .app_manager import AppManager
from .cancels import catch_up_after_pauses
from .revokes import record_received_revokes
from .task_attributes import check_tasks
from .worker_report import VERSIONS, WorkerInspector

if TYPE_CHECKING:
    from celery.worker import WorkController

logger = logging.getLogger(__name__)

#: Seconds that a leaving worker waits for its reports of others that are lost; another one goes on with it.
LOSSES_TIMEOUT = 0.5

#: Name of the thread in which a worker leaves whose process goes on.
GOODBYE = "memsync-goodbye"


class WorkerMisconfigured(ImproperlyConfigured, click.ClickException):  # type: ignore[misc]
    """A worker can't start with its settings: ``celery worker`` prints this as its one error, without a traceback."""


class HeartbeatStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Send heartbeats from the start to the very end of a worker.

    Celery stops this step before the pool has finished its last tasks, and a
    cold shutdown sends no signal, so the heart stops at ``worker_shutdown``,
    when a cold shutdown has ended, or at the exit of the process, whichever comes
    first, and not in ``stop``.
    """

    requires = ("celery.worker.components:Pool",)
    label = "MemSync"

    def __init__(self, parent: WorkController, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.memsync: AppManager = parent.app.memsync
        settings = self._check(parent)
        self._describer = WorkerInspector(parent, self.memsync)
        self._kept = self.memsync.signals.kept
        self._losses = LostWorkerMonitor(
            self.memsync.runtime.store, self.memsync.events, settings.worker_ttl,
            running_tasks=self.memsync.signals.running_tasks, settled=self.memsync.signals.requeuer.settle)
        self._stalls = StallMonitor(
            self.memsync.runtime.store, self.memsync.events, self._describer.watched_tasks, settings.batch_interval,
            settings.default_ttl)
        self._heartbeat = Heartbeat(
            self.memsync.runtime.store, self._before_heartbeat, settings.heartbeat_interval,
            ttl=max(settings.default_ttl, 2 * settings.worker_ttl), timeout=settings.worker_ttl, on_reply=self._on_reply,
        )
        self._history = HistoryWriter(self.memsync.runtime.store, settings.history)
        path = settings.probe_file
        self._probe_file = None if path is None else ProbeFile(node_format(path, parent.hostname))
        self._left = False
        self._leaving = threading.RLock()
        self._refreshed = time.monotonic()
        self._is_recorded = False
        #: Seconds that Redis's time was ahead of this host's monotonic time at the last heartbeat.
        self._offset = float("inf")

    def _check(self, parent: WorkController) -> Settings:
        """Return the settings.

        Raises:
            WorkerMisconfigured: One of them, or an attribute of a task, is wrong.
        """
        try:
            settings = self.memsync.settings
            if settings.enabled:
                check_tasks(parent.app.tasks)
                self.memsync.signals.requeuer.check()
        except ImproperlyConfigured as exc:
            raise WorkerMisconfigured(f"celery-memsync: {exc} (ImproperlyConfigured)") from exc
        return settings

    def include_if(self, parent: WorkController) -> bool:
        """Whether this takes part: not if ``memsync_enabled`` is False, or if the worker's name can't be a key."""
        if not self.memsync.enabled:
            return False
        try:
            check_id(self.memsync.worker_id, "worker")
        except InvalidKey as exc:
            logger.warning("celery-memsync sends no heartbeats of this worker, so it is not listed, its tasks are "
                           "not found if it is lost, and its messages are not renewed at a Redis broker: %s. Choose another "
                           "name with -n", exc)
            return False
        return True

    def start(self, parent: WorkController) -> None:
        """Send heartbeats from now on."""
        self._pid = os.getpid()
        # Only the pool of processes counts them by a semaphore.
        self.memsync.signals.has_children = bool(getattr(parent.pool, "uses_semaphore", False))
        record_received_revokes(Panel)
        self.memsync.signals.revoked.known = state.revoked
        self._follow_cancelled(parent)
        self._follow_soft_shutdown(parent)
        self._describer.count_messages()
        signals.worker_shutdown.connect(self._on_shutdown, sender=parent)
        signals.worker_ready.connect(self._on_ready)
        atexit.register(self._leave)
        if self.memsync.settings.renew_visibility:
            self._describer.renewal.start()
        self._heartbeat.start()

    def _follow_cancelled(self, parent: WorkController) -> None:
        """Read which ids are cancelled, before the worker consumes."""
        cancels, cancelled = self.memsync.signals.cancels, self.memsync.runtime.cancelled
        if self.memsync.signals.has_children or getattr(parent.pool, "is_green", False):
            cancels.terminating = weakref.ref(parent)
        catch_up_after_pauses(cancelled)
        try:
            within(self.memsync.settings.timeout, cancelled.follow, cancels.on_new)
        except StoreError:
            cancelled.request()  # a thread tries again, and logs that Redis is away

    def _follow_soft_shutdown(self, parent: WorkController) -> None:
        """Close when a soft shutdown begins: Celery waits in it before it closes its steps, and sends no signal."""
        wait = parent.wait_for_soft_shutdown

        def close_and_wait() -> None:
            self.close(parent)
            wait()

        parent.wait_for_soft_shutdown = close_and_wait

    def _log_start(self) -> None:
        memsync = self.memsync
        logger.info(
            "celery-memsync %s records worker %s in Redis at %s (from %s), namespace %s; celery %s, redis-py %s",
            VERSIONS["celery-memsync"], memsync.worker_id, memsync.runtime.store.address, memsync.backend_source,
            memsync.settings.namespace, VERSIONS["celery"], VERSIONS["redis-py"])

    def _on_ready(self, sender: Any, **_: Any) -> None:
        """Report at once that messages are taken from now on."""
        if getattr(sender, "controller", None) is self._describer.worker:
            self._heartbeat.run_now()

    def close(self, parent: WorkController) -> None:
        """Record that the worker takes no more tasks; the heartbeats go on."""
        self._describer.draining = True
        self._heartbeat.run_now()

    def stop(self, parent: WorkController) -> None:
        """Do nothing: the pool may still be running."""

    def terminate(self, parent: WorkController) -> None:
        """Leave when the worker has ended: its process may go on, as with the workers of Celery's tests."""
        self._describer.renewal.stop()  # what it does not finish is for other workers
        threading.Thread(
            target=self._leave_after, args=(parent.blueprint.shutdown_complete,), name=GOODBYE, daemon=True,
        ).start()

    def _leave_after(self, ended: threading.Event) -> None:
        ended.wait()
        self._leave()

    def _before_heartbeat(self) -> WorkerRecord:
        """Return the record to write; write the running tasks again in time, so that long ones do not expire."""
        if time.monotonic() - self._refreshed > self.memsync.settings.default_ttl / 3:
            self._refresh()
        if not self.memsync.runtime.store.clock.measured:
            self.memsync.runtime.store.connect()  # times in the first record are Redis's, too
        record = self._describer.describe()
        self._write_probe_file(record)
        return record

    def _refresh(self) -> None:
        """Write again what Redis may have lost, or will soon: the records and messages of running tasks."""
        self._refreshed = time.monotonic()
        self.memsync.signals.refresh()
        self._losses.schedule_recheck()
        self._kept.refresh()
        self.memsync.runtime.cancelled.request()

    def _has_lost(self, reply: HeartbeatReply) -> bool:
        """Return whether Redis may have lost what it had: this worker, or by a clock that was set ahead what expires."""
        offset = reply.at - time.monotonic()
        is_ahead = offset > self._offset + UNNOTICED
        self._offset = offset
        return reply.status != "ok" or is_ahead

    def _write_probe_file(self, record: WorkerRecord) -> None:
        if self._probe_file is not None and not self._left:
            consuming = bool(record.consuming) or record.status == "draining"
            self._probe_file.write(self._heartbeat.timeout * self._heartbeat.stretch, consuming)

    def _on_reply(self, reply: HeartbeatReply) -> None:
        if not self._is_recorded:
            self._is_recorded = True
            self._log_start()
        if self._probe_file is not None:
            self._probe_file.note_reply()
        if reply.went_back:
            logger.info("Redis was restarted or may have lost data: recording the running tasks of this worker anew")
            self.memsync.runtime.locks.renew_now()
        if self._has_lost(reply) or reply.went_back:
            self._refresh()
        self._losses.note_reply(reply)
        self._stalls.note_reply(reply)
        self._history.note(reply.at)

    def _on_shutdown(self, **_: Any) -> None:
        self._leave()

    def _say_goodbye(self) -> None:
        self._losses.stop(min(LOSSES_TIMEOUT, remaining()))
        self._stalls.stop(min(LOSSES_TIMEOUT, remaining()))
        self._describer.depths.stop()
        self._history.stop(0)
        self._describer.renewal.stop()
        for thread in (self.memsync.signals.revoked, self.memsync.signals.revived):
            thread.stop(min(LOSSES_TIMEOUT, remaining()))
        try:
            self._heartbeat.stop(remaining(), goodbye=not self._kept.has_orphans)
            self._kept.close(remaining())
        except StoreError as exc:
            logger.warning("Could not record that this worker has left; it is shown as lost when its heartbeat is "
                           "overdue: %s", exc)
        self.memsync.shutdown(remaining())

    def _leave(self) -> None:
        """Mark the worker as offline and write what is pending; return when that is done, in whichever thread."""
        if os.getpid() != self._pid:
            return
        with self._leaving:
            if not self._left:
                self._left = True
                try:
                    self._end()
                finally:
                    # Not earlier: the exit of the process waits here for a thread that is saying it.
                    atexit.unregister(self._leave)

    def _end(self) -> None:
        self.memsync.signals.report_lost_outcomes()
        self.memsync.signals.give_up_running()
        within(self.memsync.time_to_leave, self._say_goodbye)
        if self._probe_file is not None:
            self._probe_file.remove()
