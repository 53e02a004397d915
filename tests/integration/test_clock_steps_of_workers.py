"""Redis's clock is set back, or ahead, under workers: dead ones are found, live tasks are kept."""
from __future__ import annotations

import signal

import pytest

from tests.support.simulated_worker import SimulatedWorker
from tests.support.stepped_clock import SteppedServer
from tests.support.waiting import eventually


@pytest.fixture
def stepped(tmp_path):
    server = SteppedServer(tmp_path / "redis").start()
    yield server
    server.stop()


def lost(worker):
    """Return the workers that a worker has reported as lost."""
    return [details["worker_id"] for details in worker.events_of("worker-lost")]


@pytest.mark.parametrize("step", [3600, 200_000])
def test_the_last_worker_is_not_alive_for_longer_after_the_clock_was_set_back(stepped, make_memsync, step):
    viewer = make_memsync(url=stepped.url, worker_ttl=1.0, heartbeat_interval=0.3)
    SimulatedWorker(make_memsync(url=stepped.url), "dead").send_heartbeat()
    viewer.sync_worker_status("by-hand", "up")
    alive = viewer.get_active_workers()

    stepped.set_clock(-step)
    viewer.runtime.store.measure_clock()
    viewer.get_active_workers()

    assert alive == ["by-hand", "dead"]
    assert eventually(lambda: viewer.get_active_workers() == [], timeout=5)


@pytest.mark.parametrize("step", [-200_000, -3600, -30, 30])
def test_dead_worker_is_found_lost_and_a_living_one_is_not(stepped, make_memsync, step):
    dead, living = (
        SimulatedWorker(make_memsync(url=stepped.url), name) for name in ("dead", "living"))
    for _ in range(3):
        dead.send_heartbeat()
        living.send_heartbeat()

    stepped.set_clock(step)

    assert eventually(lambda: living.send_heartbeat() or lost(living), timeout=15) == ["dead"]
    assert lost(dead) == []


def test_running_tasks_are_back_with_the_next_heartbeat_after_the_clock_was_set_ahead(stepped, make_fleet):
    fleet = make_fleet(store=stepped)
    worker = fleet.start_worker("-P", "threads", "-c", "1")
    result = fleet.send("sleep", 60)
    fleet.wait(result, "STARTED")

    worker.pause()  # it might be back before its loss is noticed
    stepped.set_clock(7200)
    with stepped.client() as client:
        expired = client.get(fleet.reader.runtime.store.keys.task(result.id)) is None
    worker.signal(signal.SIGCONT)

    assert expired
    assert fleet.wait(result, "STARTED", timeout=3)["worker"] == fleet.workers[0].name


@pytest.mark.parametrize("step", [3600, 80_000])
def test_a_lost_task_is_requeued_after_the_clock_was_set_back(stepped, make_sender, step):
    sender = make_sender(broker_url=stepped.url, memsync_backend=stepped.url)
    task = sender.task()
    request = sender.run_one(task)

    stepped.set_clock(-step)
    sender.memsync.runtime.store.measure_clock()
    sender.lose(request.id)

    assert sender.take(task).id == request.id
    assert sender.memsync.get_task_state(request.id)["status"] == "PENDING"


# -- histories
