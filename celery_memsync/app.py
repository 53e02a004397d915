"""`MemSync`: the shared memory of a Celery app."""
from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Mapping, TypeVar, overload

from celery import Celery, current_task
from celery.exceptions import ImproperlyConfigured

from . import encoding
from .exceptions import InvalidValue, NotInTask
from .integration import lock_decorators
from .integration.app_manager import AppManager
from .integration.app_settings import app_settings, borrowed_backend, mask_reports
from .integration.bootstep import HeartbeatStep
from .integration.lock_decorators import RETRY_DELAY, F
from .integration.publishing import mark_publishing
from .integration.runs import ActiveRun, active_run
from .integration.task_signals import TaskSignals
from .locking.lock_service import Owner
from .manager import MemorySyncManager
from .runtime import Runtime
from .settings import Settings

T = TypeVar("T")


class MemSync(AppManager):
    """The shared memory of a Celery app: a manager that Celery's signals and workers keep.

    Settings are read at the first use, so they may be set later than this is
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
        self.app = None
        self.node_name = None
        self.signals = TaskSignals(self)
        super().__init__(**overrides)
        if app is not None:
            self.init_app(app)

    def _check_given(self) -> None:
        Settings.build(self._given)

    def init_app(self, app: Celery) -> MemSync:
        """Tie this to an app; doing so twice does nothing more."""
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
        mark_publishing(app)
        return self

    # -- in the body of a task

    def progress(self, current: float, total: float | None = None, message: str | None = None, **fields: Any) -> None:
        """Tell how far the running task is; nothing waits for Redis.

        Args:
            current: How many are done.
            total: How many there are; once told it need not be repeated.
            message: A word for people.
            fields: Anything else to show beside it.

        Raises:
            NotInTask: If no task is running here.
            InvalidValue: For a figure that is no number of 0 or more, or a
                field that can't be stored as JSON.
        """
        active = active_run.get()
        if active is None:
            if self.is_switched_off:
                return
            raise NotInTask("progress()")
        if fields:
            self._check_fields(active, fields)
            to_queue = active.progress.report(current, total, message, fields=fields)
        else:
            to_queue = active.progress.count(current, total, message)
        if to_queue and (memsync := active.find_memsync()) is not None:
            memsync.writer.put(active.progress)

    def track(self, iterable: Iterable[T], total: float | None = None, message: str | None = None) -> Iterator[T]:
        """Go through an iterable and tell the progress of the running task on the way.

        Args:
            total: How many items there are.  None: ``len(iterable)`` if it has one.

        Raises:
            NotInTask: If no task is running here.
        """
        if active_run.get() is None and self.is_switched_off:
            return iter(iterable)
        self._active("track()")
        if total is None:
            total = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
        return self._tracked(iterable, total, message)

    def _tracked(self, iterable: Iterable[T], total: float | None, message: str | None) -> Iterator[T]:
        done = 0
        self.progress(0, total, message)
        for done, item in enumerate(iterable, 1):
            yield item
            self.progress(done, total)
        if total is None:
            self.progress(done, done)

    def agent(self, agent_id: str) -> Agent:
        """Return an agent, or a sub-step, of the running task.

        Raises:
            NotInTask: If no task is running here.
            InvalidKey: If the id is not fit for a key.
        """
        if active_run.get() is None and self.is_switched_off:
            return Agent(self, getattr(getattr(current_task, "request", None), "id", None) or "-", agent_id)
        active = self._active("agent()")
        memsync = active.memsync or self
        memsync.keys.agent_location(active.task_id, agent_id)
        return Agent(memsync, active.task_id, agent_id)

    # -- around the body of a task

    def locked(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "raise", *,
        max_hold: float | None = None, retry_delay: float = RETRY_DELAY, count_retries: bool = False,
    ) -> Callable[[F], F]:
        """Put a lock around the body of a task; below ``@app.task``.

        It is taken when the body begins and given back when it ends, however
        that is.  A task that retries does not hold it while it waits.  Who calls
        the function by itself takes the lock too.  What the task tells of itself
        meanwhile is refused if a later holder has told something of it.

        Usage::

            @app.task
            @memsync.locked("invoice:{invoice_id}", on_locked="retry")
            def send(invoice_id, copy=False): ...

        Args:
            name: Of the lock, with arguments of the task in braces, as in
                :meth:`str.format`; ``{url!h}`` for what is not fit for a key, the same for equal values.
            ttl: As in :meth:`lock`.
            wait: As in :meth:`lock`; the pool's slot is taken meanwhile.
            on_locked: If somebody else holds it: ``"raise"``
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
        """Let a task not run twice at once under one id; below ``@app.task``, with arguments or without.

        A second delivery of a message waits until the first has ended, and runs
        then: it may be that the first did not come to its end.  The lock is that
        of :meth:`acquire_task_lock`.  Who calls the function by itself has no id
        and takes no lock.

        Usage::

            @app.task(acks_late=True)
            @memsync.exclusive
            def render(video_id): ...

        Args:
            ttl: This and the others: as in :meth:`locked`.
        """
        decorate = lock_decorators.exclusive(self, ttl, wait, on_locked, max_hold, retry_delay, count_retries)
        return decorate if function is None else decorate(function)

    def _active(self, call: str) -> ActiveRun:
        active = active_run.get()
        if active is None:
            raise NotInTask(call)
        return active

    def _check_fields(self, active: ActiveRun, fields: dict[str, Any]) -> None:
        location = active.progress.location
        taken = {"progress", "status", "eta", "previous", "started_at", "updated_at", "run"} & set(fields)
        if taken:
            raise InvalidValue(f"progress() has a field {min(taken)!r} of its own; choose another name")
        encoded = encoding.encode(fields, location.path, self.settings.max_value_size)
        # A copy: the task may go on to change what it gave.
        fields.update(encoding.decode(encoded))

    # -- what the entrances need

    def _build(self) -> Runtime:
        runtime = super()._build()
        if not runtime.settings.enabled:
            self.signals.disconnect()
        return runtime

    def check(self) -> None:
        """Read and check the settings now.

        Raises:
            ImproperlyConfigured: If one is unknown or wrong.
        """
        self._open()

    def spawned_settings(self) -> dict[str, Any]:
        """Return what the configuration needs so that a spawned child makes the same memory."""
        given = {f"memsync_{name.removeprefix('memsync_')}": value for name, value in self._given.items()}
        settings = self.settings
        return {**given, "memsync_backend": settings.backend, "memsync_backend_options": dict(settings.backend_options)}

    def _settings(self) -> Settings:
        if self.app is None:
            raise ImproperlyConfigured("this MemSync has no app yet; call init_app(app), or use MemorySyncManager")
        settings = Settings.build({**app_settings(self.app), **self._given})
        self.backend_source = "memsync_backend"
        if settings.backend is None and settings.enabled:
            settings = self._with_borrowed_backend(settings)
        return settings

    def _with_borrowed_backend(self, settings: Settings) -> Settings:
        url, self.backend_source, options = borrowed_backend(self.app.conf)
        options = {**options, **settings.backend_options}
        try:
            return Settings.build({**settings.__dict__, "backend": url, "backend_options": options})
        except ImproperlyConfigured as exc:
            raise ImproperlyConfigured(f"{exc} (it is not set, so {self.backend_source} is taken)") from None

    def _default_worker_id(self) -> str:
        return self.node_name or super()._default_worker_id()

    def _run_key(self, task_id: str) -> str:
        active = active_run.get()
        return active.run_key if active is not None and active.task_id == task_id and active.find_memsync() is self else ""

    def _fence(self, task_id: str) -> int:
        active = active_run.get()
        return active.fence if active is not None and active.task_id == task_id and active.find_memsync() is self else 0

    def _owner(self) -> Owner:
        active = active_run.get()
        if active is None:
            return Owner()
        active.add_lock_owner(self)
        return Owner(active.task_id, active.run_id or "-")

    def _forget(self) -> None:
        super()._forget()
        self.signals.forget()


class Agent:
    """An agent, or a sub-step, of a task: shares what it finds with the others.

    Args:
        manager: The memory to share in.
    """

    def __init__(self, manager: MemorySyncManager, task_id: str, agent_id: str) -> None:
        self._manager = manager
        self.task_id = task_id
        self.agent_id = agent_id

    def sync(self, data: Any = None, **fields: Any) -> None:
        """Share data, or fields of a dict; it replaces what this agent shared before.

        Raises:
            InvalidValue: If it can't be stored as JSON.
        """
        if fields and data is not None and not isinstance(data, Mapping):
            raise InvalidValue(f"agent {self.agent_id} shares either fields or data, not both")
        self._manager.sync_agent_coordination(self.task_id, self.agent_id, {**(data or {}), **fields} if fields else data)

    def get(self, agent_id: str | None = None) -> Any:
        """Return what an agent of this task shared; None: this one.

        Raises:
            StoreError: If Redis is away.
        """
        return self._manager.get_agent_coordination(self.task_id, agent_id or self.agent_id)
