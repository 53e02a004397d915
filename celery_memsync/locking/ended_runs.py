"""Locks of runs whose pool child is ending: released by its parent as soon as it has ended."""
from __future__ import annotations

import time
from collections.abc import Callable

from ..exceptions import StoreRefused
from ..store import LockRequest, Store
from ..user_code import call_user_code

#: Seconds between two checks whether a child has ended, and for how long its parent checks.
ENDED_RUN_INTERVAL = 0.05

MAX_ENDED_RUN_WAIT = 60.0


class EndedRuns:
    """The runs whose child is ending, and what they hold."""

    def __init__(self, store: Store) -> None:
        self.store = store
        #: By run: whether its child has ended, and the monotonic time when the parent stops
        #: checking that.
        self._ending: dict[str, tuple[Callable[[], bool], float]] = {}

    def __bool__(self) -> bool:
        """Return whether a child is to be checked."""
        return bool(self._ending)

    def add(self, run: str, is_ended: Callable[[], bool]) -> None:
        """Release what a run holds when its child has ended.

        Args:
            is_ended: Returns whether the child has ended.
        """
        self._ending[run] = (is_ended, time.monotonic() + MAX_ENDED_RUN_WAIT)

    def release(self) -> None:
        """Release what runs hold whose child has ended."""
        now = time.monotonic()
        ending = list(self._ending.items())
        ended = {
            run for run, (is_ended, _) in ending
            if call_user_code("A look whether a child has ended", is_ended)}
        if ended:
            self._release_all(ended)
        for run, (_, end) in ending:
            if run in ended or now > end:
                self._ending.pop(run, None)

    def _release_all(self, runs: set[str]) -> None:
        names = self.store.read_held_locks()
        for name, (stored, _) in zip(names, self.store.read_locks(names)):
            if stored is not None and stored.header.run in runs:
                holder = stored.header.writes.partition(",")[0]
                release(self.store, LockRequest(self.store.keys.lock_location(name), holder, 1.0, "-", b""))


def release(store: Store, request: LockRequest) -> bool:
    """Release a lock in Redis; return whether it was held."""
    try:
        return store.leave_lock(request)
    except StoreRefused:
        return False  # something else is stored there: there is nothing to release
