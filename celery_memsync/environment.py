"""What a manager takes from its surroundings: its settings, its name, and the task that makes a call."""
from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from celery.exceptions import ImproperlyConfigured

from .locking.lease import NO_TASK, Owner
from .locking.lock_service import LockService
from .settings import Settings

#: Run key and fence of a call that no run of the task makes.
NO_RUN = "", 0


class Environment:
    """The surroundings of a manager without a Celery app: the settings it was given, and no tasks.

    A manager outlives what it has open, so nothing in here keeps a manager alive.

    Args:
        given: Settings by name, with or without ``memsync_``.

    Raises:
        ImproperlyConfigured: For an unknown or wrong setting.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.check()

    def check(self) -> None:
        """Check what was given, as far as it can be known now."""
        if self.settings().backend is None:
            raise ImproperlyConfigured("MemorySyncManager needs a url, such as redis://localhost:6379/0 or embedded://")

    def settings(self) -> Settings:
        """Return the settings, read now."""
        return Settings.build(self.given)

    def worker_id(self) -> str:
        """Return the name of this process where no setting gives one."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def run_of(self, task_id: str) -> tuple[str, int]:
        """Return run key and fence of the run of a task that makes the call; :data:`NO_RUN` if no run of it does."""
        return NO_RUN

    def lock_owner(self, locks: LockService) -> Owner:
        """Return for what the call takes a lock; if that is a run, its end releases what it has of these locks."""
        return NO_TASK

    def running_task(self) -> str | None:
        """Return the id of the task whose body makes the call, or None."""
        return None

    def forget(self) -> None:
        """Begin anew in a forked child."""


def given_settings(worker_id: str | None = None, url: str | None = None, **settings: Any) -> dict[str, Any]:
    """Return settings by name, from the arguments of a manager."""
    named = {"worker_id": worker_id, "backend": url}
    return {**settings, **{name: value for name, value in named.items() if value is not None}}
