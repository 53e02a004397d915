"""Subscriptions while connections break, Redis is away, hangs or forgets: nothing that has moved on is missed."""
from __future__ import annotations

import random
import threading
import time

import pytest

from celery_memsync.models.task import TaskRun
from celery_memsync.reading import subscriptions
from tests.support.ear import GONE, Ear, caught_up, cut_off
from tests.support.publishing import publish
from tests.support.redis_server import RedisServer
from tests.support.runs import run_key
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

RUN = run_key(0, 1_700_000_000.0)


@pytest.fixture
def pair(make_memsync, own_server):
    """One who hears and one who tells, on a server of their own."""
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


#: What was told before, and what is told of it after :func:`moved_on` was not heard.
MOVES = {
    "unmoved": [], "moved": [2], "new": [2], "deleted": [GONE], "tasks/t1/state": [{"x": 2}],
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

@pytest.mark.parametrize("heard", [True, False])
def test_after_a_broken_connection_what_moved_on_is_told_once_and_nothing_else(memsync, other, redis, heard):
    if heard:
        ear = Ear(memsync, invalidate=False)
        set_the_scene(other)
        ear.hears("deleted", 1)
    else:
        set_the_scene(other)
        ear = Ear(memsync, invalidate=False)
    gone = []
    memsync.subscribe("*", on_invalidate=gone.append)
    caught_up(memsync)
    ear.heard.clear()

    cut_off(memsync, redis, meanwhile=lambda: moved_on(other))
    publish(other, {"end": 1})

    ear.hears("end", 1)
    for key, told in MOVES.items():
        assert ear.of(key) == [value for value in told if value != GONE], key
    eventually(lambda: "task-sentinel/deleted" in gone)
    assert ear.never_goes_back()


def test_a_task_of_which_a_part_was_deleted_has_not_moved_on(memsync, other, redis):
    ear = Ear(memsync, invalidate=False)
    other.sync_task_run("t1", TaskRun("STARTED"), RUN)
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    other.delete("tasks/t1/state")
    other.force_sync()
    ear.hears("tasks/t1/state", {"status": "STARTED", "retries": 0})
    ear.hears("coordination/metrics", {"total": 1})
    ear.heard.clear()

    cut_off(memsync, redis)
    publish(other, {"end": 1})

    ear.hears("end", 1)
    assert ear.of("tasks/t1/state") == []


def test_what_was_told_is_invalidated_once_when_the_connection_is_lost(pair, own_server):
    memsync, other = pair
    publish(other, {"before": 1})
    ear = Ear(memsync)
    publish(other, {"a": 1, "b": 1})
    ear.hears("b", 1)
    caught_up(memsync)

    own_server.stop()
    until_it_has_tried_often(memsync)

    assert ear.heard[:2] == [("a", 1), ("b", 1)]
    assert sorted(ear.heard[2:]) == [("a", GONE), ("b", GONE)]


def test_a_copy_that_may_be_outdated_is_invalidated_and_its_key_is_delivered_again(memsync, other, redis):
    publish(other, {"a": 1, "b": 1})
    ear, beside = Ear(memsync, "a"), Ear(memsync, "b", invalidate=False)
    memsync.read("a")
    memsync.read("b")

    cut_off(memsync, redis)

    ear.hears("a", 1)
    assert ear.of("a") == [GONE, 1]
    assert beside.heard == []


@pytest.mark.slow
def test_a_connection_that_breaks_during_the_first_look_loses_nothing(memsync, other, redis):
    for number in range(6000):
        other.sync_task_state(f"t{number}", {"x": 1})
    publish(other, {"a": 1})
    ear = Ear(memsync)

    redis.client_kill_filter(_type="pubsub")
    publish(other, {"a": 2})

    eventually(lambda: ear.of("a") == [2], timeout=60)


@pytest.mark.slow
def test_connections_that_break_again_and_again_lose_nothing(pair, own_server):
    memsync, other = pair
    ears = [Ear(memsync, pattern, invalidate=False) for pattern in ("*", "a/*", "a/[0-4]")]
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

    for ear in ears:
        for key in keys:
            ear.hears(key, "last")
        assert ear.never_goes_back()


# -- a Redis that is away

def test_who_subscribes_while_redis_is_away_is_told_of_all_there_is_when_it_is_back(make_memsync, lasting):
    other = make_memsync(url=lasting.url, batch_interval=60.0)
    publish(other, {"a": 1, "b": 1})
    lasting.stop()
    memsync = make_memsync(url=lasting.url)
    ear = Ear(memsync)

    lasting.start()
    caught_up(memsync)
    publish(other, {"end": 1})

    ear.hears("end", 1)
    assert sorted(ear.heard[:-1]) == [("a", 1), ("b", 1)]


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
def test_what_changes_after_subscribe_has_given_up_waiting_is_told(pair, own_server, monkeypatch):
    memsync, other = pair
    Ear(memsync, "x")
    own_server.stop()
    until_it_has_tried_often(memsync)
    own_server.start()
    monkeypatch.setattr(subscriptions, "CONFIRM_TIMEOUT", 0.01)

    ear = Ear(memsync, "a")
    publish(other, {"a": 1})

    ear.hears("a", 1)


def test_after_a_restart_with_its_data_what_moved_on_is_told_once_and_nothing_else(make_memsync, lasting):
    memsync, other = make_memsync(url=lasting.url), make_memsync(url=lasting.url, batch_interval=60.0)
    ear = Ear(memsync, invalidate=False)
    set_the_scene(other)
    ear.hears("deleted", 1)
    caught_up(memsync)
    ear.heard.clear()
    stopped_at = time.monotonic()

    lasting.stop()
    lasting.start()
    moved_on(other)
    caught_up(memsync, since=stopped_at)
    publish(other, {"end": 1})

    ear.hears("end", 1)
    for key, told in MOVES.items():
        assert ear.of(key) == [value for value in told if value != GONE], key


def test_after_a_restart_without_its_data_what_was_there_is_invalidated_and_then_what_is_new_is_told(pair, own_server):
    memsync, other = pair
    publish(other, {"before": 1})
    ear = Ear(memsync)
    for value in range(3):
        publish(other, {"a": value, "b": value})
    ear.hears("b", 2)
    caught_up(memsync)

    own_server.kill()
    own_server.start()
    publish(other, {"b": "new"})

    for key in ("before", "a"):
        ear.hears(key, GONE)
    ear.hears("b", "new")
    assert ear.of("b")[-2:] == [GONE, "new"]


def test_a_redis_that_is_back_with_older_data_is_believed(make_memsync, lasting):
    memsync, other = make_memsync(url=lasting.url), make_memsync(url=lasting.url, batch_interval=60.0)
    ear = Ear(memsync)
    publish(other, {"a": "old"})
    with lasting.client() as redis:
        redis.save()
    for number in range(3):
        publish(other, {"a": number})
    ear.hears("a", 2)

    lasting.kill()
    lasting.start()

    ear.hears("a", "old")
    assert ear.of("a")[-2:] == [GONE, "old"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 3])
def test_a_redis_that_is_paused_loses_nothing(pair, own_server, seconds):
    memsync, other = pair
    ear = Ear(memsync)
    publish(other, {"a": 1})
    ear.hears("a", 1)

    with own_server.client() as redis:
        redis.client_pause(int(seconds * 1000))
    late = Ear(memsync)
    publish(other, {"a": 2, "b": 2})

    for one in (ear, late):
        one.hears("a", 2)
        one.hears("b", 2)
        assert one.never_goes_back()
