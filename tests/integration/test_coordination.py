"""What a real worker's tasks come to: the queue, the assignments and the counters, seen from another process."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timezone

import celery
import pytest

from tests.support.paths import ROOT
from tests.support.stress import stressed
from tests.support.waiting import eventually

EMPTY = {"pending": [], "processing": []}

#: What another process sees.
LOOK = """
import json, sys
from celery_memsync import MemorySyncManager

with MemorySyncManager(url=sys.argv[1], namespace=sys.argv[2]) as memsync:
    print(json.dumps([memsync.get_queue(), memsync.get_assignments()]))
"""

LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)

#: How many tasks of a kind are sent, how they are sent, and what each is counted as.
KINDS = {
    "add": (10, (1, 2), {}, {"succeeded": 1}),
    "sleep": (2, (0.2,), {}, {"succeeded": 1}),
    "fail": (4, (), {}, {"failed": 1}),
    "retry_once": (3, (), {}, {"retried": 1, "succeeded": 1}),
    "fail_twice": (3, (), {}, {"retried": 2, "succeeded": 1}),
    "retry_too_often": (2, (), {}, {"failed": 1}),
    "ignore": (2, (), {}, {"ignored": 1}),
    "requeue_once": (2, (), {}, {"ignored": 1, "succeeded": 1}),
    "nothing": (5, (), {"expires": LONG_AGO}, {"revoked": 1}),
    "kill_own_process": (1, (), {}, {"failed": 1}),
}


@pytest.fixture(scope="module")
def worker(module_fleet):
    """A prefork worker for the tests that let it live."""
    return module_fleet.start_worker("-P", "prefork", "-c", "2")


@pytest.fixture
def fleet(module_fleet, worker):
    """The fleet of that worker."""
    return module_fleet


def look(fleet):
    """Return the queue and the assignments as another process sees them."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, fleet.store.url, fleet.name], cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


def queue(fleet):
    return fleet.reader.get_queue()


def counted(fleet):
    """Return the counters that are not zero, but for the runtime."""
    metrics = fleet.reader.get_coordination_metrics()
    return {name: value for name, value in metrics.items() if value and name != "runtime"}


def test_every_task_is_counted_once_and_the_queue_is_empty_at_the_end(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-P", "prefork", "-c", "4")
    expected = {"total": 0}

    for name, (number, args, options, counts) in KINDS.items():
        for _ in range(number):
            fleet.send(name, *args, **options)
        expected["total"] += number
        for counter, by in counts.items():
            expected[counter] = expected.get(counter, 0) + number * by

    eventually(lambda: counted(fleet) == expected, timeout=30, message=f"it is not {expected}")
    eventually(lambda: queue(fleet) == EMPTY)
    worker.stop()
    assert counted(fleet) == expected
    assert queue(fleet) == EMPTY
    assert 0.4 <= fleet.reader.get_coordination_metrics()["runtime"] < 60


@pytest.mark.acceptance
@pytest.mark.parametrize("concurrency", stressed([1, 4], [4]))
def test_many_tasks_at_once_are_counted_exactly(make_fleet, concurrency):
    fleet, count = make_fleet(), stressed(500, 200)
    nothing = fleet.task("nothing")
    for _ in range(count):
        nothing.delay()

    worker = fleet.start_worker("-c", str(concurrency), "--max-tasks-per-child", str(count // 10))

    eventually(lambda: counted(fleet) == {"total": count, "succeeded": count}, timeout=60)
    worker.stop()
    assert counted(fleet) == {"total": count, "succeeded": count}
    assert queue(fleet) == EMPTY


@pytest.mark.parametrize("prefetch", stressed([1, 4], [4]))
def test_tasks_behind_a_running_task_wait_in_publishing_order(make_fleet, prefetch):
    fleet = make_fleet(worker_prefetch_multiplier=prefetch)
    first, *others = [fleet.send("sleep", 60)] + [fleet.send("add", number, 1) for number in range(6)]
    ids = [other.id for other in others]
    eventually(lambda: queue(fleet) == {"pending": [first.id, *ids], "processing": []})
    worker = fleet.start_worker("-P", "prefork", "-c", "1")
    fleet.wait(first, "STARTED")
    for other in others[:prefetch]:
        fleet.wait(other, "RECEIVED")
    fleet.wait_running(worker, first)

    seen, assignments = look(fleet)

    assert fleet.status(first.id) == "STARTED"
    assert seen == {"pending": ids, "processing": [first.id]}
    assert assignments == {worker.name: [first.id]}


def test_assignments_are_what_live_workers_run(make_fleet):
    fleet = make_fleet()
    workers = fleet.start_all(*(fleet.worker("-c", "1") for _ in range(2)))
    results = [fleet.send("sleep", 4) for _ in range(2)]
    states = [fleet.wait(result, "STARTED") for result in results]
    running = {state["worker"]: [result.id] for state, result in zip(states, results)}

    eventually(lambda: fleet.reader.get_assignments() == running)
    for result in results:
        fleet.wait(result, "SUCCESS")

    assert set(running) == {worker.name for worker in workers}
    eventually(lambda: fleet.reader.get_assignments() == {})


def test_a_task_that_waits_for_its_time_is_pending(fleet):
    later = fleet.send("add", 1, 2, countdown=4)
    fleet.wait(later, "RECEIVED")
    sooner = fleet.send("add", 1, 2)
    fleet.wait(sooner, "SUCCESS")

    waiting = queue(fleet)
    status = fleet.status(later.id)

    assert status == "RECEIVED"
    assert waiting == {"pending": [later.id], "processing": []}
    fleet.wait(later, "SUCCESS")
    assert queue(fleet) == EMPTY


def test_a_task_between_two_attempts_is_pending(fleet):
    result = fleet.send("retry_once", 3)
    fleet.wait(result, "RETRY", "RECEIVED")

    eventually(lambda: queue(fleet) == {"pending": [result.id], "processing": []})

    assert fleet.status(result.id) in ("RETRY", "RECEIVED")
    fleet.wait(result, "SUCCESS")
    assert queue(fleet) == EMPTY


def kill(fleet, result):
    os.kill(fleet.wait(result, "STARTED")["pid"], signal.SIGKILL)


def terminate(fleet, result):
    fleet.app.control.revoke(result.id, terminate=True, signal="SIGKILL")


def take_back(fleet, result):
    fleet.app.control.revoke(result.id)


ENDS = {
    "its child is killed": ({}, kill, "FAILURE", "failed"),
    "the hard time limit": ({"time_limit": 1}, None, "FAILURE", "failed"),
    "the soft time limit": ({"soft_time_limit": 1}, None, "FAILURE", "failed"),
    "terminated": ({}, terminate, "REVOKED", "revoked"),
    "revoked before its time": ({"countdown": 3}, take_back, "REVOKED", "revoked"),
}


@pytest.mark.parametrize("name", ENDS)
def test_no_task_that_came_to_a_bad_end_stays_in_the_queue(fleet, name):
    options, end, status, counter = ENDS[name]
    before = counted(fleet)
    result = fleet.send("sleep", 60, **options)
    in_list = "pending" if "countdown" in options else "processing"
    eventually(lambda: queue(fleet) == {**EMPTY, in_list: [result.id]})
    fleet.wait(result, "RECEIVED" if "countdown" in options else "STARTED")

    if end is not None:
        end(fleet, result)
    fleet.wait(result, status)

    eventually(lambda: queue(fleet) == EMPTY)
    after = {**before, "total": before.get("total", 0) + 1, counter: before.get(counter, 0) + 1}
    eventually(lambda: counted(fleet) == after)


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="Celery reports a lost run to the parent from 5.7")
def test_a_run_whose_child_was_killed_and_that_runs_again_is_counted_as_lost(fleet):
    before = {"total": 0, "lost": 0, "succeeded": 0, **counted(fleet)}

    result = fleet.send("kill_own_process_once", 0.5)

    fleet.wait(result, "SUCCESS")
    eventually(lambda: counted(fleet) == {
        name: value + (name in ("total", "lost", "succeeded")) for name, value in before.items()})
    assert queue(fleet) == EMPTY


def test_what_was_counted_while_redis_was_away_arrives(make_fleet, own_store):
    fleet = make_fleet(store=own_store)
    fleet.start_worker("-c", "2")
    fleet.wait(fleet.send("add", 1, 1), "SUCCESS")
    own_store.stop()
    results = [fleet.send("add", number, 1) for number in range(30)]
    assert [result.get(timeout=20) for result in results] == list(range(1, 31))

    own_store.start()

    eventually(lambda: counted(fleet) == {"total": 31, "succeeded": 31}, timeout=20)
    eventually(lambda: queue(fleet) == EMPTY)
