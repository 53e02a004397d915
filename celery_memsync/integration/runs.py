"""The runs of tasks that this process has: those that it has received, and those that run in it."""
from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from celery.exceptions import Ignore, Reject, Retry

from ..exceptions import LockNotAcquired, Skipped
from ..keys import PROGRESS, STAGE, is_id
from ..locking.lock_service import LockService
from ..models.cancellation import ids_of
from ..models.stamps import stamps_of
from ..models.task import TaskRun, describe_exception
from ..reading.cancelled import CancelledIds, Watch
from ..runtime import Runtime
from ..types import ExceptionRecord, LockFacts
from ..writing.changes import Change, DeferredChange, StageChange
from ..writing.progress import Progress
from .app_manager import AppManager
from .requests import count_of, retry_at_of, timestamp, trace_id_of
from .sent_groups import sizes_in
from .steps import Step, Steps, is_member, part_of

#: Seconds that another process's notion of Redis's time may be ahead; what is further ahead comes from a wrong clock.
AHEAD = 1.0

#: What is recorded of a request; keeping the rest of it would keep a task's arguments.
FACTS = ("task", "delivery_info", "eta", "hostname", "retries", "root_id", "parent_id", "group", "group_index", "argsrepr",
         "kwargsrepr", "replaced_task_nesting", "stamped_headers", "stamps", "traceparent")

#: Most characters of shown arguments; a publisher of Celery's shortens them to fewer.
MAX_SHOWN = 4096

_NO_STATUS: tuple[str | None, float] = None, 0.0

_NO_OWNERS: frozenset[LockService] = frozenset()

#: The run that is active in this thread or greenlet.
active_run: ContextVar[ActiveRun | None] = ContextVar("active_run", default=None)


class Run(DeferredChange):
    """A run of a task.  Each kind sets the attributes itself, because one is made for every task.

    Attributes:
        services: What was open when it came: its record may be made while that is being closed.
        facts: What travels with its request.
        sent: The part of that which this package put there.
        at: Monotonic time when it was received, or began.
    """

    __slots__ = ("services", "task_id", "facts", "sent")

    services: Runtime
    task_id: str
    facts: Mapping[str, Any]
    sent: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The Redis key of its task."""
        return self.services.keys.task(self.task_id)

    @property
    def run_id(self) -> str:
        """Its id, as shown."""
        return str(self.sent.get("run") or "")

    @property
    def run_key(self) -> str:
        """Names it, and its place among the runs of its task."""
        return str(self.sent["key"])

    def stage_change(self, fence: int = 0, until: float | None = None, **more: Any) -> StageChange:
        """Return the change that records a stage of it: what is known of it, and more.

        Args:
            until: When the next run begins, in seconds of Redis's clock, if there is one: the record lives past it.
        """
        services = self.services
        known = known_of(services, self.task_id, self.facts, self.sent)
        known.update(more)
        until = known["eta"] if until is None else until
        ttl = services.settings.default_ttl if until is None else lifetime(services, until)
        notes = sizes_in(self.sent) if "sizes" in self.sent else ()
        location = services.keys.task_location(self.task_id, STAGE)
        return StageChange(location, TaskRun.of(known), self.sent["key"], ttl, fence, notes)


class ReceivedRun(Run):
    """A run that a worker's main process has received and gives to its pool; it does not keep the request alive.

    Attributes:
        max_retries: Of its task.
        change: What was recorded of it.
    """

    __slots__ = ("max_retries", "change", "withdrawn")

    def __init__(
        self, services: Runtime, task_id: str, facts: Mapping[str, Any], sent: Mapping[str, Any], at: float,
        max_retries: Any,
    ) -> None:
        self.services = services
        self.task_id = task_id
        self.facts = facts
        self.sent = sent
        self.at = at
        self.max_retries = max_retries
        self.change: Change | None = None
        self.withdrawn = False

    @property
    def done(self) -> bool:
        """Whether nothing follows: the child records the rest."""
        return False

    def changes(self) -> Iterable[Change]:
        """Return that it was received."""
        if not is_id(self.task_id):
            return ()
        self.change = self.stage_change(**received(self.sent, self.facts, self.max_retries))
        return (self.change,)


def received(sent: Mapping[str, Any], facts: Mapping[str, Any], max_retries: Any) -> dict[str, Any]:
    """Return what is known of a run that a worker has received: a retry is RETRY until it begins, as in Celery."""
    if sent.get("retry") is not True:
        return {"status": "RECEIVED"}
    return {"status": "RETRY", "retry_at": timestamp(facts.get("eta")), "max_retries": max_retries}


class Ending(NamedTuple):
    """How a run has ended.

    Attributes:
        at: Monotonic time.
        exception, lock: As in :class:`~celery_memsync.TaskState`.
        retry_at: When it is to be tried again, in seconds of Redis's clock.
        max_retries: Most retries, if it is to be tried again; None: any number.
    """

    status: str
    at: float
    exception: ExceptionRecord | None = None
    lock: LockFacts | None = None
    retry_at: float | None = None
    max_retries: int | None = None


class ActiveRun(Run):
    """A run that is active in this process.

    Args:
        name: Of its task.
        started_at: When it began, on Redis's clock; ``at`` is the same on this process's.

    Attributes:
        outer: The run whose body called this one eagerly, if any.
        find_memsync: Returns ``memsync``; where every call counts.
        fence: Of the lock around its body; 0 for none.
        lock_owners: The services of which it has taken locks.
        ending: How it has ended; None: it has not.
        shown_status: The status that it has reported itself, and until when that is valid, as monotonic time.
        stored_state: The state that its body has stored last by ``update_state``; a SUCCESS stays, as in Celery.
        embed: What comes after it, as its message has it: the rest of its chain, the body of its chord; None: nothing.
        reports: The progress that it has reported; None: none.
    """

    __slots__ = ("find_memsync", "name", "started_at", "outer", "fence", "lock_owners", "ending", "shown_status",
                 "stored_state", "embed", "reports", "_steps", "_cancel_watch")

    def __init__(
        self, memsync: AppManager, services: Runtime, task_id: str, facts: Mapping[str, Any], sent: Mapping[str, Any],
        name: str, at: float, started_at: float,
    ) -> None:
        self.services = services
        self.task_id = task_id
        self.facts = dict(zip(FACTS, map(facts.get, FACTS)))
        self.sent = sent
        self.at = at
        # A deferred change of it waits in the writer, which must not keep the manager alive.
        self.find_memsync = weakref.ref(memsync)
        self.name = name
        self.started_at = started_at
        self.outer = active_run.get()
        self.fence = 0
        self.lock_owners: frozenset[LockService] = _NO_OWNERS
        self.ending: Ending | None = None
        self.shown_status = _NO_STATUS
        self.stored_state: str | None = None
        chain, chord = facts.get("chain"), facts.get("chord")
        # Celery takes the next step out of the list before it sends that.
        self.embed = {"chain": chain[:] if isinstance(chain, list) else None, "chord": chord} if chain or chord else None
        self.reports: Progress | None = None
        self._steps: Mapping[str, Step] | None = None
        self._cancel_watch: Watch | None = None

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps that come after it, by task id."""
        if self._steps is None:
            self._steps = Steps(self.task_id, self.facts.get("group"), self.embed or {}).by_id
        return self._steps

    @property
    def memsync(self) -> AppManager | None:
        """The MemSync of its app, or None if that was collected."""
        return self.find_memsync()

    @property
    def is_redelivered(self) -> bool:
        """Whether its message was delivered before, or sent again because its worker was lost."""
        delivery = self.facts.get("delivery_info")
        return bool(self.sent.get("recoveries") or isinstance(delivery, dict) and delivery.get("redelivered"))

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.ending is not None

    def changes(self) -> Iterable[Change]:
        """Return its end, or that it has begun."""
        ending, until = self.ending, None
        known: dict[str, Any] = {
            "status": "STARTED", "name": self.name, "pid": os.getpid(), "started_at": self.started_at}
        if ending is not None:
            until = ending.retry_at
            known.update(
                status=ending.status,
                lock=ending.lock,
                finished_at=latest(self.services.store.clock.offset + ending.at, self.started_at),
                runtime=ending.at - self.at,
                exception=ending.exception,
                retry_at=until,
                max_retries=ending.max_retries,
            )
        return (self.stage_change(self.fence, until, **known),)

    def end(self, status: str, retval: Any, at: float, max_retries: int | None = None) -> None:
        """Take note of its end.

        Args:
            status: As Celery says.
            retval: What the body returned or raised.
            at: Monotonic time.
            max_retries: As its task has it.
        """
        if isinstance(retval, BaseException):
            exception = None if status == "SUCCESS" else exception_of(retval, self.services.redact)
            retry_at = retry_at_of(retval, self.services.store.clock.at(at))
            status = "SKIPPED" if isinstance(retval, Skipped) else status
            self.ending = Ending(
                status, at, exception, _lock_of(retval), retry_at, max_retries if status == "RETRY" else None)
            if self.reports is not None and retry_at is not None:
                # How far it came is shown beside the next run.
                self.reports.ttl = lifetime(self.services, retry_at)
        else:
            self.ending = Ending(status, at)

    @property
    def cancelled(self) -> CancelledIds:
        """The cancelled ids, as this process knows them; a body may have forked it."""
        memsync = self.find_memsync()
        return (self.services if memsync is None else memsync.runtime).cancelled

    def watch_cancelled(self) -> bool:
        """Let it be known within a second if it is cancelled; return whether that is new."""
        cancelled, watch = self.cancelled, self._cancel_watch
        if watch is not None and watch.ids is cancelled:
            return False
        cancelled.watchers.add(self.name)
        self._cancel_watch = cancelled.watch()
        return True

    def wait_fresh(self) -> None:
        """Return when it is known whether it is cancelled, or Redis does not answer."""
        self.cancelled.wait_fresh(self.at if "received_at" in self.sent else float("-inf"))

    def raise_if_cancelled(self) -> None:
        """Raise :exc:`TaskCancelled` if it is known that it is cancelled."""
        found = self.cancelled.find(ids_of(self.task_id, self.facts, self.sent))
        if found is not None:
            raise found.error()

    def add_lock_owner(self, owner: LockService) -> None:
        """Note that it takes a lock of a service, which releases what is left at its end."""
        self.lock_owners |= {owner}

    @property
    def progress(self) -> Progress:
        """How far it is."""
        progress = self.reports
        if progress is None:
            location = self.services.keys.task_location(self.task_id, PROGRESS)
            settings = self.services.settings
            progress = Progress(
                location, settings.default_ttl, self.run_id, self.run_key, self.at, settings.max_value_size, self.spared,
                self.services.redact)
            progress.fence = self.fence
            # Threads of the task, which do not know the run, report by its id.
            self.services.progress[self.task_id] = progress
            self.reports = progress
        return progress

    @property
    def spared(self) -> str | None:
        """The name of its task if a bad value that it reports must not fail it; None: it is raised."""
        memsync = self.memsync
        return None if memsync is None or memsync.strict else self.name

    def set_fence(self, fence: int) -> None:
        """Write under the fence of a lock from now on: a run that has lost it is refused then."""
        if self.fence:
            return
        self.fence = fence
        if self.reports is not None:
            self.reports.fence = fence
        if (memsync := self.memsync) is not None:
            memsync.runtime.writer.defer(self)


def known_of(services: Runtime, task_id: str, facts: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a run by its request.

    Args:
        facts: What travels with the request.
        sent: The part of it that this package put there.
    """
    root_id, parent_id, group = facts.get("root_id"), facts.get("parent_id"), facts.get("group")
    retries, eta, recoveries = facts.get("retries"), facts.get("eta"), sent.get("recoveries")
    traceparent = facts.get("traceparent")  # most tasks lack these, which are checked only if they are there
    known = {
        "name": facts.get("task"),
        "queue": sent.get("queue"),
        "worker": facts.get("hostname") or services.worker_id,
        "run": sent.get("run"),
        "retries": (count_of(retries) or 0) if retries else 0,
        # They come with the message, so they may be anything; a task that retries is its own parent to Celery.
        "root_id": root_id if root_id == task_id or is_id(root_id) else task_id,
        "parent_id": parent_id if parent_id != task_id and parent_id is not None and is_id(parent_id) else None,
        "group": group if group is not None and is_member(facts, sent) and is_id(group) else None,
        "eta": None if eta is None else timestamp(eta),
        "published_at": sent.get("published_at"),
        "received_at": sent.get("received_at"),
        "recoveries": count_of(recoveries) if recoveries else None,
        "trace_id": None if traceparent is None else trace_id_of(traceparent),
    }
    if "workflow" in sent:
        known.update(part_of(sent))
    if facts.get("stamped_headers"):
        known["stamps"] = stamps_of(facts["stamped_headers"], facts.get("stamps"))
    if services.settings.task_args:
        known.update(args=_cut(facts.get("argsrepr")), kwargs=_cut(facts.get("kwargsrepr")))
    return known


def lifetime(services: Runtime, eta: float | None) -> float:
    """Return the ttl of a record, in seconds: one with an ETA, in seconds of Redis's clock, lives past it."""
    ttl = services.settings.default_ttl
    return ttl if eta is None else ttl + max(0.0, eta - services.store.clock.now())


def latest(moment: float, earlier: Any) -> float:
    """Return a moment, or an earlier one of another process whose clock is milliseconds ahead."""
    return earlier if isinstance(earlier, (int, float)) and moment < earlier < moment + AHEAD else moment


def exception_of(error: BaseException, redact: Callable[[str], str] | None) -> ExceptionRecord | None:
    """Return what to record of an exception: the cause of a retry, nothing of an Ignore without arguments.

    Args:
        redact: As for :func:`~celery_memsync.models.task.describe_exception`.
    """
    if isinstance(error, Retry) and isinstance(error.exc, BaseException):
        error = error.exc
    described = describe_exception(error, redact)
    return described if described["message"] or not isinstance(error, (Ignore, Reject)) else None


def _cut(text: Any) -> str | None:
    return text[:MAX_SHOWN] if isinstance(text, str) else None


def _lock_of(error: BaseException) -> LockFacts | None:
    """Return what to record of the lock that held a run back, or None if none did."""
    if isinstance(error, Skipped):
        return error.lock
    cause = error.exc if isinstance(error, Retry) else error
    return cause.facts if isinstance(cause, LockNotAcquired) else None
