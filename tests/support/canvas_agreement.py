"""A plugin of pytest for Celery's own tests: after each, the states of its results agree with the result backend.

The tests run with a worker in a process of its own, which `tests.support.canvas_app` configures.  What differs is written
into the file ``MEMSYNC_TEST_NOTES``, a JSON line for each test: its name, its outcome, and rows of id, name, our status
and the backend's; and the names of the differences of `DIFFERENCES` that there were.
"""
from __future__ import annotations

import contextlib
import json
import os
import time
import weakref

import celery.contrib.pytest
import celery.contrib.testing.worker
import pytest
from celery.result import AsyncResult, EagerResult

import tests.support.canvas_app  # noqa: F401 - what Celery's tests import
from celery_memsync import MemSync

#: Seconds that states may take to agree: what is stored may be behind, and tasks may still run when a test ends.
PATIENCE = 8.0

CONF = json.loads(os.environ["MEMSYNC_TEST_CONF"])

#: Ids of the results that were made, ids of what was compared already, and the apps, the one of the session first.
_made: dict[str, None] = {}
_compared: set[str] = set()
_apps: list = []
_make_result, _make_app = AsyncResult.__init__, celery.contrib.pytest._create_app


def _note_result(self, id, *args, **kwargs):
    _make_result(self, id, *args, **kwargs)
    if not isinstance(self, EagerResult):
        _made[id] = None


@contextlib.contextmanager
def _create_app(**config):
    with _make_app(**config) as app:
        app.conf.update(CONF)
        MemSync(app)
        _apps.append(weakref.ref(app))
        yield app
        app.memsync.shutdown(timeout=1.0)
        app.memsync.signals.disconnect()


@contextlib.contextmanager
def _use_worker(app, **_):
    yield None


AsyncResult.__init__ = _note_result
celery.contrib.pytest._create_app = _create_app
celery.contrib.testing.worker.start_worker = _use_worker


#: What may differ, by name: whether it does, from our state and Celery's status.  `docs/reference/task-states.md` has them.
DIFFERENCES = {
    "eager": lambda state, theirs: theirs == "PENDING" and not {"published_at", "received_at", "never_ran"} & state.keys(),
    "never sent": lambda state, theirs: theirs == "PENDING" and state.get("never_ran") is True,
    "rejected": lambda state, theirs: (state.get("status"), theirs) == ("REJECTED", "FAILURE"),
    "no name": lambda state, theirs: theirs in ("PENDING", "STARTED") and state.get("status") in (
        "RECEIVED", "IGNORED", "SKIPPED", "LOST"),
}


def difference(state, theirs):
    """Return the name of the difference between our state of a task and Celery's status; None if they are the same.

    Of an unknown task Celery says PENDING.
    """
    if state.get("status", "PENDING") == theirs:
        return None
    return next((name for name, differs in DIFFERENCES.items() if differs(state, theirs)), "unknown")


def compare():
    """Return the tasks of a test whose states do not come to agree, and the names of the known differences."""
    app = _apps[0]()
    listed = [task["id"] for task in app.memsync.get_tasks(limit=1000)]
    ids = [task_id for task_id in dict.fromkeys([*_made, *listed]) if task_id not in _compared]
    _made.clear()
    _compared.update(ids)
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [(task_id, app.memsync.get_task_state(task_id) or {}, app.backend.get_state(task_id)) for task_id in ids]
        names = {task_id: difference(state, theirs) for task_id, state, theirs in found}
        if "unknown" not in names.values() or time.monotonic() > deadline:
            wrong = [(task_id, state.get("name"), state.get("status"), theirs) for task_id, state, theirs in found
                     if names[task_id] == "unknown"]
            return wrong, sorted(set(filter(None, names.values())))
        time.sleep(0.2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        with open(os.environ["MEMSYNC_TEST_NOTES"], "a") as notes:
            wrong, known = compare()
            row = {"test": item.nodeid, "outcome": report.outcome, "wrong": wrong, "known": known}
            notes.write(json.dumps(row) + "\n")
    return report
