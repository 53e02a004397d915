"""Cancelled tasks do not start, and running ones end when they look, in every pool."""
from __future__ import annotations

import json
import time
import uuid

import pytest
from celery import VERSION, chain, chord, group
from celery.states import REVOKED

from tests.support.cancels import CANCEL_TASKS, begun, signature
from tests.support.fleet import TASKS, Fleet
from tests.support.stress import stressed
from tests.support.waiting import eventually

POOLS = {
    "prefork": ["-c", "2"],
    "threads": ["-P", "threads", "-c", "2"],
    "solo": ["-P", "solo"],
    "gevent": ["-P", "gevent", "-c", "2"],
    "eventlet": ["-P", "eventlet", "-c", "2"],
}


@pytest.fixture(scope="module", params=stressed(list(POOLS), ["prefork", "threads", "gevent"]))
def pool(request):
    """Name of the pool under test."""
    return request.param


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store, pool):
    """A fleet with one worker of that pool."""
    fleet = Fleet(tmp_path_factory.mktemp(pool), broker, store, include=[TASKS, CANCEL_TASKS])
    fleet.start_worker(*POOLS[pool])
    yield fleet
    fleet.close()


def wait_second():
    """Wait as long as it may take until a worker knows what is cancelled."""
    until = time.monotonic() + 1.0
    eventually(lambda: time.monotonic() > until)


@pytest.mark.parametrize("name", ["check", "track"])
def test_running_task_ends_as_revoked_with_who_when_and_why(fleet, name):
    result = signature(fleet, name).delay()
    fleet.wait(result, "STARTED")

    status = fleet.reader.cancel(result.id, "the order was withdrawn")

    state = fleet.wait(result, "REVOKED", timeout=5)
    assert status == "STARTED"
    assert state["exception"]["type"] == "TaskCancelled"
    assert state["exception"]["message"].startswith("cancelled by the-test at 20")
    assert state["exception"]["message"].endswith(": the order was withdrawn")
    assert state["runtime"] > 0
    assert eventually(lambda: result.state == REVOKED)
    assert "the order was withdrawn" in str(result.result)
    assert not fleet.notes("end", result.id)
    assert fleet.runs(result.id) == ["REVOKED"]


def test_waiting_task_of_a_busy_worker_does_not_start(fleet):
    busy = [signature(fleet, "hold", 2.0).delay() for _ in range(2)]
    begun(fleet, busy[0])
    waiting = [signature(fleet, "step").delay() for _ in range(4)]
    eventually(lambda: fleet.status(waiting[0].id) in ("PENDING", "RECEIVED"))

    for result in waiting:
        fleet.reader.cancel(result.id, "not needed")

    for result in waiting:
        state = fleet.wait(result, "REVOKED")
        assert state["exception"]["message"].endswith("not needed")
    for result in busy:
        fleet.wait(result, "SUCCESS")
    last = signature(fleet, "step").delay()
    fleet.wait(last, "SUCCESS")
    assert not any(fleet.notes("begin", result.id) for result in waiting)
    assert eventually(lambda: fleet.unacked() == 0)
    assert all(result.state == REVOKED for result in waiting)


def test_task_cancelled_before_it_is_sent_does_not_start(fleet):
    task_id = f"order:7 {uuid.uuid4()} ünïcode~!$&'()+,;="

    assert fleet.reader.cancel(task_id, "too late") is None
    wait_second()
    result = signature(fleet, "step").apply_async(task_id=task_id)

    assert fleet.wait(result, "REVOKED")["exception"]["message"].endswith("too late")
    assert not fleet.notes("begin", task_id)


def test_task_with_an_eta_does_not_start(fleet):
    result = signature(fleet, "step").apply_async(countdown=1.5)
    fleet.wait(result, "RECEIVED")

    fleet.reader.cancel(result.id)

    fleet.wait(result, "REVOKED", timeout=1.2)
    assert eventually(lambda: fleet.notes("revoked", result.id))
    assert not fleet.notes("begin", result.id)


def test_retry_of_a_cancelled_task_does_not_start(fleet):
    result = signature(fleet, "retry_after", 1.0).delay()
    begun(fleet, result)

    fleet.reader.cancel(result.id, "no more tries")

    assert fleet.wait(result, "REVOKED")["exception"]["message"].endswith("no more tries")
    assert len(fleet.notes("begin", result.id)) == 1


def test_cancelled_task_is_not_retried_by_celery(fleet):
    result = signature(fleet, "retry_by_itself").delay()
    begun(fleet, result)

    fleet.reader.cancel(result.id)

    fleet.wait(result, "REVOKED")
    assert fleet.runs(result.id) == ["REVOKED"]


def test_locks_of_a_cancelled_task_are_released(fleet):
    result = signature(fleet, "hold_and_check").delay()
    begun(fleet, result)
    names = [f"of-{result.id}", f"tasks/{result.id}"]
    assert all(fleet.reader.get_lock(name) for name in names)

    fleet.reader.cancel(result.id)

    fleet.wait(result, "REVOKED")
    assert eventually(lambda: not any(fleet.reader.get_lock(name) for name in names))


def test_one_look_long_after_the_cancel_is_enough(fleet):
    result = signature(fleet, "check_once", 1.5).delay()
    begun(fleet, result)

    fleet.reader.cancel(result.id)

    fleet.wait(result, "REVOKED")
    assert not fleet.notes("end", result.id)


def test_task_cancels_its_own_root(fleet):
    workflow = chain(signature(fleet, "cancel_own_root"), signature(fleet, "step")).delay()
    first = workflow.parent

    state = fleet.wait(first, "REVOKED")

    (noted,) = fleet.notes("begin", first.id)
    assert f"by {fleet.workers[0].name} in task {first.id} at " in state["exception"]["message"]
    assert not fleet.notes("end", first.id)
    assert noted and not fleet.notes("begin", workflow.id)


def test_chord_with_a_cancelled_member_has_no_body(fleet):
    members = [signature(fleet, "check") for _ in range(2)]
    result = chord(members, signature(fleet, "step")).delay()
    eventually(lambda: fleet.notes("begin", result.parent.results[0].id))

    fleet.reader.cancel(result.parent.id)

    for member in result.parent.results:
        fleet.wait(member, "REVOKED")
    # Celery stores an error of the chord for its body.
    assert eventually(lambda: result.state == "FAILURE")
    assert not fleet.notes("begin", result.id)


#: Groups of a chain; before 5.7 Celery takes ten times as long to send it with each one more.
GROUPS = [(12, 5), pytest.param(100, 10, marks=pytest.mark.acceptance)] if VERSION >= (5, 7) else [(6, 5)]


@pytest.mark.parametrize("groups, members", GROUPS)
def test_nothing_of_a_chain_of_groups_starts_a_second_after_a_cancel(fleet, groups, members):
    name = str(uuid.uuid4())
    steps = [group(signature(fleet, "step", 0.1, name) for _ in range(members)) for _ in range(groups)]
    first = chain(*steps).delay()
    while first.parent is not None:
        first = first.parent
    eventually(lambda: len(begun_of(fleet, name)) > 2 * members, timeout=60)

    fleet.reader.cancel(first.id, "stop it all")

    cancelled_at = time.time()
    eventually(lambda: time.time() > cancelled_at + 4.0)
    begun = begun_of(fleet, name)
    assert [row for row in begun if row["at"] > cancelled_at + 1.0] == []
    assert len(begun) < groups * members
    states = [one["state"] for one in fleet.reader.get_tasks(groups * members)]
    revoked = [state for state in states if state["status"] == "REVOKED" and state.get("workflow") == first.id]
    assert {state["exception"]["message"].rpartition(": ")[2] for state in revoked} == {"stop it all"}
    assert eventually(lambda: fleet.unacked() == 0)


def begun_of(fleet, workflow):
    """Return what workers noted when steps of a workflow began."""
    notes = map(json.loads, fleet.notes_file.read_text().splitlines()) if fleet.notes_file.exists() else ()
    return [row for row in notes if row.get("workflow") == workflow]


def test_no_error_is_logged(fleet):
    log = fleet.workers[0].output()

    # Celery itself logs one of each chord whose body is not called, before 5.7 with what it was handling.
    assert log.count("Traceback") - log.count("During handling of") == log.count("raised: ChordError(")
    assert "raised unexpected" not in log
    assert "memsync-" not in log
