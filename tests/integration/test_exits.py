"""However workers and their children end, no record of a task is lost."""
from __future__ import annotations

import os
import signal
import time

import pytest

from celery_memsync.deadline import DEFAULT_TIMEOUT
from tests.support.stress import stressed
from tests.support.waiting import eventually

#: Seconds that a worker may take to end without us.
CELERYS_OWN = 4.0

#: A batch interval that is longer than anything here takes: what is in Redis by then was written at an exit.
NEVER = 60.0


@pytest.mark.parametrize("how", stressed(["SIGTERM", "SIGINT"], ["SIGTERM"]))
def test_warm_shutdown_lets_tasks_end_and_records_their_end(make_fleet, how):
    fleet = make_fleet(memsync_batch_interval=NEVER)
    worker = fleet.start_worker("-c", "2")
    running = [fleet.send("sleep", 1) for _ in range(2)]
    eventually(lambda: all(fleet.notes("begin", result.id) for result in running))

    worker.stop(getattr(signal, how))

    states = [fleet.state(result.id) for result in running]
    assert [state.get("status") for state in states] == ["SUCCESS"] * 2
    assert all(state["runtime"] >= 1 for state in states)


@pytest.mark.acceptance
def test_what_a_stopped_worker_gave_back_is_done_by_the_next(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    results = [fleet.send("sleep", 0.5) for _ in range(4)]
    fleet.wait(results[0], "STARTED")

    worker.stop(signal.SIGTERM)
    fleet.start_worker("-c", "2")

    assert {fleet.wait(result, "SUCCESS")["status"] for result in results} == {"SUCCESS"}


@pytest.mark.parametrize("signals", [["SIGQUIT"], pytest.param(["SIGINT", "SIGINT"], marks=pytest.mark.acceptance)])
def test_a_cold_shutdown_loses_the_task(make_fleet, signals):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")

    for name in signals[:-1]:
        worker.signal(getattr(signal, name))
        eventually(lambda: "Warm shutdown" in worker.output())
    worker.stop(getattr(signal, signals[-1]))

    state = fleet.state(result.id)
    assert state["status"] == "LOST"  # it was acknowledged: no worker runs it again


def test_a_task_given_up_by_a_cold_shutdown_is_done_by_the_next_worker(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep_acks_late", 3)
    fleet.wait(result, "STARTED")

    worker.stop(signal.SIGQUIT)
    fleet.start_worker("-c", "1")

    fleet.wait(result, "SUCCESS")
    first, second = fleet.reader.get_task(result.id)["runs"]
    assert first["status"] in ("STARTED", "RETRY", "LOST")
    assert second["status"] == "SUCCESS"
    assert first["worker"] != second["worker"]


def test_a_task_that_ends_during_a_soft_shutdown_is_a_success(make_fleet):
    fleet = make_fleet(worker_soft_shutdown_timeout=3)
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 1)
    fleet.wait(result, "STARTED")

    worker.stop(signal.SIGQUIT)

    assert fleet.status(result.id) == "SUCCESS"


def test_a_task_that_outlasts_a_soft_shutdown_is_lost(make_fleet):
    fleet = make_fleet(worker_soft_shutdown_timeout=1)
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")

    worker.stop(signal.SIGQUIT)

    assert fleet.status(result.id) == "LOST"


def test_children_that_end_after_one_task_lose_no_record(make_fleet):
    fleet = make_fleet(worker_max_tasks_per_child=1, memsync_batch_interval=NEVER, worker_prefetch_multiplier=8)
    count = stressed(200, 24)
    fleet.start_worker("-c", str(count // 4))

    results = [fleet.send("add", number, 1) for number in range(count)]

    states = [fleet.wait(result, "SUCCESS", timeout=90) for result in results]
    assert len({state["pid"] for state in states}) == count


@pytest.mark.acceptance
def test_shrinking_pool_loses_no_record(make_fleet):
    fleet = make_fleet(memsync_batch_interval=NEVER)
    worker = fleet.worker("--autoscale", "4,1")
    worker.env["AUTOSCALE_KEEPALIVE"] = "1"
    worker.start()
    results = [fleet.send("sleep", 0.3) for _ in range(8)]
    eventually(lambda: len(worker.children()) == 4)

    eventually(lambda: len(worker.children()) == 1, timeout=30)
    worker.stop(signal.SIGTERM)

    assert [fleet.status(result.id) for result in results] == ["SUCCESS"] * 8


def test_a_worker_that_is_killed_is_lost_after_its_ttl(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=2.0)
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")
    fleet.wait_record(worker, lambda record: record.status == "busy")
    killed_at = time.time()

    os.kill(worker.process.pid, signal.SIGKILL)

    record = fleet.wait_record(worker, lambda record: record.status == "lost")
    assert 1 < time.time() - killed_at < 4
    assert [running["id"] for running in record.running] == [result.id]
    assert fleet.reader.get_active_workers() == []
    assert fleet.status(result.id) == "STARTED"


def test_a_task_that_had_returned_before_its_child_was_killed_is_a_success(make_fleet):
    fleet = make_fleet(memsync_batch_interval=2.0)
    fleet.start_worker("-c", "1")
    fleet.send("add_acks_late", 1, 1).get(timeout=10)
    time.sleep(2.5)
    result = fleet.send("add_acks_late", 1, 2)
    pid = eventually(lambda: child_that_did(fleet, result))
    time.sleep(0.01)

    os.kill(pid, signal.SIGKILL)

    assert fleet.status(result.id) != "SUCCESS"
    state = fleet.wait(result, "SUCCESS")
    assert state["pid"] == pid
    assert state["started_at"] <= state["finished_at"]
    assert state["runtime"] >= 0


def test_a_failure_before_the_child_was_killed_stays_the_failure_that_it_was(make_fleet):
    fleet = make_fleet(memsync_batch_interval=0.5)
    worker = fleet.start_worker("-c", "1")
    (pid,) = worker.children()
    result = fleet.send("fail", "the cup is empty")
    eventually(lambda: result.status == "FAILURE")
    time.sleep(0.1)

    os.kill(pid, signal.SIGKILL)

    state = fleet.wait(result, "FAILURE")
    assert state["exception"] == {"type": "ValueError", "message": "the cup is empty"}
    eventually(lambda: worker.children() not in ([pid], []))
    time.sleep(1)
    assert fleet.status(result.id) == "FAILURE"
    assert fleet.state(result.id)["exception"] == state["exception"]


def child_that_did(fleet, result):
    """Return the pid of the only child as soon as the parent has acknowledged the task."""
    (pid,) = fleet.workers[0].children()
    return pid if result.ready() and not fleet.unacked() else None


@pytest.fixture(scope="module")
def spawned(module_fleet):
    """A fleet whose worker spawns its children."""
    module_fleet.start_worker("-c", "2", worker_pool_start_method="spawn")
    return module_fleet


@pytest.mark.acceptance
def test_spawned_children_record_100_tasks(spawned):
    results = [spawned.send("add", number, 1) for number in range(100)]

    states = [spawned.wait(result, "SUCCESS", timeout=30) for result in results]

    assert {state["worker"] for state in states} == {spawned.workers[0].name}
    assert {state["pid"] for state in states} <= set(spawned.workers[0].children())


def test_spawned_children_record_a_failure(spawned):
    result = spawned.send("fail", "the cup is empty")

    state = spawned.wait(result, "FAILURE")

    assert state["exception"] == {"type": "ValueError", "message": "the cup is empty"}


def test_spawned_children_record_progress(spawned):
    result = spawned.send("count_to", 50)

    spawned.wait(result, "SUCCESS")

    assert spawned.reader.get_task_progress(result.id)["progress"] == 100


def test_a_bad_report_fails_no_task_in_a_spawned_child(spawned):
    assert spawned.send("report_badly").get(timeout=10)["current"] == 3


def test_spawned_children_write_what_waits_before_they_exit(make_fleet):
    fleet = make_fleet(worker_pool_start_method="spawn", memsync_batch_interval=NEVER)
    worker = fleet.start_worker("-c", "2")
    results = [fleet.send("add", number, 1) for number in range(20)]
    assert [result.get(timeout=20) for result in results] == list(range(1, 21))

    worker.stop(signal.SIGTERM)

    assert [fleet.status(result.id) for result in results] == ["SUCCESS"] * 20


@pytest.mark.parametrize("redis, how", [
    pytest.param("stopped", "SIGTERM", marks=pytest.mark.acceptance), ("stopped", "SIGQUIT"), ("paused", "SIGTERM")])
def test_a_worker_ends_within_seconds_although_redis_is_away(make_fleet, own_store, redis, how):
    fleet = make_fleet(store=own_store)
    worker = fleet.start_worker("-c", "2")
    results = [fleet.send("add", number, 1) for number in range(20)]
    assert [result.get(timeout=10) for result in results] == list(range(1, 21))
    {"stopped": own_store.stop, "paused": own_store.pause}[redis]()
    assert fleet.send("add", 1, 1).get(timeout=10) == 2
    time.sleep(0.5)  # a SIGQUIT in the middle of reading a child's result makes Celery's own shutdown wait for that result
    began = time.monotonic()

    worker.stop(getattr(signal, how))

    # The children first, and then the parent, may wait once for all that they have to write.
    assert time.monotonic() - began < 2 * DEFAULT_TIMEOUT + CELERYS_OWN
    assert own_store.url not in worker.output()


@pytest.mark.parametrize("how", stressed(["SIGTERM", "SIGINT", "SIGQUIT"], ["SIGQUIT"]))
def test_a_worker_ends_with_the_exit_code_that_it_has_without_this_package(make_fleet, how):
    fleet = make_fleet()
    plain, ours = fleet.worker(app="tests.support.bare", memsync_backend=None), fleet.worker()
    fleet.start_all(plain, ours)

    plain.signal(getattr(signal, how))
    code = ours.stop(getattr(signal, how))

    assert code == plain.process.wait(20)
    assert "MemSync" not in plain.output()
