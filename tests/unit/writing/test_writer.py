"""The writer: gathers, keeps order, and is a barrier on demand."""
from __future__ import annotations

import threading
import time
import uuid

import pytest

from celery_memsync import StoreError
from tests.support.publishing import published
from tests.support.threads import in_background
from tests.support.waiting import eventually


def evalshas(redis):
    return redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


def test_nothing_is_sent_before_the_interval_is_over(memsync, redis):
    redis.config_resetstat()

    memsync.write("a", 1)

    assert evalshas(redis) == 0
    assert memsync.get_metrics()["pending_writes"] == 1


def test_the_thread_writes_after_the_interval(make_memsync, other):
    memsync = make_memsync(batch_interval=0.05)

    memsync.write("a", 1)

    assert eventually(lambda: other.read("a")) == 1


def test_an_interval_of_0_writes_at_once(make_memsync, other):
    memsync = make_memsync(batch_interval=0)

    for number in range(3):
        memsync.write("a", number)
        eventually(lambda: other.read("a") == number)

    assert other.read_entry("a").version == 3


def test_a_full_batch_does_not_wait_for_the_interval(make_memsync, other):
    memsync = make_memsync(batch_interval=60.0, batch_size=10)

    for number in range(10):
        memsync.write(f"key-{number}", number)

    assert eventually(lambda: other.read("key-9")) == 9


def test_many_changes_of_one_key_are_one_write(memsync, redis):
    redis.config_resetstat()

    for number in range(1000):
        memsync.sync_task_progress("t1", number / 10)
        memsync.sync_task_state("t1", {"number": number, f"field-{number % 10}": number})
        memsync.write("a", number)
    channels = [channel for channel, _ in published(redis, memsync.force_sync)]

    assert sorted(channel.partition(":")[2] for channel in channels) == [
        "task-sentinel/a", "task-sentinel/tasks/t1/progress", "task-sentinel/tasks/t1/state"]
    assert evalshas(redis) <= 2  # one more where the script had to be taught
    assert memsync.get_metrics()["writes"] == 3
    assert memsync.read_entry("a").version == 1
    assert memsync.get_task_state("t1")["number"] == 999


def test_coalesced_writes_are_counted(memsync):
    for number in range(10):
        memsync.write("a", number)

    assert memsync.get_metrics()["coalesced"] == 9


def test_writes_to_one_key_arrive_in_their_order(memsync, other):
    memsync.write("a", {"x": 1})
    memsync.delete("a")
    memsync.sync_task_state("t1", {"x": 1, "y": 1})
    memsync.delete("tasks/t1/state")
    memsync.sync_task_state("t1", {"x": 2})
    memsync.force_sync()

    assert other.read("a") is None
    assert other.get_task_state("t1") == {"x": 2}


def test_a_value_then_fields_are_merged(memsync, other):
    memsync.write("tasks/t1/state", {"x": 1, "y": 1})
    memsync.sync_task_state("t1", {"x": 2})
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 2, "y": 1}


def test_fields_written_after_a_value_was_flushed_are_merged_into_it(memsync, other):
    memsync.write("tasks/t1/state", {"x": 1, "y": 1})
    memsync.force_sync()

    memsync.sync_task_state("t1", {"x": 2})
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 2, "y": 1}


def test_fields_written_after_the_writer_forgot_the_key_are_merged(memsync, other, monkeypatch):
    monkeypatch.setattr("celery_memsync.writing.version_tracker.MAX_SEEN", 1)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_state("t2", {"x": 1})
    memsync.force_sync()

    memsync.sync_task_state("t1", {"y": 2})
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 1, "y": 2}
    assert memsync.get_metrics()["conflicts"] == 0


def test_force_sync_with_nothing_to_write_sends_nothing(memsync, redis):
    memsync.force_sync()
    redis.config_resetstat()

    memsync.force_sync()

    assert evalshas(redis) == 0


def test_force_sync_waits_for_a_batch_in_flight_in_another_thread(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.force_sync()
    memsync.write("a", 1)
    own_server.pause()
    flush = in_background(lambda: memsync.runtime.writer.flush() or "done")
    time.sleep(0.1)
    forced = in_background(lambda: memsync.force_sync() or "done")
    read = in_background(lambda: memsync.read("a"))

    time.sleep(0.3)
    early = [call for call in (flush, forced, read) if call.answers]
    own_server.resume()

    assert early == []
    assert (flush(), forced(), read()) == ("done", "done", 1)
    with own_server.client() as client:
        assert client.exists("task-sentinel/a")


def test_a_flush_waits_for_redis_no_longer_than_it_may_and_nothing_is_lost(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0, backend_options={"socket_timeout": 10})
    memsync.force_sync()
    memsync.runtime.writer.timeout = 0.2
    memsync.write("a", 1)
    own_server.pause()
    started = time.monotonic()

    for act in (memsync.force_sync, memsync.runtime.writer.flush, memsync.get_queue):
        with pytest.raises(StoreError, match=r"did not take what is pending within 0\.2 s; it stays pending"):
            act()
    took, pending = time.monotonic() - started, memsync.runtime.writer.pending
    own_server.resume()
    memsync.force_sync(timeout=10)

    assert pending == 1
    assert took < 5
    with own_server.client() as client:
        assert client.exists("task-sentinel/a")


def test_after_a_barrier_a_write_waits_for_its_interval(memsync, other):
    for number in range(3):
        memsync.write("a", number)
        memsync.force_sync()
        memsync.write("b", number)
        time.sleep(0.05)

        assert memsync.runtime.writer.pending == 1


def test_force_sync_does_not_hang_in_a_handler_of_an_event(memsync):
    returned = []
    memsync.on("write", lambda **details: returned.append(memsync.force_sync()))
    memsync.write("a", 1)

    memsync.force_sync()

    assert eventually(lambda: returned) == [None]


def test_a_write_made_in_a_handler_is_written_by_the_next_flush(memsync, other):
    memsync.on("write", lambda key, value: memsync.write("seen", key) if not key.endswith("seen") else None)
    memsync.write("a", 1)

    memsync.force_sync()
    assert memsync.events.wait_idle(5)
    memsync.force_sync()

    assert other.read("seen") == "task-sentinel/a"


def test_a_process_reads_its_own_pending_writes(memsync, other):
    memsync.write("a", [1])
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 30)
    memsync.sync_agent_coordination("t1", "coder", {"files": 2})
    memsync.sync_worker_status("w9", "up")
    memsync.sync_worker_capacity("w9", 4)
    before = other.read_many(["a", "tasks/t1/state"])

    assert memsync.read("a") == [1]
    assert memsync.read_many(["a", "task-sentinel/a", "b"]) == {"a": [1], "task-sentinel/a": [1], "b": None}
    assert memsync.get_task_state("t1") == {"x": 1}
    assert memsync.get_task_progress("t1")["progress"] == 30
    assert memsync.get_task_agents("t1") == ["coder"]
    assert memsync.get_agent_coordination("t1", "coder") == {"files": 2}
    assert memsync.get_worker_status("w9") == "up"
    assert memsync.get_worker_capacity("w9") == 4
    assert before == {"a": None, "tasks/t1/state": None}
    assert eventually(lambda: other.read("a")) == [1]


def test_pending_writes_lie_over_what_is_stored(memsync, other):
    other.sync_task_state("t1", {"x": 1, "y": 1})
    other.sync_agent_coordination("t1", "coder", 1)
    other.write("a", 1)
    other.force_sync()

    memsync.sync_task_state("t1", {"x": 2})
    memsync.sync_agent_coordination("t1", "tester", 2)
    memsync.delete("a")

    assert memsync.get_task_state("t1") == {"x": 2, "y": 1}
    assert memsync.get_task_agents("t1") == ["coder", "tester"]
    assert memsync.read("a") is None
    assert memsync.get_task("t1")["agents"] == {"coder": 1, "tester": 2}


def test_two_threads_hammering_one_progress_end_at_its_last_value(make_memsync, other):
    memsync = make_memsync(batch_interval=0.001)
    task_id = str(uuid.uuid4())

    def hammer(remainder):
        for number in range(remainder, 10_001, 2):
            memsync.sync_task_progress(task_id, number / 100)

    threads = [threading.Thread(target=hammer, args=(remainder,)) for remainder in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync()

    assert other.get_task_progress(task_id)["progress"] == 100
    assert memsync.get_metrics()["pending_writes"] == 0


def test_threads_writing_different_keys_lose_nothing(make_memsync, other):
    memsync = make_memsync(batch_interval=0.001, batch_size=50)
    keys = [f"thread-{thread}/{number}" for thread in range(4) for number in range(250)]

    threads = [
        threading.Thread(target=lambda mine: [memsync.write(key, key) for key in mine], args=(keys[start::4],))
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync()

    assert other.read_many(keys) == {key: key for key in keys}


def test_force_sync_while_redis_is_away_raises_and_keeps_everything(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    own_server.stop()
    memsync.write("a", 1)

    with pytest.raises(StoreError):
        memsync.force_sync()

    assert memsync.runtime.writer.pending == 1
