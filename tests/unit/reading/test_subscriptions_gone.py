"""Keys that are deleted, or whose time is over: who subscribed is told, once, and of nothing else."""
from __future__ import annotations

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.ear import GONE, Ear
from tests.support.publishing import publish
from tests.support.runs import run_key
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

RUN = run_key(0, 1_700_000_000.0)

#: How a thing comes to be with a short life, by its path.
SHORT_LIVED = {
    "a": lambda memsync, ttl: memsync.write("a", 1, ttl=ttl),
    "tasks/t1/x": lambda memsync, ttl: memsync.write("tasks/t1/x", 1, ttl=ttl),
    "tasks/t1/state": lambda memsync, ttl: memsync.sync_task_state("t1", {"x": 1}, ttl=ttl),
    "tasks/t1/agents/coder": lambda memsync, ttl: memsync.write("tasks/t1/agents/coder", 1, ttl=ttl),
    "workers/w1/status": lambda memsync, ttl: memsync.write("workers/w1/status", 1, ttl=ttl),
    "workers/w1/heartbeat": lambda memsync, ttl: memsync.runtime.store.write_heartbeat("w1", b"{}", ttl),
}


def until_over(ear, teller):
    """Return when something was told of and is over that was to live for a second and a half."""
    publish(teller, {"brief": 1}, ttl=1.5)
    ear.hears("brief", GONE)


@pytest.mark.parametrize("key", [
    "a", "tasks/t1/state", "tasks/t1/progress", "tasks/t1/agents/coder", "workers/w1/status"])
def test_a_delete_is_told_once(memsync, other, key):
    ear, beside = Ear(memsync), []
    memsync.subscribe(key, on_invalidate=beside.append)
    publish(other, {key: {"x": 1}})
    eventually(lambda: ear.of(key))

    other.delete(key)
    publish(other, {"end": 1})

    ear.hears("end", 1)
    assert [value for value in ear.of(key) if value == GONE] == [GONE]
    assert ear.of(key)[-1] == GONE
    eventually(lambda: beside)
    assert beside == ["task-sentinel/" + key]


def test_versions_go_on_after_a_delete(memsync, other):
    ear = Ear(memsync, "a")

    publish(other, {"a": 1})
    other.delete("a")
    other.force_sync()
    publish(other, {"a": 2})

    ear.hears("a", 2)
    assert ear.versions[-1] == ("a", 3)


def test_what_users_told_of_a_task_may_go_while_celery_goes_on(memsync, other):
    ear = Ear(memsync, "tasks/*/state")
    other.sync_task_run("t1", TaskRun("STARTED"), RUN)
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    ear.hears("tasks/t1/state", {"status": "STARTED", "retries": 0, "x": 1})

    other.delete("tasks/t1/state")
    other.force_sync()

    ear.hears("tasks/t1/state", {"status": "STARTED", "retries": 0})
    assert ear.never_goes_back()


@pytest.mark.slow
def test_the_end_of_a_ttl_is_told_once(memsync, other):
    ear = Ear(memsync)

    for act in SHORT_LIVED.values():
        act(other, 0.5)
    other.force_sync()

    for key in SHORT_LIVED:
        ear.hears(key, GONE)
    until_over(ear, other)
    assert {key: len(ear.of(key)) for key in SHORT_LIVED} == dict.fromkeys(SHORT_LIVED, 2)


@pytest.mark.slow
def test_the_end_of_what_was_there_before_is_told(memsync, other):
    for act in SHORT_LIVED.values():
        act(other, 2.0)
    other.force_sync()

    ear = Ear(memsync)

    for key in SHORT_LIVED:
        ear.hears(key, GONE)
        assert ear.of(key) == [GONE]


def test_a_ttl_that_was_made_shorter_counts(memsync, other):
    ear = Ear(memsync, "a")
    publish(other, {"a": 1}, ttl=3600)
    ear.hears("a", 1)

    publish(other, {"a": 2}, ttl=0.5)

    ear.hears("a", GONE)
    assert ear.of("a") == [1, 2, GONE]


@pytest.mark.slow
def test_a_ttl_that_was_made_longer_counts(memsync, other):
    ear = Ear(memsync)
    publish(other, {"a": 1}, ttl=1)

    publish(other, {"a": 2}, ttl=60)

    until_over(ear, other)
    assert GONE not in ear.of("a")


@pytest.mark.slow
@pytest.mark.parametrize("key, act", [
    ("tasks/t1/state", lambda memsync, ttl: memsync.sync_task_run("t1", TaskRun("STARTED"), RUN, ttl=ttl)),
    ("tasks/t1/state", lambda memsync, ttl: memsync.sync_task_run("t1", TaskRun("RECEIVED"), RUN, ttl=ttl)),
])
def test_what_is_told_again_to_live_longer_is_not_over(memsync, other, key, act):
    ear = Ear(memsync)
    for ttl in (1, 60):
        act(other, ttl)
        other.force_sync()

    until_over(ear, other)

    assert other.read(key, consistent=True) is not None
    assert GONE not in ear.of(key)


@pytest.mark.slow
def test_what_was_deleted_is_not_over_once_more(make_memsync):
    memsync = make_memsync(batch_interval=60.0, default_ttl=1.0)
    ear = Ear(memsync)
    publish(memsync, {"a": 1})
    memsync.delete("a")
    memsync.force_sync()

    until_over(ear, memsync)

    assert ear.of("a")[-1:] == [GONE]
    assert ear.of("a").count(GONE) == 1


def test_what_is_over_and_written_anew_is_told_as_gone_and_new(memsync, other):
    ear = Ear(memsync, "a")
    for value in (1, 2):
        publish(other, {"a": value}, ttl=0.5)
    ear.hears("a", GONE)

    publish(other, {"a": "new"})

    ear.hears("a", "new")
    assert ear.of("a")[-2:] == [GONE, "new"]
    assert ear.versions[-1] == ("a", 1)


def test_what_was_lost_unseen_and_written_anew_is_told_as_gone_and_new(memsync, other, redis):
    ear = Ear(memsync, "a")
    for value in (1, 2, 3):
        publish(other, {"a": value})
    ear.hears("a", 3)

    redis.delete("task-sentinel/a")
    publish(other, {"a": "new"})

    ear.hears("a", "new")
    assert ear.of("a")[-2:] == [GONE, "new"]


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
def test_a_redis_that_was_emptied_by_hand_is_noticed(memsync, other, redis, command):
    ear = Ear(memsync)
    publish(other, {"a": 1, "b": 1})
    ear.hears("b", 1)

    redis.execute_command(command)

    ear.hears("a", GONE)
    ear.hears("b", GONE)


def test_a_redis_that_is_emptied_as_soon_as_somebody_listens_is_noticed(memsync, other, redis):
    for key in "abcdefghij":
        publish(other, {key: 1})
        with memsync.watch(key) as watch:
            redis.flushall()

            assert watch.get(timeout=5) == (f"task-sentinel/{key}", None, None)


# -- while the handler is busy

def test_what_is_over_before_a_busy_handler_got_it_ends_as_gone(memsync, other):
    ear, quick = Ear(memsync), Ear(memsync)
    ear.keep_busy(other)

    publish(other, {"a": 1}, ttl=0.5)
    quick.hears("a", GONE)
    ear.free.set()

    ear.hears("a", GONE)


@pytest.mark.slow
def test_what_is_over_and_written_anew_while_the_handler_is_busy_is_told_as_gone_first(memsync, other):
    ear, quick = Ear(memsync), Ear(memsync)
    for value in (1, 2, 3):
        publish(other, {"a": value}, ttl=1)
    ear.hears("a", 3)
    ear.keep_busy(other)

    quick.hears("a", GONE)
    publish(other, {"a": "new"})
    quick.hears("a", "new")
    ear.free.set()

    ear.hears("a", "new")
    assert ear.of("a")[-2:] == [GONE, "new"]


def test_what_was_lost_and_written_anew_while_the_handler_is_busy_is_told_as_gone_first(memsync, other, redis):
    ear, quick = Ear(memsync), Ear(memsync)
    for value in (1, 2, 3):
        publish(other, {"a": value})
    ear.hears("a", 3)
    ear.keep_busy(other)

    redis.delete("task-sentinel/a")
    for value in ("new", "newer"):
        publish(other, {"a": value})
        quick.hears("a", value)
    ear.free.set()

    ear.hears("a", "newer")
    assert ear.of("a")[-2:] == [GONE, "newer"]


def test_what_is_deleted_while_the_handler_is_busy_ends_as_gone(memsync, other):
    ear, quick = Ear(memsync), Ear(memsync)
    publish(other, {"a": 1})
    ear.hears("a", 1)
    ear.keep_busy(other)

    publish(other, {"a": 2})
    other.delete("a")
    other.force_sync()
    quick.hears("a", GONE)
    ear.free.set()

    ear.hears("a", GONE)
    assert ear.of("a") == [1, GONE]
