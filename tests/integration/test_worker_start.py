"""What a worker logs and reports when it starts."""
from __future__ import annotations

import time

import pytest

from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(module_fleet):
    return module_fleet


def test_worker_is_right_before_its_second_interval_begins(fleet):
    worker = fleet.start_worker("-P", "solo", memsync_heartbeat_interval=60.0, memsync_worker_ttl=180.0)

    record = fleet.wait_record(worker, lambda record: record.consuming, timeout=5)

    assert record.sequence == 2  # at the start, and when it took messages
    assert abs(record.started_at - time.time()) < 30 and abs(record.skew) < 1
    assert (f"celery-memsync {record.versions['celery-memsync']} records worker {worker.name} in Redis at "
            f"127.0.0.1:{fleet.store.port}/0 (from memsync_backend), namespace {fleet.name}; "
            ) in worker.output()
    worker.stop()


def test_worker_whose_name_cannot_be_a_key_logs_it_and_works(fleet):
    worker = fleet.start_worker("-P", "solo", "-n", "web/1@h")
    result = fleet.send("add", 1, 2)

    assert fleet.wait(result, "SUCCESS")["worker"] == "web/1@h"
    assert "WARNING/MainProcess] celery-memsync sends no heartbeats of this worker" in worker.output()
    assert "web/1@h" not in fleet.reader.get_active_workers()
    worker.stop()


@pytest.mark.parametrize("wrong, message", [
    ({"task_annotations": {"tests.support.tasks.add": {"memsync_recovr": "requeue"}}},
     "the task tests.support.tasks.add: there is no attribute memsync_recovr"),
    ({"memsync_heartbeat_intervall": 3.0}, "there is no setting memsync_heartbeat_intervall; did you mean"),
])
def test_worker_does_not_start_with_what_is_wrong_and_prints_it_as_its_error(fleet, wrong, message):
    worker = fleet.worker("-P", "solo", **wrong)
    with pytest.raises(AssertionError):
        worker.start()

    assert eventually(lambda: worker.process.poll()) not in (None, 0)
    assert f"Error: celery-memsync: {message}" in worker.output()
    assert "Traceback" not in worker.output()
    worker.process = None
