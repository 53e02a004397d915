"""Tasks: their states, their progress, their runs and what their agents share."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from .. import encoding
from ..deadline import bounded, within
from ..keys import PROGRESS, STAGE, STATE, check_id
from ..models.task import TaskRun
from ..reading.projections import progress_of, runs_of, state_of
from ..types import ListedTask, TaskProgress, TaskRecord, TaskState
from ..writing.changes import Change, MergeFields, StageChange
from ..writing.progress import Progress
from .checks import check_run_key, check_ttl
from .entry_records import EntryRecords

#: Tasks that are read in one round trip: no command of it holds Redis for more than two milliseconds.
TASKS_PER_CALL = 500

#: Most tasks of which a process keeps the progress that was reported by hand.
MAX_PROGRESS = 10_000


class TaskRecords:
    """Writes and reads what is recorded of tasks.

    Args:
        progress: The progress of tasks that this process reports, by task id.
        run_of: Returns the run key and the fence of the run of a task that makes the call, ("", 0) if another makes it.
    """

    def __init__(
        self, entries: EntryRecords, progress: dict[str, Progress], run_of: Callable[[str], tuple[str, int]],
    ) -> None:
        self.entries = entries
        self.settings = entries.settings
        self.timeout = entries.timeout
        self.keys = entries.keys
        self.writer = entries.writer
        self.reader = entries.reader
        self.progress = progress
        self.run_of = run_of
        self.redact = entries.settings.redactor

    # -- write

    def set_state(self, task_id: str, state: Mapping[str, Any], ttl: float | None) -> None:
        """Merge top-level fields into the state of a task."""
        task_id = check_id(task_id, "task")
        settings, location = self.settings, self.keys.task_location(task_id, STATE)
        fields = encoding.encode_fields(state, location.path, settings.max_value_size)
        run_key, fence = self.run_of(task_id)
        self.writer.put(MergeFields(location, fields, check_ttl(ttl, settings.default_ttl), fence, run_key))

    def set_run(self, task_id: str, run: TaskRun, run_key: str, ttl: float | None) -> Change:
        """Record a stage of a run; return the pending change."""
        check_run_key(run_key)
        location = self.keys.task_location(check_id(task_id, "task"), STAGE)
        change = StageChange(location, run, run_key, check_ttl(ttl, self.settings.default_ttl))
        self.writer.put(change)
        return change

    def set_progress(
        self, task_id: str, progress: float | None, status: str | None, current: float | None, total: float | None,
        message: str | None,
    ) -> None:
        """Record how far a task is."""
        task_id = check_id(task_id, "task")
        known = self.progress.get(task_id) or self._new_progress(task_id)
        if known.report(current, total, message, status, progress):
            self.writer.put(known)

    def _new_progress(self, task_id: str) -> Progress:
        # No mutex: no step of this can be interrupted halfway.
        settings, location = self.settings, self.keys.task_location(task_id, PROGRESS)
        known = self.progress.setdefault(task_id, Progress(
            location, settings.default_ttl, limit=settings.max_value_size, redact=self.redact))
        if len(self.progress) > MAX_PROGRESS:
            with contextlib.suppress(StopIteration, RuntimeError):  # another thread adds one, or removes one
                self.progress.pop(next(iter(self.progress)), None)
        return known

    def set_agent(self, task_id: str, agent_id: str, data: Any) -> None:
        """Share what an agent of a task has found."""
        location = self.keys.agent_location(task_id, agent_id)
        run_key, fence = self.run_of(str(task_id))
        self.entries.set(location, data, fence=fence, run_key=run_key)

    # -- read

    def state(self, task_id: str) -> TaskState | None:
        """Return the state of a task, or None if the task is unknown."""
        task_id = check_id(task_id, "task")
        state: TaskState | None = self.reader.of_task(
            "state", task_id, lambda task: state_of(task_id, task.slots, task.former))
        return state

    def progress_of(self, task_id: str) -> TaskProgress | None:
        """Return how far a task is, or None if it has reported no progress."""
        task_id = check_id(task_id, "task")
        progress: TaskProgress | None = self.reader.of_task(
            "progress", task_id, lambda task: progress_of(task, state_of(task_id, task.slots)))
        return progress

    @bounded
    def whole(self, task_id: str) -> TaskRecord | None:
        """Return all that is known of a task, or None if it is unknown."""
        task_id = check_id(task_id, "task")
        task = self.reader.task(task_id, agents=True)
        state = state_of(task_id, task.slots, task.former)
        progress = progress_of(task, state)
        agents = {agent: stored.value for agent, stored in task.agents.items()}
        if state is None and progress is None and not agents:
            return None
        return {"id": task_id, "state": state, "progress": progress, "runs": runs_of(task_id, task), "agents": agents}

    @bounded
    def newest(self, limit: int) -> list[ListedTask]:
        """Return the newest tasks, newest first."""
        return list(islice(self.iterate(None, min(limit, TASKS_PER_CALL)), limit)) if limit > 0 else []

    def iterate(self, since: float | None, at_once: int) -> Iterator[ListedTask]:
        """Yield tasks, newest first; see :meth:`MemorySyncManager.iter_tasks`."""
        known: set[str] = set()
        before: str | None = "+"
        while before:
            page, before = within(self.timeout, self.reader.recent_tasks, at_once, before, since)
            for task_id, task in page.items():
                if task_id not in known and task.slots:
                    state = state_of(task_id, task.slots, task.former)
                    yield {"id": task_id, "state": state, "progress": progress_of(task, state)}
            known.update(page)

    def agent(self, task_id: str, agent_id: str) -> Any:
        """Return what an agent of a task has shared, or None."""
        return self.entries.read(self.keys.agent_location(task_id, agent_id).path)

    def agents(self, task_id: str) -> list[str]:
        """Return the ids of the agents of a task, sorted."""
        agents: list[str] = self.reader.of_task(
            "agents", check_id(task_id, "task"), lambda task: sorted(task.agents), agents=True)
        return agents
