"""Subscriptions miss no change while connections break and Redis is away, hangs or loses data."""
from __future__ import annotations

import random
import threading
import time

import pytest

from celery_memsync.models.task import TaskRun
from celery_memsync.reading import subscriptions
from tests.support.publishing import publish
from tests.support.redis_server import RedisServer
from tests.support.runs import run_key
from tests.support.subscriber import INVALIDATED, Subscriber, caught_up, cut_off
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

RUN = run_key(0, 1_700_000_000.0)


@pytest.fixture
def pair(make_memsync, own_server):
    """A manager that subscribes and one that writes, on a server of their own."""
    return make_memsync(url=own_server.url), make_memsync(url=own_server.url, batch_interval=60.0)


@pytest.fixture
def lasting(tmp_path):
    """A redis-server whose data survive a restart."""
    server = RedisServer(tmp_path / "lasting", keep=True).start()
    yield server
    server.stop()


def moved_on(other):
    """Change something of every kind."""
    other.write("moved", 2)
    other.write("new", 2)
    other.delete("deleted")
    other.sync_task_state("t1", {"x": 2})
    other.sync_agent_coordination("t1", "coder", 2)
    other.sync_worker_status("w1", "down")
    other.force_sync(timeout=20)


#: Keys that were received before, and what is received after :func:`moved_on` was missed.
MOVES = {
    "unmoved": [], "moved": [2], "new": [2], "deleted": [INVALIDATED], "tasks/t1/state": [{"x": 2}],
    "tasks/t1/agents/coder": [2], "workers/w1/status": ["down"], "tasks/t2/state": [],
}


def set_the_scene(other):
    other.sync_task_state("t1", {"x": 1})
    other.sync_task_state("t2", {"x": 1})
    other.sync_agent_coordination("t1", "coder", 1)
    other.sync_worker_status("w1", "up")
    publish(other, {"moved": 1, "unmoved": 1, "deleted": 1})


def until_it_has_tried_often(memsync):
    """Return when a manager has tried in vain to connect again, some times."""
    eventually(lambda: memsync.runtime.link._thread._failures > 2, timeout=20)


# -- a connection that breaks

@pytest.mark.parametrize("known", [True, False])
def test_changes_missed_by_a_broken_connection_are_delivered_once(memsync, other, redis, known):
    if known:
        subscriber = Subscriber(memsync, invalidate=False)
        set_the_scene(other)
        subscriber.wait_for("deleted", 1)
    else:
        set_the_scene(other)
        subscriber = Subscriber(memsync, invalidate=False)
    invalidated = []
    memsync.subscribe("*", on_invalidate=invalidated.append)
    caught_up(memsync)
    subscriber.received.clear()

    cut_off(memsync, redis, meanwhile=lambda: moved_on(other))
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    for key, values in MOVES.items():
        assert subscriber.of(key) == [value for value in values if value != INVALIDATED], key
    eventually(lambda: "task-sentinel/deleted" in invalidated)
    assert subscriber.never_goes_back()


def test_a_task_of_which_a_part_was_deleted_has_not_moved_on(memsync, other, redis):
    subscriber = Subscriber(memsync, invalidate=False)
    other.sync_task_run("t1", TaskRun("STARTED"), RUN)
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    other.delete("tasks/t1/state")
    other.force_sync()
    subscriber.wait_for("tasks/t1/state", {"status": "STARTED", "retries": 0})
    subscriber.wait_for("coordination/metrics", {"total": 1})
    subscriber.received.clear()

    cut_off(memsync, redis)
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    assert subscriber.of("tasks/t1/state") == []


def test_received_keys_are_invalidated_once_when_the_connection_is_lost(pair, own_server):
    memsync, other = pair
    publish(other, {"before": 1})
    subscriber = Subscriber(memsync)
    publish(other, {"a": 1, "b": 1})
    subscriber.wait_for("b", 1)
    caught_up(memsync)

    own_server.stop()
    until_it_has_tried_often(memsync)

    assert subscriber.received[:2] == [("a", 1), ("b", 1)]
    assert sorted(subscriber.received[2:]) == [("a", INVALIDATED), ("b", INVALIDATED)]


def test_a_copy_that_may_be_outdated_is_invalidated_and_its_key_is_delivered_again(memsync, other, redis):
    publish(other, {"a": 1, "b": 1})
    subscriber, beside = Subscriber(memsync, "a"), Subscriber(memsync, "b", invalidate=False)
    memsync.read("a")
    memsync.read("b")

    cut_off(memsync, redis)

    subscriber.wait_for("a", 1)
    assert subscriber.of("a") == [INVALIDATED, 1]
    assert beside.received == []


@pytest.mark.slow
def test_a_connection_that_breaks_during_the_first_look_loses_nothing(memsync, other, redis):
    for number in range(6000):
        other.sync_task_state(f"t{number}", {"x": 1})
    publish(other, {"a": 1})
    subscriber = Subscriber(memsync)

    redis.client_kill_filter(_type="pubsub")
    publish(other, {"a": 2})

    eventually(lambda: subscriber.of("a") == [2], timeout=60)


@pytest.mark.slow
def test_connections_that_break_again_and_again_lose_nothing(pair, own_server):
    memsync, other = pair
    subscribers = [
        Subscriber(memsync, pattern, invalidate=False) for pattern in ("*", "a/*", "a/[0-4]")]
    keys, stop = [f"a/{number}" for number in range(5)], threading.Event()

    def cut():
        with own_server.client() as redis:
            while not stop.wait(random.random() / 2):
                redis.client_kill_filter(_type=random.choice(["pubsub", "pubsub", "normal"]), skipme=True)

    cutting = threading.Thread(target=cut)
    cutting.start()
    for number in range(2000):
        publish(other, {keys[number % 5]: number})
    publish(other, dict.fromkeys(keys, "last"))
    stop.set()
    cutting.join()

    for subscriber in subscribers:
        for key in keys:
            subscriber.wait_for(key, "last")
        assert subscriber.never_goes_back()


# -- a Redis that is away

def test_subscription_made_while_redis_is_away_receives_all_keys_later(make_memsync, lasting):
    other = make_memsync(url=lasting.url, batch_interval=60.0)
    publish(other, {"a": 1, "b": 1})
    lasting.stop()
    memsync = make_memsync(url=lasting.url)
    subscriber = Subscriber(memsync)

    lasting.start()
    caught_up(memsync)
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    assert sorted(subscriber.received[:-1]) == [("a", 1), ("b", 1)]


@pytest.mark.slow
def test_to_subscribe_while_redis_is_away_neither_raises_nor_takes_long(make_memsync, own_server):
    own_server.stop()
    memsync = make_memsync(url=own_server.url)
    started = time.monotonic()

    ids = [memsync.subscribe("*", print) for _ in range(3)]
    watch = memsync.watch("*")

    assert time.monotonic() - started < 20
    assert memsync.get_metrics()["subscriptions"] == 4
    assert watch.get(timeout=0.1) is None
    assert all(memsync.unsubscribe(one) for one in ids)


@pytest.mark.slow
def test_change_after_subscribe_timed_out_is_delivered(pair, own_server, monkeypatch):
    memsync, other = pair
    Subscriber(memsync, "x")
    own_server.stop()
    until_it_has_tried_often(memsync)
    own_server.start()
    monkeypatch.setattr(subscriptions, "CONFIRM_TIMEOUT", 0.01)

    subscriber = Subscriber(memsync, "a")
    publish(other, {"a": 1})

    subscriber.wait_for("a", 1)


def test_changes_during_a_restart_with_data_are_delivered_once(make_memsync, lasting):
    memsync, other = make_memsync(url=lasting.url), make_memsync(url=lasting.url, batch_interval=60.0)
    subscriber = Subscriber(memsync, invalidate=False)
    set_the_scene(other)
    subscriber.wait_for("deleted", 1)
    caught_up(memsync)
    subscriber.received.clear()
    stopped_at = time.monotonic()

    lasting.stop()
    lasting.start()
    moved_on(other)
    caught_up(memsync, since=stopped_at)
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    for key, values in MOVES.items():
        assert subscriber.of(key) == [value for value in values if value != INVALIDATED], key


def test_restart_without_data_invalidates_old_keys_and_delivers_new_ones(pair, own_server):
    memsync, other = pair
    publish(other, {"before": 1})
    subscriber = Subscriber(memsync)
    for value in range(3):
        publish(other, {"a": value, "b": value})
    subscriber.wait_for("b", 2)
    caught_up(memsync)

    own_server.kill()
    own_server.start()
    publish(other, {"b": "new"})

    for key in ("before", "a"):
        subscriber.wait_for(key, INVALIDATED)
    subscriber.wait_for("b", "new")
    assert subscriber.of("b")[-2:] == [INVALIDATED, "new"]


def test_older_data_after_a_restart_is_delivered(make_memsync, lasting):
    memsync, other = make_memsync(url=lasting.url), make_memsync(url=lasting.url, batch_interval=60.0)
    subscriber = Subscriber(memsync)
    publish(other, {"a": "old"})
    with lasting.client() as redis:
        redis.save()
    for number in range(3):
        publish(other, {"a": number})
    subscriber.wait_for("a", 2)

    lasting.kill()
    lasting.start()

    subscriber.wait_for("a", "old")
    assert subscriber.of("a")[-2:] == [INVALIDATED, "old"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 3])
def test_a_redis_that_is_paused_loses_nothing(pair, own_server, seconds):
    memsync, other = pair
    subscriber = Subscriber(memsync)
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    with own_server.client() as redis:
        redis.client_pause(int(seconds * 1000))
    late = Subscriber(memsync)
    publish(other, {"a": 2, "b": 2})

    for one in (subscriber, late):
        one.wait_for("a", 2)
        one.wait_for("b", 2)
        assert one.never_goes_back()
