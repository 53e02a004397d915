"""`MemSync`: the shared state of a Celery app."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from celery import Celery
from celery._state import get_current_task
from celery.exceptions import ImproperlyConfigured

from .environment import given_settings
from .exceptions import InvalidKey, InvalidValue, NotInTask
from .integration import lock_decorators
from .integration.app_environment import AppEnvironment
from .integration.app_manager import AppManager
from .integration.app_settings import mask_reports
from .integration.bootstep import HeartbeatStep
from .integration.held_messages import ReconnectStep
from .integration.lock_decorators import RETRY_DELAY, F
from .integration.publishing import end_with_app, mark_publishing
from .integration.revokes import record_sent_revokes
from .integration.runs import ActiveRun, active_run
from .integration.sent_groups import count_sent_groups
from .integration.task_signals import TaskSignals
from .keys import is_id
from .manager import MemorySyncManager
from .records.task_tokens import TOKEN_AGE, TaskTokens
from .user_code import ends_here
from .writing.bad_values import refuse

T = TypeVar("T")


class MemSync(AppManager):
    """The shared state of a Celery app: a manager that Celery's signals and workers keep up to date.

    Settings are read at the first use, so they may be set after this is
    made.  It is also ``app.memsync``.  For an app that has one already, that
    one's ties to Celery stay and only the settings given here are new.

    Usage::

        app = Celery("proj", broker=...)
        app.conf.memsync_backend = "redis://localhost:6379/1"
        memsync = MemSync(app)

    Args:
        app: The app.  None: :meth:`init_app` comes later.
        overrides: Settings that go before the app's, without ``memsync_``.
    """

    def __init__(self, app: Celery | None = None, **overrides: Any) -> None:
        self.app: Any = None
        self.node_name: str | None = None
        self.in_worker = False
        self.signals: Any = TaskSignals(self)
        super().__init__(environment=AppEnvironment(self, given_settings(**overrides)))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> MemSync:
        """Tie this to an app; a second call does nothing."""
        app = getattr(app, "_get_current_object", lambda: app)()
        if self.app is app:
            return self
        if self.app is not None:
            raise ImproperlyConfigured("this MemSync belongs to another app already; make one for each app")
        self.app = app
        mask_reports(app)
        tied = getattr(app, "memsync", None)
        if isinstance(tied, MemSync):
            tied.signals.disconnect()
        app.memsync = self
        self.signals.connect()
        app.steps["worker"].add(HeartbeatStep)
        app.steps["consumer"].add(ReconnectStep)
        mark_publishing(app)
        end_with_app(app)
        record_sent_revokes()
        count_sent_groups()
        return self

    # -- in the body of a task

    def progress(
        self, current: float, total: float | None = None, message: str | None = None, *, phase: str | None = None,
        **fields: Any,
    ) -> None:
        """Record how far the running task is, without waiting for Redis.

        Args:
            current: How many are done, a number of any kind.
            total: How many there are; it is remembered until the phase ends, and may be corrected.
            message: A text for people.
            phase: Name of a part of the task that begins at 0 and has a total of its own.  None: the phase goes on.
            fields: Anything else to show beside it.

        Raises:
            NotInTask: If no task is running here; in a worker only with ``memsync_strict = True``.
            InvalidValue: For a number below 0, NaN or infinite, or a field that is not JSON; in a worker only with
                ``memsync_strict = True``, else it is logged once per task name.
        """
        active = active_run.get()
        if active is None:
            self._refuse_outside("progress()")
            return
        if fields or phase is not None:
            to_queue = active.progress.report(current, total, message, fields=fields, phase=phase)
        else:
            to_queue = active.progress.count(current, total, message)
        if to_queue and (memsync := active.find_memsync()) is not None:
            memsync.runtime.writer.put(active.progress)

    def check_cancelled(self) -> None:
        """Raise :exc:`TaskCancelled` if the running task is cancelled; let that pass, so that the task ends.

        It needs no round trip: what was cancelled is known here within a second.  Only the first call of a process for
        each task, if that began more than half a second ago, waits for one answer of Redis, at most a second.  While Redis
        is away no task is known to be cancelled.

        Raises:
            TaskCancelled: If its id, its root or its group was cancelled.
            NotInTask: If no task is running here; in a worker only with ``memsync_strict = True``.
        """
        active = active_run.get()
        if active is None:
            self._refuse_outside("check_cancelled()")
        else:
            if active.watch_cancelled():
                active.wait_fresh()
            active.raise_if_cancelled()

    def track(
        self, iterable: Iterable[T], total: float | None = None, message: str | None = None, *, phase: str | None = None,
    ) -> Iterator[T]:
        """Iterate and record the progress of the running task; outside of a task only iterate.

        Each call but the first of a task begins a new phase.  When the task is cancelled the next item is not yielded:
        :exc:`TaskCancelled` is raised, as by :meth:`check_cancelled`.

        Args:
            total: How many items there are.  None: ``len(iterable)`` if it has one.
            phase: Name of the phase.
        """
        active = active_run.get()
        if active is None:
            return iter(iterable)
        return self._tracked(active, iterable, _length_of(iterable) if total is None else total, message, phase)

    def _tracked(
        self, active: ActiveRun, iterable: Iterable[T], total: float | None, message: str | None, phase: str | None,
    ) -> Iterator[T]:
        progress, done = active.progress, 0
        queue_progress(active, progress.report(0, total, message, phase=phase, begin=True))
        active.watch_cancelled()
        number, cancelled = progress.phase_number, active.cancelled.known
        for done, item in enumerate(iterable, 1):
            if cancelled:
                active.raise_if_cancelled()
            yield item
            # Of loops inside of each other the one that began last is shown.
            if progress.phase_number == number:
                queue_progress(active, progress.count(done, None, None))
        if total is None and progress.phase_number == number:
            queue_progress(active, progress.count(done, done, None))

    def agent(self, agent_id: str) -> Agent:
        """Return an agent, or a sub-step, of the running task.

        Raises:
            NotInTask: If no task is running here; in a worker only with ``memsync_strict = True``.
            InvalidKey: If the id is not fit for a key; in a worker only with ``memsync_strict = True``, else the agent
                shares nothing.
        """
        active = active_run.get()
        if active is None:
            self._refuse_outside("agent()")
            return Agent(None, "", agent_id)
        memsync: AppManager = active.memsync or self
        try:
            memsync.runtime.keys.agent_location(active.task_id, agent_id)
        except InvalidKey as exc:
            refuse(exc, active.spared)
            return Agent(None, active.task_id, agent_id)
        return Agent(memsync, active.task_id, agent_id, active.spared)

    # -- around the body of a task

    def locked(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "raise", *,
        max_hold: float | None = None, retry_delay: float = RETRY_DELAY, count_retries: bool = False,
    ) -> Callable[[F], F]:
        """Put a lock around the body of a task; below ``@app.task``.

        It is acquired when the body begins and released however the task ends.
        A task that retries does not hold it while it is pending.  A direct call
        of the function acquires it too.  What the task records meanwhile is
        refused once a later holder has recorded something of it.

        Usage::

            @app.task
            @memsync.locked("invoice:{invoice_id}", on_locked="retry")
            def send(invoice_id, copy=False): ...

        Args:
            name: Of the lock, with arguments of the task in braces, as in
                :meth:`str.format`; ``{url!h}`` for what is not fit for a key, the same for equal values.
            ttl: As in :meth:`lock`.
            wait: As in :meth:`lock`; the slot of the pool is taken meanwhile.
            on_locked: If another holder has it: ``"raise"``
                :exc:`LockNotAcquired`; ``"retry"`` the task later; or
                ``"skip"`` it: its status is ``SKIPPED`` then.
            max_hold: As in :meth:`lock`: the lock of a task that hangs is free then; the task itself is not ended.
            retry_delay: Seconds until the next try, half as much more or less by chance, and at least 1.
            count_retries: Whether such tries count as retries, of which there are ``max_retries``.

        Raises:
            TypeError: If the function has no argument of a name, or is a task already.
            ValueError: For a name that is not fit, or another ``on_locked``.
        """
        return lock_decorators.locked(self, name, ttl, wait, on_locked, max_hold, retry_delay, count_retries)

    @overload
    def exclusive(self, function: F) -> F: ...

    @overload
    def exclusive(
        self, *, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "retry",
        max_hold: float | None = None, retry_delay: float = RETRY_DELAY, count_retries: bool = False,
    ) -> Callable[[F], F]: ...

    def exclusive(
        self, function: F | None = None, *, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "retry",
        max_hold: float | None = None, retry_delay: float = RETRY_DELAY, count_retries: bool = False,
    ) -> F | Callable[[F], F]:
        """Run a task once at a time under one id; below ``@app.task``, with arguments or without.

        A second delivery of a message waits until the first run has ended, and
        runs then, because the first may have been cut short.  The lock is that
        of :meth:`acquire_task_lock`.  A direct call of the function has no id
        and acquires no lock.

        Usage::

            @app.task(acks_late=True)
            @memsync.exclusive
            def render(video_id): ...

        Args:
            ttl: This and the others: as in :meth:`locked`.
        """
        decorate = lock_decorators.exclusive(self, ttl, wait, on_locked, max_hold, retry_delay, count_retries)
        return decorate if function is None else decorate(function)

    def _refuse_outside(self, call: str) -> None:
        task = get_current_task()
        if self.is_switched_off:
            return
        if task is None or task.request.called_directly or is_id(task.request.id):
            refuse(NotInTask(call), None if self.strict else "-")

    # -- for web pages

    def token(self, task_id: str, max_age: float = TOKEN_AGE) -> str:
        """Return a signed text, fit for a URL, that lets its bearer see how far a task is, and nothing else.

        It needs no Redis, and the task need not be sent yet.  It can't be revoked, but by another ``memsync_signing_key``.

        Args:
            max_age: Seconds for which it is valid, by the clock of this process.

        Raises:
            ImproperlyConfigured: Without ``memsync_signing_key``.
        """
        return TaskTokens(self.settings).make(task_id, max_age)

    def check_token(self, token: str) -> str:
        """Return the id of the task that a token is of.

        Raises:
            InvalidToken: If none of the keys of ``memsync_signing_key`` has signed it for this namespace, or it has expired
                by the clock of this process.
            ImproperlyConfigured: Without ``memsync_signing_key``.
        """
        return TaskTokens(self.settings).check(token)

    # -- for activation and pool children

    def check(self) -> None:
        """Read and check the settings now.

        Raises:
            ImproperlyConfigured: If one is unknown or wrong.
        """
        self._lifetime.open()

    def spawned_settings(self) -> dict[str, Any]:
        """Return what a spawned child needs in its configuration to share the same state."""
        given = {f"memsync_{name.removeprefix('memsync_')}": value for name, value in self.environment.given.items()}
        settings = self.settings
        return {**given, "memsync_backend": settings.backend, "memsync_backend_options": dict(settings.backend_options)}


def queue_progress(active: ActiveRun, to_queue: bool) -> None:
    """Let the progress of a run be written, if its last report has said that it has to be queued."""
    if to_queue and (memsync := active.find_memsync()) is not None:
        memsync.runtime.writer.put(active.progress)


def _length_of(iterable: Iterable[Any]) -> float | None:
    try:
        return len(iterable)  # type: ignore[arg-type]
    except Exception as exc:  # a class of the user's may have it and fail there
        if not ends_here(exc):
            raise
        return None


class Agent:
    """An agent, or a sub-step, of a task: shares what it finds with the others.

    Args:
        manager: Where it shares.  None: it shares and finds nothing.
        spared: Name of the task that a bad value must not fail.  None: it is raised.
    """

    def __init__(
        self, manager: MemorySyncManager | None, task_id: str, agent_id: str, spared: str | None = None,
    ) -> None:
        self._manager = manager
        self._spared = spared
        self.task_id = task_id
        self.agent_id = agent_id

    def sync(self, data: Any = None, **fields: Any) -> None:
        """Share data, or fields of a dict; it replaces what this agent shared before.

        Raises:
            InvalidValue: If it can't be stored as JSON.
        """
        try:
            self._sync({**_mapping_of(self.agent_id, data), **fields} if fields else data)
        except (InvalidKey, InvalidValue) as exc:
            refuse(exc, self._spared)

    def _sync(self, data: Any) -> None:
        if self._manager is not None:
            self._manager.sync_agent_coordination(self.task_id, self.agent_id, data)

    def get(self, agent_id: str | None = None) -> Any:
        """Return what an agent of this task shared; None: this one.

        Raises:
            StoreError: If Redis is away.
        """
        if self._manager is None:
            return None
        return self._manager.get_agent_coordination(self.task_id, agent_id or self.agent_id)


def _mapping_of(agent_id: str, data: Any) -> Mapping[str, Any]:
    if data is not None and not isinstance(data, Mapping):
        raise InvalidValue(f"agent {agent_id} shares either fields or data, not both")
    return data or {}
