"""What RabbitMQ alone does: connections that it closes, its counts of messages."""
from __future__ import annotations

import signal
import time

import pytest

from tests.support.locked_tasks import TASKS, send
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("rabbit")


@pytest.fixture(scope="module", params=["quorum", pytest.param("classic", marks=pytest.mark.acceptance)])
def broker(rabbit, request):
    """RabbitMQ with queues of one type."""
    return rabbit.of_type(request.param)


@pytest.fixture(scope="module")
def fleet(module_fleet):
    """A fleet with a prefork worker."""
    module_fleet.start_worker("-P", "prefork", "-c", "4")
    return module_fleet


def test_messages_of_rabbitmq_are_not_renewed(fleet, tmp_path):
    result = fleet.send("wait_acks_late", str(tmp_path / "go on"))

    record = fleet.wait_running(fleet.workers[0], result)

    assert record.held_messages == {}
    assert set(record.running[0]) == {"id", "name", "started_at"}
    (tmp_path / "go on").touch()
    fleet.wait(result, "SUCCESS")
    assert "renew" not in fleet.workers[0].output()


@pytest.mark.acceptance
def test_both_runs_are_seen_when_the_broker_gives_a_task_out_twice(fleet, broker, tmp_path):
    result = fleet.send("wait_acks_late", str(tmp_path / "go on"))
    fleet.wait(result, "STARTED")
    time.sleep(1.2)

    broker.ctl("close_all_connections", "a test")

    eventually(lambda: len(fleet.notes("begin", result.id)) == 2, timeout=20)
    (tmp_path / "go on").touch()
    first, second = fleet.wait_runs(result, ["SUCCESS", "SUCCESS"], timeout=20)
    assert first["pid"] != second["pid"]
    assert first["retries"] == second["retries"] == 0
    assert first["started_at"] + 1 < second["started_at"]


def test_a_task_that_acknowledges_late_is_done_by_the_next_worker(make_fleet):
    fleet = make_fleet()
    first, second = fleet.start_worker("-c", "1"), fleet.worker("-c", "1")
    result = fleet.send("sleep_acks_late", 30)
    fleet.wait(result, "STARTED")

    first.signal(signal.SIGKILL)
    second.start()

    fleet.wait_runs(result, ["STARTED", "STARTED"], timeout=20)
    fleet.wait_running(second, result)


def test_a_task_that_was_acknowledged_at_once_is_lost_with_its_worker(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.5)
    first, second = fleet.start_worker("-c", "1"), fleet.worker("-c", "1")
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")

    first.signal(signal.SIGKILL)
    second.start()

    fleet.wait(result, "LOST", timeout=20)
    fleet.wait(fleet.send("add", 1, 2), "SUCCESS")
    assert len(fleet.notes("begin", result.id)) == 1


def test_the_queue_of_a_worker_is_counted(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1", worker_prefetch_multiplier=1)
    for _ in range(5):
        fleet.send("sleep", 30)

    record = fleet.wait_record(worker, lambda record: record.depths.get(fleet.name, 0) >= 3)

    assert record.depths == {fleet.name: record.depths[fleet.name]}
    assert record.running and record.status == "busy"


def test_a_task_that_is_held_back_by_a_lock_is_not_refused_for_its_short_delay(make_fleet):
    fleet = make_fleet(include=["tests.support.tasks", TASKS], task_default_exchange_type="topic")
    fleet.start_worker("-c", "2")
    with fleet.reader.lock("short"):
        results = [send(fleet, "try_again", "short") for _ in range(6)]
        for result in results:
            eventually(lambda one=result: fleet.runs(one.id).count("RETRY") >= 1)

    ends = [fleet.wait(result, "SUCCESS", "REJECTED", "FAILURE", timeout=30)["status"] for result in results]

    assert ends == ["SUCCESS"] * 6
