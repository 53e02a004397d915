"""A bad value that a task reports raises, or does not fail the task: `memsync_strict`."""
from __future__ import annotations

import logging

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import InvalidKey, InvalidValue, MemSync, NotInTask
from celery_memsync.writing import bad_values


class Broken:
    """A value whose class fails in every way."""

    def __init__(self, error):
        self.error = error

    def __json__(self):
        raise self.error

    def __repr__(self):
        raise self.error


@pytest.fixture
def make_memsync(redis_url, monkeypatch):
    """Makes memories of apps whose tasks run eagerly."""
    monkeypatch.setattr(bad_values, "_logged", set())
    made = []

    def make(**settings):
        app = Celery("strict", broker="memory://", set_as_current=False)
        made.append(MemSync(app, backend=redis_url, batch_interval=60.0, **settings))
        return made[-1]

    yield make
    for memsync in made:
        memsync.signals.disconnect()
        memsync.shutdown(timeout=0.5)


@pytest.fixture
def lenient(make_memsync):
    """One that fails no task."""
    return make_memsync(strict=False)


def run(memsync, body, name="report"):
    """Run a function as the body of a task; return its progress at the end of that."""
    def run_body():
        body(memsync)
        return memsync.get_task_progress("t1")

    return memsync.app.task(name=name, shared=False)(run_body).apply(task_id="t1").get(disable_sync_subtasks=False)


BAD = [
    lambda memsync: memsync.progress("7", 10),
    lambda memsync: memsync.progress(1, -10),
    lambda memsync: memsync.progress(float("nan"), 10),
    lambda memsync: memsync.progress(True, 10),
    lambda memsync: memsync.progress(1, 10, 5),
    lambda memsync: memsync.progress(1, 10, "x" * 2_000_000),
    lambda memsync: memsync.progress(1, 10, phase=5),
    lambda memsync: memsync.progress(1, 10, rows=object()),
    lambda memsync: memsync.progress(1, 10, rows=Broken(ValueError("no rows"))),
    lambda memsync: memsync.progress(1, 10, eta=5),
    lambda memsync: list(memsync.track("abc", total="many")),
    lambda memsync: memsync.agent("a/b").sync(1),
    lambda memsync: memsync.agent("a").sync(object()),
    lambda memsync: memsync.agent("a").sync([1], rows=2),
]


@pytest.mark.parametrize("report", BAD)
def test_a_bad_report_raises_outside_of_a_worker(make_memsync, report):
    with pytest.raises((InvalidValue, InvalidKey)):
        run(make_memsync(), report)


@pytest.mark.parametrize("report", BAD)
def test_a_bad_report_fails_no_task_that_is_spared(lenient, report):
    run(lenient, report)


def test_a_bad_report_fails_no_task_in_a_worker_unless_it_is_strict(make_memsync):
    memsync, strict = make_memsync(), make_memsync(strict=True)
    memsync.in_worker = strict.in_worker = True

    run(memsync, BAD[0])
    with pytest.raises(InvalidValue):
        run(strict, BAD[0])


@pytest.mark.parametrize("report, expected", [
    (lambda memsync: memsync.progress("7", 10, "seven"), {"current": 1, "total": 10, "message": "seven"}),
    (lambda memsync: memsync.progress(7, -10, "seven"), {"current": 7, "total": 10, "message": "seven"}),
    (lambda memsync: memsync.progress(7, 10, 7), {"current": 7, "message": "one"}),
    (lambda memsync: memsync.progress(7, phase=7), {"current": 7, "phase": None}),
    (lambda memsync: memsync.progress(7, rows=7, bad=object(), eta=7), {"current": 7, "rows": 7}),
    (lambda memsync: list(memsync.track("abc", total="many")), {"current": 3, "total": None}),
])
def test_what_is_good_in_a_bad_report_is_taken(lenient, report, expected):
    def body(memsync):
        memsync.progress(1, 10, "one")
        report(memsync)

    progress = run(lenient, body)

    assert {name: progress[name] for name in expected} == expected
    assert "bad" not in progress


def test_a_bad_report_is_logged_once_for_each_task_name(lenient, caplog):
    def body(memsync):
        for _ in range(3):
            memsync.progress("7", 10)
        memsync.progress(1, 10, 5)

    run(lenient, body, "first")
    run(lenient, body, "second")

    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().partition(":")[0] for record in warnings] == [
        "Ignored a report of the task first", "Ignored a report of the task second"]
    assert "current is '7'; it must be a number" in warnings[0].getMessage()


def test_an_agent_whose_id_is_bad_finds_nothing(lenient):
    seen = []

    run(lenient, lambda memsync: seen.append(memsync.agent("a/b").get()))

    assert seen == [None]


def test_a_soft_time_limit_in_a_bad_report_goes_on_to_the_task(lenient):
    with pytest.raises(SoftTimeLimitExceeded):
        run(lenient, lambda memsync: memsync.progress(1, rows=Broken(SoftTimeLimitExceeded())))


# -- where no task is running

@pytest.mark.parametrize("call", [
    lambda memsync: memsync.progress(1, 2), lambda memsync: memsync.agent("a").sync(1),
])
def test_a_report_outside_of_a_task_raises_unless_it_is_to_be_ignored(make_memsync, lenient, call):
    with pytest.raises(NotInTask):
        call(make_memsync())

    call(lenient)

    assert lenient.get_metrics()["pending_writes"] == 0
