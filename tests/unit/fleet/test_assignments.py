"""Assignments: which tasks workers have, told by their beats or by hand."""
from __future__ import annotations

import time

import pytest

from celery_memsync.models.worker import WorkerRecord
from tests.support.waiting import eventually

ASSIGNMENTS = "coordination/assignments"


def beat(memsync, worker_id, *task_ids, status="active"):
    """Tell the record of a worker that has some tasks."""
    running = tuple({"id": task_id, "name": "proj.add", "started_at": 1.0} for task_id in task_ids)
    memsync.write(f"workers/{worker_id}/heartbeat", WorkerRecord(worker_id, status, running=running).as_dict())
    memsync.force_sync()


def test_nobody_has_anything_at_first(memsync):
    assert memsync.get_assignments() == {}


def test_each_worker_tells_its_own_and_the_others_stay(memsync, other):
    memsync.sync_assignments({"w1": ["a", "b"], "w2": ["c"]})
    memsync.force_sync()

    other.sync_assignments({"w2": [], "w3": iter(["d"])})
    other.force_sync()

    assert memsync.get_assignments() == other.get_assignments() == {"w1": ["a", "b"], "w2": [], "w3": ["d"]}
    assert memsync.read(ASSIGNMENTS) == memsync.get_assignments()
    assert memsync.read_entry(ASSIGNMENTS).version == 2


def test_many_that_tell_at_the_same_time_lose_nothing(make_memsync, other):
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


def test_the_beats_of_workers_tell_what_they_have_and_a_word_by_hand_wins(memsync, other):
    beat(memsync, "w1", "a", "b")
    beat(memsync, "w2", "c")
    beat(memsync, "idle")
    beat(memsync, "gone", "d", status="offline")
    told = other.get_assignments()

    memsync.sync_assignments({"w2": ["x"], "w3": ["y"]})
    memsync.force_sync()

    assert told == {"w1": ["a", "b"], "w2": ["c"]}
    assert other.get_assignments() == {"w1": ["a", "b"], "w2": ["x"], "w3": ["y"]}


def test_a_worker_that_is_silent_for_too_long_has_nothing_any_more(memsync, make_memsync):
    impatient = make_memsync(worker_ttl=0.5, heartbeat_interval=0.1)
    beat(memsync, "w1", "a")
    told_at = time.monotonic()

    eventually(lambda: impatient.get_assignments() == {})

    assert time.monotonic() - told_at < 5
    assert memsync.get_assignments() == {"w1": ["a"]}


@pytest.mark.parametrize("running", [
    "a", ["a"], [None], [{}], [{"name": "proj.add"}], [["id"]], {"id": "a"}, 5,
])
def test_beats_of_another_shape_are_passed_over(memsync, other, running):
    beat(memsync, "w1", "a")
    memsync.write("workers/w2/heartbeat", {"status": "active", "running": running})
    memsync.force_sync()

    assert other.get_assignments()["w1"] == ["a"]
    assert other.get_assignments().get("w2", []) == []


@pytest.mark.parametrize("value", [None, 5, "w1", ["w1"], {"w1": 5}, {"w1": "a"}])
def test_a_value_of_another_shape_is_no_assignment(memsync, other, value):
    beat(memsync, "w0", "a")
    memsync.write(ASSIGNMENTS, value)
    memsync.force_sync()

    assert other.get_assignments()["w0"] == ["a"]


def test_assignments_leave_when_their_time_is_over(make_memsync, other, redis):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.5)
    memsync.sync_assignments({"w1": ["a"]})
    memsync.force_sync()

    eventually(lambda: other.get_assignments() == {})

    eventually(lambda: redis.exists(f"task-sentinel/{ASSIGNMENTS}") == 0)
