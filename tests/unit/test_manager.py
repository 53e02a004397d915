"""The facade: what a user calls, by the names of the quick reference."""
from __future__ import annotations

import os
import socket
import threading

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_memsync import Entry, MemorySyncManager, StoreError
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun
from tests.support.redis_server import free_port

RUN = "chain.0.a"


def test_making_a_manager_connects_and_starts_nothing():
    threads = threading.active_count()

    memsync = MemorySyncManager(url=f"redis://127.0.0.1:{free_port()}")
    metrics = memsync.get_metrics()

    assert threading.active_count() <= threads
    assert metrics["connected"]


def test_a_process_is_named_by_its_host_and_pid(redis_url):
    memsync = MemorySyncManager(url=redis_url)

    assert memsync.worker_id == f"{socket.gethostname()}:{os.getpid()}"


def test_a_manager_may_be_used_with_with(redis_url, other):
    with MemorySyncManager("me", redis_url, batch_interval=60.0) as memsync:
        memsync.write("a", 1)

    assert other.read_entry("a").worker_id == "me"


def test_shutdown_may_come_twice_and_the_next_call_begins_anew(memsync, other):
    memsync.write("a", 1)
    memsync.shutdown()
    memsync.shutdown()

    memsync.write("b", 2)
    memsync.force_sync()

    assert other.read_many(["a", "b"]) == {"a": 1, "b": 2}


def test_shutdown_of_a_manager_that_was_never_used_does_nothing(redis_url):
    memsync = MemorySyncManager(url=redis_url)

    memsync.shutdown()

    assert memsync.get_metrics()["writes"] == 0


def test_shutdown_logs_a_refused_write_of_a_stale_holder(make_memsync, other, caplog):
    memsync = make_memsync(batch_interval=60.0)
    other.write("a", "later", fence=7)
    other.force_sync()
    memsync.write("a", "stale", fence=5)

    memsync.shutdown()

    assert "At shutdown a write was refused: the lock" in caplog.text


def test_shutdown_while_redis_is_away_logs_what_is_lost(make_memsync, own_server, caplog):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    own_server.stop()
    memsync.write("a", 1)

    memsync.shutdown(timeout=0.2)

    assert "1 write could not be written" in caplog.text


def test_shutdown_from_another_thread_writes_what_waits(memsync, other):
    memsync.write("a", 1)

    thread = threading.Thread(target=memsync.shutdown)
    thread.start()
    thread.join(10)

    assert not thread.is_alive()
    assert other.read("a") == 1


def test_threads_that_begin_together_share_one_writer(redis_url):
    memsync = MemorySyncManager(url=redis_url)
    barrier, writers = threading.Barrier(8), []

    def begin():
        barrier.wait()
        writers.append(memsync.runtime.writer)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(map(id, writers))) == 1
    memsync.shutdown()


def test_reads_of_unknown_names_return_none(memsync):
    assert memsync.get_task_state("t1") is None
    assert memsync.get_task_progress("t1") is None
    assert memsync.get_task("t1") is None
    assert memsync.get_task_agents("t1") == []
    assert memsync.get_agent_coordination("t1", "a1") is None
    assert memsync.get_tasks() == []
    assert memsync.read("a") is None
    assert memsync.read_entry("a") is None
    assert memsync.read_many(["a", "b"]) == {"a": None, "b": None}
    assert memsync.read_many([]) == {}
    assert memsync.get_active_workers() == []


def test_null_is_a_value_and_not_nothing(memsync, other):
    memsync.write("a", None)
    memsync.force_sync()

    assert other.read_entry("a").value is None
    assert other.read_entry("b") is None


def test_entry_has_its_writer_and_time(memsync, other):
    memsync.write("my/own", {"a": 1}, ttl=60.0)
    memsync.force_sync()

    entry = other.read_entry("my/own")

    assert entry == Entry("task-sentinel/my/own", {"a": 1}, 1, entry.timestamp, "worker-1", 60.0)
    assert abs(entry.timestamp - other.runtime.store.clock.now()) < 5


def test_a_key_is_read_with_its_namespace_and_without(memsync, other):
    memsync.write("task-sentinel/a", 1)
    memsync.force_sync()

    assert other.read_many(["a", "task-sentinel/a"]) == {"a": 1, "task-sentinel/a": 1}
    assert other.read("a", consistent=True) == other.read("a", max_age=5.0) == 1


def test_values_written_by_name_are_read_by_path(memsync, other):
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 50, message="half")
    memsync.sync_agent_coordination("t1", "coder", [1])
    memsync.sync_worker_status("w1", "up")
    memsync.force_sync()

    read = other.read_many(["tasks/t1/state", "tasks/t1/progress", "tasks/t1/agents/coder", "workers/w1/status"])

    assert read["tasks/t1/state"] == {"x": 1}
    assert read["tasks/t1/progress"] == other.get_task_progress("t1")
    assert read["tasks/t1/agents/coder"] == [1]
    assert read["workers/w1/status"] == "up"


def test_what_is_written_by_path_is_read_by_name(memsync, other):
    memsync.write("tasks/t1/state", {"x": 1})
    memsync.write("tasks/t1/agents/coder", [1])
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 1}
    assert other.get_task_agents("t1") == ["coder"]


def test_state_has_fields_of_signals_and_of_users(memsync, other):
    memsync.sync_task_run("t1", TaskRun("STARTED", name="add", run="r1"), RUN)
    memsync.sync_task_state("t1", {"rows": 7})
    memsync.force_sync()
    memsync.sync_task_run("t1", TaskRun("SUCCESS", name="add", run="r1", runtime=0.5), RUN)
    mine = memsync.get_task_state("t1")
    memsync.force_sync()

    expected = {"status": "SUCCESS", "name": "add", "run": "r1", "retries": 0, "runtime": 0.5, "rows": 7}
    assert mine == other.get_task_state("t1") == other.read("tasks/t1/state") == expected


def test_the_version_of_a_state_grows_with_either_part(memsync, other):
    versions = []
    for write in (
        lambda: memsync.sync_task_run("t1", TaskRun("STARTED"), RUN), lambda: memsync.sync_task_state("t1", {"x": 1}),
        lambda: memsync.sync_task_run("t1", TaskRun("SUCCESS"), RUN), lambda: memsync.sync_task_state("t1", {"x": 2}),
    ):
        write()
        memsync.force_sync()
        versions.append(other.read_entry("tasks/t1/state").version)

    assert versions == [1, 2, 3, 4]


def test_a_task_is_shown_whole(memsync, other):
    memsync.sync_task_run("t1", TaskRun("STARTED", run="r1"), RUN)
    memsync.sync_task_progress("t1", 50)
    memsync.sync_agent_coordination("t1", "coder", [1])
    memsync.force_sync()

    task = other.get_task("t1")

    assert task["id"] == "t1"
    assert task["state"] == {"status": "STARTED", "run": "r1", "retries": 0}
    assert task["progress"]["progress"] == 50
    assert task["runs"] == [{"status": "STARTED", "run": "r1", "retries": 0}]
    assert task["agents"] == {"coder": [1]}


@pytest.mark.parametrize("limit, count", [(1, 1), (7, 7), (25, 25), (100, 25), (0, 0), (-1, 0)])
def test_the_newest_tasks_come_first(memsync, other, limit, count):
    for number in range(25):
        memsync.sync_task_state(f"t{number:02}", {"number": number})
        memsync.force_sync()

    tasks = other.get_tasks(limit=limit)

    assert [task["state"]["number"] for task in tasks] == list(range(24, 24 - count, -1))


def test_expired_tasks_are_not_listed_and_do_not_count(memsync, other):
    for number in range(10):
        memsync.sync_task_state(f"t{number}", {"number": number})
        memsync.force_sync()
    for number in (9, 8, 7, 3):
        memsync.delete(f"tasks/t{number}/state")
    memsync.force_sync()

    assert [task["id"] for task in other.get_tasks(limit=4)] == ["t6", "t5", "t4", "t2"]


def test_a_task_that_came_back_is_listed_once(memsync, other, redis):
    memsync.sync_task_state("t1", {"x": 1})
    memsync.force_sync()
    redis.delete(Keys("task-sentinel").task("t1"))
    other.sync_task_state("t1", {"x": 2})
    other.force_sync()

    assert [task["id"] for task in memsync.get_tasks()] == ["t1"]


def test_agents_are_listed_without_those_that_were_deleted(memsync, other):
    for agent in ("tester", "coder", "writer"):
        memsync.sync_agent_coordination("t1", agent, {})
    memsync.force_sync()

    memsync.delete("tasks/t1/agents/coder")
    mine = memsync.get_task_agents("t1")
    memsync.force_sync()

    assert mine == other.get_task_agents("t1") == ["tester", "writer"]


def test_metrics_count_what_this_process_did(memsync):
    memsync.write("a", 1)
    memsync.write("a", 2)
    memsync.force_sync()
    memsync.read("a")
    memsync.write("b", 1)

    metrics = memsync.get_metrics()

    assert {name: metrics[name] for name in ("reads", "writes", "syncs", "coalesced", "pending_writes", "conflicts")} == {
        "reads": 1, "writes": 1, "syncs": 1, "coalesced": 1, "pending_writes": 1, "conflicts": 0}
    assert metrics["last_flush_seconds"] > 0
    assert (metrics["dropped"], metrics["flush_failures"]) == (0, 0)


def test_two_managers_of_one_process_do_not_disturb_each_other(make_memsync):
    one, two = make_memsync("one", batch_interval=60.0), make_memsync("two", batch_interval=60.0, namespace="elsewhere")
    emitted = []
    one.on("write", lambda **details: emitted.append(details["key"]))

    one.write("a", 1)
    two.write("a", 2)
    two.force_sync()
    one.force_sync()
    assert one.events.wait_idle(5)

    assert emitted == ["task-sentinel/a"]
    assert (one.read("a"), two.read("a")) == (1, 2)


def test_everything_has_a_ttl(memsync, redis):
    memsync.sync_task_run("t1", TaskRun("SUCCESS"), RUN)
    memsync.sync_task_progress("t1", 100)
    memsync.sync_worker_status("w1", "up")
    memsync.update_heartbeat()
    memsync.write("a", 1)
    memsync.delete("b")
    memsync.force_sync()

    assert len(redis.keys()) >= 4
    assert [key for key in redis.keys() if redis.pttl(key) == -1] == [b"task-sentinel//{clock}"]


def test_wrong_setting_is_refused_when_the_manager_is_made():
    with pytest.raises(ImproperlyConfigured):
        MemorySyncManager(url="redis://localhost", batch_size=0)


def test_what_this_process_wrote_is_read_while_redis_is_away(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    own_server.stop()

    memsync.write("mine", {"a": 1})

    assert memsync.read("mine") == {"a": 1}
    with pytest.raises(StoreError):
        memsync.read("of another process")
    own_server.start()
