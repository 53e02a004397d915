"""What the fixtures for tests of tasks do: states of their own, waits, and what a failure shows."""
from __future__ import annotations

import re
import threading

import pytest
from celery import Celery

from celery_memsync import InvalidKey, InvalidValue, MemSync
from celery_memsync.contrib import testing
from celery_memsync.contrib.testing import assert_progress, own_state, wait_for
from tests.support.threads import in_background

Failed = pytest.fail.Exception


@pytest.fixture
def app():
    """An app whose own Redis is out of reach."""
    app = Celery("tested", broker="memory://", set_as_current=False)
    app.conf.update(memsync_backend="redis://localhost:1", memsync_backend_options={"ssl": True}, memsync_default_ttl=77.0)
    return app


@pytest.fixture
def memsync(app, redis_url):
    """The manager of the app, in a state of its own."""
    with own_state(app, redis_url) as memsync:
        yield memsync


@pytest.fixture
def count(memsync):
    """A task that reports 3 of 4."""
    @memsync.app.task(name="count", shared=False)
    def count():
        memsync.progress(3, 4, "counting", phase="first", file="a.mp4")
        raise ValueError("it went wrong")

    return count


def one():
    return 1


# -- a state of its own

def test_state_has_a_namespace_and_a_redis_of_its_own(app, redis_url, redis):
    with own_state(app, redis_url) as memsync:
        memsync.write("a", 1)
        memsync.force_sync()
        names = [key.decode() for key in redis.keys("*")]

    assert memsync.settings.namespace == "task-sentinel"
    assert names and all(re.match(r"test-\w{8}/", name) for name in names)


def test_state_leaves_no_key_and_no_thread(app, redis_url, redis):
    before = set(threading.enumerate())

    with own_state(app, redis_url) as memsync:
        memsync.sync_task_state("t1", {"x": 1})
        memsync.subscribe("*", lambda key, value: None)
        memsync.write("a", 1)
        with memsync.lock("a"):
            memsync.force_sync()

    assert redis.keys("*") == []
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name != "memsync-closing"] == []


def test_state_leaves_other_namespaces_alone(app, redis_url, make_memsync):
    other = make_memsync()
    other.write("a", 1)
    other.force_sync()

    with own_state(app, redis_url) as memsync:
        memsync.write("a", 2)

    assert other.read("a", consistent=True) == 1


def test_state_keeps_the_other_settings_of_the_app(app, redis_url):
    with own_state(app, redis_url) as memsync:
        assert memsync.settings.default_ttl == 77
        assert memsync.settings.strict


def test_state_gives_the_app_its_settings_back(app, redis_url):
    memsync = MemSync(app, batch_interval=5.0)
    assert memsync.settings.default_ttl == 77
    before = dict(app.conf.changes)

    with own_state(app, redis_url) as same:
        assert same is memsync
        app.conf.task_always_eager = True
        assert app.conf.broker_url == redis_url
        assert memsync.settings.backend == redis_url

    assert len(before) < 20
    assert dict(app.conf.changes) == before
    assert (memsync.settings.backend, memsync.settings.batch_interval) == ("redis://localhost:1", 5)


def test_state_keeps_a_broker_that_is_not_in_memory(app, redis_url):
    app.conf.update(broker_url="redis://localhost:2", result_backend="rpc://")

    with own_state(app, redis_url):
        assert (app.conf.broker_url, app.conf.result_backend) == ("redis://localhost:2", "rpc://")


def test_state_inside_of_another_one_of_the_same_app_is_that_one(app, redis_url):
    with own_state(app, redis_url) as outer:
        outer.write("a", 1)
        with own_state(app, redis_url) as inner:
            assert inner is outer
        assert outer.read("a", consistent=True) == 1

    with own_state(app, redis_url) as later:
        assert later.read("a") is None


def test_state_of_an_app_that_is_switched_off_is_recorded(app, redis_url):
    app.conf.memsync_enabled = False
    memsync = MemSync(app)
    assert not memsync.enabled

    with own_state(app, redis_url):
        result = app.task(one, name="one", shared=False).apply()
        assert memsync.get_task_state(result.id)["status"] == "SUCCESS"


def test_app_without_a_memsync_of_its_own_records_nothing_afterwards(app, redis_url, redis):
    task = app.task(one, name="one", shared=False)
    with own_state(app, redis_url):
        pass
    app.conf.memsync_backend = redis_url
    app.conf.memsync_backend_options = {}

    task.apply()
    app.memsync.force_sync()
    app.memsync.shutdown()

    assert not redis.keys("*tasks*")


# -- waiting

def test_wait_returns_what_the_condition_returned(memsync):
    answers = iter([None, [], "yes"])

    assert wait_for(memsync, lambda: next(answers)) == "yes"


def test_wait_goes_on_while_the_condition_raises(memsync):
    seen = []

    def condition():
        seen.append(1)
        return {3: "there"}[len(seen)]

    assert wait_for(memsync, condition) == "there"


def test_wait_returns_with_a_change_of_another_process(memsync, make_memsync, monkeypatch):
    monkeypatch.setattr(testing, "INTERVAL", 60.0)
    other = make_memsync(namespace=memsync.settings.namespace)
    waiting = in_background(lambda: wait_for(memsync, lambda: memsync.read("a") == 1))

    other.write("a", 1)
    other.force_sync()

    assert waiting() is True


def test_wait_writes_what_is_pending_before_it_looks(app, redis_url, redis):
    with own_state(app, redis_url) as memsync:
        memsync.environment.given = {**memsync.environment.given, "batch_interval": 60.0}
        memsync.write("a", 1)

        assert wait_for(memsync, lambda: redis.keys("*/a"), timeout=5)


def test_wait_returns_the_state_of_a_task_that_has_ended(memsync, count):
    result = count.apply()

    assert wait_for(memsync, result)["status"] == "FAILURE"
    assert wait_for(memsync, result.id, status="FAILURE")["name"] == "count"


def test_wait_for_a_status_fails_at_once_if_the_task_has_ended_otherwise(memsync, count):
    result = count.apply()

    with pytest.raises(Failed, match=r"is not SUCCESS at its end: recorded: status 'FAILURE'.*it went wrong.*progress 75"):
        wait_for(memsync, result, timeout=3600, status="SUCCESS")


@pytest.mark.parametrize("condition, seen", [
    (lambda: [], r"it returned \[\]"), (lambda: {}["status"], "it raised KeyError\\('status'\\)")])
def test_wait_in_vain_shows_what_it_saw_last(memsync, condition, seen):
    with pytest.raises(Failed, match="the condition is not true after 0.2 s: " + seen):
        wait_for(memsync, condition, timeout=0.2)


def test_wait_in_vain_for_a_task_says_what_is_missing(memsync, count):
    with pytest.raises(Failed, match="no worker is alive; use the fixture memsync_worker"):
        wait_for(memsync, count.delay(), timeout=0.2)
    with pytest.raises(Failed, match="task t9 has not ended after 0.2 s: nothing is recorded of it"):
        wait_for(memsync, "t9", timeout=0.2)


# -- progress

@pytest.mark.parametrize("expected", [
    {"percent": 75}, {"at_least": 75}, {"at_least": 10}, {"current": 3, "total": 4}, {"message": "counting"},
    {"message": re.compile("^count")}, {"phase": "first"}, {"file": "a.mp4"}])
def test_progress_is_as_expected(memsync, count, expected):
    result = count.apply()

    assert assert_progress(memsync, result, **expected)["current"] == 3


@pytest.mark.parametrize("expected, wrong", [
    ({"percent": 70}, "progress is not 70"), ({"at_least": 76}, "at_least is not 76"), ({"total": 3}, "total is not 3"),
    ({"message": "other"}, "message is not 'other'"),
    ({"message": re.compile("^ount")}, "message is not re.compile('^ount')"),
    ({"file": "b.mp4", "phase": "x"}, "file is not 'b.mp4'; phase is not 'x'"), ({"nothing": 1}, "nothing is not 1")])
def test_progress_that_is_not_as_expected_fails_at_once_after_the_end(memsync, count, expected, wrong):
    result = count.apply()

    with pytest.raises(Failed) as failure:
        assert_progress(memsync, result, timeout=3600, **expected)

    assert f"is not as expected at its end: {wrong}; recorded: status 'FAILURE'" in str(failure.value)
    assert "current 3, total 4, message 'counting', phase 'first', file 'a.mp4'" in str(failure.value)


def test_progress_is_awaited_while_the_task_goes_on(memsync):
    memsync.sync_task_progress("t1", 10)
    waiting = in_background(lambda: assert_progress(memsync, "t1", at_least=60)["progress"])

    memsync.sync_task_progress("t1", 70)

    assert waiting() == 70


def test_percentage_is_compared_as_exactly_as_it_is_stored(memsync):
    memsync.sync_task_progress("t1", None, current=1, total=3)

    assert_progress(memsync, "t1", 100 / 3)
    with pytest.raises(Failed, match="progress is not 33.3;"):
        assert_progress(memsync, "t1", 33.3, timeout=0)


@pytest.mark.parametrize("what", [None, True, {"status": "SUCCESS"}])
def test_wait_refuses_at_once_what_is_no_task(memsync, what):
    with pytest.raises(InvalidKey, match=f"a string or a UUID, such as result.id, not {type(what).__name__}"):
        wait_for(memsync, what, timeout=3600)
    with pytest.raises(InvalidKey):
        assert_progress(memsync, what, 100, timeout=3600)


def test_wait_refuses_a_status_in_the_place_of_the_timeout(memsync):
    with pytest.raises(InvalidValue, match="timeout is a number of seconds, not str"):
        wait_for(memsync, "t1", "SUCCESS")
