"""Tasks are kept in every kind of pool, not only in prefork's."""
from __future__ import annotations

import signal
import time

import pytest

from tests.support.fleet import Fleet
from tests.support.waiting import eventually

POOLS = {
    "threads": ["-P", "threads", "-c", "4"],
    "solo": ["-P", "solo"],
    "gevent": ["-P", "gevent", "-c", "20"],
    "eventlet": ["-P", "eventlet", "-c", "20"],
}


@pytest.fixture(scope="module", params=[
    pytest.param(pool, marks=pytest.mark.acceptance) if pool == "eventlet" else pool for pool in POOLS])
def pool(request):
    """Name of the pool under test."""
    return request.param


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store, pool):
    """A fleet with one worker of that pool."""
    fleet = Fleet(tmp_path_factory.mktemp(pool), broker, store)
    fleet.start_worker(*POOLS[pool])
    yield fleet
    fleet.close()


def test_a_task_that_returns_is_a_success(fleet):
    result = fleet.send("add", 2, 3)

    state = fleet.wait(result, "SUCCESS")

    assert result.get(timeout=5) == 5
    assert state["worker"] == fleet.workers[0].name
    assert state["pid"] == fleet.workers[0].process.pid
    assert state["published_at"] <= state["received_at"] <= state["started_at"] <= state["finished_at"]
    assert 0 <= state["runtime"] < 5


def test_a_task_that_raises_is_a_failure(fleet):
    result = fleet.send("fail", "the cup is empty")

    state = fleet.wait(result, "FAILURE")

    assert state["exception"] == {"type": "ValueError", "message": "the cup is empty"}


@pytest.mark.parametrize("how, kind", [
    ("exit", "SystemExit"), ("generator", "GeneratorExit"), ("cancelled", "CancelledError")])
def test_a_body_that_raises_no_exception_is_a_failure(fleet, pool, how, kind):
    if pool == "solo":
        pytest.skip("it ends the worker")
    result = fleet.send("end_by", how)

    state = fleet.wait(result, "FAILURE")

    assert state["exception"] == {"type": kind, "message": "as requested"}
    assert result.id not in fleet.reader.get_queue()["processing"]


def test_a_retry_resumes_where_the_attempt_before_was(fleet):
    result = fleet.send("retry_once", 0.3)

    seen = result.get(timeout=15)

    assert seen["previous"]["current"] == 40
    assert fleet.wait(result, "SUCCESS")["retries"] == 1
    assert fleet.wait_runs(result, ["RETRY", "SUCCESS"])


def test_progress_is_seen_while_the_task_runs(fleet):
    result = fleet.send("count_to", 8, 1.0)

    progress = fleet.wait_progress(result, 8)

    assert progress["total"] == 8
    assert not result.ready()
    fleet.wait(result, "SUCCESS")


def test_tasks_side_by_side_do_not_mix_up_their_progress(fleet):
    results = {number: fleet.send("count_to", number, 0.2) for number in range(10, 18)}

    for result in results.values():
        fleet.wait(result, "SUCCESS")

    seen = {number: fleet.reader.get_task_progress(result.id) for number, result in results.items()}
    assert {number: progress["total"] for number, progress in seen.items()} == {number: number for number in results}
    assert {progress["progress"] for progress in seen.values()} == {100}
    assert [seen[number]["run"] for number in results] == [fleet.state(result.id)["run"] for result in results.values()]


def test_200_tasks_all_end_as_a_success(fleet):
    results = [fleet.send("nothing") for _ in range(200)]

    states = [fleet.wait(result, "SUCCESS", timeout=30) for result in results]

    assert len({state["run"] for state in states}) == 200


def test_a_task_revoked_while_it_waits_is_revoked(fleet):
    result = fleet.send("add", 1, 2, countdown=1.0)
    fleet.wait(result, "RECEIVED")

    fleet.app.control.revoke(result.id)

    assert "started_at" not in fleet.wait(result, "REVOKED")


def test_a_task_that_no_worker_knows_is_a_failure(fleet):
    result = fleet.app.send_task("no.such.task")

    state = fleet.wait(result, "FAILURE")

    assert state["exception"]["type"] == "NotRegistered"


def test_the_heartbeat_writes_while_it_works(fleet, pool):
    worker = fleet.workers[0]
    result = fleet.send("sleep", 2.5)

    record = fleet.wait_running(worker, result)

    assert record.pool in (pool, {"threads": "thread"}.get(pool))
    assert record.capacity["total"] == {"threads": 4, "solo": 1}.get(pool, 20)
    assert record.capacity["active"] == 1
    assert record.status == ("busy" if pool == "solo" else "active")
    fleet.wait_record(worker, lambda later: later.sequence >= record.sequence + 2)
    assert not fleet.notes("end", result.id)


def test_what_a_worker_did_is_in_redis_when_it_ends(make_fleet, pool):
    fleet = make_fleet(memsync_batch_interval=60.0)
    worker = fleet.start_worker(*POOLS[pool])
    done = [fleet.send("add", number, 1) for number in range(10)]
    eventually(lambda: all(result.ready() for result in done))
    running = fleet.send("sleep", 1)
    eventually(lambda: fleet.notes("begin", running.id))
    began = time.monotonic()

    code = worker.stop(signal.SIGTERM)

    assert code == 0
    assert time.monotonic() - began < 8
    assert [fleet.status(result.id) for result in [*done, running]] == ["SUCCESS"] * 11
    assert fleet.record(worker).status == "offline"


def test_worker_has_logged_no_error_of_this_package(fleet):
    fleet.wait(fleet.send("add", 1, 2), "SUCCESS")

    log = fleet.workers[0].output()

    assert "memsync-" not in log
    assert "Signal handler" not in log
    assert "blocking" not in log.lower()


def test_what_a_task_reports_by_update_state_is_seen_while_it_runs(fleet):
    result = fleet.send("count_by_update_state", 8, 1.0)

    progress = fleet.wait_progress(result, 8)

    assert (progress["total"], progress["message"]) == (8, "counting")
    assert fleet.state(result.id)["status"] == "COUNTING"
    assert result.state == "COUNTING"
    fleet.wait(result, "SUCCESS")


def test_a_bad_report_fails_no_task_and_is_logged(fleet):
    progress = fleet.send("report_badly").get(timeout=10)

    assert (progress["current"], progress["total"], progress["rows"]) == (3, 10, 7)
    assert "Ignored a report of the task tests.support.tasks.report_badly" in fleet.workers[0].output()
