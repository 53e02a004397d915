"""`check_cancelled` and `track` in the body of a task; what travels with the messages of a workflow."""
from __future__ import annotations

import contextlib

import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.task import Context

from celery_memsync import MemSync, NotInTask, TaskCancelled
from celery_memsync.integration.requests import HEADER
from celery_memsync.models.cancellation import ids_of
from tests.support.runs import run_key


def make(redis_url, name="cancel", **conf):
    """Return an app whose tasks run eagerly."""
    app = Celery(name, broker="memory://", set_as_current=False)
    app.conf.update(memsync_backend=redis_url, memsync_batch_interval=60.0, **conf)
    return MemSync(app)


@pytest.fixture
def memsync(redis_url):
    memsync = make(redis_url)
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


def run(memsync, body):
    """Run a function as the body of a task; return what Celery says of its end."""
    return memsync.app.task(name=body.__qualname__, shared=False)(body).apply(task_id="t1")


@contextlib.contextmanager
def running(memsync, facts):
    """Let the block be the body of a task whose message had these headers."""
    facts = {**facts, HEADER: {"key": run_key(0, 1.0), "run": "run-1", **facts.get(HEADER, {})}}
    task = memsync.app.task(name="running", shared=False)(nothing)
    task.request_stack.push(Context({"id": "t1", "task": "running", "delivery_info": {}, **facts}))
    memsync.signals.on_started("t1", task)
    yield
    memsync.signals.on_ended("t1", None, "SUCCESS", task)
    task.request_stack.pop()


def nothing():
    pass


def test_first_look_of_a_task_finds_that_it_is_cancelled(memsync, other):
    other.cancel("t1", "no need")

    result = run(memsync, memsync.check_cancelled)

    assert isinstance(result.result, TaskCancelled)
    state = memsync.get_task_state("t1")
    assert state["status"] == "REVOKED"
    assert state["exception"]["message"].startswith("cancelled by worker-1 at ")
    assert state["exception"]["message"].endswith(": no need")


def test_task_that_is_not_cancelled_goes_on(memsync, other):
    other.cancel("t2")

    def body():
        memsync.check_cancelled()
        return list(memsync.track("abc"))

    assert run(memsync, body).result == ["a", "b", "c"]


def test_task_that_cancels_itself_gets_no_further_item(memsync):
    seen = []

    def body():
        for number in memsync.track(range(5)):
            seen.append(number)
            if number == 2:
                memsync.cancel("t1", "enough")

    run(memsync, body)

    assert seen == [0, 1, 2]
    assert memsync.get_task_progress("t1")["current"] == 3
    assert "in task t1 at" in memsync.get_task_state("t1")["exception"]["message"]


@pytest.mark.parametrize("header", [{"root_id": "r1"}, {"group": "r1"}, {HEADER: {"workflow": "r1"}}], ids=repr)
def test_task_of_a_cancelled_root_or_group_is_cancelled(memsync, other, header):
    other.cancel("r1")

    with running(memsync, header), pytest.raises(TaskCancelled):
        memsync.check_cancelled()


def test_look_outside_of_a_task_raises(memsync):
    with pytest.raises(NotInTask, match=r"check_cancelled\(\)"):
        memsync.check_cancelled()


def test_look_outside_of_a_task_does_nothing_unless_strict(redis_url):
    memsync = make(redis_url, memsync_strict=False)

    assert memsync.check_cancelled() is None


def test_look_of_another_app_finds_the_task_of_its_own(memsync, redis_url):
    other = make(redis_url, "other", memsync_namespace="other")
    other.cancel("t1")

    ended = run(memsync, other.check_cancelled)
    cancelled = run(other, memsync.check_cancelled)

    assert ended.state == "SUCCESS"
    assert isinstance(cancelled.result, TaskCancelled)
    other.signals.disconnect()
    other.shutdown(timeout=0.5)


def test_look_while_redis_is_away_lets_the_task_go_on():
    memsync = make("redis://127.0.0.1:1")

    assert run(memsync, memsync.check_cancelled).state == "SUCCESS"
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.1)


# -- what travels with messages

@pytest.fixture
def sent(memsync):
    """The headers of the messages that are sent, by task id."""
    headers_of = {}

    def note(headers=None, **_):
        headers_of[headers["id"]] = headers

    signals.after_task_publish.connect(note)
    yield headers_of
    signals.after_task_publish.disconnect(note)


@pytest.mark.parametrize("make_workflow", [
    lambda step: group(step(), step()),
    lambda step: chord([step(), step()], step()),
    lambda step: chain(group(step(), step()), group(step(), step()), step()),
], ids=["group", "chord", "chain of groups"])
def test_members_of_a_first_group_are_cancelled_with_it(memsync, sent, make_workflow):
    memsync.app.conf.result_backend = "cache+memory://"
    step = memsync.app.task(name="step", shared=False)(nothing)

    first = make_workflow(step.si).apply_async()
    while first.parent is not None:
        first = first.parent

    assert len(sent) >= 2
    for task_id, headers in sent.items():
        assert first.id in ids_of(task_id, headers, headers[HEADER])
        assert headers[HEADER]["workflow"] == first.id


def test_task_that_waits_for_a_first_chord_is_cancelled_with_it(memsync, sent, tmp_path):
    memsync.app.conf.result_backend = f"file://{tmp_path}"  # which does not count
    step = memsync.app.task(name="step", shared=False)(nothing)

    body = chord([step.si(), step.si()], step.si()).apply_async()

    assert [headers["task"] for headers in sent.values()].count("celery.chord_unlock") == 1
    assert {headers[HEADER]["workflow"] for headers in sent.values()} == {body.parent.id}


def test_what_a_task_sends_belongs_to_the_group_of_the_task(memsync, sent):
    step = memsync.app.task(name="step", shared=False)(nothing)

    with running(memsync, {HEADER: {"workflow": "the-group"}}):
        step.delay()

    assert [headers[HEADER]["workflow"] for headers in sent.values()] == ["the-group"]


@pytest.mark.parametrize("workflow", [None, 7, "", "a/b", {}, ["x"]], ids=repr)
def test_what_came_as_a_workflow_and_is_no_id_is_not_sent_on(memsync, sent, workflow):
    step = memsync.app.task(name="step", shared=False)(nothing)

    with running(memsync, {HEADER: {"workflow": workflow}}):
        step.delay()

    assert ["workflow" in headers[HEADER] for headers in sent.values()] == [False]
