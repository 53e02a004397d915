"""Follow a workflow to its end, cancel another one, and check what became of their tasks.

A Redis and a worker are started, and stopped at the end.
"""
from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.result import AsyncResult
from processes import DemoError, Worker, command, redis
from proj import survey

from celery_memsync import StoreError

#: Modules whose words are counted, and tasks that count them.
LIMIT, PARTS = 24, 4

#: Most seconds to wait for one thing.
PATIENCE = 60.0


def main() -> int:
    """Run both workflows; return the exit code."""
    try:
        with tempfile.TemporaryDirectory(prefix="workflow-") as location:
            return run(Path(location))
    except (DemoError, StoreError) as exc:
        print(f"workflow.py: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; all that was started is stopped.", file=sys.stderr)
        return 130


def run(location: Path) -> int:
    """Send both workflows, show them and check them; return the exit code."""
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(redis(location / "redis"))
        worker = stack.enter_context(Worker("w1@demo", location))
        wrong = [*follow(app), *cancel(app, worker)]
    print("\n".join(f"WRONG: {one}" for one in wrong) or "All is as it should be.")
    return 1 if wrong else 0


def follow(app: Any) -> list[str]:
    """Follow a workflow to its end; return what is wrong."""
    from proj.words import most_common, words_of, workflow

    last = workflow(LIMIT, PARTS).delay()
    planned = app.memsync.get_workflow(last.id)
    print(f"A workflow is sent. All {tasks_in(planned)} tasks are known, those of the group and\n"
          "the last one before they are sent:\n")
    show("workflow", last.id)
    show("follow", last.parent.id, last.id)
    show("workflow", last.id)
    app.memsync.force_sync()
    group = app.memsync.get_group(last.parent.id)
    counted = [tuple(item) for item in last.get(timeout=PATIENCE)]
    print("The most common words:", ", ".join(f"{word} {number}" for word, number in counted), end="\n\n")
    wrong = []
    if tasks_in(planned) != PARTS + 2:
        wrong.append(f"{tasks_in(planned)} tasks were known at first")
    if (group.total, group.succeeded, group.percent) != (PARTS, PARTS, 100):
        wrong.append(f"the group has ended as {group}")
    if counted != most_common([words_of(module) for module in survey.modules(LIMIT)]):
        wrong.append("a plain count finds other words")
    return wrong


def cancel(app: Any, worker: Worker) -> list[str]:
    """Cancel a workflow in the middle; return what is wrong."""
    from proj.words import workflow

    memsync = app.memsync
    last = workflow(10 * LIMIT, PARTS).delay()
    first, group_id = first_of(last), last.parent.id
    wait(worker, lambda: (found := memsync.get_group(group_id)) and found.running)
    memsync.cancel(first.id, reason="enough")
    print(f"Another one is cancelled while {Worker.PROCESSES} of its tasks run:\n")
    wait(worker, lambda: memsync.get_group(group_id).done == PARTS)
    ends = wait(worker, lambda: memsync.get_workflow(last.id).root.status not in ("PENDING", "STARTED")
                and memsync.get_workflow(last.id))
    show("workflow", last.id)
    show("why", last.id)
    statuses = {node.id: node.status for node in ends.root.walk() if node.kind == "task"}
    return [f"{task_id} is {status}" for task_id, status in statuses.items()
            if (status == "SUCCESS") != (task_id == first.id)]


def tasks_in(workflow: Any) -> int:
    """Return how many tasks of a workflow are known."""
    return sum(node.kind == "task" for node in workflow.root.walk())


def first_of(result: AsyncResult) -> AsyncResult:
    """Return the result of the first step of a workflow, whose id is that of the workflow."""
    while result.parent is not None:
        result = result.parent
    return result


def wait(worker: Worker, check: Callable[[], Any]) -> Any:
    """Return what a check returns as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := check()):
        worker.check()
        if time.monotonic() > deadline:
            raise DemoError(f"nothing more came within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return answer


def show(*words: str) -> None:
    """Show what a command of `celery memsync` prints."""
    print("$ celery -A proj memsync", *words, flush=True)
    with command(*words) as process:
        print("".join(f"    {line}" for line in process.stdout or ()))


if __name__ == "__main__":
    sys.exit(main())
