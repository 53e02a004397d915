"""The writer while Redis is away, hangs or forgets: nothing is lost, nothing is written twice."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreError
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun
from tests.support.publishing import published
from tests.support.waiting import eventually


@pytest.fixture
def away(make_memsync, own_server):
    """A manager whose Redis is away since a moment ago."""
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.read("a")
    own_server.stop()
    return memsync


@pytest.fixture
def short_timeout(make_memsync, own_server):
    """A manager that does not wait long for an answer."""
    return make_memsync(url=own_server.url, batch_interval=60.0, backend_options={"socket_timeout": 0.3})


# -- away

def test_buffered_writes_go_on_while_redis_is_away(away):
    away.write("a", 1)
    away.sync_task_state("t1", {"x": 1})
    away.sync_task_progress("t1", 50)
    away.sync_agent_coordination("t1", "coder", {})
    away.sync_worker_status("w1", "up")
    away.update_heartbeat()
    away.delete("b")

    assert away.runtime.writer.pending == 7


@pytest.mark.parametrize("call", [
    lambda memsync: memsync.read("b"),
    lambda memsync: memsync.get_task_state("t1"),
    lambda memsync: memsync.get_task_progress("t1"),
    lambda memsync: memsync.get_task_agents("t1"),
    lambda memsync: memsync.get_tasks(),
    lambda memsync: memsync.get_workers(),
    lambda memsync: memsync.get_worker_status("w1"),
    lambda memsync: memsync.write("b", 1, expected_version=0),
])
def test_reads_and_atomic_operations_raise_while_redis_is_away(away, call):
    with pytest.raises(StoreError, match="it refused the connection") as caught:
        call(away)

    assert caught.value.__cause__ is not None


def test_what_waited_is_written_when_redis_is_back(away, own_server):
    away.write("a", 1)
    away.sync_task_progress("t1", 10)
    with pytest.raises(StoreError):
        away.force_sync()

    own_server.start()
    away.force_sync(timeout=5)

    assert away.runtime.writer.pending == 0
    assert away.read("a") == 1
    assert away.read_entry("a").version == 1
    assert away.get_task_progress("t1")["progress"] == 10


def test_force_sync_with_a_timeout_waits_for_redis_to_come_back(away, own_server):
    away.write("a", 1)

    own_server.start()
    away.force_sync(timeout=10)

    assert away.read("a") == 1


@pytest.mark.slow
def test_force_sync_gives_up_after_its_timeout(away):
    away.write("a", 1)
    started = time.monotonic()

    with pytest.raises(StoreError):
        away.force_sync(timeout=0.3)

    assert time.monotonic() - started < 5
    assert away.runtime.writer.pending == 1


def test_newer_values_win_over_those_that_were_put_back(away, own_server):
    away.write("a", "old")
    away.sync_task_state("t1", {"x": "old", "y": "old"})
    away.sync_task_progress("t1", 10, message="old")
    with pytest.raises(StoreError):
        away.force_sync()

    away.write("a", "new")
    away.sync_task_state("t1", {"x": "new"})
    away.sync_task_progress("t1", 20, message="new")
    pending = away.runtime.writer.pending
    own_server.start()
    away.force_sync(timeout=5)

    assert pending == 3
    assert away.read("a") == "new"
    assert away.get_task_state("t1") == {"x": "new", "y": "old"}
    assert (away.get_task_progress("t1")["progress"], away.get_task_progress("t1")["message"]) == (20, "new")


@pytest.mark.slow
def test_the_thread_writes_by_itself_when_redis_is_back(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=0.01)
    emitted = []
    for name in ("connection-lost", "connection-restored"):
        memsync.on(name, lambda name=name, **details: emitted.append(name))
    own_server.stop()
    memsync.write("a", 1)
    eventually(lambda: memsync.get_metrics()["flush_failures"] >= 2)

    own_server.start()

    eventually(lambda: memsync.runtime.writer.pending == 0)
    assert memsync.read("a") == 1
    assert memsync.events.wait_idle(5)
    assert emitted == ["connection-lost", "connection-restored"]
    assert memsync.get_metrics()["connected"]


def test_a_redis_that_was_killed_and_is_empty_again_is_written_to(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.write("a", 1)
    memsync.force_sync()

    own_server.kill()
    own_server.start()
    memsync.sync_task_state("t1", {"y": 2})
    memsync.write("a", 2)
    memsync.force_sync(timeout=5)

    assert memsync.get_task_state("t1")["y"] == 2
    assert memsync.read("a") == 2


# -- forgetful

def test_a_script_that_redis_forgot_is_taught_again(memsync, other, redis):
    memsync.write("a", 1)
    memsync.force_sync()

    redis.script_flush()
    for number in range(250):
        memsync.write(f"key-{number}", number)
    channels = [channel for channel, _ in published(redis, memsync.force_sync)]

    assert len(channels) == len(set(channels)) == 250
    assert other.read("key-249") == 249


# -- an answer is lost

def test_a_batch_whose_answer_was_lost_is_stored_once(short_timeout, own_server):
    short_timeout.write("a", 1)
    short_timeout.force_sync()
    short_timeout.write("a", 2)
    short_timeout.sync_task_state("t1", {"x": 1})
    short_timeout.sync_task_progress("t1", 50)

    own_server.pause()
    with pytest.raises(StoreError, match="did not answer"):
        short_timeout.force_sync()
    with own_server.client() as redis:
        own_server.resume()
        eventually(lambda: redis.exists(Keys("task-sentinel").task("t1")))
        messages = published(redis, short_timeout.force_sync)

    assert messages == []
    assert short_timeout.read_entry("a").version == 2
    assert short_timeout.read_entry("tasks/t1/state").version == 1
    assert short_timeout.read_entry("tasks/t1/progress").version == 1
    assert short_timeout.runtime.writer.pending == 0


def test_a_batch_that_was_lost_on_its_way_is_stored_by_the_second_try(short_timeout, own_server):
    short_timeout.write("a", 1)
    short_timeout.force_sync()
    short_timeout.write("a", 2)
    own_server.kill()
    with pytest.raises(StoreError):
        short_timeout.force_sync()

    own_server.start()
    short_timeout.force_sync(timeout=5)

    assert short_timeout.read("a") == 2


def test_what_another_wrote_after_a_lost_answer_is_kept(short_timeout, make_memsync, own_server):
    other = make_memsync(url=own_server.url, batch_interval=60.0)
    short_timeout.sync_task_state("t1", {"x": 0})
    short_timeout.force_sync()
    short_timeout.sync_task_state("t1", {"x": 1})
    own_server.pause()
    with pytest.raises(StoreError):
        short_timeout.force_sync()
    own_server.resume()
    eventually(lambda: other.get_task_state("t1") == {"x": 1})

    other.sync_task_state("t1", {"y": 2})
    other.force_sync()
    short_timeout.force_sync()
    short_timeout.sync_task_state("t1", {"z": 3})
    short_timeout.force_sync()

    assert other.get_task_state("t1") == {"x": 1, "y": 2, "z": 3}


def test_a_redis_that_is_back_is_known_although_nothing_waits_any_more(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    change = memsync.sync_task_run("t1", TaskRun("RECEIVED"))
    own_server.stop()
    with pytest.raises(StoreError):
        memsync.runtime.writer.flush()
    change.withdrawn = True

    own_server.start()

    assert eventually(lambda: memsync.get_metrics()["connected"])
    assert memsync.runtime.writer.pending == 0
