"""What a task costs in calls of Python functions, against a committed budget.

It is 13.2 in the main process and 34.8 in a child, on a busy machine a little more, because batches are smaller.
"""
from __future__ import annotations

import json
import time

import pytest
from celery import Celery

from tests.support.paths import ROOT
from tests.support.waiting import eventually

#: Calls of our own functions for a task that does nothing, by process.
BUDGETS = json.loads((ROOT / "tests" / "counts.json").read_text())

#: So many that what a process does at its start and its end does not count.
TASKS = 2000


@pytest.fixture(scope="module")
def calls(module_fleet):
    """The calls for a task by process."""
    worker = module_fleet.worker("-c", "1", app="tests.support.counted")
    worker.start()
    producer = Celery(set_as_current=False)
    producer.conf.update({**module_fleet.conf, "include": []})
    for _ in range(TASKS):
        producer.send_task("noop", ignore_result=True)
    with module_fleet.broker.client() as client:
        eventually(lambda: client.llen(module_fleet.name) == 0, timeout=60)
    time.sleep(1.0)
    worker.stop()
    return {process: json.loads(module_fleet.notes_file.with_name(f"{module_fleet.notes_file.name}.{process}").read_text())
            for process in ("main", "child")}


@pytest.mark.parametrize("process", BUDGETS)
def test_task_takes_no_more_calls_than_its_budget(calls, process):
    ours = calls[process]["ours"] / TASKS

    print(f"{process}: {ours:.1f} calls of ours a task; the budget is {BUDGETS[process]}")
    assert BUDGETS[process] * 0.5 < ours <= BUDGETS[process]
