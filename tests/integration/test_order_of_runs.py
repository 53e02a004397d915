"""With real workers the runs of a task are in the order of their causes, despite wrong clocks."""
from __future__ import annotations

import pytest

from tests.support.stress import stressed
from tests.support.waiting import eventually

#: Seconds by which a producer's clock is wrong.
CLOCKS = {"right": 0.0, "ahead": 90.0, "behind": -3600.0}


@pytest.fixture(scope="module")
def fleet(module_fleet):
    module_fleet.start_worker("-P", "prefork", "-c", "2")
    return module_fleet


@pytest.fixture(params=stressed([*CLOCKS], ["ahead", "behind"]))
def send(fleet, request):
    """Sends a task from a process whose clock is wrong, before it has read the clock of Redis."""
    app = fleet.producer()
    app.memsync.runtime.store.clock.offset += CLOCKS[request.param]
    return lambda name, *args, **options: app.tasks[fleet.task(name).name].apply_async(args, **options)


def test_a_run_follows_the_publishing_from_which_it_came(fleet, send):
    result = send("sleep", 1)

    fleet.wait(result, "STARTED", timeout=5)

    fleet.wait(result, "SUCCESS")
    assert fleet.runs(result.id) == ["SUCCESS"]
    eventually(lambda: fleet.reader.get_queue() == {"pending": [], "processing": []})


def test_retry_follows_the_run_that_requested_it(fleet, send):
    result = send("retry_then", "fail")

    fleet.wait(result, "FAILURE")

    runs = fleet.wait_runs(result, ["RETRY", "FAILURE"])
    assert [run["retries"] for run in runs] == [0, 1]


def test_replacement_follows_the_retry_that_requested_it(fleet, send):
    result = send("retry_then", "replace")

    fleet.wait(result, "FAILURE")

    runs = fleet.wait_runs(result, ["RETRY", "IGNORED", "FAILURE"])
    assert [run["retries"] for run in runs] == [0, 1, 0]
    assert runs[-1]["name"] == fleet.task("fail").name
    assert fleet.status(result.id) == "FAILURE"


def test_a_task_that_is_sent_again_under_its_id_shows_what_it_is_at_now(fleet, send):
    result = send("retry_then", "fail")
    fleet.wait_runs(result, ["RETRY", "FAILURE"])

    send("sleep", 1, task_id=result.id)

    fleet.wait(result, "STARTED", timeout=5)
    fleet.wait(result, "SUCCESS")
    assert fleet.runs(result.id) == ["RETRY", "FAILURE", "SUCCESS"]


def test_progress_begins_anew_in_a_replacement_and_keeps_the_one_before(fleet, send):
    result = send("retry_then", "replace")

    fleet.wait(result, "FAILURE")

    progress = eventually(lambda: fleet.reader.get_task_progress(result.id))
    assert (progress["current"], progress["previous"]["current"]) == (None, 70)


@pytest.mark.parametrize("send", stressed([*CLOCKS], ["behind"]), indirect=True)
def test_retries_by_the_worker_of_a_child_that_is_killed_are_one_chain(fleet, send):
    result = send("kill_own_process_until_the_second_retry")

    fleet.wait(result, "SUCCESS", timeout=40)

    fleet.wait_runs(result, ["RETRY", "RETRY", "SUCCESS"])
    (task,) = fleet.reader.runtime.store.read_tasks([result.id])
    assert task.slots[1].header.run.startswith("1.1:")
