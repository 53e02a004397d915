"""Cancelled tasks in a worker's main process: Celery skips them as it skips revoked ones."""
from __future__ import annotations

import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celery.exceptions import TaskRevokedError

from ..exceptions import TaskCancelled
from ..models.cancellation import Cancellation, ids_of
from ..reading.cancelled import CancelledIds
from .app_manager import AppManager
from .child_outcomes import unwrapped, verdict
from .requests import reserved_requests, sent_of
from .revokes import RevokedTasks

if TYPE_CHECKING:
    from celery.worker import WorkController

logger = logging.getLogger(__name__)


class CancelledTasks:
    """Adds what is cancelled to the ids that Celery's worker skips.

    Args:
        revoked: Records what is skipped.
    """

    def __init__(self, memsync: AppManager, revoked: RevokedTasks) -> None:
        self.memsync = memsync
        self.revoked = revoked
        #: Returns this worker; None if its pool can't terminate a task.
        self.terminating: Callable[[], WorkController | None] | None = None

    def on_new(self, new: Sequence[Cancellation]) -> None:
        """Skip the requests of this worker that are cancelled; terminate those that run, if that is wanted."""
        for one in new:
            self.revoked.add(one.id, one.error())
        for request in self.memsync.signals.requests.waiting():
            self._skip(request)
        worker = self.terminating() if self.terminating is not None else None
        if worker is not None and any(one.terminate for one in new):
            self._terminate_soon(worker)

    def receive(self, request: Any) -> None:
        """Take a request that was received, before it gets to the pool."""
        if not self.memsync.signals.has_children:
            _guard(request, self.revoked)
        if not self._skip(request) and request.id in self.revoked.known:
            self.revoked.add(request.id)

    def cause_of(self, facts: Mapping[str, Any]) -> TaskCancelled | None:
        """Return why a request was cancelled, None if it was revoked otherwise, or has expired."""
        found = self._find(facts.get("id"), facts, waits=True)
        return None if found is None else found.error()

    def _find(self, task_id: Any, facts: Mapping[str, Any], waits: bool) -> Cancellation | None:
        cancelled = self.memsync.runtime.cancelled
        return cancelled.find(ids_of(task_id, facts, sent_of(facts), waits)) if cancelled.known else None

    def _skip(self, request: Any) -> bool:
        """Let Celery not run a request if it is cancelled; return whether it is."""
        found = self._find(request.id, request.request_dict, waits=True)
        if found is not None:
            _revoke(request, self.revoked)
            self.revoked.skip(request.id, found.error())
        return found is not None

    def _terminate_soon(self, worker: WorkController) -> None:
        """Terminate what runs, in the thread that may do so; greenlets may do it in any."""
        terminate = functools.partial(self._terminate, worker)
        if self.memsync.signals.has_children:
            worker.consumer.call_soon(terminate)
        else:
            terminate()

    def _terminate(self, worker: WorkController) -> None:
        signals, cancelled = self.memsync.signals, self.memsync.runtime.cancelled
        for request in filter(reserved_requests().__contains__, signals.requests.unended()):
            facts = request.request_dict
            is_wanted = any(one.terminate for one in cancelled.find_all(ids_of(request.id, facts, sent_of(facts))))
            # One that the pool has and has not begun is terminated when it begins.
            if is_wanted and (signals.has_children or request.time_start is not None):
                logger.info("Terminating the cancelled task %s", request.id)
                try:
                    request.terminate(worker.pool)
                except Exception:
                    logger.warning("Could not terminate the cancelled task %s", request.id, exc_info=True)


def send_revoked_event(request: Any, error: BaseException) -> None:
    """Send Celery's monitors the event of a revoked task if that was cancelled: Celery has none for an ``Ignore``.

    Args:
        error: What its body raised.
    """
    if isinstance(unwrapped(error), TaskCancelled) and verdict(error)[0] == "REVOKED":
        request.send_event("task-revoked", terminated=False, signum=None, expired=False)


def _revoke(request: Any, revoked: RevokedTasks) -> None:
    """Let Celery find that a request is revoked whenever it looks: it keeps revoked ids for three hours only."""
    find, look = weakref.ref(request), type(request).revoked

    def is_revoked() -> Any:
        asked: Any = find()
        revoked.known.add(asked.id)
        return look(asked)

    request.revoked = is_revoked


#: What the workers of this process follow.
_followed: list[weakref.ref[CancelledIds]] = []


def catch_up_after_pauses(cancelled: CancelledIds) -> None:
    """Let Celery find what was cancelled while this worker was paused before it hands on a task that had waited."""
    from celery.worker.request import Request  # which a producer does without

    _followed[:] = [*(find for find in _followed if find() is not None), weakref.ref(cancelled)]
    revoked = Request.revoked
    if hasattr(revoked, "catches_up"):
        return

    @functools.wraps(revoked)
    def look(self: Any) -> Any:
        now = time.monotonic()
        for find in _followed:  # and no further call, for this is done for every task
            followed = find()
            if followed is not None and now > followed.stale_at:
                followed.catch_up()
        return revoked(self)

    look.catches_up = True  # type: ignore[attr-defined]
    Request.revoked = look


def _guard(request: Any, revoked: RevokedTasks) -> None:
    """Let a request be skipped although Celery has handed it to the pool, where threads and greenlets let it wait."""
    find, accept = weakref.ref(request), type(request).on_accepted

    def accept_unless_revoked(pid: int, time_accepted: float) -> Any:
        accepted: Any = find()  # its pool, which calls this, refers to it
        for followed in filter(None, (find() for find in _followed)):
            followed.catch_up()
        if accepted.id in revoked.known and accepted.revoked():
            raise _quiet_end(pid)
        return accept(accepted, pid, time_accepted)

    request.on_accepted = accept_unless_revoked


def _quiet_end(pid: int) -> BaseException:
    """Return what ends a thread's job, or a greenlet, whose id takes the place of the pid, without a traceback."""
    is_thread = pid == os.getpid()
    ended: BaseException = TaskRevokedError("cancelled") if is_thread else import_module("greenlet").GreenletExit()
    return ended
