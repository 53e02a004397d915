"""What the demo reads from the shared state while the census runs."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from celery import Celery
from celery.states import FAILURE, PENDING, RECEIVED, STARTED, SUCCESS
from display import Bar, Display
from processes import DemoError, Worker, command

#: Ids of the task that sends all others, and of the last one; of the parts: census-01, census-02.
CENSUS, REPORT = "census", "census-report"

#: Seconds between two reads.
PAUSE = 0.1

#: Most seconds to wait for one thing.
PATIENCE = 100.0

#: Percent of a task that are its middle.
MIDDLE = (15.0, 70.0)

#: Answer of a check.
A = TypeVar("A")

#: State and progress of a task, as ``get_tasks`` returns them.
Task = dict[str, Any]


class Watch:
    """Reads the tasks again and again, and shows them.

    Attributes:
        wrong: What has happened and must not.
    """

    def __init__(self, app: Celery, shown: Display, workers: Sequence[Worker]) -> None:
        self.app = app
        self.shown = shown
        self.workers = workers
        self.wrong: list[str] = []
        self._done = 0

    def until(self, check: Callable[[dict[str, Task]], A | None]) -> A:
        """Show the tasks until a check of them returns something true, and return that."""
        deadline = time.monotonic() + PATIENCE
        while True:
            tasks = {task["id"]: task for task in self.app.memsync.get_tasks()}
            self._show(tasks)
            if answer := check(tasks):
                return answer
            for worker in self.workers:
                worker.check()
            for task in tasks.values():
                if status_of(task) == FAILURE:
                    raise DemoError(f"{task['id']} failed: {task['state'].get('exception')}")
            if time.monotonic() > deadline:
                raise DemoError(f"nothing more came within {PATIENCE:.0f} s")
            time.sleep(PAUSE)

    def _show(self, tasks: dict[str, Task]) -> None:
        """Show the progress of the whole, and of each part that runs."""
        whole = tasks.get(REPORT, {}).get("progress")
        if not whole:
            return
        if whole["current"] < self._done:
            self.wrong.append(f"progress went back from {self._done} to {whole['current']}")
        self._done = whole["current"]
        self.shown.show(Bar("Census", whole["current"], whole["total"]), [
            Bar(f"{task_id} on {task['state']['worker']}", percent_of(task), 100)
            for task_id, task in sorted(tasks.items())
            if status_of(task) == STARTED and task_id not in (CENSUS, REPORT)])

    def worker_in_the_middle(self, tasks: dict[str, Task]) -> tuple[Worker, list[str]] | None:
        """Return a worker that is in the middle of its tasks, and their ids, or None."""
        if status_of(tasks.get(CENSUS)) != SUCCESS:
            return None
        some_wait = any(status_of(task) == PENDING for one, task in tasks.items() if one != REPORT)
        for worker in self.workers:
            its = [task for task in tasks.values() if status_of(task) in (RECEIVED, STARTED)
                   and task["state"].get("worker") == worker.name]
            # A task that began less than 0.1 s ago may not be recorded, and would be lost without
            # a trace. There is none if each process has a task, or no task waits; the report is
            # sent when all others have ended.
            all_known = len(its) == worker.PROCESSES or not some_wait
            if its and all_known and all(in_the_middle(task) for task in its):
                return worker, sorted(task["id"] for task in its)
        return None

    def runs_of(self, task_ids: Sequence[str]) -> str:
        """Return the runs of some tasks, each with its worker."""
        lines = []
        for task_id in task_ids:
            task = self.app.memsync.get_task(task_id)
            runs = [run["status"] + (f" on {run['worker']}" if run.get("worker") else "")
                    for run in task["runs"]]
            done = f", {percent_of(task):.0f} %" if status_of(task) == STARTED else ""
            lines.append(f"    {task_id}  {', then '.join(runs)}{done}")
        return "\n".join(lines)

    def output_of(self, *words: str) -> str:
        """Return what a command of ``celery memsync`` prints now."""
        with command(*words) as process:
            self.until(lambda _: process.poll() is not None)
            output = process.communicate()[0]
        if process.returncode:
            raise DemoError(f"celery memsync {' '.join(words)} failed: {output}")
        lines = [f"$ celery -A proj memsync {' '.join(words)}", *output.splitlines()]
        return "\n".join(f"    {line}".rstrip() for line in lines)


def status_of(task: Task | None) -> str | None:
    """Return the status of a task, or None if nothing is known of it."""
    return ((task or {}).get("state") or {}).get("status")


def percent_of(task: Task) -> float:
    """Return how far a task is in its current run; 0 if it has reported nothing yet."""
    return (task["progress"] or {}).get("progress") or 0.0


def in_the_middle(task: Task) -> bool:
    """Return whether a task runs, and is neither at its beginning nor near its end."""
    return MIDDLE[0] <= percent_of(task) <= MIDDLE[1]
