"""`update_state` of Celery: what a task reports by it is recorded, too."""
from __future__ import annotations

import pytest
from celery import Celery, Task, current_task
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import MemSync
from tests.support.redis_calls import round_trips


@pytest.fixture
def memsync(redis_url):
    """The manager of an app whose tasks run eagerly."""
    app = Celery("update-state", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(memsync_backend=redis_url, memsync_batch_interval=60.0)
    app.backend.client.cache.clear()  # all apps of a process have the same one
    memsync = MemSync(app)
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


def run(memsync, body, **options):
    """Run a function as the body of a task; return state and progress at the end of that."""
    def run_body(self):
        body(self)
        found = memsync.get_task(self.request.id)
        return found["state"], found["progress"]

    options = {"name": "body", "bind": True, "shared": False, **options}
    return memsync.app.task(**options)(run_body).apply(task_id="t1").get(disable_sync_subtasks=False)


def facts(progress):
    return tuple(progress[name] for name in ("progress", "current", "total", "message"))


class Quiet(Task):
    """Writes nothing to the result backend, which need not bear everything."""

    def update_state(self, *args, **kwargs):
        """Do nothing."""


META = {"current": 3, "total": 4, "description": "three", "file": "a.mp4"}


def test_meta_becomes_progress_and_state_the_status(memsync):
    state, progress = run(memsync, lambda self: self.update_state(state="PROGRESS", meta=META))

    assert state["status"] == "PROGRESS"
    assert facts(progress) == (75, 3, 4, "three")
    assert progress["file"] == "a.mp4"
    assert memsync.get_task_state("t1")["status"] == "SUCCESS"


def test_the_result_backend_is_written_as_ever(memsync):
    seen = []

    def body(self):
        self.update_state(state="PROGRESS", meta=META)
        seen.append(self.app.backend.get_task_meta(self.request.id))

    run(memsync, body)

    assert (seen[0]["status"], seen[0]["result"]) == ("PROGRESS", META)


@pytest.mark.parametrize("report", [
    lambda self: current_task.update_state(state="PROGRESS", meta=META),
    lambda self: self.update_state(None, "PROGRESS", META),
    lambda self: self.update_state(self.request.id, state="PROGRESS", meta=META),
    lambda self: self.update_state("t1", "PROGRESS", meta=META, traceback=None),
    lambda self: [self.update_state(state="PROGRESS", meta={**META, "current": number}) for number in (1, 2, 3)],
    lambda self: [self.app.tasks["other"].apply(task_id="t2"), self.update_state(state="PROGRESS", meta=META)],
    lambda self: self.app.tasks["reports"].apply((self,), task_id="t2"),
])
def test_a_report_is_recorded_however_it_is_made(memsync, report):
    memsync.app.task(name="other", shared=False)(do_nothing)
    memsync.app.task(name="reports", shared=False)(report_for)

    state, progress = run(memsync, report)

    assert state["status"] == "PROGRESS"
    assert facts(progress) == (75, 3, 4, "three")


def do_nothing():
    pass


def report_for(task):
    task.update_state(state="PROGRESS", meta=META)


@pytest.mark.parametrize("meta, expected", [
    ({"percent": 40}, (40, None, None, None)),
    ({"percent": 40.5, "current": 3, "total": 4}, (40.5, 3, 4, None)),
    ({"percent": 140, "current": 3, "total": 4}, (75, 3, 4, None)),
    ({"current": "page 3", "total": 4, "message": "three"}, (None, None, 4, "three")),
    ({"current": float("nan"), "total": -1, "description": 5}, (None, None, None, None)),
    ({"progress": 5, "eta": object(), 7: 8, "rows": 9}, (None, None, None, None)),
])
def test_what_is_good_in_an_odd_meta_is_taken(memsync, caplog, meta, expected):
    _, progress = run(memsync, lambda self: self.update_state(state="PROGRESS", meta=meta), base=Quiet)

    assert facts(progress) == expected
    assert progress.get("rows") == meta.get("rows")
    assert caplog.records == []


class Hostile(dict):
    """A meta whose class fails."""

    def items(self):
        raise RuntimeError("no items")


DEEP: list[object] = []
DEEP.append(DEEP)


@pytest.mark.parametrize("report", [
    {"state": "PROGRESS", "meta": "half"}, {"state": "PROGRESS", "meta": None}, {"state": "x" * 2_000_000, "meta": META},
    {"state": "FAILURE", "meta": META}, {"state": "SUCCESS", "meta": META}, {"state": None, "meta": META},
    {"state": 5, "meta": [1]}, {"state": "PROGRESS", "meta": Hostile()}, {"state": "PROGRESS", "meta": {"deep": DEEP}},
    {"state": "PROGRESS", "meta": {"__type__": "Decimal", "__value__": 5}}, {"task_id": "a/b", "state": "PROGRESS"},
    {"task_id": object(), "state": "PROGRESS"}, {},
])
def test_an_odd_report_fails_no_task_and_shows_no_state_of_celery(memsync, report):
    state, _ = run(memsync, lambda self: self.update_state(**report), base=Quiet)

    assert state["status"] == ("PROGRESS" if report.get("state") == "PROGRESS" and "task_id" not in report else "STARTED")


def test_a_soft_time_limit_goes_on_to_the_task(memsync):
    class Slow(dict):
        def items(self):
            raise SoftTimeLimitExceeded()

    with pytest.raises(SoftTimeLimitExceeded):
        run(memsync, lambda self: self.update_state(state="PROGRESS", meta=Slow()))


def test_a_task_of_a_class_that_overrides_it_is_recorded_once(memsync):
    calls = []

    class Counting(Task):
        def update_state(self, *args, **kwargs):
            calls.append(kwargs)
            return super().update_state(*args, **kwargs)

    @memsync.app.task(name="counted", base=Counting, bind=True, shared=False)
    def counted(self):
        self.update_state(state="PROGRESS", meta=META)
        return memsync.get_task_progress(self.request.id)

    for task_id in ("t1", "t2"):
        progress = counted.apply(task_id=task_id).get(disable_sync_subtasks=False)
        assert facts(progress) == (75, 3, 4, "three")

    assert calls == 2 * [{"state": "PROGRESS", "meta": META}]


def test_a_report_costs_no_round_trip(memsync):
    trips = []

    def body(self):
        memsync.force_sync()
        trips.append(round_trips(memsync, lambda: self.update_state(state="PROGRESS", meta=META)))

    run(memsync, body)

    assert trips == [0]


def test_a_status_is_written_once_while_it_is_the_same(memsync):
    versions = []

    def body(self):
        for number in range(3):
            self.update_state(state="PROGRESS", meta={"current": number})
            versions.append(memsync.read_entry("tasks/t1/state").version)

    run(memsync, body)

    assert len(set(versions)) == 1


def test_tasks_of_other_apps_stay_as_they_are(memsync):
    other = Celery("other", broker="memory://", backend="cache+memory://", set_as_current=False)

    @other.task(name="body", bind=True, shared=False)
    def body(self):
        self.update_state(state="PROGRESS", meta=META)
        return "update_state" in vars(self)

    assert body.apply(task_id="t2").get(disable_sync_subtasks=False) is False
    assert memsync.get_task("t2") is None


def test_a_status_of_an_earlier_run_is_not_shown_of_a_later_one(memsync):
    seen = []

    @memsync.app.task(name="again", bind=True, shared=False, max_retries=1)
    def again(self):
        seen.append(memsync.get_task_state("t1")["status"])
        if not self.request.retries:
            self.update_state(state="PROGRESS", meta=META)
            memsync.force_sync()
            raise self.retry(countdown=0)
        self.update_state(state="LATER", meta=META)
        seen.append(memsync.get_task_state("t1")["status"])

    again.apply(task_id="t1")

    assert seen == ["STARTED", "STARTED", "LATER"]
