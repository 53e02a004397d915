"""Steps that were cancelled because the task before them was lost, and are to be sent after all: it runs again."""
from __future__ import annotations

import time
from collections import deque
from typing import Any

from ..background_loop import BackgroundLoop
from ..keys import STAGE, new_token
from ..models.order import UNSENT_RANKS
from ..models.task import TaskRun
from ..store import Store, Task
from .app_manager import AppManager
from .steps import Steps, embed_of, has_steps

#: Seconds after which is looked once more: the worker that reports a task as lost may be at its steps only then.
LATER = 3.0

#: Most tasks that wait to be looked at.
MAX_WAITING = 10_000


class RevivedSteps:
    """Records such steps as pending again.

    It works in a thread of its own: the worker's consumer must not wait for Redis.
    """

    def __init__(self, memsync: AppManager) -> None:
        self.memsync = memsync
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: its parent receives the tasks."""
        #: Tasks that were received, with the steps after them; when to look again (monotonic), and at what.
        self._received: deque[tuple[str, list[str]]] = deque(maxlen=MAX_WAITING)
        self._again: deque[tuple[float, str, list[str]]] = deque(maxlen=MAX_WAITING)
        self._thread = BackgroundLoop("memsync-steps", self.record, 0, on_demand=True)

    def receive(self, request: Any) -> None:
        """Take a request that was received, whose task may have run before."""
        embed = embed_of(request._payload)
        if has_steps(embed):
            self.memsync.signals.workflows.begin_again(embed)
            ids = list(Steps(request.id, request.request_dict.get("group"), embed).by_id)
            self._received.append((request.id, ids))
            self._thread.wake()

    def stop(self, timeout: float) -> None:
        """Record no more; return after ``timeout`` seconds at the latest."""
        self._thread.stop(timeout)

    def record(self) -> float | None:
        """Look at those for which it is time; return in how many seconds to look again.

        Raises:
            StoreError: If Redis is away; the next call does the rest.
        """
        store = self.memsync.runtime.store.with_token(new_token())
        while self._received:
            task_id, ids = self._received[0]
            self._record(store, task_id, ids)
            self._received.popleft()
            self._again.append((time.monotonic() + LATER, task_id, ids))
        # In the order of their times.
        while self._again and self._again[0][0] <= time.monotonic():
            self._record(store, *self._again[0][1:])
            self._again.popleft()
        return max(0.0, self._again[0][0] - time.monotonic()) if self._again else None

    def _record(self, store: Store, task_id: str, ids: list[str]) -> None:
        found = [(step_id, stage, run) for step_id, step in zip(ids, store.read_tasks(ids))
                 if (stage := step.slots.get(STAGE)) is not None and (run := _cancelled(step, step_id)) is not None
                 and run.cause is not None and run.cause.get("task_id") == task_id]
        # Each at the version that was read: it may be sent meanwhile.
        store.write_entries([
            store.stage_write(step_id, stage, run.evolve(status="PENDING", never_ran=False, cause=None),
                              str(stage.header.version))
            for step_id, stage, run in found])


def _cancelled(step: Task, step_id: str) -> TaskRun | None:
    """Return a step that is never sent because of a task that has not failed."""
    stage = step.slots[STAGE]
    return TaskRun.read(stage, step_id) if stage.header.rank == UNSENT_RANKS["CANCELLED"] else None
