"""What a cancel reaches: parts of groups, what follows, what a worker holds for long, what looks in a forked process."""
from __future__ import annotations

import contextlib
import time
import uuid

import pytest
from celery import chain, group

from tests.support.cancels import CANCEL_TASKS, begun, signature
from tests.support.fleet import TASKS, Fleet
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet whose worker keeps few revoked ids, and those not for long."""
    few = pytest.MonkeyPatch()
    few.setenv("CELERY_WORKER_REVOKE_EXPIRES", "0.5")
    few.setenv("CELERY_WORKER_REVOKES_MAX", "3")
    fleet = Fleet(tmp_path_factory.mktemp("parts"), broker, store, include=[TASKS, CANCEL_TASKS])
    fleet.start_worker("-c", "2", "-E")
    few.undo()
    yield fleet
    fleet.close()


def keep_busy(fleet, seconds):
    """Let both processes of the worker run tasks."""
    for result in [signature(fleet, "hold", seconds).delay() for _ in range(2)]:
        begun(fleet, result)


def test_task_that_is_cancelled_can_be_terminated_later(fleet):
    result = signature(fleet, "hold", 20.0).delay()
    begun(fleet, result)
    fleet.reader.cancel(result.id, "please")
    eventually(lambda: fleet.app.memsync.runtime.store.read_cancelled())

    fleet.reader.cancel(result.id, "now", terminate=True)

    assert fleet.wait(result, "REVOKED", timeout=5)["exception"]["message"].endswith(": now")


def test_members_of_a_cancelled_inner_group_do_not_start_in_their_middle_or_at_their_begin(fleet):
    members = [chain(signature(fleet, "step", 0.4), signature(fleet, "step", 0.1)) for _ in range(12)]
    result = chain(signature(fleet, "step", 0.0), group(members), signature(fleet, "step", 0.0)).delay()
    firsts = [one.parent.id for one in result.parent.results]
    eventually(lambda: any(fleet.notes("begin", task_id) for task_id in firsts))

    fleet.reader.cancel(result.parent.id)

    for one in result.parent.results:
        fleet.wait(one, "REVOKED", "CANCELLED")
    assert sum(bool(fleet.notes("begin", task_id)) for task_id in firsts) < 8
    assert not fleet.notes("begin", result.id)


def test_step_after_a_cancelled_task_that_does_not_look_does_not_start(fleet):
    result = chain(signature(fleet, "step"), signature(fleet, "hold", 1.0), signature(fleet, "step")).delay()
    begun(fleet, result.parent)

    fleet.reader.cancel(result.parent.id, "stop here")

    fleet.wait(result.parent, "STARTED", timeout=1)
    assert fleet.wait(result, "REVOKED")["exception"]["message"].endswith("stop here")
    fleet.wait(result.parent, "SUCCESS")
    assert not fleet.notes("begin", result.id)


def test_task_whose_id_can_be_no_key_does_not_start_if_its_group_is_cancelled(fleet):
    keep_busy(fleet, 1.5)
    result = group(signature(fleet, "step", task_id=f"{uuid.uuid4()}/{number}") for number in range(3)).delay()

    fleet.reader.cancel(result.id)

    for one in result.results:
        eventually(lambda one=one: one.state == "REVOKED")
        assert not fleet.notes("begin", one.id)


def test_tasks_that_wait_longer_than_celery_keeps_revoked_ids_do_not_start(fleet):
    results = [signature(fleet, "step").apply_async(countdown=2.5) for _ in range(6)]
    for result in results:
        fleet.wait(result, "RECEIVED")

    for result in results:
        fleet.reader.cancel(result.id)
    until = time.monotonic() + 1.0
    eventually(lambda: time.monotonic() > until)
    keep_busy(fleet, 0.1)
    fleet.app.control.revoke([str(uuid.uuid4()) for _ in range(5)])

    for result in results:
        eventually(lambda result=result: fleet.notes("revoked", result.id))
    assert not any(fleet.notes("begin", result.id) for result in results)


def test_process_that_a_task_has_forked_learns_of_it(fleet):
    result = signature(fleet, "check_in_fork").delay()
    begun(fleet, result)

    fleet.reader.cancel(result.id)

    eventually(lambda: fleet.notes("cancelled", result.id))


def test_monitors_get_the_event_of_a_revoked_task(fleet):
    seen = []
    with fleet.app.connection_for_read() as connection:
        receiver = fleet.app.events.Receiver(connection, handlers={"task-revoked": seen.append})
        with contextlib.closing(receiver.itercapture(limit=None, timeout=15, wakeup=False)) as events:
            next(events)  # a heartbeat
            result = signature(fleet, "check").delay()
            begun(fleet, result)

            fleet.reader.cancel(result.id)

            eventually(lambda: next(events) or seen)
    assert [event["uuid"] for event in seen] == [result.id]


def seen_until(fleet, result, status):
    """Return the statuses that the runs of a task have until it has one run, and that this status."""
    seen = []

    def ended():
        runs = fleet.runs(result.id)
        if [runs] != seen[-1:]:
            seen.append(runs)
        return runs == [status]

    eventually(ended)
    return [status for runs in seen for status in runs]


def test_task_that_has_begun_is_not_recorded_as_one_that_waited(tmp_path, broker, store):
    fleet = Fleet(tmp_path, broker, store, include=[TASKS, CANCEL_TASKS], memsync_batch_interval=1.0)
    try:
        for _ in range(2):
            fleet.start_worker("-P", "threads", "-c", "1")
        revoked, cancelled = (signature(fleet, "retry_by_itself", seconds).delay() for seconds in (2.0, 20.0))
        fleet.app.memsync.force_sync()
        begun(fleet, revoked)
        begun(fleet, cancelled)

        fleet.app.control.revoke(revoked.id)
        fleet.reader.cancel(cancelled.id)

        assert "REVOKED" not in seen_until(fleet, revoked, "SUCCESS")
        seen_until(fleet, cancelled, "REVOKED")
    finally:
        fleet.close()
