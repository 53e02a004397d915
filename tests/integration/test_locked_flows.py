"""Tasks that find their lock taken, and locked tasks in chains, groups and chords; in real workers."""
from __future__ import annotations

import os
import signal
import time
import uuid

import pytest
from celery import chain, chord, group

from celery_memsync import LockNotAcquired
from tests.support.fleet import Fleet
from tests.support.locked_tasks import TASKS, send, task, wait_begun
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with two workers."""
    fleet = Fleet(
        tmp_path_factory.mktemp("flows"), broker, store, include=["tests.support.tasks", TASKS])
    fleet.start_worker("-c", "2")
    fleet.start_worker("-c", "2")
    yield fleet
    fleet.close()


@pytest.fixture
def taken(fleet):
    """A lock that the test holds."""
    lock = fleet.reader.lock(uuid.uuid4().hex)
    lock.acquire()
    yield lock
    lock.release()


def test_task_whose_lock_is_taken_fails_and_names_the_holder(fleet, taken):
    result = send(fleet, "end", taken.name, "return")

    with pytest.raises(LockNotAcquired) as caught:
        result.get(timeout=15)

    assert "the-test" in str(caught.value)
    assert fleet.wait(result, "FAILURE")["exception"]["type"] == "LockNotAcquired"


def test_a_task_is_tried_again_until_its_lock_is_free_and_its_retries_are_not_used_up(fleet, taken):
    result = send(fleet, "try_again", taken.name)
    eventually(lambda: fleet.runs(result.id).count("RETRY") >= 3)
    begun = fleet.notes("begin", result.id)

    taken.release()

    assert fleet.wait(result, "SUCCESS")["retries"] == 0
    assert result.get(timeout=5) == 0
    assert begun == []


def begun(fleet, result):
    """Return the runs of a task that have begun and requested a retry."""
    runs = (fleet.reader.get_task(result.id) or {"runs": []})["runs"]
    return [run for run in runs if run["status"] == "RETRY" and "started_at" in run]


def test_a_task_that_is_held_back_waits_for_a_second_at_least(fleet, taken):
    results = [send(fleet, "try_again", taken.name) for _ in range(4)]
    for result in results:
        eventually(lambda one=result: len(begun(fleet, one)) >= 2)
    runs = [begun(fleet, result) for result in results]

    delays = [later["started_at"] - earlier["finished_at"] for earlier, later, *_ in runs]

    assert min(delays) > 0.9


def test_tries_that_count_are_at_an_end_some_day(fleet, taken):
    result = send(fleet, "try_again_once", taken.name)

    state = fleet.wait(result, "FAILURE")

    assert state["exception"]["type"] == "LockNotAcquired"
    assert state["retries"] == 1


def test_a_task_that_retries_by_itself_on_a_taken_lock_gets_it(fleet, taken):
    result = send(fleet, "insist", taken.name)
    eventually(lambda: fleet.state(result.id).get("retries"))

    taken.release()

    assert result.get(timeout=15) == "done"


def test_skipped_task_shows_the_holder_of_its_lock(fleet, taken):
    result = send(fleet, "skip", taken.name)

    state = fleet.wait(result, "SKIPPED")

    assert (state["lock"]["name"], state["lock"]["worker_id"]) == (taken.name, "the-test")
    assert fleet.reader.get_coordination_metrics()["skipped"] >= 1
    assert result.state == "PENDING"


def test_locked_tasks_in_a_chain_a_group_and_a_chord(fleet):
    add, total = task(fleet, "add"), task(fleet, "total")

    assert chain(add.s(1, 2), add.s(y=3), add.s(z=4)).apply_async().get(timeout=15) == 10
    assert group(add.s(1, y) for y in range(5)).apply_async().get(timeout=15) == [1, 2, 3, 4, 5]
    assert chord((add.s(x, 1) for x in range(5)), total.s()).apply_async().get(timeout=15) == 15


def test_a_chain_goes_on_after_a_task_that_was_held_back(fleet, taken):
    result = chain(task(fleet, "try_again").s(taken.name), task(fleet, "add").s(5)).apply_async()
    eventually(lambda: fleet.runs(result.parent.id).count("RETRY") >= 1)

    taken.release()

    assert result.get(timeout=15) == 5


def test_wrong_arguments_of_a_locked_task_are_refused_by_the_sender(fleet):
    with pytest.raises(TypeError):
        task(fleet, "add").delay(1, 2, 3, 4)
    with pytest.raises(TypeError):
        task(fleet, "add").delay(wrong=1)


def test_an_id_that_is_sent_twice_runs_once_at_a_time(fleet):
    task_id = uuid.uuid4().hex
    results = [send(fleet, "alone", 1.0, task_id=task_id) for _ in range(2)]

    ends = eventually(lambda: len(rows := fleet.notes("end", task_id)) == 2 and rows)

    begins = fleet.notes("begin", task_id)
    assert ends[0]["at"] <= begins[1]["at"]
    eventually(lambda: "RETRY" in fleet.runs(task_id))
    assert fleet.wait(results[0], "SUCCESS")


def test_a_message_that_is_delivered_again_while_its_task_runs_is_held_back(make_fleet, own_broker):
    fleet = make_fleet(
        own_broker, include=["tests.support.tasks", TASKS], broker_transport_options={"visibility_timeout": 1},
        memsync_renew_visibility=False)
    for _ in range(2):
        fleet.start_worker("-c", "2")
    result = send(fleet, "alone", 3)
    wait_begun(fleet, result)
    time.sleep(1.5)

    with fleet.app.connection() as connection:  # as each worker does, every ten seconds
        connection.default_channel.qos.restore_visible(interval=1)
    eventually(lambda: "RETRY" in fleet.runs(result.id))
    during = len(fleet.notes("begin", result.id)), len(fleet.notes("end", result.id))
    fleet.wait(result, "SUCCESS")

    first_end = eventually(lambda: fleet.notes("end", result.id))[0]
    begins = fleet.notes("begin", result.id)
    assert during == (1, 0)
    assert all(row["at"] >= first_end["at"] for row in begins[1:])


def test_writes_of_a_run_paused_beyond_its_lease_are_refused(make_fleet):
    fleet = make_fleet(include=["tests.support.tasks", TASKS])
    paused, other = fleet.start_worker("-c", "1"), fleet.start_worker("-c", "1", "-Q", "others")
    task_id, name = uuid.uuid4().hex, uuid.uuid4().hex
    first = send(fleet, "stand_still", name, "stale", task_id=task_id)
    (row,) = wait_begun(fleet, first)
    fleet.wait(first, "STARTED")
    os.kill(row["pid"], signal.SIGSTOP)

    second = send(fleet, "stand_still", name, "fresh", task_id=task_id, queue="others")
    wait_begun(fleet, second, times=2)
    time.sleep(0.3)
    os.kill(row["pid"], signal.SIGCONT)
    eventually(lambda: "a newer fence has already written it" in paused.output())
    eventually(lambda: len(fleet.notes("end", task_id)) == 2)

    assert fleet.wait(second, "SUCCESS")["worker"] == other.name
    assert [run["worker"] for run in fleet.wait_runs(second, ["STARTED", "SUCCESS"])] == [paused.name, other.name]
