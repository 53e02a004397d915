"""Real workers, seen by the probe: alive, sending heartbeats, consuming."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import eventually

FINE, DEAD, SILENT, IDLE = 0, 1, 2, 3


def probe(*args):
    return subprocess.run(
        [sys.executable, "-m", "celery_memsync.probe", *map(str, args)], cwd=ROOT, capture_output=True, timeout=20,
    ).returncode


def test_the_probe_sees_a_worker_live_stand_still_and_leave(make_fleet, tmp_path):
    fleet = make_fleet(memsync_worker_ttl=1.5, memsync_probe_file=f"{tmp_path}/%n.probe")
    worker = fleet.start_worker("-c", "1")
    path = tmp_path / f"{worker.name.partition('@')[0]}.probe"
    eventually(lambda: probe(path) == FINE)

    worker.pause()
    eventually(lambda: probe(path) == probe("--alive", path) == DEAD)
    worker.signal(signal.SIGCONT)
    eventually(lambda: probe(path) == FINE)
    result = fleet.send("sleep", 2)
    fleet.wait(result, "STARTED")
    worker.signal(signal.SIGTERM)
    fleet.wait_record(worker, lambda record: record.status == "draining")
    draining = probe(path)
    worker.stop()

    assert draining == FINE
    assert probe(path) == DEAD
    assert not os.path.exists(path)


def test_a_worker_that_is_killed_is_dead_at_once(make_fleet, tmp_path):
    path = tmp_path / "probe"
    fleet = make_fleet(memsync_probe_file=str(path))
    worker = fleet.start_worker("-c", "1")
    eventually(lambda: probe(path) == FINE)

    worker.stop(signal.SIGKILL)

    assert probe(path) == DEAD
    worker.log.unlink()
    worker.start()
    eventually(lambda: probe(path) == FINE)


@pytest.mark.acceptance
def test_probe_distinguishes_missing_servers_from_a_dead_worker(
    make_fleet, tmp_path, own_broker, own_store,
):
    path = tmp_path / "probe"
    fleet = make_fleet(
        broker=own_broker, store=own_store, result_backend=None, memsync_worker_ttl=1.5,
        memsync_probe_file=str(path))
    fleet.start_worker("-c", "1")
    eventually(lambda: probe(path) == FINE)

    own_broker.stop()
    eventually(lambda: probe(path) == IDLE)
    own_store.stop()
    eventually(lambda: probe(path) == SILENT)
    alive = probe("--alive", path)
    own_store.start()
    eventually(lambda: probe("--beating", path) == FINE)

    assert alive == FINE


def test_a_worker_that_lets_messages_wait_consumes_nothing(make_fleet, tmp_path):
    path = tmp_path / "probe"
    fleet = make_fleet(memsync_probe_file=str(path), memsync_heartbeat_interval=0.2)
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, lambda record: record.consuming and record.depths == {fleet.name: 0})

    fleet.app.control.broadcast("go_deaf", destination=[worker.name], reply=True, timeout=5)
    fleet.wait_record(worker, lambda record: record.consuming)
    fleet.send("add", 1, 2)

    record = fleet.wait_record(worker, lambda record: record.consuming is False)
    assert (record.status, record.depths, record.capacity["free"]) == ("active", {fleet.name: 1}, 1)
    eventually(lambda: probe(path) == IDLE)


def test_a_worker_without_a_queue_consumes_nothing(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, lambda record: record.consuming)

    fleet.app.control.cancel_consumer(fleet.name, destination=[worker.name])

    fleet.wait_record(worker, lambda record: record.consuming is False and record.queues == ())
