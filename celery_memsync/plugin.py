"""`MemSync`: the shared memory of a Celery app."""
from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping, TypeVar, overload

from celery import Celery, signals
from celery.exceptions import ImproperlyConfigured

from . import decorators, values
from .bootsteps import HeartbeatStep
from .decorators import RETRY_DELAY, F
from .exceptions import InvalidValue, NotInTask
from .keys import Keys
from .locks import Owner
from .manager import MemorySyncManager
from .runs import ActiveRun, Home, active_run
from .settings import SCHEMES, Settings
from .signals import TaskSignals, publishing
from .urls import scheme_of, with_login_in_front, with_master_name

if TYPE_CHECKING:
    from celery.worker import WorkController

T = TypeVar("T")

#: Module that a spawned pool child imports to take part; a forked one needs no such thing.
CHILD_MODULE = "celery_memsync.child"


class MemSync(MemorySyncManager):
    """The shared memory of a Celery app: a manager that Celery's signals and workers keep.

    Settings are read at the first use, so they may be set later than this is
    made.  It is also ``app.memsync``.  For an app that has one already, that
    one's ties to Celery stay and only the settings given here are new.

    Usage::

        app = Celery("proj", broker=...)
        app.conf.memsync_backend = "redis://localhost:6379/1"
        memsync = MemSync(app)

    Arguments:
        app: The app.  None: :meth:`init_app` comes later.
        overrides: Settings that go before the app's, without ``memsync_``.
    """

    def __init__(self, app: Celery | None = None, **overrides: Any) -> None:
        self.app: Any = None
        self.node_name: str | None = None
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
        _mark_publishing(app)
        return self

    # -- in the body of a task

    def progress(self, current: float, total: float | None = None, message: str | None = None, **fields: Any) -> None:
        """Tell how far the running task is; nothing waits for Redis.

        Arguments:
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
            raise NotInTask("progress()")
        if fields:
            self._check_fields(active, fields)
            to_queue = active.progress.report(current, total, message, fields=fields)
        else:
            to_queue = active.progress.count(current, total, message)
        if to_queue:
            active.memsync.writer.put(active.progress)

    def track(self, iterable: Iterable[T], total: float | None = None, message: str | None = None) -> Iterator[T]:
        """Go through an iterable and tell the progress of the running task on the way.

        Arguments:
            total: How many items there are.  None: ``len(iterable)`` if it has one.

        Raises:
            NotInTask: If no task is running here.
        """
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
        active = self._active("agent()")
        active.memsync.keys.agent_place(active.task_id, agent_id)
        return Agent(active.memsync, active.task_id, agent_id)

    # -- around the body of a task

    def locked(
        self, name: str, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "raise", *,
        retry_delay: float = RETRY_DELAY, count_retries: bool = False,
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

        Arguments:
            name: Of the lock, with arguments of the task in braces, as in
                :meth:`str.format`; ``{url!h}`` for what is not fit for a key.
            ttl: As in :meth:`lock`.
            wait: As in :meth:`lock`; the pool's slot is taken meanwhile.
            on_locked: If somebody else holds it: ``"raise"``
                :exc:`LockNotAcquired`; ``"retry"`` the task later; or
                ``"skip"`` it: its status is ``SKIPPED`` then.
            retry_delay: Seconds until the next try, half as much more or less by chance.
            count_retries: Whether such tries count as retries, of which there are ``max_retries``.

        Raises:
            TypeError: If the function has no argument of a name, or is a task already.
            ValueError: For a name that is not fit, or another ``on_locked``.
        """
        return decorators.locked(self, name, ttl, wait, on_locked, retry_delay, count_retries)

    @overload
    def exclusive(self, function: F) -> F: ...

    @overload
    def exclusive(
        self, *, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "retry",
        retry_delay: float = RETRY_DELAY, count_retries: bool = False,
    ) -> Callable[[F], F]: ...

    def exclusive(
        self, function: F | None = None, *, ttl: float | None = None, wait: float | None = 0.0, on_locked: str = "retry",
        retry_delay: float = RETRY_DELAY, count_retries: bool = False,
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

        Arguments:
            ttl: This and the others: as in :meth:`locked`.
        """
        decorate = decorators.exclusive(self, ttl, wait, on_locked, retry_delay, count_retries)
        return decorate if function is None else decorate(function)

    def _active(self, call: str) -> ActiveRun:
        active = active_run.get()
        if active is None:
            raise NotInTask(call)
        return active

    def _check_fields(self, active: ActiveRun, fields: dict[str, Any]) -> None:
        place = active.progress.place
        taken = {"progress", "status", "eta", "previous", "started_at", "updated_at", "run"} & set(fields)
        if taken:
            raise InvalidValue(f"progress() has a field {min(taken)!r} of its own; choose another name")
        encoded = values.encode(fields, place.path, self.settings.max_value_size)
        # A copy: the task may go on to change what it gave.
        fields.update(values.decode(encoded))

    # -- what the entrances need

    def check(self) -> None:
        """Read and check the settings now.

        Raises:
            ImproperlyConfigured: If one is unknown or wrong.
        """
        self._open()

    def spawned_settings(self) -> dict[str, Any]:
        """Return what the configuration needs so that a spawned child makes the same memory."""
        given = {f"memsync_{name.removeprefix('memsync_')}": value for name, value in self._given.items()}
        return {**given, "memsync_backend": self.settings.backend}

    @property
    def keys(self) -> Keys:
        """The keys of this namespace."""
        return self._open().keys

    def end_run(self, run: str) -> None:
        """Give back the locks that the run of a task still holds at its end."""
        self._open().locks.end_run(run)

    def free_run(self, run: str, gone: Callable[[], bool]) -> None:
        """Free the locks of a run in a child as soon as the child is gone."""
        self._open().locks.free_run(run, gone)

    @property
    def home(self) -> Home:
        """What is open now; it stays what it is when this is closed, or forked."""
        return self._open()

    @property
    def token(self) -> str:
        """Eight letters and digits that no other process has."""
        return self._open().token

    def _settings(self) -> Settings:
        if self.app is None:
            raise ImproperlyConfigured("this MemSync has no app yet; call init_app(app), or use MemorySyncManager")
        settings = Settings.build({**app_settings(self.app.conf), **self._given})
        if settings.backend is None:
            settings = Settings.build({**settings.__dict__, "backend": _backend_of(self.app.conf)})
        return settings

    def _default_worker_id(self) -> str:
        return self.node_name or super()._default_worker_id()

    def _run_key(self, task_id: str) -> str:
        active = active_run.get()
        return active.run_key if active is not None and active.task_id == task_id and active.memsync is self else ""

    def _fence(self, task_id: str) -> int:
        active = active_run.get()
        return active.fence if active is not None and active.task_id == task_id and active.memsync is self else 0

    def _owner(self) -> Owner:
        active = active_run.get()
        if active is None:
            return Owner()
        active.borrows(self)
        return Owner(active.task_id, active.run_id or "-")

    def _forget(self) -> None:
        super()._forget()
        self.signals.forget()


class Agent:
    """An agent, or a sub-step, of a task: shares what it finds with the others.

    Arguments:
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


def _mark_publishing(app: Any) -> None:
    """Let the signals of publishing know which app sends; they do not tell."""
    send_task = app.send_task
    if hasattr(send_task, "marks_publishing"):
        return

    @functools.wraps(send_task)
    def send(*args: Any, **kwargs: Any) -> Any:
        token = publishing.set(app)
        try:
            return send_task(*args, **kwargs)
        finally:
            publishing.reset(token)

    send.marks_publishing = True  # type: ignore[attr-defined]
    app.send_task = send


def app_settings(conf: Any) -> dict[str, Any]:
    """Return the settings of an app that are ours, by name without a namespace such as ``CELERY_``."""
    hide_password(conf)
    names = {str(name).lower() for name in conf}
    # Only going through the names has loaded a configuration that was pending, and its prefix with it.
    prefix = (getattr(conf, "prefix", None) or "").lower()
    ours = {name[len(prefix):] if prefix and name.startswith(prefix) else name for name in names}
    return {name: conf.get(name) for name in ours if name.startswith("memsync_")}


def hide_password(conf: Any) -> None:
    """Move the password of ``memsync_backend`` to where Celery masks it in its reports."""
    for name in list(conf):
        # A name may have a prefix, such as CELERY_.
        if not str(name).lower().endswith("memsync_backend") or not isinstance(conf[name], str):
            continue
        url = with_login_in_front(conf[name])
        if url != conf[name]:
            conf[name] = url


def mask_reports(app: Any) -> None:
    """Hide the password in each report of an app, whenever the setting was made."""
    bugreport = app.bugreport
    if hasattr(bugreport, "hides_password"):
        return

    @functools.wraps(bugreport)
    def report(*args: Any, **kwargs: Any) -> Any:
        hide_password(app.conf)
        return bugreport(*args, **kwargs)

    report.hides_password = True  # type: ignore[attr-defined]
    app.bugreport = report


def _backend_of(conf: Any) -> str:
    """Return the URL of the result backend or the broker, whichever is Redis first."""
    for name, about in (("result_backend", "result_backend_transport_options"), ("broker_url", "broker_transport_options")):
        url = conf.get(name)
        if isinstance(url, (list, tuple)):
            url = url[0] if url else None
        if isinstance(url, str) and scheme_of(url) == "sentinel":
            return with_master_name(url, (conf.get(about) or {}).get("master_name"))
        if isinstance(url, str):
            url = url.split(";")[0].replace("redis+socket://", "unix://", 1)
            if scheme_of(url) in SCHEMES:
                return url
    raise ImproperlyConfigured(
        "memsync_backend is not set, and neither the result backend nor the broker is Redis; "
        "set it to a Redis URL such as redis://localhost:6379/1, or to embedded:// to try things out"
    )


def activate(app: Celery) -> MemSync:
    """Return the memory of an app, made now if the app has none."""
    tied = getattr(app, "memsync", None)
    return tied if isinstance(tied, MemSync) else MemSync(app)


def on_worker_init(sender: "WorkController", **_: Any) -> None:
    """Activate a worker whose app has ``memsync_backend`` set, or a `MemSync`."""
    app = sender.app
    tied = getattr(app, "memsync", None)
    if not isinstance(tied, MemSync) and not app.conf.get("memsync_backend"):
        return
    memsync = activate(app)
    memsync.node_name = sender.hostname
    memsync.check()
    app.conf.update(memsync.spawned_settings())
    if CHILD_MODULE not in app.conf.include:
        app.conf.include = (*app.conf.include, CHILD_MODULE)


signals.worker_init.connect(on_worker_init, weak=False, dispatch_uid="celery_memsync.worker_init")
