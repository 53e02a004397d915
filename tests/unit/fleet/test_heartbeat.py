"""Heartbeats: which workers are alive, by the clock of Redis."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreError, WorkerRecord
from celery_memsync.fleet.heartbeat import Heartbeat
from tests.support.waiting import eventually


@pytest.fixture
def make_heartbeat(memsync):
    made = []

    def make(worker_id="w1", interval=60.0, ttl=60.0, manager=memsync, **described):
        record = WorkerRecord(worker_id, hostname="host", concurrency=4, **described)
        made.append(Heartbeat(manager.runtime.store, lambda: record, interval, ttl))
        return made[-1]

    yield make
    for heartbeat in made:
        heartbeat._thread.stop(1)


def test_worker_that_sends_heartbeats_is_active(make_heartbeat, other):
    make_heartbeat("w2").send()
    make_heartbeat("w1").send()

    assert other.get_active_workers() == ["w1", "w2"]


def test_heartbeat_writes_the_record_of_the_worker(make_heartbeat, other):
    heartbeat = make_heartbeat(capacity={"total": 4, "free": 3}, queues=("celery",), running=({"id": "t1"},))
    heartbeat.send()
    heartbeat.send()

    (record,) = other.get_workers()

    assert (record.worker_id, record.status, record.queues, record.sequence) == ("w1", "active", ("celery",), 2)
    assert record.running == ({"id": "t1"},)
    assert abs(record.last_beat - other.runtime.store.clock.now()) < 5
    assert record.round_trip > 0
    assert other.get_worker_capacity("w1") == 3
    assert other.get_worker_status("w1")["concurrency"] == 4


def test_worker_that_stops_sending_heartbeats_is_lost(make_heartbeat, make_memsync):
    watcher = make_memsync(batch_interval=60.0, heartbeat_interval=0.05, worker_ttl=0.2)
    make_heartbeat().send()
    alive = watcher.get_active_workers()

    time.sleep(0.3)

    assert alive == ["w1"]
    assert watcher.get_active_workers() == []
    assert [record.status for record in watcher.get_workers()] == ["lost"]


def test_a_worker_that_comes_back_takes_its_name_again(make_heartbeat, make_memsync):
    watcher = make_memsync(batch_interval=60.0, heartbeat_interval=0.05, worker_ttl=0.2)
    make_heartbeat().send()
    time.sleep(0.3)

    make_heartbeat().send()

    assert watcher.get_active_workers() == ["w1"]


def test_stopped_worker_is_recorded_as_offline(make_heartbeat, other):
    heartbeat = make_heartbeat(running=({"id": "t1"},))
    heartbeat.send()

    heartbeat.stop()

    (record,) = other.get_workers()
    assert (record.status, record.running) == ("offline", ())
    assert other.get_active_workers() == []


def test_offline_worker_may_come_back(make_heartbeat, other):
    make_heartbeat().stop()

    make_heartbeat().send()

    assert other.get_active_workers() == ["w1"]


def test_record_of_a_lost_worker_expires(make_heartbeat, other, redis):
    make_heartbeat("w1", ttl=0.2).send()
    time.sleep(0.3)

    make_heartbeat("w2", ttl=0.2).send()

    assert [record.worker_id for record in other.get_workers()] == ["w2"]


def test_ended_fleet_leaves_no_keys_behind(make_heartbeat, redis):
    make_heartbeat(ttl=0.1).send()

    time.sleep(0.2)

    assert redis.keys() == []


def test_heartbeats_are_published(make_heartbeat, redis):
    with redis.pubsub() as listener:
        listener.subscribe("0:task-sentinel/workers/w1/heartbeat")
        listener.get_message(timeout=5)

        make_heartbeat().send()

        assert listener.get_message(timeout=5)["data"].startswith(b":w1/heartbeat\n1 ")


def test_heartbeat_thread_sends_at_once_and_repeatedly(make_heartbeat, other):
    heartbeat = make_heartbeat(interval=0.05)

    heartbeat.start()

    eventually(lambda: other.get_workers() and other.get_workers()[0].sequence >= 3)


def test_run_now_sends_a_heartbeat_before_the_interval_ends(make_heartbeat, other):
    heartbeat = make_heartbeat(interval=60.0)
    heartbeat.start()
    eventually(lambda: other.get_workers())

    heartbeat.run_now()

    eventually(lambda: other.get_workers()[0].sequence == 2)


def test_the_thread_goes_on_when_redis_is_back(make_heartbeat, make_memsync, own_server):
    manager = make_memsync(url=own_server.url, batch_interval=60.0)
    heartbeat = make_heartbeat(interval=0.05, manager=manager)
    heartbeat.start()
    eventually(lambda: manager.get_workers())

    own_server.stop()
    time.sleep(0.2)
    own_server.start()

    eventually(lambda: manager.get_active_workers() == ["w1"])


def test_send_raises_while_redis_is_away(make_heartbeat, make_memsync, own_server):
    heartbeat = make_heartbeat(manager=make_memsync(url=own_server.url))
    own_server.stop()

    with pytest.raises(StoreError):
        heartbeat.send()
    with pytest.raises(StoreError):
        heartbeat.stop(1)


def test_get_active_workers_is_one_round_trip_for_any_number(make_heartbeat, other, redis):
    for number in range(30):
        make_heartbeat(f"w{number:02}").send()
    other.read("a")
    redis.config_resetstat()

    workers = other.get_active_workers()

    calls = {name: stats["calls"] for name, stats in redis.info("commandstats").items()}
    calls.pop("cmdstat_config|resetstat", None), calls.pop("cmdstat_info", None)
    assert len(workers) == 30
    assert sum(calls.values()) <= 2


def test_header_of_a_heartbeat_shows_whether_the_worker_is_alive(make_heartbeat, redis):
    heartbeat = make_heartbeat(status="busy")
    heartbeat.stretch = 2.5

    heartbeat.send()

    header, _, _ = redis.hget("task-sentinel//{workers}", "w1/heartbeat").partition(b"\n")
    assert header.split()[2] == b"busy:2.5"


# -- by hand

def test_worker_record_set_by_hand_replaces_that_of_a_heartbeat(make_heartbeat, memsync, other):
    make_heartbeat("worker-1").stop()
    before = other.get_active_workers()

    memsync.update_heartbeat()
    memsync.force_sync()

    assert (before, other.get_active_workers()) == ([], ["worker-1"])


def test_process_without_celery_sends_a_heartbeat_by_hand(memsync, other):
    memsync.update_heartbeat()
    memsync.force_sync()

    assert other.get_active_workers() == ["worker-1"]
    assert other.get_worker_status("worker-1")["hostname"]


def test_pending_worker_records_are_read_by_their_process(memsync, other):
    memsync.update_heartbeat()
    memsync.sync_worker_status("w9", "up")
    before = other.get_active_workers()

    assert memsync.get_active_workers() == ["w9", "worker-1"]
    assert before == []
    assert other.get_active_workers() == ["w9", "worker-1"]


def test_worker_status_and_capacity_set_by_hand_are_read(memsync, other):
    memsync.sync_worker_status("w9", {"mood": "fine"})
    memsync.sync_worker_capacity("w9", 4)
    memsync.force_sync()

    assert other.get_worker_status("w9") == {"mood": "fine"}
    assert other.get_worker_capacity("w9") == 4
    assert other.get_active_workers() == ["w9"]


def test_unknown_worker_has_no_status_and_no_capacity(other):
    assert other.get_worker_status("w9") is None
    assert other.get_worker_capacity("w9") is None
    assert other.get_workers() == []


def test_worker_deleted_by_hand_is_not_listed(memsync, other):
    memsync.sync_worker_status("w9", "up")
    memsync.force_sync()

    memsync.delete("workers/w9/status")
    memsync.force_sync()

    assert other.get_worker_status("w9") is None
    assert other.get_active_workers() == []


# -- several processes under one name

def test_goodbye_of_a_process_does_not_hide_its_successor(make_heartbeat, memsync, other):
    old, new = make_heartbeat(pid=1), make_heartbeat(pid=2, manager=other)
    old.send()
    new.send()
    old.send()  # the record is that of the old one again

    old.stop()

    assert memsync.get_active_workers() == ["w1"]
    new.send()
    (record,) = memsync.get_workers()
    assert (record.status, record.pid) == ("active", 2)


def test_goodbye_of_the_last_process_of_a_name_counts(make_heartbeat, memsync, other):
    old, new = make_heartbeat(pid=1), make_heartbeat(pid=2, manager=other)
    for heartbeat in (old, new):
        heartbeat.send()
    for heartbeat in (old, new):
        heartbeat.stop()

    (record,) = memsync.get_workers()
    assert (record.status, record.pid, record.consuming) == ("offline", 2, False)


def test_worker_that_shares_its_name_with_a_live_one_logs_it_once(make_heartbeat, other, caplog):
    caplog.set_level("INFO")
    first, second = make_heartbeat(), make_heartbeat(manager=other)
    for _ in range(5):
        first.send()
        second.send()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]

    second.stop()
    for _ in range(3):
        first.send()

    assert len(warnings) == 2  # each for itself
    assert all("live workers have the name w1" in line and "-n" in line for line in warnings)
    assert [line for line in caplog.messages if "alone under its name again" in line] == [
        "Worker w1 is alone under its name again"]


def test_successor_of_a_worker_that_has_left_logs_nothing(make_heartbeat, other, caplog):
    old, new = make_heartbeat(), make_heartbeat(manager=other)
    old.send()
    new.send()
    old.stop()
    for _ in range(4):
        new.send()

    assert caplog.messages == []


def test_lost_worker_consumes_nothing(make_heartbeat, make_memsync):
    watcher = make_memsync(batch_interval=60.0, heartbeat_interval=0.05, worker_ttl=0.2)
    make_heartbeat(consuming=True).send()
    time.sleep(0.3)

    (record,) = watcher.get_workers()

    assert (record.status, record.consuming) == ("lost", False)
