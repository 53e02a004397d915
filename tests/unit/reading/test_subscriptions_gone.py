"""Deleted and expired keys: subscribers are notified once, and of nothing else."""
from __future__ import annotations

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.publishing import publish
from tests.support.runs import run_key
from tests.support.subscriber import INVALIDATED, Subscriber
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

RUN = run_key(0, 1_700_000_000.0)

#: How an entry with a short ttl is written, by its path.
SHORT_LIVED = {
    "a": lambda memsync, ttl: memsync.write("a", 1, ttl=ttl),
    "tasks/t1/x": lambda memsync, ttl: memsync.write("tasks/t1/x", 1, ttl=ttl),
    "tasks/t1/state": lambda memsync, ttl: memsync.sync_task_state("t1", {"x": 1}, ttl=ttl),
    "tasks/t1/agents/coder": lambda memsync, ttl: memsync.write("tasks/t1/agents/coder", 1, ttl=ttl),
    "workers/w1/status": lambda memsync, ttl: memsync.write("workers/w1/status", 1, ttl=ttl),
    "workers/w1/heartbeat": lambda memsync, ttl: memsync.runtime.store.write_heartbeat("w1", b"{}", ttl),
}


def wait_for_expiry(subscriber, writer):
    """Return when an entry with a ttl of 1.5 seconds was received and has expired."""
    publish(writer, {"brief": 1}, ttl=1.5)
    subscriber.wait_for("brief", INVALIDATED)


@pytest.mark.parametrize("key", [
    "a", "tasks/t1/state", "tasks/t1/progress", "tasks/t1/agents/coder", "workers/w1/status"])
def test_delete_is_delivered_once(memsync, other, key):
    subscriber, beside = Subscriber(memsync), []
    memsync.subscribe(key, on_invalidate=beside.append)
    publish(other, {key: {"x": 1}})
    eventually(lambda: subscriber.of(key))

    other.delete(key)
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    assert [value for value in subscriber.of(key) if value == INVALIDATED] == [INVALIDATED]
    assert subscriber.of(key)[-1] == INVALIDATED
    eventually(lambda: beside)
    assert beside == ["task-sentinel/" + key]


def test_versions_go_on_after_a_delete(memsync, other):
    subscriber = Subscriber(memsync, "a")

    publish(other, {"a": 1})
    other.delete("a")
    other.force_sync()
    publish(other, {"a": 2})

    subscriber.wait_for("a", 2)
    assert subscriber.versions[-1] == ("a", 3)


def test_state_set_by_users_may_be_deleted_while_that_of_celery_stays(memsync, other):
    subscriber = Subscriber(memsync, "tasks/*/state")
    other.sync_task_run("t1", TaskRun("STARTED"), RUN)
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    subscriber.wait_for("tasks/t1/state", {"status": "STARTED", "retries": 0, "x": 1})

    other.delete("tasks/t1/state")
    other.force_sync()

    subscriber.wait_for("tasks/t1/state", {"status": "STARTED", "retries": 0})
    assert subscriber.never_goes_back()


@pytest.mark.slow
def test_expiry_is_delivered_once(memsync, other):
    subscriber = Subscriber(memsync)

    for act in SHORT_LIVED.values():
        act(other, 0.5)
    other.force_sync()

    for key in SHORT_LIVED:
        subscriber.wait_for(key, INVALIDATED)
    wait_for_expiry(subscriber, other)
    assert {key: len(subscriber.of(key)) for key in SHORT_LIVED} == dict.fromkeys(SHORT_LIVED, 2)


@pytest.mark.slow
def test_expiry_of_a_key_from_before_the_subscription_is_delivered(memsync, other):
    for act in SHORT_LIVED.values():
        act(other, 2.0)
    other.force_sync()

    subscriber = Subscriber(memsync)

    for key in SHORT_LIVED:
        subscriber.wait_for(key, INVALIDATED)
        assert subscriber.of(key) == [INVALIDATED]


def test_a_ttl_that_was_made_shorter_counts(memsync, other):
    subscriber = Subscriber(memsync, "a")
    publish(other, {"a": 1}, ttl=3600)
    subscriber.wait_for("a", 1)

    publish(other, {"a": 2}, ttl=0.5)

    subscriber.wait_for("a", INVALIDATED)
    assert subscriber.of("a") == [1, 2, INVALIDATED]


@pytest.mark.slow
def test_a_ttl_that_was_made_longer_counts(memsync, other):
    subscriber = Subscriber(memsync)
    publish(other, {"a": 1}, ttl=1)

    publish(other, {"a": 2}, ttl=60)

    wait_for_expiry(subscriber, other)
    assert INVALIDATED not in subscriber.of("a")


@pytest.mark.slow
@pytest.mark.parametrize("key, act", [
    ("tasks/t1/state", lambda memsync, ttl: memsync.sync_task_run("t1", TaskRun("STARTED"), RUN, ttl=ttl)),
    ("tasks/t1/state", lambda memsync, ttl: memsync.sync_task_run("t1", TaskRun("RECEIVED"), RUN, ttl=ttl)),
])
def test_key_rewritten_with_a_longer_ttl_is_not_invalidated(memsync, other, key, act):
    subscriber = Subscriber(memsync)
    for ttl in (1, 60):
        act(other, ttl)
        other.force_sync()

    wait_for_expiry(subscriber, other)

    assert other.read(key, consistent=True) is not None
    assert INVALIDATED not in subscriber.of(key)


@pytest.mark.slow
def test_deleted_key_is_not_invalidated_again_when_it_would_expire(make_memsync):
    memsync = make_memsync(batch_interval=60.0, default_ttl=1.0)
    subscriber = Subscriber(memsync)
    publish(memsync, {"a": 1})
    memsync.delete("a")
    memsync.force_sync()

    wait_for_expiry(subscriber, memsync)

    assert subscriber.of("a")[-1:] == [INVALIDATED]
    assert subscriber.of("a").count(INVALIDATED) == 1


def test_expired_and_recreated_key_is_delivered_as_invalidated_and_new(memsync, other):
    subscriber = Subscriber(memsync, "a")
    for value in (1, 2):
        publish(other, {"a": value}, ttl=0.5)
    subscriber.wait_for("a", INVALIDATED)

    publish(other, {"a": "new"})

    subscriber.wait_for("a", "new")
    assert subscriber.of("a")[-2:] == [INVALIDATED, "new"]
    assert subscriber.versions[-1] == ("a", 1)


def test_lost_and_recreated_key_is_delivered_as_invalidated_and_new(memsync, other, redis):
    subscriber = Subscriber(memsync, "a")
    for value in (1, 2, 3):
        publish(other, {"a": value})
    subscriber.wait_for("a", 3)

    redis.delete("task-sentinel/a")
    publish(other, {"a": "new"})

    subscriber.wait_for("a", "new")
    assert subscriber.of("a")[-2:] == [INVALIDATED, "new"]


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
def test_a_redis_that_was_emptied_by_hand_is_noticed(memsync, other, redis, command):
    subscriber = Subscriber(memsync)
    publish(other, {"a": 1, "b": 1})
    subscriber.wait_for("b", 1)

    redis.execute_command(command)

    subscriber.wait_for("a", INVALIDATED)
    subscriber.wait_for("b", INVALIDATED)


def test_flush_right_after_a_watch_begins_is_noticed(memsync, other, redis):
    for key in "abcdefghij":
        publish(other, {key: 1})
        with memsync.watch(key) as watch:
            redis.flushall()

            assert watch.get(timeout=5) == (f"task-sentinel/{key}", None, None)


# -- while the handler is busy

def test_key_that_expires_before_a_busy_handler_got_it_is_invalidated(memsync, other):
    subscriber, quick = Subscriber(memsync), Subscriber(memsync)
    subscriber.keep_busy(other)

    publish(other, {"a": 1}, ttl=0.5)
    quick.wait_for("a", INVALIDATED)
    subscriber.free.set()

    subscriber.wait_for("a", INVALIDATED)


@pytest.mark.slow
def test_busy_handler_receives_the_expiry_before_the_recreated_key(memsync, other):
    subscriber, quick = Subscriber(memsync), Subscriber(memsync)
    for value in (1, 2, 3):
        publish(other, {"a": value}, ttl=1)
    subscriber.wait_for("a", 3)
    subscriber.keep_busy(other)

    quick.wait_for("a", INVALIDATED)
    publish(other, {"a": "new"})
    quick.wait_for("a", "new")
    subscriber.free.set()

    subscriber.wait_for("a", "new")
    assert subscriber.of("a")[-2:] == [INVALIDATED, "new"]


def test_busy_handler_receives_the_loss_before_the_recreated_key(memsync, other, redis):
    subscriber, quick = Subscriber(memsync), Subscriber(memsync)
    for value in (1, 2, 3):
        publish(other, {"a": value})
    subscriber.wait_for("a", 3)
    subscriber.keep_busy(other)

    redis.delete("task-sentinel/a")
    for value in ("new", "newer"):
        publish(other, {"a": value})
        quick.wait_for("a", value)
    subscriber.free.set()

    subscriber.wait_for("a", "newer")
    assert subscriber.of("a")[-2:] == [INVALIDATED, "newer"]


def test_busy_handler_receives_a_delete_last(memsync, other):
    subscriber, quick = Subscriber(memsync), Subscriber(memsync)
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)
    subscriber.keep_busy(other)

    publish(other, {"a": 2})
    other.delete("a")
    other.force_sync()
    quick.wait_for("a", INVALIDATED)
    subscriber.free.set()

    subscriber.wait_for("a", INVALIDATED)
    assert subscriber.of("a") == [1, INVALIDATED]
