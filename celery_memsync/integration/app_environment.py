"""What a manager takes from a Celery app: its settings, the name of its worker, and the running task."""
from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from celery.exceptions import ImproperlyConfigured

from ..environment import NO_RUN, Environment
from ..locking.lease import NO_TASK, Owner
from ..locking.lock_service import LockService
from ..settings import Settings
from .app_manager import AppManager
from .app_settings import app_settings, borrowed_backend
from .runs import active_run


class AppEnvironment(Environment):
    """The surroundings of a manager that has a Celery app.

    Args:
        memsync: The manager.
        given: Settings that go before the app's, by name.
    """

    def __init__(self, memsync: AppManager, given: Mapping[str, Any]) -> None:
        self._find_memsync = weakref.ref(memsync)
        super().__init__(given)

    def check(self) -> None:
        """Check what was given; what the app has is read at the first use."""
        Settings.build(self.given)

    @property
    def _memsync(self) -> AppManager:
        memsync = self._find_memsync()
        assert memsync is not None  # it makes the call
        return memsync

    def settings(self) -> Settings:
        """Return the settings of the app under those that were given; of its Redis if they name none."""
        memsync = self._memsync
        if memsync.app is None:
            raise ImproperlyConfigured("this MemSync has no app yet; call init_app(app), or use MemorySyncManager")
        settings = Settings.build({**app_settings(memsync.app), **self.given})
        memsync.backend_source = "memsync_backend"
        if not settings.enabled:
            memsync.signals.disconnect()
        elif settings.backend is None:
            settings = _with_borrowed_backend(memsync, settings)
        return settings

    def worker_id(self) -> str:
        """Return the name of the worker in this process, or host and pid."""
        return self._memsync.node_name or super().worker_id()

    def run_of(self, task_id: str) -> tuple[str, int]:
        """Return run key and fence of the run of a task of this app that makes the call."""
        active = active_run.get()
        if active is None or active.task_id != task_id or active.find_memsync() is not self._find_memsync():
            return NO_RUN
        return active.run_key, active.fence

    def lock_owner(self, locks: LockService) -> Owner:
        """Return the run that takes a lock, which may be of another app's task."""
        active = active_run.get()
        if active is None:
            return NO_TASK
        active.add_lock_owner(locks)
        return Owner(active.task_id, active.run_id or "-")

    def running_task(self) -> str | None:
        """Return the id of the task whose body makes the call, which may be of another app."""
        active = active_run.get()
        return None if active is None else active.task_id

    def forget(self) -> None:
        """Begin anew in a forked child."""
        memsync = self._find_memsync()
        if memsync is not None:
            memsync.signals.forget()


def _with_borrowed_backend(memsync: AppManager, settings: Settings) -> Settings:
    url, memsync.backend_source, options = borrowed_backend(memsync.app.conf)
    options = {**options, **settings.backend_options}
    try:
        return Settings.build({**settings.__dict__, "backend": url, "backend_options": options})
    except ImproperlyConfigured as exc:
        raise ImproperlyConfigured(f"{exc} (it is not set, so {memsync.backend_source} is taken)") from None
