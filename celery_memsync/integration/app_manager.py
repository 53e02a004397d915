"""The manager of a Celery app, as the integration sees it."""
from __future__ import annotations

from typing import Any

from celery._state import get_current_task

from ..manager import MemorySyncManager

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
    def strict(self) -> bool:
        """Whether a bad value in what a task reports raises."""
        strict = self.settings.strict
        return not self.in_worker if strict is None else strict

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded, locked or stored: ``memsync_enabled``."""
        return self.runtime.settings.enabled

    @property
    def is_switched_off(self) -> bool:
        """Whether ``memsync_enabled`` is False for the app of the running task, if one runs, else for this app."""
        task = get_current_task()
        own = getattr(getattr(task, "app", None), "memsync", None) or self
        return own.app is not None and not own.enabled

    @property
    def time_to_leave(self) -> float:
        """Seconds that the end of a worker's process may take: few while Redis is away."""
        runtime = self.runtime
        return min(runtime.settings.timeout, AWAY_TIMEOUT) if runtime.is_away else runtime.settings.timeout
