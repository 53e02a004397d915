"""A task that is delivered again while the lock of its earlier run is held; in real workers."""
from __future__ import annotations

import signal
import time
import uuid

import pytest

from tests.support.locked_tasks import TASKS, send, wait_begun
from tests.support.stress import stressed


@pytest.fixture
def fleet(make_fleet, own_broker):
    """A fleet whose broker delivers again, on request, what was not acknowledged for a second."""
    return make_fleet(
        own_broker, include=["tests.support.tasks", TASKS], memsync_lock_ttl=6.0, worker_prefetch_multiplier=1,
        broker_transport_options={"visibility_timeout": 1}, memsync_renew_visibility=False)


def deliver_again(fleet):
    time.sleep(1.5)
    with fleet.app.connection() as connection:  # as each worker does, every ten seconds
        connection.default_channel.qos.restore_visible(interval=1)


@pytest.mark.parametrize("task", stressed(["skip_again", "fail_again"], ["skip_again"]))
def test_a_task_whose_worker_was_killed_runs_when_the_lease_of_its_dead_run_is_over(fleet, task):
    first = fleet.start_worker("-c", "1")
    result = send(fleet, task, uuid.uuid4().hex, 60)
    wait_begun(fleet, result)

    first.stop(signal.SIGKILL)
    deliver_again(fleet)
    fleet.start_worker("-c", "1")

    fleet.wait(result, "SUCCESS", timeout=20)
    assert len(fleet.notes("begin", result.id)) == 2


@pytest.mark.parametrize("task, status", stressed(
    [("skip_again", "SKIPPED"), ("fail_again", "FAILURE")], [("skip_again", "SKIPPED")]))
def test_what_is_to_be_done_about_a_taken_lock_counts_while_the_earlier_run_lives(fleet, task, status):
    fleet.start_all(*(fleet.worker("-c", "1") for _ in range(2)))
    result = send(fleet, task, uuid.uuid4().hex, 12)
    wait_begun(fleet, result)

    deliver_again(fleet)

    fleet.wait_runs(result, ["STARTED", status], timeout=10)
    assert len(fleet.notes("begin", result.id)) == 1
