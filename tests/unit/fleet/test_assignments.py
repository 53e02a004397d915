"""Assignments: which tasks workers have, by their heartbeats or set by hand."""
from __future__ import annotations

import time

import pytest

from celery_memsync.models.worker import WorkerRecord
from tests.support.waiting import eventually

ASSIGNMENTS = "coordination/assignments"


def write_heartbeat(memsync, worker_id, *task_ids, status="active"):
    """Write the record of a worker that has some tasks."""
    running = tuple({"id": task_id, "name": "proj.add", "started_at": 1.0} for task_id in task_ids)
    memsync.write(f"workers/{worker_id}/heartbeat", WorkerRecord(worker_id, status, running=running).as_dict())
    memsync.force_sync()


def test_assignments_are_empty_at_first(memsync):
    assert memsync.get_assignments() == {}


def test_sync_assignments_replaces_only_the_given_workers(memsync, other):
    memsync.sync_assignments({"w1": ["a", "b"], "w2": ["c"]})
    memsync.force_sync()

    other.sync_assignments({"w2": [], "w3": iter(["d"])})
    other.force_sync()

    assert memsync.get_assignments() == other.get_assignments() == {"w1": ["a", "b"], "w2": [], "w3": ["d"]}
    assert memsync.read(ASSIGNMENTS) == memsync.get_assignments()
    assert memsync.read_entry(ASSIGNMENTS).version == 2


def test_concurrent_sync_assignments_lose_nothing(make_memsync, other):
    everybody = [make_memsync(batch_interval=0.001) for _ in range(8)]

    for number in range(20):
        for worker, memsync in enumerate(everybody):
            memsync.sync_assignments({f"w{worker}": [f"{worker}-{number}"]})
    for memsync in everybody:
        memsync.force_sync()

    assert other.get_assignments() == {f"w{worker}": [f"{worker}-19"] for worker in range(8)}


def test_a_process_reads_its_own_assignments_at_once_and_then_all_do(memsync, other):
    other.sync_assignments({"w1": ["a"], "w2": ["b"]})
    other.force_sync()

    memsync.sync_assignments({"w2": ["c"], "w3": ["d"]})
    before = other.get_assignments()

    assert memsync.get_assignments() == memsync.read(ASSIGNMENTS) == {"w1": ["a"], "w2": ["c"], "w3": ["d"]}
    assert before == {"w1": ["a"], "w2": ["b"]}
    assert other.get_assignments() == {"w1": ["a"], "w2": ["c"], "w3": ["d"]}


def test_assignments_set_by_hand_replace_those_of_heartbeats(memsync, other):
    write_heartbeat(memsync, "w1", "a", "b")
    write_heartbeat(memsync, "w2", "c")
    write_heartbeat(memsync, "idle")
    write_heartbeat(memsync, "offline", "d", status="offline")
    before = other.get_assignments()

    memsync.sync_assignments({"w2": ["x"], "w3": ["y"]})
    memsync.force_sync()

    assert before == {"w1": ["a", "b"], "w2": ["c"]}
    assert other.get_assignments() == {"w1": ["a", "b"], "w2": ["x"], "w3": ["y"]}


def test_lost_worker_has_no_assignments(memsync, make_memsync):
    impatient = make_memsync(worker_ttl=0.5, heartbeat_interval=0.1)
    write_heartbeat(memsync, "w1", "a")
    written_at = time.monotonic()

    eventually(lambda: impatient.get_assignments() == {})

    assert time.monotonic() - written_at < 5
    assert memsync.get_assignments() == {"w1": ["a"]}


@pytest.mark.parametrize("running", [
    "a", ["a"], [None], [{}], [{"name": "proj.add"}], [["id"]], {"id": "a"}, 5,
])
def test_heartbeats_of_another_shape_are_ignored(memsync, other, running):
    write_heartbeat(memsync, "w1", "a")
    memsync.write("workers/w2/heartbeat", {"status": "active", "running": running})
    memsync.force_sync()

    assert other.get_assignments()["w1"] == ["a"]
    assert other.get_assignments().get("w2", []) == []


@pytest.mark.parametrize("value", [None, 5, "w1", ["w1"], {"w1": 5}, {"w1": "a"}])
def test_a_value_of_another_shape_is_no_assignment(memsync, other, value):
    write_heartbeat(memsync, "w0", "a")
    memsync.write(ASSIGNMENTS, value)
    memsync.force_sync()

    assert other.get_assignments()["w0"] == ["a"]


def test_assignments_leave_when_their_time_is_over(make_memsync, other, redis):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.5)
    memsync.sync_assignments({"w1": ["a"]})
    memsync.force_sync()

    eventually(lambda: other.get_assignments() == {})

    eventually(lambda: redis.exists(f"task-sentinel/{ASSIGNMENTS}") == 0)
