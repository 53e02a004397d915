"""Workers record that they are alive, what they run, and when they leave."""
from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time

import pytest

import celery_memsync
from tests.support.paths import ROOT
from tests.support.stress import stressed
from tests.support.waiting import eventually


def is_active(record):
    return record.status == "active"


@pytest.fixture(scope="module")
def idle(module_fleet):
    """A worker to which no test gives a task, and when its start began."""
    before = time.time()
    return module_fleet.start_worker("-c", "3"), before


def test_worker_record_describes_the_worker(module_fleet, idle):
    fleet, (worker, before) = module_fleet, idle

    record = fleet.wait_record(worker, lambda record: record.status == "active" and record.consuming)

    assert record.worker_id == worker.name
    assert record.pid == worker.process.pid
    assert record.hostname == socket.gethostname()
    assert record.pool == "prefork"
    assert record.concurrency == 3
    assert record.capacity == {"total": 3, "active": 0, "reserved": 0, "free": 3}
    assert record.queues == (fleet.name,)
    assert record.running == ()
    assert record.versions["python"] == platform.python_version()
    assert record.versions["celery-memsync"] == celery_memsync.__version__
    assert {"celery", "redis-py"} < set(record.versions)
    assert before - 1 < record.started_at <= record.last_beat < time.time() + 1
    assert record.rss > 10_000_000
    assert 0 <= record.cpu < 1000
    assert len(record.load) == 3
    assert fleet.reader.get_active_workers() == [worker.name]


def test_worker_without_a_free_slot_is_busy_and_lists_its_tasks(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "2")
    before = time.time()
    results = [fleet.send("sleep", 2) for _ in range(3)]

    record = fleet.wait_record(worker, lambda record: record.status == "busy" and record.capacity["reserved"])

    assert record.capacity == {"total": 2, "active": 2, "reserved": 1, "free": 0}
    assert {running["id"] for running in record.running} < {result.id for result in results}
    assert len(record.running) == 2
    assert all(before - 0.1 < running["started_at"] < time.time() for running in record.running)
    assert all(running["name"].endswith(".sleep") for running in record.running)
    assert fleet.reader.get_active_workers() == [worker.name]
    assert fleet.reader.get_worker_capacity(worker.name) == 0
    record = fleet.wait_record(worker, is_active)
    assert record.counters["total"] >= 2


def test_a_heartbeat_writes_again_and_again(module_fleet, idle):
    fleet, (worker, _) = module_fleet, idle
    first = fleet.wait_record(worker, is_active)

    later = fleet.wait_record(worker, lambda record: record.sequence >= first.sequence + 4)

    seconds = (later.last_beat - first.last_beat) / (later.sequence - first.sequence)
    assert 0.4 < seconds < 1
    assert 0 < later.round_trip < 1


def test_draining_worker_goes_on_sending_heartbeats(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.5)
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 4)
    fleet.wait(result, "STARTED")

    worker.signal(signal.SIGTERM)

    draining = fleet.wait_record(worker, lambda record: record.status == "draining")
    assert [running["id"] for running in draining.running] == [result.id]
    while not fleet.notes("end", result.id):
        assert fleet.record(worker).status == "draining"
        time.sleep(0.1)
    fleet.wait_record(worker, lambda record: record.status == "offline")


def test_worker_that_shuts_down_is_offline(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, is_active)

    worker.stop(signal.SIGTERM)

    record = fleet.record(worker)
    assert record.status == "offline"
    assert record.running == ()
    assert fleet.reader.get_active_workers() == []


def test_worker_that_shuts_down_at_once_is_offline(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("sleep", 30)
    fleet.wait(result, "STARTED")

    worker.stop(signal.SIGQUIT)

    assert fleet.record(worker).status == "offline"


def test_a_worker_that_comes_back_takes_its_name_again(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.5)
    worker = fleet.start_worker("-c", "1")
    first = fleet.wait_record(worker, is_active)
    worker.stop(signal.SIGKILL)
    fleet.wait_record(worker, lambda record: record.status == "lost")

    worker.log.unlink()
    worker.start()

    record = fleet.wait_record(worker, is_active)
    assert record.pid != first.pid
    assert len(fleet.reader.get_workers()) == 1


@pytest.mark.acceptance
def test_a_solo_heartbeat_writes_while_it_is_busy(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.5)
    worker = fleet.start_worker("-P", "solo")
    result = fleet.send("sleep", 3)
    busy = fleet.wait_record(worker, lambda record: record.status == "busy")

    while not fleet.notes("end", result.id):
        assert fleet.record(worker).status in ("busy", "active")
        time.sleep(0.1)

    assert busy.pool == "solo"
    assert busy.capacity == {"total": 1, "active": 1, "reserved": 0, "free": 0}
    assert [running["id"] for running in busy.running] == [result.id]
    fleet.wait_record(worker, is_active)


@pytest.mark.parametrize("pool", stressed(["prefork", "solo"], ["prefork"]))
def test_task_longer_than_the_ttl_is_recorded_to_its_end(make_fleet, pool):
    fleet = make_fleet(memsync_default_ttl=1.5)
    fleet.start_worker("-P", pool, "-c", "1")
    result = fleet.send("sleep", 3)
    fleet.wait(result, "STARTED")

    while not fleet.notes("end", result.id):
        assert fleet.status(result.id) == "STARTED"
        time.sleep(0.1)

    fleet.wait(result, "SUCCESS")


def test_heartbeat_without_a_broker_reports_that_nothing_is_consumed(make_fleet, own_broker):
    fleet = make_fleet(broker=own_broker, memsync_worker_ttl=1.5, result_backend=None)
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, lambda record: record.consuming)

    own_broker.stop()

    cut_off = fleet.wait_record(worker, lambda record: record.consuming is False)
    fleet.wait_record(worker, lambda record: record.sequence > cut_off.sequence + 5)
    assert fleet.reader.get_active_workers() == [worker.name]
    own_broker.start()
    fleet.wait_record(worker, lambda record: record.consuming, timeout=30)
    fleet.wait(fleet.send("add", 1, 2), "SUCCESS")


@pytest.mark.acceptance
def test_two_workers_are_two_records(make_fleet):
    fleet = make_fleet()
    workers = [fleet.worker("-c", "1"), fleet.worker("-c", "2")]

    fleet.start_all(*workers)

    records = [fleet.wait_record(worker, is_active) for worker in workers]
    assert [record.concurrency for record in records] == [1, 2]
    assert fleet.reader.get_active_workers() == [worker.name for worker in workers]
    workers[0].stop()
    assert fleet.reader.get_active_workers() == [workers[1].name]


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_a_worker_starts_without_redis_and_registers_when_it_is_there(make_fleet, own_store, how):
    fleet = make_fleet(store=own_store)
    getattr(own_store, how)()

    worker = fleet.start_worker("-c", "1")

    result = fleet.send("add", 1, 2)
    assert result.get(timeout=10) == 3
    {"stop": own_store.start, "pause": own_store.resume}[how]()
    fleet.wait_record(worker, is_active)
    fleet.wait(result, "SUCCESS")


def test_a_misspelt_setting_stops_the_worker_at_its_start(make_fleet):
    fleet = make_fleet()

    code, output = run_worker(fleet, memsync_batch_intervall=1.0)

    assert code not in (0, None)
    assert "ImproperlyConfigured" in output
    assert "there is no setting memsync_batch_intervall; did you mean memsync_batch_interval?" in output


@pytest.mark.parametrize("name, value", [
    ("memsync_batch_size", -1), ("memsync_heartbeat_interval", "often"), ("memsync_conflict_resolver", "toss_a_coin"),
])
def test_a_wrong_setting_stops_the_worker_at_its_start(make_fleet, name, value):
    fleet = make_fleet()

    code, output = run_worker(fleet, **{name: value})

    assert code not in (0, None)
    assert "ImproperlyConfigured" in output
    assert name in output and str(value) in output


def test_the_setting_alone_makes_a_worker_take_part(make_fleet):
    fleet = make_fleet()
    worker = fleet.start_worker("-c", "1", app="tests.support.bare")

    result = fleet.send("count_to", 10)

    fleet.wait(result, "SUCCESS")
    assert fleet.reader.get_task_progress(result.id)["progress"] == 100
    assert fleet.wait_record(worker, is_active).pool == "prefork"


def test_the_setting_alone_makes_spawned_children_take_part(make_fleet):
    fleet = make_fleet(worker_pool_start_method="spawn")
    fleet.start_worker("-c", "1", app="tests.support.bare")

    result = fleet.send("count_to", 10)

    fleet.wait(result, "SUCCESS")
    assert fleet.reader.get_task_progress(result.id)["progress"] == 100


def test_an_app_without_the_setting_is_left_alone(make_fleet):
    fleet = make_fleet()
    worker = fleet.worker("-c", "1", app="tests.support.bare", memsync_backend=None)
    plain = fleet.producer()
    plain.memsync.signals.disconnect()

    worker.start()

    result = plain.tasks["tests.support.tasks.add"].delay(1, 2)
    assert result.get(timeout=10) == 3
    assert fleet.reader.get_task(result.id) is None
    assert fleet.record(worker) is None


TWO_APPS = """
import json, os, sys
from celery import Celery
from celery_memsync import MemSync

conf = json.loads(os.environ["MEMSYNC_TEST_CONF"])
ours, other = Celery("ours"), Celery("other", set_as_current=False)
ours.conf.update(conf)
other.conf.update({name: value for name, value in conf.items() if not name.startswith("memsync_")})
memsync = MemSync(ours)
first = ours.send_task("one.of.ours")
second = other.send_task("one.of.theirs")
third = other.signature("one.of.theirs").apply_async()
memsync.force_sync()
print(json.dumps({"ours": first.id, "theirs": [second.id, third.id], "has": hasattr(other, "memsync")}))
"""


def test_only_the_app_with_memsync_is_recorded_of_two_in_one_process(make_fleet):
    fleet = make_fleet()

    done = subprocess.run(
        [sys.executable, "-c", TWO_APPS], env={**os.environ, "PYTHONPATH": str(ROOT), **fleet.env()},
        capture_output=True, text=True, timeout=60, check=True)

    answer = json.loads(done.stdout)
    assert not answer["has"]
    assert fleet.status(answer["ours"]) == "PENDING"
    assert [fleet.reader.get_task(task_id) for task_id in answer["theirs"]] == [None, None]


def test_two_apps_in_one_process_keep_their_tasks_apart(make_fleet):
    first, second = make_fleet(), make_fleet()

    results = [first.send("add", 1, 1), second.send("add", 1, 1)]

    first.wait(results[0], "PENDING")
    second.wait(results[1], "PENDING")
    assert first.reader.get_task(results[1].id) is None
    assert second.reader.get_task(results[0].id) is None


def run_worker(fleet, **conf):
    """Run a worker that ends by itself; return exit code and output."""
    worker = fleet.worker("-c", "1", **conf)
    done = subprocess.run(
        worker.command, env=worker.env, cwd=worker.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=30)
    return done.returncode, done.stdout


def test_a_worker_that_is_paused_longer_than_its_ttl_is_lost_until_it_goes_on(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.5)
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, is_active)

    worker.pause()

    fleet.wait_record(worker, lambda record: record.status == "lost")
    worker.signal(signal.SIGCONT)
    fleet.wait_record(worker, is_active)
    assert eventually(lambda: fleet.reader.get_active_workers()) == [worker.name]
