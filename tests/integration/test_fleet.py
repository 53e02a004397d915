"""A fleet as another process sees it: killed, paused, drained and ended workers, each once."""
from __future__ import annotations

import signal
import time

import pytest

from tests.support.waiting import eventually

#: Of the fleets of these tests: seconds between heartbeats are 0.5.
TTL = 2.0


def statuses(fleet):
    return {record.worker_id: record.status for record in fleet.reader.get_workers()}


@pytest.mark.acceptance
def test_a_fleet_of_all_pools_is_seen_as_it_is(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=TTL)
    killed, paused, drained, left = workers = [
        fleet.worker("-P", "prefork", "-c", "2", "-Q", "killed"),
        fleet.worker("-P", "threads", "-c", "2", "-Q", "paused"),
        fleet.worker("-P", "gevent", "-c", "5", "-Q", "drained"),
        fleet.worker("-P", "solo", "-Q", "left"),
    ]
    fleet.start_all(*workers)
    results = {queue: fleet.send("sleep", 6, queue=queue) for queue in ("killed", "paused", "drained")}
    for result in results.values():
        fleet.wait(result, "STARTED")
    eventually(lambda: len(fleet.reader.get_assignments()) == 3)

    killed.signal(signal.SIGKILL)
    paused.pause()
    drained.signal(signal.SIGTERM)
    left.stop()

    eventually(lambda: statuses(fleet) == dict(zip(
        (worker.name for worker in workers), ("lost", "lost", "draining", "offline"))), timeout=TTL + 3)
    for worker, queue in ((killed, "killed"), (paused, "paused")):
        fleet.wait(results[queue], "LOST", timeout=TTL + 3)
        eventually(lambda: len(fleet.notes("worker-lost", worker.name)) == 1)
    assert fleet.reader.get_active_workers() == [drained.name]
    assert fleet.reader.get_assignments() == {drained.name: [results["drained"].id]}
    assert fleet.reader.get_queue()["processing"] == [results["drained"].id]

    paused.signal(signal.SIGCONT)

    eventually(lambda: fleet.status(results["paused"].id) in ("STARTED", "SUCCESS"), timeout=3)
    fleet.wait(results["drained"], "SUCCESS")
    fleet.wait(results["paused"], "SUCCESS")
    assert fleet.runs(results["paused"].id) == ["SUCCESS"]
    fleet.wait_record(paused, lambda record: record.status == "active")
    fleet.wait_record(drained, lambda record: record.status == "offline")
    assert len(fleet.notes("worker-online", paused.name)) == 2
    assert fleet.status(results["killed"].id) == "LOST"
    assert [len(fleet.notes("task-lost", result.id)) for result in results.values()] == [1, 1, 0]
    assert [len(fleet.notes("worker-lost", worker.name)) for worker in workers] == [1, 1, 0, 0]
    assert fleet.reader.get_coordination_metrics()["lost"] == 1


def test_restart_of_redis_loses_no_worker(make_fleet, own_store):
    fleet = make_fleet(store=own_store, memsync_worker_ttl=TTL)
    workers = fleet.start_all(fleet.worker("-c", "1"), fleet.worker("-P", "threads", "-c", "1"))
    results = [fleet.send("sleep", 4), fleet.send("sleep", 4)]
    for result in results:
        fleet.wait(result, "STARTED")

    own_store.stop()
    eventually(lambda: all("Trying again until it answers" in worker.output() for worker in workers))
    time.sleep(TTL * 1.2)
    own_store.start()

    eventually(lambda: fleet.reader.get_active_workers() == [worker.name for worker in workers])
    for result in results:
        fleet.wait(result, "SUCCESS", timeout=20)
    assert [fleet.notes("worker-lost", worker.name) for worker in workers] == [[], []]
    assert [fleet.notes("task-lost", result.id) for result in results] == [[], []]


def test_running_tasks_are_recorded_anew_after_an_older_snapshot(make_fleet, own_store):
    fleet = make_fleet(store=own_store, memsync_worker_ttl=TTL)
    worker = fleet.start_worker("-P", "threads", "-c", "1")
    own_store.client().save()
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")
    heartbeat = fleet.wait_running(worker, result)

    own_store.kill()
    own_store.start()

    fleet.wait_record(worker, lambda record: record.sequence > heartbeat.sequence)
    eventually(lambda: fleet.status(result.id) == "STARTED", timeout=3)
    assert fleet.notes("worker-lost", worker.name) == []
