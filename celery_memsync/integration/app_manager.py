"""The manager of a Celery app, as the integration sees it."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery._state import get_current_task

from ..keys import Keys
from ..manager import MemorySyncManager
from ..runtime import Runtime

#: Seconds that a process of a worker takes to end while Redis is away: what it could not write is lost anyway.
AWAY_TIMEOUT = 0.5


class AppManager(MemorySyncManager):
    """A manager that has an app; :class:`~celery_memsync.MemSync` is one.

    Attributes:
        app: The Celery app, or None before `init_app`.
        node_name: Name of the worker that runs in this process, or None.
        in_worker: Whether this process is a worker's.
        signals: What records the app's tasks.
        backend_source: The setting that names its Redis, of this package or of Celery; "" until settings were read.
    """

    app: Any
    node_name: str | None
    in_worker: bool
    signals: Any
    backend_source = ""

    @property
    def keys(self) -> Keys:
        """The keys of this namespace."""
        return self._open().keys

    @property
    def strict(self) -> bool:
        """Whether a bad value in what a task reports raises."""
        strict = self.settings.strict
        return not self.in_worker if strict is None else strict

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded, locked or stored: ``memsync_enabled``."""
        return (self._opened or self._open()).settings.enabled

    @property
    def is_switched_off(self) -> bool:
        """Whether ``memsync_enabled`` is False for the app of the running task, if one runs, else for this app."""
        task = get_current_task()
        own = getattr(getattr(task, "app", None), "memsync", None) or self
        return own.app is not None and not own.enabled

    def end_run(self, run: str) -> None:
        """Give back the locks that the run of a task still holds at its end."""
        services = self._opened
        if services is not None:
            services.locks.end_run(run)

    def release_if_ended(self, run: str, is_ended: Callable[[], bool]) -> None:
        """Free the locks of a run in a child as soon as the child is gone."""
        self._open().locks.release_if_ended(run, is_ended)

    @property
    def runtime(self) -> Runtime:
        """What is open now; it stays what it is when this is closed, or forked."""
        return self._open()

    @property
    def time_to_leave(self) -> float:
        """Seconds that the end of this process may take, if it is a worker's: hardly any while Redis is away."""
        timeout = self.settings.timeout
        return min(timeout, AWAY_TIMEOUT) if self._is_away() else timeout

    @property
    def token(self) -> str:
        """Eight letters and digits that no other process has."""
        return self._open().token
