"""Foreign content in the headers of a message never harms the record of a task."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.app.task import Context

from celery_memsync import InvalidValue, MemSync
from celery_memsync.integration.requests import HEADER
from celery_memsync.keys import STAGE
from celery_memsync.models.order import run_key_of
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key

HOSTILE = [
    "text", 5, [], {"key": 5}, {"key": "a b"}, {"key": "x" * 16}, {"published_at": "yesterday", "received_at": []},
    {"previous": 5}, {"previous": []}, {"key": "chain.1", "previous": ["chain.0.a", 5]}, {"previous": ["a b", [50]]},
    {"key": "c.1.b", "previous": ["c.0.a", [float("nan"), None, None, None, None, 1.0, 2.0]]},
    {"key": "c.1.b", "previous": ["c.0.a", [50, {}, [], 7, 8, 1.0, 2.0, [], "fields"]]},
    *({"key": "c.1.b", "received_at": moment, "monotonic": moment} for moment in (1e300, -1.0, float("nan"), "now", True)),
    *({name: figure} for name in ("published_at", "received_at", "recoveries")
      for figure in (float("inf"), float("nan"), -1e300, 10 ** 400, True)),
    {"run": {}}, {"run": ["r"]}, {"run": 5, "published_at": {}},
]


@pytest.fixture
def app(redis_url):
    app = Celery("test_signals", broker="memory://", set_as_current=False)
    app.conf.update(memsync_backend=redis_url, memsync_batch_interval=60.0, task_always_eager=True)

    @app.task(name="report", bind=True, shared=False)
    def report(self):
        app.memsync.progress(3, 10)
        return self.request.id

    memsync = MemSync(app)
    yield app
    memsync.shutdown()
    memsync.signals.disconnect()


@pytest.mark.parametrize("sent", HOSTILE, ids=repr)
def test_message_headers_may_hold_anything(app, sent):
    task, signals = app.tasks["report"], app.memsync.signals
    task.request_stack.push(Context({"id": "t1", "task": "report", "retries": 1, HEADER: sent, "delivery_info": {}}))

    signals.on_started("t1", task)
    app.memsync.progress(3, 10)
    signals.on_ended("t1", None, "SUCCESS")
    signals.on_failed(task, "t2", ValueError("no"))
    task.request_stack.pop()
    app.memsync.force_sync()

    assert app.memsync.get_task_state("t1")["status"] == "SUCCESS"
    assert app.memsync.get_task_progress("t1")["total"] == 10
    assert app.memsync.get_task_state("t2")["status"] == "FAILURE"
    assert app.memsync.get_metrics()["pending_writes"] == 0


def test_an_id_that_is_not_fit_for_a_key_does_not_hurt_the_task(app):
    @app.task(name="quiet", shared=False)
    def quiet():
        return 7

    assert quiet.apply(task_id="a/b").get(disable_sync_subtasks=False) == 7
    assert app.memsync.get_metrics()["pending_writes"] == 0


def test_eager_task_is_recorded_like_any_other(app):
    result = app.tasks["report"].delay()

    app.memsync.force_sync()

    state = app.memsync.get_task_state(result.id)
    assert (state["status"], state["name"]) == ("SUCCESS", "report")


def test_a_task_called_eagerly_by_another_has_a_progress_of_its_own(app):
    @app.task(name="outer", shared=False)
    def outer():
        app.memsync.progress(1, 2)
        app.tasks["report"].apply(task_id="inner")
        app.memsync.progress(2, 2)

    outer.apply(task_id="outer")
    app.memsync.force_sync()

    assert app.memsync.get_task_progress("inner")["total"] == 10
    assert app.memsync.get_task_progress("outer")["total"] == 2


def test_a_write_that_can_not_be_made_is_dropped_and_takes_nothing_with_it(app):
    memsync = app.memsync
    memsync.sync_task_run("bad", TaskRun("STARTED", name=object()), run_key(0, 5.0))
    memsync.sync_task_state("good", {"x": 1})

    memsync.force_sync()

    assert memsync.get_task_state("good") == {"x": 1}
    assert memsync.get_metrics()["dropped"] == 1


def run_keys(app, task_id):
    """Return the run keys of the stages of a task, oldest first."""
    (task,) = app.memsync.runtime.store.read_tasks([task_id])
    return [run_key_of(one.header.run) for one in (*task.former.get(STAGE, ()), task.slots[STAGE])]


def test_an_eager_retry_comes_after_the_run_that_called_it(app):
    @app.task(name="again", bind=True, max_retries=1, shared=False)
    def again(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        raise ValueError("no")

    again.apply(task_id="t1")
    app.memsync.force_sync()

    assert len(set(run_keys(app, "t1"))) == 2
    assert [run["status"] for run in app.memsync.get_task("t1")["runs"]] == ["RETRY", "FAILURE"]


def test_a_task_that_no_worker_knows_follows_its_publishing(app):
    message = SimpleNamespace(headers={"id": "t1", HEADER: {"key": "chain.0"}})
    consumer = SimpleNamespace(app=app)

    app.memsync.signals.on_unknown(
        consumer, ValueError("unknown"), "t1", "unknown", message=message)
    app.memsync.force_sync()
    app.memsync.sync_task_run("t1", TaskRun("PENDING"), "chain.0")
    app.memsync.force_sync()

    (key,) = run_keys(app, "t1")
    assert key.startswith("chain.0.")
    assert app.memsync.get_task_state("t1")["status"] == "FAILURE"


@pytest.mark.parametrize("message", [
    None, 5, SimpleNamespace(), SimpleNamespace(headers=[]), SimpleNamespace(headers={HEADER: 5}),
])
def test_a_task_that_no_worker_knows_may_have_any_headers(app, message):
    app.memsync.signals.on_unknown(
        SimpleNamespace(app=app), ValueError("unknown"), "t1", "unknown", message=message)

    assert app.memsync.get_task_state("t1")["status"] == "FAILURE"


@pytest.mark.parametrize("junk", ["1.1:chain.0", "chain", "chain.0 x", "chain.0\n", 5])
def test_a_stage_of_what_is_no_run_is_refused(app, junk):
    with pytest.raises(InvalidValue):
        app.memsync.sync_task_run("t1", TaskRun("STARTED"), junk)

    assert app.memsync.get_metrics()["pending_writes"] == 0
