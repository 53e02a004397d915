"""Cancelled tasks in a worker's main process: Celery skips them as it skips revoked ones."""
from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from celery.exceptions import TaskRevokedError

from ..exceptions import TaskCancelled
from ..models.cancellation import Cancellation, ids_of
from .app_manager import AppManager
from .requests import sent_of
from .revokes import RevokedTasks

logger = logging.getLogger(__name__)


class CancelledTasks:
    """Adds what is cancelled to the ids that Celery's worker skips.

    Args:
        revoked: Records what is skipped.
    """

    def __init__(self, memsync: AppManager, revoked: RevokedTasks) -> None:
        self.memsync = memsync
        self.revoked = revoked
        #: The name by which remote control finds this worker; "" if its pool can't terminate a task.
        self.terminates = ""

    def on_new(self, new: Sequence[Cancellation]) -> None:
        """Skip the requests of this worker that are cancelled; terminate those that run, if that is wanted."""
        running = []
        for one in new:
            self.revoked.add(one.id, one.error())
        for request in self.memsync.signals.unended():
            found = self._find(request.id, request.request_dict)
            if found is not None and request.time_start is None:
                self.revoked.skip(request.id, found.error())
            elif found is not None and found.terminate:
                running.append(request.id)
        if running and self.terminates:
            self._terminate(running)

    def receive(self, request: Any) -> None:
        """Take a request that was received, before it gets to the pool."""
        if not self.memsync.signals.has_children:
            _guard(request, self.revoked)
        found = self._find(request.id, request.request_dict)
        if found is not None:
            self.revoked.skip(request.id, found.error())
        elif request.id in self.revoked.known:
            self.revoked.add(request.id)

    def cause_of(self, facts: Mapping[str, Any]) -> TaskCancelled | None:
        """Return why a request was cancelled, None if it was revoked otherwise, or has expired."""
        found = self._find(str(facts.get("id")), facts)
        return None if found is None else found.error()

    def _find(self, task_id: str, facts: Mapping[str, Any]) -> Cancellation | None:
        cancelled = self.memsync.runtime.cancelled
        return cancelled.find(ids_of(task_id, facts, sent_of(facts))) if cancelled.known else None

    def _terminate(self, task_ids: list[str]) -> None:
        """Send this worker Celery's own command, which is carried out in the thread that may do so."""
        try:
            self.memsync.app.control.revoke(task_ids, terminate=True, destination=[self.terminates])
        except Exception:
            logger.warning("Could not terminate %d cancelled tasks", len(task_ids), exc_info=True)


def _guard(request: Any, revoked: RevokedTasks) -> None:
    """Let a request be skipped although Celery has handed it to the pool, where threads and greenlets let it wait."""
    find, accept = weakref.ref(request), type(request).on_accepted

    def accept_unless_revoked(pid: int, time_accepted: float) -> Any:
        accepted: Any = find()  # its pool, which calls this, refers to it
        if accepted.id in revoked.known and accepted.revoked():
            raise _quiet_end(pid)
        return accept(accepted, pid, time_accepted)

    request.on_accepted = accept_unless_revoked


def _quiet_end(pid: int) -> BaseException:
    """Return what ends a thread's job, or a greenlet, whose id takes the place of the pid, without a traceback."""
    is_thread = pid == os.getpid()
    ended: BaseException = TaskRevokedError("cancelled") if is_thread else import_module("greenlet").GreenletExit()
    return ended
