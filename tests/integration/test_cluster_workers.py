"""Real workers whose shared state is in a cluster."""
from __future__ import annotations

import signal

import pytest

from tests.support.fleet import TASKS
from tests.support.topologies import Cluster
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters without replicas."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), replicas=0, patience=15000)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def fleet(make_fleet, cluster):
    return make_fleet(
        store=cluster, memsync_heartbeat_interval=0.3, memsync_worker_ttl=2.0,
        include=[TASKS, "tests.support.lock_tasks"])


def test_every_end_of_a_task_is_kept_and_the_queue_and_counters_follow(fleet):
    fleet.start_worker("-c", "2", "--max-tasks-per-child", "5")

    good = [fleet.send("add", number, 1) for number in range(20)]
    retried, failed, killed = fleet.send("retry_once"), fleet.send("fail"), fleet.send("kill_own_process")
    counted = fleet.send("count_to", 200)

    for result in (*good, retried, counted):
        fleet.wait(result, "SUCCESS")
    fleet.wait(failed, "FAILURE")
    fleet.wait(killed, "FAILURE")
    assert fleet.reader.get_task_progress(counted.id)["current"] == 200
    assert [run["status"] for run in fleet.reader.get_task(retried.id)["runs"]] == ["RETRY", "SUCCESS"]
    eventually(lambda: fleet.reader.get_queue() == {"pending": [], "processing": []})
    eventually(lambda: fleet.reader.get_coordination_metrics().get("succeeded") == 22)
    assert fleet.reader.get_coordination_metrics()["total"] == 24
    assert len({row["id"] for row in fleet.reader.get_tasks(limit=100)}) == 24


@pytest.mark.acceptance
def test_a_worker_that_is_killed_is_lost_and_its_locks_are_free_after_their_lease(fleet):
    first = fleet.start_worker("-c", "1", memsync_lock_ttl=2.0)
    held = fleet.app.send_task("tests.support.lock_tasks.end", ("printer", "return", 60.0))
    fleet.wait(held, "STARTED")
    eventually(lambda: [lock.name for lock in fleet.reader.locks()] == ["printer"])
    other = fleet.start_worker("-c", "1")

    first.signal(signal.SIGKILL)
    waiting = fleet.reader.lock("printer", wait=20.0)

    assert waiting.acquire()
    fleet.wait(held, "LOST")
    assert fleet.reader.get_active_workers() == [other.name]
    assert waiting.release()
