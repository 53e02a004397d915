"""The state of a task agrees with Celery's result backend where that has an answer, too."""
from __future__ import annotations

import signal
import time

import celery
import pytest

from celery_memsync.cli.why import KnownTask, reason_of
from tests.support.fleet import Fleet
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with a worker of two processes."""
    fleet = Fleet(tmp_path_factory.mktemp("agreement"), broker, store)
    fleet.start_worker("-c", "2")
    yield fleet
    fleet.close()


@pytest.fixture(scope="module", params=[["-c", "1"], ["-P", "threads", "-c", "2"], ["-P", "solo"]], ids=lambda pool: pool[1])
def any_pool(request, tmp_path_factory, broker, store):
    """A fleet with one worker, whose pool is of each kind."""
    fleet = Fleet(tmp_path_factory.mktemp("pools"), broker, store)
    fleet.start_worker(*request.param)
    yield fleet
    fleet.close()


def test_a_retry_that_waits_is_retry_with_its_cause_its_time_and_its_count(fleet):
    result = fleet.send("retry_in", 60)
    # Its worker has received the next try, and the run before has recorded the cause.
    state = eventually(lambda: (state := fleet.state(result.id)).get("retries") == 1 and state.get("exception") and state)

    assert state["status"] == result.state == "RETRY"
    assert state["exception"] == {"type": "OSError", "message": "the line is busy"}
    assert 50 < state["retry_at"] - time.time() < 61
    assert (state["retries"], state["max_retries"]) == (1, 3)
    assert result.id in fleet.reader.get_queue()["pending"]
    assert fleet.runs(result.id) == ["RETRY", "RETRY"]


def test_retry_that_has_begun_is_started(fleet):
    result = fleet.send("retry_once", 0.1)

    result.get(timeout=15)

    assert fleet.wait(result, "SUCCESS")["retries"] == 1
    fleet.wait_runs(result, ["RETRY", "SUCCESS"])


def test_a_task_that_was_replaced_waits_until_what_replaced_it_ends(fleet):
    result = fleet.send("be_replaced", 1.0)
    fleet.wait_runs(result, ["IGNORED", "PENDING"])

    states = [fleet.status(result.id), result.state]
    waits = result.id in fleet.reader.get_queue()["pending"]
    result.get(timeout=15)

    assert states == ["PENDING", "PENDING"]
    assert waits
    assert fleet.wait(result, "SUCCESS")["name"].endswith(".add")


def test_replacement_that_waits_is_received_and_no_retry(fleet):
    result = fleet.send("be_replaced_later", 60)

    eventually(lambda: len(fleet.runs(result.id)) == 2)
    state = fleet.wait(result, "RECEIVED", "RETRY")

    assert state["status"] == "RECEIVED"
    assert result.state == "PENDING"
    fleet.app.control.revoke(result.id)


@pytest.mark.parametrize("name, args, options, status", [
    ("add", (1, 1), {"countdown": 60}, "RECEIVED"),
    ("retry_in", (60,), {}, "RETRY"),
])
def test_task_reserved_by_a_worker_is_revoked_at_once(fleet, name, args, options, status):
    result = fleet.send(name, *args, **options)
    eventually(lambda: fleet.state(result.id).get("received_at") and fleet.status(result.id) == status)
    time.sleep(0.2)

    result.revoke()

    fleet.wait(result, "REVOKED")
    state = eventually(lambda: (state := fleet.state(result.id)).get("revoke_requested_at") and state)
    assert state["status"] == "REVOKED"
    assert abs(state["revoke_requested_at"] - time.time()) < 5
    assert result.id not in fleet.reader.get_queue()["pending"]
    if celery.VERSION >= (5, 6):  # before, Celery stores that when its turn comes
        assert result.state == "REVOKED"


def test_revoke_does_not_change_running_or_ended_tasks(fleet):
    running, ended = fleet.send("sleep", 1.5), fleet.send("add", 1, 1)
    fleet.wait(running, "STARTED")
    fleet.wait(ended, "SUCCESS")

    fleet.app.control.revoke([running.id, ended.id])
    time.sleep(0.5)
    states = fleet.status(running.id), fleet.status(ended.id)

    assert states == ("STARTED", "SUCCESS")
    fleet.wait(running, "SUCCESS")


def test_what_is_revoked_in_a_queue_that_no_worker_consumes_yet_is_revoked(fleet):
    result = fleet.send("add", 1, 1, queue=f"{fleet.name}-later")
    fleet.wait(result, "PENDING")

    result.revoke()

    assert fleet.wait(result, "REVOKED")


def test_a_revoke_that_no_worker_has_received_is_no_status(make_fleet):
    fleet = make_fleet()
    result = fleet.send("add", 1, 1)
    fleet.wait(result, "PENDING")

    result.revoke()

    eventually(lambda: fleet.state(result.id).get("revoke_requested_at"))
    assert fleet.status(result.id) == "PENDING"


def test_what_is_sent_again_by_hand_under_its_id_is_a_new_run(fleet):
    result = fleet.send("retry_in", 60)
    eventually(lambda: fleet.status(result.id) == "RETRY")
    result.revoke()
    fleet.wait(result, "REVOKED")

    again = fleet.send("fail", "the cup is empty", task_id=f"again-{result.id}")
    fleet.wait(again, "FAILURE")
    fleet.send("add", 1, 1, task_id=again.id)

    assert fleet.wait(again, "SUCCESS")["name"].endswith(".add")
    fleet.wait_runs(again, ["FAILURE", "SUCCESS"])


def test_cold_shutdown_marks_early_acknowledged_tasks_as_lost(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=2.0)
    worker = fleet.start_worker("-c", "2")
    plain, requeued = fleet.send("sleep", 30), fleet.send("hold_again", "key", 1.0)
    for result in (plain, requeued):
        fleet.wait(result, "STARTED")
    fleet.wait_running(worker, plain, requeued)
    time.sleep(0.3)  # until the message is kept

    worker.stop(signal.SIGQUIT)
    left = fleet.state(plain.id)
    fleet.start_worker("-c", "2")

    assert left["status"] == "LOST"
    assert left["exception"] == {"type": "WorkerLostError", "message": "its worker was shut down while it ran"}
    assert fleet.wait(requeued, "SUCCESS", timeout=20)["recoveries"] == 1
    assert fleet.status(plain.id) == "LOST"


@pytest.mark.parametrize("pool", ["gevent", pytest.param("eventlet", marks=pytest.mark.acceptance)])
def test_greenlets_that_a_cold_shutdown_kills_are_lost(make_fleet, pool):
    fleet = make_fleet()
    worker = fleet.start_worker("-P", pool, "-c", "5")
    result = fleet.send("sleep", 60)
    fleet.wait(result, "STARTED")

    worker.stop(signal.SIGQUIT)

    assert fleet.status(result.id) == "LOST"
    assert fleet.reader.get_coordination_metrics().get("succeeded", 0) == 0


def test_a_topic_is_no_queue(make_fleet):
    fleet = make_fleet()
    conf = {
        "task_default_exchange": f"{fleet.name}-topics", "task_default_exchange_type": "topic",
        "task_default_routing_key": "task.default"}
    producer = fleet.producer(**conf)
    fleet.start_worker("-c", "1", **conf)

    result = producer.tasks["tests.support.tasks.add"].delay(1, 1)
    state = fleet.wait(result, "SUCCESS")

    assert state["queue"] == fleet.name


def test_what_a_task_reports_by_update_state_is_seen_while_it_runs(fleet):
    result = fleet.send("count_by_update_state", 8, 1.0)

    progress = fleet.wait_progress(result, 8)

    assert (progress["total"], progress["message"]) == (8, "counting")
    assert fleet.state(result.id)["status"] == result.state == "COUNTING"


def test_a_bad_report_fails_no_task_and_is_logged(fleet):
    progress = fleet.send("report_badly").get(timeout=10)

    assert (progress["current"], progress["total"], progress["rows"]) == (3, 10, 7)
    assert "Ignored a report of the task tests.support.tasks.report_badly" in fleet.workers[0].output()


def test_why_reports_a_purged_message(make_fleet):
    fleet = make_fleet(memsync_heartbeat_interval=0.2)
    result = fleet.send("add", 1, 1)
    fleet.wait(result, "PENDING")
    fleet.app.control.purge()
    fleet.start_worker("-c", "1")

    def reason():
        reader = fleet.reader
        known = KnownTask(result.id, reader.get_task(result.id), reader.get_workers(), now=reader.runtime.store.clock.now())
        return reason_of(known).reason

    assert reason() in ("waiting", "not-consuming")  # its first heartbeat may be older than its consumer
    assert eventually(lambda: reason() == "message-gone", timeout=20)


def test_hook_that_raises_leaves_one_outcome_and_the_one_of_celery(any_pool):
    hooks = [("before_start", "return"), ("on_success", "return"), ("after_return", "return"), ("after_return", "fail")]
    if "solo" not in any_pool.workers[0].command:  # Celery's worker of that pool ends by it
        hooks.append(("on_failure", "fail"))
    counted = any_pool.reader.get_coordination_metrics()
    results = [any_pool.send("raise_in_hook", hook, body) for hook, body in hooks]
    states = [any_pool.wait(result, "SUCCESS", "FAILURE") for result in results]
    time.sleep(1.5)  # in which a second outcome would be written

    expected = [result.state for result in results]
    assert [any_pool.status(result.id) for result in results] == [state["status"] for state in states] == expected
    assert [any_pool.runs(result.id) for result in results] == [[status] for status in expected]
    failed = [result for result in results if result.state == "FAILURE"]
    assert [any_pool.state(result.id)["exception"]["type"] for result in failed] == [
        type(result.result).__name__ for result in failed]
    now = any_pool.reader.get_coordination_metrics()
    ended = {name: now.get(name, 0) - counted.get(name, 0) for name in ("total", "succeeded", "failed")}
    assert ended == {
        "total": len(results), "succeeded": expected.count("SUCCESS"), "failed": expected.count("FAILURE")}


def test_a_body_whose_callback_can_not_be_sent_fails(any_pool):
    tasks = any_pool.app.tasks
    last = (tasks["tests.support.tasks.add"].s(1, 2) | tasks["tests.support.tasks.add"].s(3, 4)).delay()

    state = any_pool.wait(last.parent, "SUCCESS", "FAILURE")
    eventually(lambda: last.parent.state == "FAILURE")

    assert (state["status"], state["exception"]["type"]) == ("FAILURE", "TypeError")


def test_a_task_called_eagerly_while_an_error_is_handled_succeeds(any_pool):
    result = any_pool.send("add_eagerly_while_handling", 1, 2)

    any_pool.wait(result, "SUCCESS")

    assert eventually(lambda: any_pool.status(f"eager-{result.id}")) == "SUCCESS"


@pytest.mark.parametrize("state, status", [
    ("FAILURE", "FAILURE"), ("SUCCESS", "SUCCESS"), ("REVOKED", "REVOKED"), ("COUNTING", "IGNORED")])
def test_an_end_that_a_body_stores_before_ignore_counts(any_pool, state, status):
    result = any_pool.send("end_by_update_state", state)

    any_pool.wait(result, "FAILURE", "SUCCESS", "REVOKED", "IGNORED")

    assert (any_pool.status(result.id), result.state) == (status, state)


def test_an_end_that_a_body_stores_stays_when_its_child_ends(make_fleet):
    fleet = make_fleet()
    fleet.start_worker("-c", "1", "--max-tasks-per-child", "1")

    results = [fleet.send("end_by_update_state", "FAILURE") for _ in range(3)]
    for result in results:
        fleet.wait(result, "FAILURE", "IGNORED")
    fleet.workers[0].stop()

    assert [fleet.status(result.id) for result in results] == ["FAILURE"] * 3


@pytest.mark.parametrize("how, status", [("fail", "FAILURE"), ("return", "SUCCESS")])
def test_body_that_outlives_a_revoke_ends_by_its_own_result(fleet, how, status):
    result = fleet.send("end_when_terminated", how)
    fleet.wait(result, "STARTED")

    fleet.app.control.revoke(result.id, terminate=True, signal="SIGUSR1")
    fleet.wait(result, "REVOKED")
    eventually(lambda: fleet.app.backend.get_state(result.id) == status)  # a result that is ready is not looked at again

    fleet.wait(result, status)


def test_a_hook_that_raises_before_a_retry_leaves_no_run_that_goes_on(any_pool):
    result = any_pool.send("raise_in_hook", "on_retry", "retry")

    any_pool.wait_runs(result, ["FAILURE", "FAILURE"])

    assert result.state == "FAILURE"
