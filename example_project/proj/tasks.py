"""The tasks: one for the whole census, one for each module, one for the report."""
from __future__ import annotations

import functools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from celery import chord

from . import survey
from .celery import app, memsync

#: What this process has done so far, by the census that it was done for.
tallies: dict[str, Counter[str]] = {}


@app.task
def census(folder: str = "census", limit: int | None = None) -> str:
    """Send one task for each module of the standard library, and a report of what they find.

    Args:
        folder: Where the report goes, seen from the worker.
        limit: Most modules to look at.  None: all.

    Returns:
        The id of the report.  It stands for the whole: its progress is that of the census.
    """
    modules = survey.modules(limit)
    whole = report.s(folder)
    census_id = whole.freeze().id
    memsync.sync_task_state(census_id, {"status": "MEASURING", "name": report.name})
    memsync.sync_task_progress(census_id, None, current=0, total=len(modules))
    chord([measure.s(module, census_id, len(modules)) for module in modules], whole).delay()
    return census_id


@app.task
def measure(module: str, census_id: str, total: int) -> dict[str, Any]:
    """Measure one module: three agents, of whom the later ones work with what the first one shares.

    Args:
        module: Its path below the standard library's folder.
        total: How many modules this census has.
    """
    parser, meter, linker = (memsync.agent(name) for name in ("parser", "meter", "linker"))
    parser.sync(survey.outline(module, functools.partial(memsync.track, message=module)))
    meter.sync(survey.sizes(meter.get("parser")))
    linker.sync(imports=survey.links(module, linker.get("parser")))
    found = {"module": module, **meter.get(), **linker.get()}
    count(census_id, total, found)
    return found


@app.task
def report(found: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    """Write ``census.json`` and ``report.md``; return the totals."""
    result = survey.summary(found)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "census.json").write_text(json.dumps(result, indent=1))
    (target / "report.md").write_text(survey.as_markdown(result))
    memsync.progress(len(found), len(found), f"report written to {target.absolute()}")
    return result["totals"]


def count(census_id: str, total: int, found: dict[str, Any]) -> None:
    """Count a module as measured, and record the progress of the census.

    Every process is an agent of the census and shares its own count, so no two processes write the
    same key. The sum of the counts is the progress.
    """
    mine = tallies.setdefault(census_id, Counter())
    mine.update(modules=1, lines=found["lines"])
    memsync.sync_agent_coordination(census_id, f"process-{os.getpid()}", mine)
    shares = memsync.get_task(census_id)["agents"].values()
    done = sum(share["modules"] for share in shares)
    memsync.sync_task_progress(census_id, None, current=done, total=total, message=found["module"])
