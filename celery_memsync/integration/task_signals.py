"""Celery's signals: each stage of a task is recorded without changing the task."""
from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from celery.exceptions import Ignore, NotRegistered, WorkerLostError

from ..fleet.kept_messages import KeptMessages
from ..fleet.queue_names import QueueNames
from ..fleet.requeue import REQUEUE, TaskRequeuer
from ..keys import STAGE, is_id
from ..models.order import FIRST_STEP, delivered_key, is_delivered, published_key
from ..models.task import TaskRun, describe_exception
from ..store.clock import UNKNOWN
from ..writing.changes import StageChange
from . import earlier_progress, signal_receivers
from .app_manager import AppManager
from .cancels import CancelledTasks, send_revoked_event
from .child_outcomes import KILLED, ChildOutcomes, TaskOutcome, has_ended, unwrapped
from .endings import HARMLESS, REPLACED, end_of_ignored, end_of_unwound, is_unstored, log_unrecorded, stored_state
from .requests import HEADER, RECORDED, ReceivedRequests, UnfitIds, count_of, failing, nesting_of, sent_of
from .revived_steps import RevivedSteps
from .revokes import RevokedTasks
from .runs import ActiveRun, ReceivedRun, active_run, known_of, latest, lifetime, received
from .sent_groups import sent_group, sizes_in
from .steps import embed_in
from .update_state import take_over
from .workflows import Workflows, record_unsent, replaced_key

logger = logging.getLogger(__name__)

#: The app that is sending a task; the signals of publishing do not name it.
publishing: ContextVar[Any] = ContextVar("publishing", default=None)

#: Shortest time between two tasks that are published, in seconds.
MOMENT = 0.0001

class TaskSignals:
    """Records the stages of one app's tasks.

    Signals of other apps in the same process are passed over.  Ids that are
    not fit for a key are passed over too: recording never hurts a task.
    """

    def __init__(self, memsync: AppManager) -> None:
        self.memsync = memsync
        #: When the last task was published.
        self._published_at = 0.0
        self.requests = ReceivedRequests()
        self._unfit_ids = UnfitIds()
        #: Whether the pool of the worker in this process has processes of its own; only there a pid is one.
        self.has_children = False
        #: What the tasks of the pool's children came to lately.
        self._outcomes = ChildOutcomes()
        self._queue_names = QueueNames(lambda: self.memsync.app.amqp.queues)
        #: Requeues the tasks of lost workers.
        self.requeuer = TaskRequeuer(memsync, HEADER)
        #: The messages of this worker that are requeued if it is lost.
        self.kept = KeptMessages(memsync, HEADER, self.requeuer.wanted)
        #: Records the revokes that this worker receives.
        self.revoked = RevokedTasks(memsync)
        #: Skips what is cancelled.
        self.cancels = CancelledTasks(memsync, self.revoked)
        #: Records steps that are not sent yet; those of lost tasks that run again.
        self.workflows = Workflows()
        self.revived = RevivedSteps(memsync)

    def connect(self) -> None:
        """Receive signals from now on, for as long as this object is referred to."""
        signal_receivers.connect(self)

    def disconnect(self) -> None:
        """Receive no more signals."""
        signal_receivers.disconnect(self)

    def forget(self) -> None:
        """Begin anew in a forked child: requests and outcomes are the parent's."""
        self.requests = ReceivedRequests()
        self._outcomes = ChildOutcomes()
        self.requeuer.forget()
        self.kept.forget()
        self.revoked.forget()
        self.revived.forget()

    # -- where a task is sent

    def on_publish(self, headers: Any = None, body: Any = None, **_: Any) -> None:
        """Let travel with the message when it was published, and which run it comes from."""
        if isinstance(headers, dict) and "id" in headers and publishing.get() is self.memsync.app:
            active = self._active(headers["id"])
            # Of a run whose child was lost, the worker's main process publishes the retry.
            request = self.requests.find(headers["id"], {}) if headers.get("retries") and not active else None
            before = active.run_key if active else request and request.request_dict[HEADER]["key"]
            origin = active.facts if active else request and request.request_dict
            along = self.workflows.sent_along(headers, body, active.sent if active else sent_of(origin) if origin else None)
            key = published_key(next(self.memsync.runtime.new_runs), before or replaced_key(headers["id"], along))
            along.update(published_at=self._next_moment(), key=key, **earlier_progress.sent_along(active))
            headers[HEADER] = along
            if origin and nesting_of(headers) == nesting_of(origin):
                headers[HEADER]["retry"] = True  # and not a replacement, of which Celery counts how deep it is

    def _next_moment(self) -> float:
        """Return Redis's time, later than the last: it is the order in which tasks wait."""
        now = round(self.memsync.runtime.store.clock.now(), 4)
        if now <= self._published_at < now + 1.0:
            now = round(self._published_at + MOMENT, 4)
        self._published_at = now
        return now

    def on_published(
        self, headers: Any = None, body: Any = None, exchange: Any = None, routing_key: Any = None, **_: Any,
    ) -> None:
        """Record that a task is pending; a retry is recorded by the run that requests it."""
        if not isinstance(headers, dict) or HEADER not in headers or headers.get("retries") or \
                publishing.get() is not self.memsync.app or self._active(headers["id"]):
            return
        known = known_of(self.memsync.runtime, headers["id"], headers, headers[HEADER])
        delivery = {"exchange": getattr(exchange, "name", exchange), "routing_key": routing_key}
        known.update(status="PENDING", worker=None, queue=self._queue_names.of(delivery))
        run, group, sent = TaskRun.of(known), sent_group.get(), headers[HEADER]
        self._record(headers["id"], sent["key"], run, sizes_in(sent) if group is None else group.notes(run))
        if "workflow" in headers[HEADER]:
            self.workflows.record(self.memsync.runtime, run, headers["id"], body)

    # -- where it is received: a worker's main process

    def on_received(self, request: Any, sender: Any = None, **_: Any) -> None:
        """Make the run, send it to the pool with the request, record that a worker has it."""
        if request.app is not self.memsync.app:
            return
        facts, services = request.request_dict, self.memsync.runtime
        sent, run, moment = sent_of(facts), next(services.new_runs), time.monotonic()
        now = latest(services.store.clock.offset + moment, sent.get("published_at"))
        facts[HEADER] = sent = {
            **sent, "run": run, "key": delivered_key(sent.get("key"), run), "received_at": now, "monotonic": moment,
            "pid": os.getpid(), "queue": self._queue_names.of(request.message.delivery_info, sender)}
        requests = self.requests.by_run
        requests[run] = weakref.ref(request, partial(requests.pop, run))
        task = request.task
        received = ReceivedRun(services, request.id, facts, sent, moment, task.max_retries)
        # There is no signal in this process for what comes back from the pool.
        request.on_success = partial(self.on_outcome, received, request, request.on_success)
        request.on_failure = partial(self.on_lost, received, request, request.on_failure)
        if isinstance(request.id, str):
            services.writer.defer(received)
        recover = getattr(task, "memsync_recover", None) or services.settings.recover
        if recover == REQUEUE or sent.get("recoveries") or facts["delivery_info"]["redelivered"]:
            self._keep(request, sent, sender)
        if services.cancelled.known or not self.has_children:  # Celery has looked at what is revoked
            self.cancels.receive(request)

    def _keep(self, request: Any, sent: Mapping[str, Any], consumer: Any) -> None:
        """Keep the message of a request, if it is to be requeued; let what comes after one that was begin again."""
        with HARMLESS:
            recoveries = count_of(sent.get("recoveries")) or 0
            if is_id(request.id):
                self.kept.add(request, sent["run"], sent["key"], recoveries, self.memsync.settings, consumer)
                if recoveries or request.delivery_info["redelivered"]:
                    self.revived.receive(request)

    def on_outcome(self, run: ReceivedRun, request: Any, go_on: Callable[..., Any], outcome: Any, **more: Any) -> Any:
        """Keep the outcome of a body, which its child records, or this process if the child is killed first."""
        del request.on_success, request.on_failure  # which lead to the request
        run.withdrawn = True
        try:  # and not HARMLESS: that takes twice the time, in the one process that all tasks go through
            services = run.services
            if run.change is not None:
                run.change.withdrawn = True
            if run.sent["run"] in self.kept.by_run:
                self.kept.end(run.run_id)
            if self.has_children or outcome != KILLED:
                setattr(request, RECORDED, True)
            # Celery's own callback can't take what comes back of a body that raised no Exception.
            if self.has_children and isinstance(outcome, tuple):
                is_there = services.writer.report.connected
                self._outcomes.remember(request, run, outcome, services.settings.batch_interval, is_there)
            if isinstance(outcome, tuple) and outcome[0] and is_id(run.task_id):
                send_revoked_event(request, outcome[1].exception)
                self.workflows.record_outcome(services, request, run, outcome[1].exception)
        except Exception as exc:
            log_unrecorded(exc)
        run.facts = {}
        return go_on(outcome, **more)

    def on_lost(self, run: ReceivedRun, request: Any, fail: Callable[..., Any], error: Any, *args: Any, **more: Any) -> Any:
        """Record a run whose body could not end, if Celery sends no signal: its child was lost, or killed for its time."""
        del request.on_success, request.on_failure
        run.withdrawn = True
        cause = unwrapped(error.exception)
        with HARMLESS:
            self.kept.end(run.run_id)
        token = failing.set(request)
        try:
            answer = fail(error, *args, **more)
        except Exception:
            # Before 5.7 Celery can't store some errors in its result backend, and then sends no signal.
            with HARMLESS:
                self._end(request.id, request.request_dict, "FAILURE", cause)
            raise
        finally:
            failing.reset(token)
        with HARMLESS:
            if isinstance(cause, WorkerLostError) and not hasattr(request, RECORDED):
                self._report_lost(request, cause)
        return answer

    def _report_lost(self, request: Any, error: BaseException) -> None:
        """Record a run whose child was killed, if Celery sends no signal: it had stored a success, or runs again."""
        stored = not request.ignore_result and stored_state(request.task, request.id) == "SUCCESS"
        self._end(request.id, request.request_dict, "SUCCESS" if stored else "LOST", None if stored else error, True)

    def report_lost_outcomes(self, alive: Iterable[int] = ()) -> None:
        """Record the last outcomes of children that have ended.

        What they recorded themselves stays: a known outcome is not recorded twice.

        Args:
            alive: Pids of the children that are still there.
        """
        for outcome in self._outcomes.pop_dead_children(alive):
            self._record_outcome(outcome)

    def _record_outcome(self, outcome: TaskOutcome) -> None:
        sent = outcome.sent
        known = known_of(self.memsync.runtime, outcome.task_id, outcome.facts, sent)
        known.update(
            status=outcome.status, pid=outcome.pid, exception=outcome.exception,
            started_at=self._moment(outcome.time_start, sent.get("received_at")),
            finished_at=self.memsync.runtime.store.clock.at(outcome.at),
            runtime=outcome.runtime if isinstance(outcome.runtime, float) else None,
        )
        self._record(outcome.task_id, sent["key"], TaskRun.of(known))

    def refresh(self) -> None:
        """Record the tasks of this process again, so that long ones outlive their ttl."""
        for request in self.requests.unended():
            facts = request.request_dict
            begun = request.time_start
            known = known_of(self.memsync.runtime, request.id, facts, facts[HEADER])
            known.update(
                {"status": "STARTED"} if begun else received(facts[HEADER], facts, request.task.max_retries),
                pid=self._pid_of(request), started_at=self._moment(begun, facts[HEADER]["received_at"]))
            run = TaskRun.of(known)
            self._record(request.id, facts[HEADER]["key"], run)
            record_unsent(self.memsync.runtime, request, run)

    def running_tasks(self) -> list[tuple[str, str]]:
        """Return ids and run keys of the tasks that this process has received and has not done with."""
        return [(request.id, request.request_dict[HEADER]["key"]) for request in self.requests.unended()]

    # -- where it runs

    def on_started(self, task_id: str, task: Any, **_: Any) -> None:
        """Record that a run has begun."""
        memsync = self.memsync
        if task.app is not memsync.app:
            return
        request = task.request
        facts = request.__dict__
        sent = sent_of(facts)
        services = memsync.runtime
        if not services.settings.enabled:
            return  # this was its first use, and has disconnected this
        started = time.monotonic()
        clock, received_at = services.store.clock, sent.get("received_at")
        if clock.error == UNKNOWN:
            # Its worker's main process, on the same host, knows Redis's time.
            clock.assume(received_at, sent.get("monotonic"))
        now = latest(clock.offset + started, received_at)
        if not is_delivered(sent.get("key")):
            # No worker received it: it runs eagerly.
            run = next(services.new_runs)
            queue = self._queue_names.of(facts.get("delivery_info"))
            sent = {"run": run, "key": delivered_key(sent.get("key"), run), "queue": queue}
        if not is_id(task_id):
            self._unfit_ids.warn(task.name, task_id)
            return
        active = ActiveRun(memsync, services, task_id, facts, sent, task.name, started, now)
        active_run.set(active)
        if task.name in services.cancelled.watchers:
            active.watch_cancelled()
        services.writer.defer(active)
        if facts.get("retries") or FIRST_STEP not in sent["key"] or (facts.get("delivery_info") or {}).get("redelivered"):
            # A new run starts over; what the one before reached is kept as ``previous``.
            earlier_progress.record(services, task_id, sent.get("previous"), active.run_key)
            memsync.runtime.writer.put(active.progress)
        if "update_state" not in task.__dict__:
            take_over(task)

    def on_ended(self, task_id: str, retval: Any = None, state: str | None = None, task: Any = None, **_: Any) -> None:
        """Record how a run has ended; what ends a process or a greenlet has no state."""
        active = self._active(task_id)
        if active is None:
            return
        active_run.set(active.outer)
        memsync, error = self.memsync, sys.exc_info()[1]
        if state is None:
            state, retval = end_of_unwound(active)
        elif error is not None and state in ("SUCCESS", "FAILURE") and is_unstored(task, task_id, error):
            state, retval = "FAILURE", error
        elif state == "IGNORED":
            state = end_of_ignored(active, task, retval)
        if state is not None:
            active.end(state, retval, time.monotonic(), getattr(task, "max_retries", None))
        if active.reports is not None:
            # A soft time limit may have struck between a report and its queue.
            memsync.runtime.writer.put(active.reports)
            active.services.progress.pop(task_id, None)
        owners, active.lock_owners = active.lock_owners, frozenset()
        for owner in owners:
            owner.end_run(active.run_id)
        if isinstance(retval, Ignore) and retval.args == REPLACED:
            self._record_replaced(active)
        # A short run is there still, since it has begun.
        if state is not None and active not in (writer := memsync.runtime.writer).deferred:
            writer.defer(active)

    def _record_replaced(self, active: ActiveRun) -> None:
        """Record that a task goes on under its id as what has replaced it, which may be sent by another task later."""
        known = known_of(self.memsync.runtime, active.task_id, active.facts, {"published_at": self._next_moment()})
        known.update(status="PENDING", worker=None, eta=None)
        key = published_key(next(self.memsync.runtime.new_runs), active.run_key)
        self._record(active.task_id, key, TaskRun.of(known))

    # -- what only the main process knows

    def on_failed(
        self, sender: Any, task_id: str, exception: BaseException | None = None, request: Any = None, **_: Any,
    ) -> None:
        """Record a failure that the run can't record itself: a lost child, the hard time limit, a hook that raises."""
        if getattr(sender, "app", None) is not self.memsync.app or self._active(task_id):
            return
        facts = request if isinstance(request, dict) else sender.request.__dict__
        # Before 5.7 Celery says so of a run, too, that has ended in this child: its request is gone by then.
        if HEADER in facts or self.requests.find(task_id, facts) is not None:
            self._end(task_id, facts, "FAILURE", exception)

    def on_retried(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        """Record that a worker gave a task up, at its shutdown or when its child was lost."""
        if sender.app is self.memsync.app and not self._active(request.id):
            # Without a reason it was not sent again.
            given_up = self.requests.find(request.id, request.__dict__) if reason is None else None
            if given_up is None or not self._give_up(given_up):
                self._end(request.id, request.__dict__, "RETRY", getattr(reason, "exc", None))

    def give_up_running(self) -> None:
        """Record the tasks that are still running while this worker leaves and for which it does not wait."""
        for request in self.requests.unended():
            if request.time_start is not None and not self._give_up(request):
                self._end(request.id, request.request_dict, "RETRY", None)

    def _give_up(self, request: Any) -> bool:
        """Record a run as lost that no worker repeats because its message is acknowledged; return whether it is.

        If it is to be requeued, another worker does that.
        """
        if request.task.acks_late or not request.acknowledged:
            return False
        is_kept = self.kept.orphan(str(sent_of(request.request_dict).get("run")))
        lost = WorkerLostError("its worker was shut down while it ran")
        self._end(request.id, request.request_dict, "LOST", lost, goes_on=is_kept)
        return True

    def on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        """Record that a task was revoked or has expired."""
        if sender.app is self.memsync.app:
            self._end(request.id, request.__dict__, "REVOKED", self.cancels.cause_of(request.__dict__))

    def on_unknown(self, sender: Any, exc: BaseException, id: str, name: str, message: Any = None, **_: Any) -> None:
        """Record that a worker received a task that it does not know."""
        if getattr(sender, "app", None) is self.memsync.app and id:
            headers = getattr(message, "headers", None)
            sent = headers.get(HEADER) if isinstance(headers, dict) else None
            embed = embed_in(message)
            self._end(id, {**embed, "task": name, HEADER: sent}, "FAILURE", NotRegistered(name))

    def _end(
        self, task_id: str, facts: Mapping[str, Any], status: str, exception: BaseException | None, goes_on: bool = False,
    ) -> None:
        request = self.requests.find(task_id, facts)
        if request is not None:
            facts = request.request_dict
            setattr(request, RECORDED, True)
        sent = sent_of(facts)
        if status != "LOST":
            self.kept.end(str(sent.get("run")))
        now = self.memsync.runtime.store.clock.now()
        if not is_delivered(sent.get("key")):
            # It was never received, or by a worker that does not take part.
            run = next(self.memsync.runtime.new_runs)
            sent = {**sent, "run": run, "key": delivered_key(sent.get("key"), run), "received_at": now,
                    "queue": self._queue_names.of(facts.get("delivery_info"))}
        known = known_of(self.memsync.runtime, task_id, facts, sent)
        known.update(
            status=status, finished_at=None if status == "RETRY" else now,
            exception=None if exception is None else describe_exception(exception, self.memsync.runtime.redact),
            pid=self._pid_of(request),
            started_at=self._moment(getattr(request, "time_start", None), sent.get("received_at")),
        )
        ended = TaskRun.of(known)
        self._record(task_id, sent["key"], ended)
        if not goes_on:
            self.workflows.record_end(self.memsync.runtime, task_id, request, facts, ended)
        if known["pid"] not in (None, os.getpid()) and known["run"]:
            self.memsync.runtime.locks.release_if_ended(
                known["run"], partial(has_ended, known["pid"]))

    # -- the ends of children

    def on_child_replaced(self, sender: Any, **_: Any) -> None:
        """Record what a child took with it; its successor is about to be made."""
        self.report_lost_outcomes([child.pid for child in getattr(sender, "_pool", ())])

    def on_child_exit(self, **_: Any) -> None:
        """Write what waits before a pool child exits; it runs no exit handlers."""
        self.memsync.shutdown(self.memsync.time_to_leave)

    # -- helpers

    def _pid_of(self, request: Any) -> int | None:
        """Return the process that runs a request; for gevent and eventlet a pid is a greenlet's."""
        pid: int | None = getattr(request, "worker_pid", None)
        return pid if pid is None or self.has_children else os.getpid()

    def _active(self, task_id: str) -> ActiveRun | None:
        """Return the run of a task that is running in this thread, which records its end itself."""
        active = active_run.get()
        return active if active is not None and active.task_id == task_id and active.find_memsync() is self.memsync else None

    def _moment(self, local: float | None, earlier: float | None) -> float | None:
        """Return Redis's time of a moment of this host's clock that comes after an earlier one."""
        if local is None:
            return None
        return latest(self.memsync.runtime.store.clock.now() - (time.time() - local), earlier)

    def _record(self, task_id: str, key: str, run: TaskRun, notes: tuple[tuple[str, str], ...] = ()) -> None:
        """Record a stage."""
        if is_id(task_id):
            runtime = self.memsync.runtime
            location, ttl = runtime.keys.task_location(task_id, STAGE), lifetime(runtime, run.eta)
            runtime.writer.put(StageChange(location, run, key, ttl, notes=notes))
