"""Every way in which a task can end in a prefork worker ends in the right record."""
from __future__ import annotations

import os
import signal
import time

import celery
import pytest
from celery import chain, chord, group

from tests.support.fleet import TASKS
from tests.support.redis_contents import contents
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def worker(module_fleet):
    """A prefork worker for all tests of this module that let it live."""
    return module_fleet.start_worker("-P", "prefork", "-c", "4")


@pytest.fixture
def fleet(module_fleet, worker):
    """The fleet of that worker."""
    return module_fleet


def test_the_moments_of_a_task_are_in_order_and_on_one_clock(fleet):
    before = time.time()
    result = fleet.send("sleep", 0.2)

    state = fleet.wait(result, "SUCCESS")

    moments = [state[name] for name in ("published_at", "received_at", "started_at", "finished_at")]
    assert moments == sorted(moments)
    assert before - 0.1 < moments[0] and moments[-1] < time.time() + 0.1
    assert state["finished_at"] - state["started_at"] == pytest.approx(state["runtime"], abs=0.01)
    assert 0.2 <= state["runtime"] < 2


def test_running_task_is_started(fleet, worker):
    result = fleet.send("sleep", 1)

    state = fleet.wait(result, "STARTED")

    assert state["worker"] == worker.name
    assert state["pid"] in worker.children()
    assert "finished_at" not in state
    assert "runtime" not in state
    fleet.wait(result, "SUCCESS")


def test_a_task_that_raises_is_a_failure_with_type_and_message(fleet):
    result = fleet.send("fail", "the cup is empty")

    state = fleet.wait(result, "FAILURE")

    assert state["exception"] == {"type": "ValueError", "message": "the cup is empty"}
    assert state["finished_at"] >= state["started_at"]
    assert state["runtime"] >= 0


def test_a_retry_at_once_ends_as_the_last_attempt_did(fleet):
    results = [fleet.send("retry_once", 0) for _ in range(20)]

    states = [fleet.wait(result, "SUCCESS") for result in results]

    assert {state["retries"] for state in states} == {1}
    time.sleep(0.5)
    assert {fleet.status(result.id) for result in results} == {"SUCCESS"}


def test_a_retry_too_many_is_a_failure(fleet):
    result = fleet.send("retry_too_often")

    state = fleet.wait(result, "FAILURE")

    assert state["exception"] == {"type": "OSError", "message": "the line is busy"}


def test_autoretry_keeps_every_attempt(fleet):
    result = fleet.send("fail_twice")

    state = fleet.wait(result, "SUCCESS")

    assert state["retries"] == 2
    assert fleet.wait_runs(result, ["RETRY", "RETRY", "SUCCESS"])


def test_an_ignored_task_is_ignored(fleet):
    result = fleet.send("ignore")

    state = fleet.wait(result, "IGNORED")

    assert "exception" not in state
    assert result.status == "PENDING"


def test_a_task_revoked_while_it_waits_for_a_slot_is_revoked(make_fleet):
    fleet = make_fleet()
    fleet.start_worker("-P", "prefork", "-c", "1")
    first = fleet.send("sleep", 1.5)
    fleet.wait(first, "STARTED")
    second = fleet.send("add", 1, 2)
    fleet.wait(second, "RECEIVED")

    fleet.app.control.revoke(second.id)

    assert "started_at" not in fleet.wait(second, "REVOKED")
    fleet.wait(first, "SUCCESS")


def test_the_soft_time_limit_is_a_failure(fleet):
    result = fleet.send("sleep", 30, soft_time_limit=0.5)

    state = fleet.wait(result, "FAILURE")

    assert state["exception"]["type"] == "SoftTimeLimitExceeded"
    assert state["runtime"] >= 0.4


def test_the_hard_time_limit_is_a_failure(fleet):
    result = fleet.send("sleep", 30, time_limit=0.5)

    state = fleet.wait(result, "FAILURE")

    assert state["exception"]["type"] == "TimeLimitExceeded"
    assert state["started_at"] < state["finished_at"]
    assert fleet.runs(result.id) == ["FAILURE"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_task_that_is_terminated_is_revoked(fleet, how):
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")

    fleet.app.control.revoke(result.id, terminate=True, signal=how)

    state = fleet.wait(result, "REVOKED")
    assert state["started_at"] < state["finished_at"]
    time.sleep(0.5)
    assert fleet.runs(result.id) == ["REVOKED"]


def test_a_task_whose_child_is_killed_is_a_failure_within_a_second_of_celerys_knowing(fleet):
    result = fleet.send("kill_own_process")

    state = fleet.wait(result, "FAILURE")
    read_at = time.time()

    (known,) = fleet.notes("failure", result.id)
    assert state["exception"]["type"] == "WorkerLostError"
    assert state["pid"] and state["pid"] != known["pid"]
    assert read_at - known["at"] < 1
    assert fleet.runs(result.id) == ["FAILURE"]


def test_a_task_whose_child_is_killed_from_outside_is_a_failure(fleet):
    result = fleet.send("sleep", 30)
    pid = fleet.wait(result, "STARTED")["pid"]

    os.kill(pid, signal.SIGKILL)

    state = fleet.wait(result, "FAILURE")
    assert state["exception"]["type"] == "WorkerLostError"
    assert state["pid"] == pid
    assert state["started_at"] < state["finished_at"]


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery 5.7 learned to look whether a success was stored")
def test_a_task_that_was_a_success_to_celery_before_its_child_died_is_a_success(fleet):
    result = fleet.send("add_and_die", 1, 2)

    assert result.get(timeout=10) == 3
    assert fleet.wait(result, "SUCCESS")["pid"]


@pytest.mark.acceptance  # that runs follow each other so is in test_order_of_runs, too
@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery 5.7 learned to retry when a child is lost")
def test_a_task_that_is_retried_whenever_its_child_is_killed_shows_every_attempt(fleet):
    result = fleet.send("kill_own_process_until_the_second_retry")

    state = fleet.wait(result, "SUCCESS", timeout=30)

    assert state["retries"] == 2
    assert fleet.wait_runs(result, ["RETRY", "RETRY", "SUCCESS"])


@pytest.mark.parametrize("how", ["leave", "leave_politely"])
def test_a_task_that_ends_its_own_process_is_a_failure(fleet, how):
    result = fleet.send(how, 3)

    state = fleet.wait(result, "FAILURE")

    # Before 5.7 Celery takes sys.exit() for what it is, and fails to store it.
    assert state["exception"]["type"] in ("WorkerLostError", *(["SystemExit"] if celery.VERSION < (5, 7) else []))
    assert fleet.runs(result.id) == ["FAILURE"]


def test_both_runs_are_seen_when_the_broker_gives_a_task_out_twice(fleet, tmp_path):
    result = fleet.send("wait_acks_late", str(tmp_path / "go on"))
    fleet.wait(result, "STARTED")
    time.sleep(1.2)

    with fleet.app.connection(transport_options={"visibility_timeout": 1}) as connection:
        connection.default_channel.qos.restore_visible(interval=1)

    eventually(lambda: len(fleet.notes("begin", result.id)) == 2)
    fleet.wait_runs(result, ["STARTED", "STARTED"])
    assert fleet.status(result.id) == "STARTED"
    (tmp_path / "go on").touch()
    first, second = fleet.wait_runs(result, ["SUCCESS", "SUCCESS"])
    assert first["pid"] != second["pid"]
    assert first["retries"] == second["retries"] == 0
    assert first["started_at"] + 1 < second["started_at"] < first["finished_at"]


def test_a_task_that_no_worker_knows_is_a_failure(fleet):
    result = fleet.app.send_task("no.such.task")

    state = fleet.wait(result, "FAILURE")

    assert state["exception"]["type"] == "NotRegistered"
    assert state["name"] == "no.such.task"


def test_the_links_of_a_chain_know_their_root_and_their_parent(fleet):
    last = chain(fleet.task("add").s(1, 2), fleet.task("add").s(3), fleet.task("add").s(4)).apply_async()
    second, first = last.parent, last.parent.parent

    states = [fleet.wait(result, "SUCCESS") for result in (first, second, last)]

    assert last.get(timeout=5) == 10
    assert [state["root_id"] for state in states] == [first.id] * 3
    assert [state.get("parent_id") for state in states] == [None, first.id, second.id]


def test_the_members_of_a_group_are_all_there(fleet):
    result = group(fleet.task("add").s(number, 1) for number in range(10)).apply_async()

    states = [fleet.wait(member, "SUCCESS") for member in result]

    assert {state["group"] for state in states} == {result.id}
    assert result.get(timeout=5) == list(range(1, 11))
    assert len({state["run"] for state in states}) == 10


def test_the_body_of_a_chord_knows_its_root(fleet):
    result = chord([fleet.task("add").s(1, 1), fleet.task("add").s(2, 2)])(fleet.task("total").s())

    state = fleet.wait(result, "SUCCESS")

    assert result.get(timeout=5) == 6
    members = [fleet.wait(member, "SUCCESS") for member in result.parent]
    assert len(members) == 2
    assert state["name"] == f"{TASKS}.total"
    assert state["parent_id"] in {member.id for member in result.parent}


def test_the_progress_of_a_task_is_seen_from_outside_while_it_runs(fleet):
    result = fleet.send("count_to", 8, 1.0)

    progress = fleet.wait_progress(result, 8)

    assert (progress["progress"], progress["total"]) == (100, 8)
    assert fleet.status(result.id) == "STARTED"
    assert progress["run"] == fleet.state(result.id)["run"]
    fleet.wait(result, "SUCCESS")
    after = fleet.reader.get_task_progress(result.id)
    # It was written again, and the child's estimate of Redis's clock may be better than before.
    moments = {name: pytest.approx(progress[name], abs=0.1) for name in ("started_at", "phase_started_at", "updated_at")}
    assert after == {**progress, **moments, "eta": None}


def test_an_eager_task_is_kept_too(make_fleet):
    fleet = make_fleet(task_always_eager=True)

    succeeded, failed = fleet.send("add", 1, 2), fleet.send("fail")

    assert succeeded.get() == 3
    assert fleet.wait(succeeded, "SUCCESS")["pid"] == os.getpid()
    assert fleet.wait(failed, "FAILURE")["exception"]["type"] == "ValueError"


def test_a_task_that_is_applied_here_and_now_is_kept_too(make_fleet):
    fleet = make_fleet()

    result = fleet.task("retry_once").apply()

    assert result.get()["previous"]["current"] == 40
    state = fleet.wait(result, "SUCCESS")
    assert state["retries"] == 1
    assert fleet.wait_runs(result, ["RETRY", "SUCCESS"])


def test_no_argument_and_no_result_is_in_redis(fleet):
    result = fleet.send("add", "hush-an-argument-", "hush-another")
    failed = fleet.app.send_task(f"{TASKS}.fail", kwargs={"message": "not-a-secret"}, argsrepr="hush-a-repr")

    state = fleet.wait(result, "SUCCESS")
    fleet.wait(failed, "FAILURE")

    assert result.get(timeout=5) == "hush-an-argument-hush-another"
    assert "args" not in state and "kwargs" not in state
    everything = contents(fleet.store)
    assert b"not-a-secret" in everything
    assert b"hush" not in everything


def test_arguments_are_shown_with_memsync_task_args(make_fleet):
    fleet = make_fleet(memsync_task_args=True)
    result = fleet.task("add").apply_async((1,), {"y": 2})
    waiting = fleet.wait(result, "PENDING")

    fleet.start_worker("-c", "1")

    ended = fleet.wait(result, "SUCCESS")
    assert (waiting["args"], waiting["kwargs"]) == ("(1,)", "{'y': 2}")
    assert (ended["args"], ended["kwargs"]) == ("(1,)", "{'y': 2}")


def test_a_task_id_that_is_not_fit_for_a_key_does_not_hurt_the_task(fleet):
    result = fleet.send("add", 1, 2, task_id="path/to/*")

    assert result.get(timeout=10) == 3


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery before 5.7 fails to store a SystemExit in our callback")
def test_worker_has_logged_no_error_of_this_package(fleet, worker):
    fleet.wait(fleet.send("add", 1, 2), "SUCCESS")

    log = worker.output()

    assert "celery_memsync" not in log
    assert "memsync-writer" not in log
    assert "Signal handler" not in log
