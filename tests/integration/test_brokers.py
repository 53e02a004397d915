"""Publishing, retries, rejections, expiry, revokes and redelivery, where the broker takes part, on each broker."""
from __future__ import annotations

import time
from datetime import datetime, timezone

import celery
import pytest

from tests.support.fleet import TASKS
from tests.support.stress import stressed
from tests.support.waiting import eventually


@pytest.fixture(scope="module", params=["redis", pytest.param("classic", marks=pytest.mark.acceptance), "quorum"])
def broker(request):
    """A Redis, or RabbitMQ with queues of one type."""
    if request.param == "redis":
        return request.getfixturevalue("redis_broker")
    return request.getfixturevalue("rabbit").of_type(request.param)


@pytest.fixture(scope="module")
def worker(module_fleet):
    """A prefork worker that no test here kills."""
    return module_fleet.start_worker("-P", "prefork", "-c", "4")


@pytest.fixture
def fleet(module_fleet, worker):
    """The fleet of that worker."""
    return module_fleet


def test_a_task_that_returns_is_a_success_with_all_its_facts(fleet, worker):
    result = fleet.send("add", 2, 3)

    state = fleet.wait(result, "SUCCESS")

    assert result.get(timeout=5) == 5
    assert state["name"] == f"{TASKS}.add"
    assert state["queue"] == fleet.name
    assert state["worker"] == worker.name
    assert state["pid"] in worker.children()
    assert state["root_id"] == result.id
    assert state["retries"] == 0
    assert state["run"]
    assert 0 <= state["runtime"] < 5
    assert "exception" not in state
    assert "parent_id" not in state


def test_task_that_no_worker_takes_is_pending(make_fleet):
    fleet = make_fleet()

    result = fleet.send("add", 2, 3)

    state = fleet.wait(result, "PENDING")
    assert state["name"] == f"{TASKS}.add"
    assert state["queue"] == fleet.name
    assert time.time() - 5 < state["published_at"] < time.time() + 5
    assert "worker" not in state


def test_retry_is_recorded_and_the_next_attempt_ends_it(fleet):
    result = fleet.send("retry_once", 1.5)

    between = fleet.wait(result, "RETRY", "RECEIVED")
    state = fleet.wait(result, "SUCCESS")

    assert between["retries"] in (0, 1)
    assert state["retries"] == 1
    assert "exception" not in state
    first, _ = fleet.wait_runs(result, ["RETRY", "SUCCESS"])
    assert first["exception"] == {"type": "OSError", "message": "the line is busy"}


@pytest.mark.parametrize("countdown", [0, 0.5])
def test_the_next_attempt_reads_how_far_the_one_before_came(fleet, countdown):
    result = fleet.send("retry_once", countdown)

    seen = result.get(timeout=15)

    assert seen["progress"] is None
    assert (seen["previous"]["current"], seen["previous"]["total"]) == (40, 100)
    assert seen["previous"]["message"] == "downloading"


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery reports it from 5.7")
def test_rejected_task_stays_rejected_after_celerys_failure_signal(fleet):
    result = fleet.send("reject")

    fleet.wait(result, "REJECTED")

    eventually(lambda: fleet.notes("failure", result.id))
    time.sleep(0.3)
    assert fleet.status(result.id) == "REJECTED"


def test_a_task_that_is_rejected_and_put_back_runs_again(fleet):
    result = fleet.send("requeue_once")

    fleet.wait(result, "SUCCESS")

    assert fleet.wait_runs(result, ["REJECTED", "SUCCESS"])


def test_an_expired_task_is_revoked(fleet):
    result = fleet.send("add", 1, 2, expires=datetime(2020, 1, 1, tzinfo=timezone.utc))

    state = fleet.wait(result, "REVOKED")

    assert "started_at" not in state


def test_a_task_revoked_before_it_was_sent_is_revoked(fleet):
    fleet.app.control.revoke("revoked-in-advance")
    eventually(lambda: "Tasks flagged as revoked: revoked-in-advance" in fleet.workers[0].output())

    result = fleet.send("add", 1, 2, task_id="revoked-in-advance")

    state = fleet.wait(result, "REVOKED")

    assert "started_at" not in state


def test_a_task_revoked_while_it_waits_for_its_time_is_revoked(fleet):
    result = fleet.send("add", 1, 2, countdown=1.5)
    fleet.wait(result, "RECEIVED")

    fleet.app.control.revoke(result.id)

    assert "started_at" not in fleet.wait(result, "REVOKED")


@pytest.mark.parametrize("after", stressed([0, 0.5], [0.5]))
def test_both_runs_are_seen_when_a_killed_task_is_run_again(fleet, after):
    result = fleet.send("kill_own_process_once", after)

    fleet.wait(result, "SUCCESS")

    first, second = fleet.reader.get_task(result.id)["runs"]
    assert first["status"] != "SUCCESS" and second["status"] == "SUCCESS"
    assert first["pid"] != second["pid"]
    assert first["run"] != second["run"]
    assert first["started_at"] < second["started_at"]


def test_a_task_with_an_eta_is_received_and_shows_it(fleet):
    before = time.time()
    result = fleet.send("add", 1, 2, countdown=1.5)

    received = fleet.wait(result, "RECEIVED")
    ended = fleet.wait(result, "SUCCESS")

    assert received["eta"] == pytest.approx(before + 1.5, abs=0.5)
    assert ended["eta"] == received["eta"]
    assert ended["started_at"] >= received["eta"] - 0.1


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery before 5.7 fails to store a SystemExit in our callback")
def test_worker_has_logged_no_error_of_this_package(fleet, worker):
    fleet.wait(fleet.send("add", 1, 2), "SUCCESS")

    log = worker.output()

    assert "celery_memsync" not in log
    assert "memsync-writer" not in log
    assert "Signal handler" not in log
