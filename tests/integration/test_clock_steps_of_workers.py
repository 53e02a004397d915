"""Redis's clock is set back, or ahead, under workers: who is gone is found, and what runs is there."""
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
    """Return which workers one has reported as lost."""
    return [details["worker_id"] for name, details in worker.told if name == "worker-lost"]


@pytest.mark.parametrize("step", [3600, 200_000])
def test_the_last_worker_is_not_alive_for_longer_after_the_clock_was_set_back(stepped, make_memsync, step):
    viewer = make_memsync(url=stepped.url, worker_ttl=1.0, heartbeat_interval=0.3)
    SimulatedWorker(make_memsync(url=stepped.url), "gone").beat()
    viewer.sync_worker_status("by-hand", "up")
    alive = viewer.get_active_workers()

    stepped.set_clock(-step)
    viewer.runtime.store.measure_clock()
    viewer.get_active_workers()

    assert alive == ["by-hand", "gone"]
    assert eventually(lambda: viewer.get_active_workers() == [], timeout=5)


@pytest.mark.parametrize("step", [-200_000, -3600, -30, 30])
def test_a_worker_that_is_gone_is_found_lost_and_a_living_one_is_not(stepped, make_memsync, step):
    gone, living = (SimulatedWorker(make_memsync(url=stepped.url), name) for name in ("gone", "living"))
    for _ in range(3):
        gone.beat()
        living.beat()

    stepped.set_clock(step)

    assert eventually(lambda: living.beat() or lost(living), timeout=15) == ["gone"]
    assert lost(gone) == []


def test_running_tasks_are_back_with_the_next_heartbeat_after_the_clock_was_set_ahead(stepped, make_fleet):
    fleet = make_fleet(store=stepped)
    worker = fleet.start_worker("-P", "threads", "-c", "1")
    result = fleet.send("sleep", 60)
    fleet.wait(result, "STARTED")

    worker.signal(signal.SIGSTOP)  # it might be back before anybody sees that it is gone
    stepped.set_clock(7200)
    with stepped.client() as client:
        gone = client.get(fleet.reader.runtime.store.keys.task(result.id)) is None
    worker.signal(signal.SIGCONT)

    assert gone
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
