"""However a task ends, in a real worker: its lock is free after it."""
from __future__ import annotations

import os
import signal
import time
import uuid

import pytest

from tests.support.fleet import Fleet
from tests.support.locked_tasks import TASKS, send, wait_begun
from tests.support.stress import stressed
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet whose locks live long, with a worker of two children."""
    fleet = Fleet(
        tmp_path_factory.mktemp("locks"), broker, store, include=["tests.support.tasks", TASKS])
    fleet.start_worker("-c", "2")
    yield fleet
    fleet.close()


@pytest.fixture
def name():
    """The name of a lock that no other test has."""
    return uuid.uuid4().hex


def holder(fleet, name):
    return next((record for record in fleet.reader.locks() if record.name == name), None)


def seconds_until_free(fleet, name):
    began = time.monotonic()
    lock = fleet.reader.lock(name)
    eventually(lock.acquire, message="the lock is not free")
    lock.release()
    return time.monotonic() - began


@pytest.mark.parametrize("how, status", [
    ("return", "SUCCESS"), ("raise", "FAILURE"), ("ignore", "IGNORED"), ("reject", "REJECTED"), ("exit", "FAILURE"),
])
def test_a_lock_is_free_after_a_task_that_ends_by_itself(fleet, name, how, status):
    result = send(fleet, "end", name, how, 0.2)
    wait_begun(fleet, result)
    record = eventually(lambda: holder(fleet, name))

    fleet.wait(result, status, "FAILURE")

    assert record.task_id == result.id and record.worker_id == fleet.workers[0].name
    assert seconds_until_free(fleet, name) < 1


def test_the_lock_of_a_task_that_retries_is_free_while_it_waits(fleet, name):
    result = send(fleet, "end", name, "retry")
    wait_begun(fleet, result)

    free = seconds_until_free(fleet, name) < 0.4

    assert free
    fleet.wait(result, "SUCCESS")
    assert len(fleet.notes("begin", result.id)) == 2


def test_a_retry_at_once_does_not_meet_the_lock_of_its_own_earlier_run(fleet, name):
    results = [send(fleet, "end", f"{name}-{number}", "retry at once") for number in range(10)]

    states = [fleet.wait(result, "SUCCESS", "FAILURE") for result in results]

    assert [state["status"] for state in states] == ["SUCCESS"] * 10
    assert [state["retries"] for state in states] == [3] * 10


@pytest.mark.parametrize("how", ["kill", pytest.param("leave", marks=pytest.mark.acceptance)])
def test_the_lock_of_a_killed_child_is_freed_by_its_parent(fleet, name, how):
    result = send(fleet, "end", name, how)

    fleet.wait(result, "FAILURE")

    assert seconds_until_free(fleet, name) < 1


def test_lock_of_a_killed_child_passes_to_a_waiter(fleet, name):
    result = send(fleet, "end", name, "kill", 0.5)
    wait_begun(fleet, result)

    acquired = fleet.reader.lock(name, wait=15).acquire()

    assert acquired and fleet.wait(result, "FAILURE")


def test_a_message_that_is_delivered_again_after_a_killed_child_gets_the_lock_at_once(fleet, name):
    result = send(fleet, "kill_once", name)

    fleet.wait(result, "SUCCESS")

    first, second = fleet.notes("begin", result.id)
    assert second["at"] - first["at"] < 8


@pytest.mark.parametrize("options", stressed([{}, {"time_limit": 2}], [{"time_limit": 2}]))
def test_of_two_deliveries_in_one_worker_only_the_one_whose_child_was_killed_ends(fleet, name, options):
    task_id = uuid.uuid4().hex
    result = send(fleet, "end", f"{name}-1", "return", 30, task_id=task_id, **options)
    (first,) = wait_begun(fleet, result)
    fleet.wait(result, "STARTED")
    send(fleet, "end", f"{name}-2", "return", 7, task_id=task_id)
    wait_begun(fleet, result, times=2)

    if not options:
        os.kill(first["pid"], signal.SIGKILL)

    fleet.wait_runs(result, ["FAILURE", "STARTED"])
    assert seconds_until_free(fleet, f"{name}-1") < 1
    assert holder(fleet, f"{name}-2").task_id == task_id
    fleet.wait_runs(result, ["FAILURE", "SUCCESS"])


@pytest.mark.parametrize("options, status", [({"soft_time_limit": 0.5}, "FAILURE"), ({"time_limit": 0.5}, "FAILURE")])
def test_a_lock_is_free_after_a_time_limit(fleet, name, options, status):
    result = send(fleet, "end", name, "return", 30, **options)

    state = fleet.wait(result, status)

    assert "Limit" in state["exception"]["type"]
    assert seconds_until_free(fleet, name) < 1


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_a_lock_is_free_after_a_revoke_with_terminate(fleet, name, signal_name):
    result = send(fleet, "end", name, "return", 30)
    wait_begun(fleet, result)

    result.revoke(terminate=True, signal=signal_name)

    fleet.wait(result, "REVOKED")
    assert seconds_until_free(fleet, name) < 1


@pytest.mark.parametrize("how", ["return", "raise", "kill"])
def test_what_a_task_took_by_hand_and_forgot_is_free_after_it(fleet, name, how):
    result = send(fleet, "forget", name, how)

    fleet.wait(result, "SUCCESS", "FAILURE")

    assert seconds_until_free(fleet, name) < 1
    assert eventually(lambda: fleet.reader.acquire_task_lock(result.id), timeout=1)


def test_a_task_under_a_revoked_one_that_lives_on_keeps_its_lock(fleet, name):
    result = send(fleet, "end", name, "return", 1.5)
    wait_begun(fleet, result)

    result.revoke()  # without terminate: it runs on
    time.sleep(0.5)

    assert not fleet.reader.lock(name).acquire()
    fleet.wait(result, "SUCCESS")


def test_the_locks_of_a_killed_worker_end_with_their_leases(make_fleet, name):
    fleet = make_fleet(include=["tests.support.tasks", TASKS], memsync_lock_ttl=2.0)
    worker = fleet.start_worker("-c", "1")
    result = send(fleet, "end", name, "return", 30)
    wait_begun(fleet, result)
    time.sleep(1.0)

    worker.stop(signal.SIGKILL)

    assert fleet.reader.lock(name, wait=10).acquire()


@pytest.mark.parametrize("how", stressed([signal.SIGTERM, signal.SIGQUIT], [signal.SIGTERM]))
def test_a_worker_that_stops_leaves_no_lock(make_fleet, name, how):
    fleet = make_fleet(include=["tests.support.tasks", TASKS])
    worker = fleet.start_worker("-c", "1")
    result = send(fleet, "end", name, "return", 1.5)
    wait_begun(fleet, result)

    worker.stop(how)

    assert seconds_until_free(fleet, name) < 2


@pytest.mark.acceptance
def test_locks_hold_in_children_that_are_spawned(make_fleet, name):
    fleet = make_fleet(include=["tests.support.tasks", TASKS])
    fleet.start_worker("-c", "2", worker_pool_start_method="spawn")
    first = send(fleet, "end", name, "return", 0.7)
    wait_begun(fleet, first, timeout=30)

    second, killed = send(fleet, "insist", name), send(fleet, "end", "k" + name, "kill")

    assert holder(fleet, name).task_id == first.id
    assert fleet.wait(first, "SUCCESS") and fleet.wait(second, "SUCCESS") and fleet.wait(killed, "FAILURE")
    assert seconds_until_free(fleet, "k" + name) < 1


@pytest.mark.parametrize("pool", stressed(["threads", "solo", "gevent", "eventlet"], ["threads", "gevent"]))
def test_locks_hold_in_every_pool(make_fleet, name, pool):
    pytest.importorskip(pool) if pool in ("gevent", "eventlet") else None
    fleet = make_fleet(include=["tests.support.tasks", TASKS])
    fleet.start_worker("-P", pool, "-c", "4")

    first = send(fleet, "end", name, "return", 0.7)
    wait_begun(fleet, first)
    others = [send(fleet, "insist", name) for _ in range(3)]

    assert fleet.wait(first, "SUCCESS")
    assert {fleet.wait(result, "SUCCESS", "FAILURE")["status"] for result in others} == {"SUCCESS"}
    assert eventually(lambda: fleet.reader.lock(name).acquire())
