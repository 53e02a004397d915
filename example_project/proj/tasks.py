"""The tasks: one that sends the others, one for each part of the library, one for the report."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celery import Task, chord

from . import survey
from .celery import app, memsync

#: Most parts of a census, and least modules of a part.
PARTS, LEAST = 16, 3

#: Seconds that a part takes at least: long enough to be watched, and to be interrupted halfway.
PACE = 1.5


@app.task(bind=True)
def census(self: Task, folder: str = "census", limit: int | None = None) -> str:
    """Send one task for each part of the standard library, and a report of what they find.

    Args:
        folder: Where the report goes, seen from the worker.
        limit: Most modules to measure, or None for all.

    Returns:
        The id of the report. Its progress is that of the whole census.
    """
    modules = survey.modules(limit)
    count = max(1, min(PARTS, len(modules) // LEAST))
    report_id = f"{self.request.id}-report"
    memsync.sync_task_progress(report_id, None, current=0, total=len(modules))
    parts = [
        measure.s(modules[first::count], report_id, len(modules))
        .set(task_id=f"{self.request.id}-{first + 1:02}")
        for first in range(count)]
    chord(parts, report.s(folder).set(task_id=report_id)).delay()
    return report_id


@app.task(bind=True, memsync_recover="requeue")
def measure(self: Task, modules: list[str], report_id: str, total: int) -> list[dict[str, Any]]:
    """Measure some modules.

    If its worker is lost, this task is sent again. It is idempotent: it reads files, and writes
    nothing but its own share of the census, under its own key.

    Args:
        modules: Their paths below the folder of the standard library.
        report_id: Task whose progress is that of the whole census.
        total: Number of modules of the whole census.
    """
    started = time.monotonic()
    found = []
    for number, module in enumerate(modules, 1):
        found.append(survey.measure(module))
        time.sleep(max(0.0, started + PACE * number / len(modules) - time.monotonic()))
        memsync.progress(number, len(modules), message=module)
        share(report_id, self.request.id, found, total)
    return found


def share(report_id: str, part: str, found: list[dict[str, Any]], total: int) -> None:
    """Share what a part has found so far, and record the progress of the whole.

    Each part is an agent of the census. No two parts write the same key, so no lock is needed. A
    part that runs again begins its share anew, so nothing is counted twice; the progress of the
    whole waits meanwhile, because progress never goes backward.
    """
    lines = sum(one["lines"] for one in found)
    memsync.sync_agent_coordination(report_id, part, {"modules": len(found), "lines": lines})
    done = sum(each["modules"] for each in memsync.get_task(report_id)["agents"].values())
    memsync.sync_task_progress(report_id, None, current=done, total=total, message=part)


@app.task
def report(parts: list[list[dict[str, Any]]], folder: str) -> dict[str, Any]:
    """Write ``census.json`` and ``report.md``; return the totals."""
    result = survey.summary([one for part in parts for one in part])
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "census.json").write_text(json.dumps(result, indent=1))
    (target / "report.md").write_text(survey.as_markdown(result))
    modules = result["totals"]["modules"]
    memsync.progress(modules, modules, message="report written")
    return result["totals"]
