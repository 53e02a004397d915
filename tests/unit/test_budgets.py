"""What it costs: round trips and Redis's memory."""
from __future__ import annotations

import collections
import sys
import threading
import time
import uuid

import pytest

from celery_memsync.keys import PROGRESS, Keys
from celery_memsync.models.order import delivered_key, published_key
from celery_memsync.models.task import TaskRun
from celery_memsync.store import scripts
from celery_memsync.writing.progress import Progress
from tests.support.publishing import publish
from tests.support.redis_calls import calls_of, round_trips
from tests.support.runs import run_key
from tests.support.subscriber import Subscriber

#: Calls of our own functions that a read from Redis is deep, and all of them.
MOST_DEEP, MOST_READ_CALLS = 12, 60

#: Bytes of Redis memory for one finished task.
MOST_BYTES = 640

#: New keys that are written at once to count what one costs: less than a batch, which another thread would begin to send.
NEW_KEYS = 400

#: Calls of our own functions for a write of a new key: in its caller, and in the writer's thread.
MOST_CALLS = {"caller": 18.0, "writer": 14.5}

#: Calls of our own functions for a change that is received: in the thread that listens, and in that of the handler.
MOST_RECEIVED_CALLS = {"memsync-link": 46.0, "memsync-handler": 33.0}

#: Changes that are received one by one to count what one costs; in between the threads do what they do by the clock.
CHANGES = 300

#: Bytes that are sent for a write of a new key beside its name and value.
MOST_SENT = 35


@pytest.fixture
def loaded(redis):
    """A Redis that knows the scripts, as it does from the first call of each on."""
    for script in vars(scripts).values():
        if isinstance(script, scripts.Script):
            redis.script_load(script.text)
    return redis


@pytest.fixture
def warmed_up(memsync, loaded):
    """A manager that is connected, whose link is up, and whose scripts Redis knows."""
    memsync.write("warm", 1)
    memsync.increment_metrics(warm=1)
    memsync.dequeue()
    with memsync.lock("warm") as lock:
        lock.extend(60)
    memsync.force_sync()
    memsync.read("warm")
    loaded.config_resetstat()
    return memsync


def finished(task_id, run):
    """Return a run as Celery's signals record it at its end."""
    return TaskRun(
        "SUCCESS", name="proj.tasks.render_report", queue="celery", worker="celery@worker-host-7", pid=48211, run=run,
        root_id=task_id, published_at=1722500000.123, received_at=1722500000.135, started_at=1722500000.138,
        finished_at=1722500003.334, runtime=3.196012,
    )


def test_a_flush_of_300_writes_is_one_round_trip_of_three_calls(warmed_up, redis):
    for number in range(300):
        warmed_up.write(f"key-{number}", number)

    trips = round_trips(warmed_up, warmed_up.runtime.writer.flush)

    assert trips == 1
    assert calls_of(redis)["evalsha"] == 3


def test_a_barrier_costs_one_more_if_redis_reads_the_batch_in_pieces(warmed_up):
    for number in range(100):
        warmed_up.write(f"key-{number}", "x" * 150)

    trips = round_trips(warmed_up, warmed_up.force_sync)

    assert trips == 2


def test_a_flush_of_counters_alone_is_one_round_trip(warmed_up):
    warmed_up.increment_metrics(done=1)

    trips = round_trips(warmed_up, warmed_up.force_sync)

    assert trips == 1


@pytest.fixture
def count_calls():
    """A function that returns how many of our functions another one calls in this thread."""
    def count(act):
        calls = [0]

        def note(frame, event, _):
            calls[0] += event == "call" and "/celery_memsync/" in frame.f_code.co_filename

        sys.setprofile(note)
        try:
            act()
        finally:
            sys.setprofile(None)
        return calls[0]

    return count


@pytest.fixture
def count_thread_calls():
    """How many of our functions each thread has called that began in the test, by its name."""
    calls = collections.Counter()

    def note(frame, event, _):
        if event == "call" and "/celery_memsync/" in frame.f_code.co_filename:
            calls[threading.current_thread().name] += 1

    threading.setprofile(note)
    yield calls
    threading.setprofile(None)


def write_new_keys(memsync):
    for number in range(NEW_KEYS):
        memsync.write(f"key-{number:03}", {"number": number, "rate": 0.5, "name": "x" * 100})


def test_a_write_of_a_new_key_costs_few_calls(make_memsync, count_calls):
    memsync = make_memsync(batch_interval=60.0)
    memsync.write("warm", 1)
    memsync.force_sync()

    calls = {
        "caller": count_calls(lambda: write_new_keys(memsync)) / NEW_KEYS,
        "writer": count_calls(memsync.runtime.writer._write_pending) / NEW_KEYS,
    }

    print(f"calls of ours for a write: {calls}; the budget is {MOST_CALLS}")
    assert memsync.runtime.writer.pending == 0
    for thread, most in MOST_CALLS.items():
        assert most * 0.5 < calls[thread] <= most


def test_a_received_change_costs_few_calls(count_thread_calls, make_memsync, other):
    subscriber = Subscriber(make_memsync())
    publish(other, {"a": "first"})
    subscriber.wait_for("a", "first")
    before = count_thread_calls.copy()

    for number in range(CHANGES):
        publish(other, {"a": number})
        subscriber.wait_for("a", number)

    calls = {name: (count_thread_calls[name] - before[name]) / CHANGES for name in MOST_RECEIVED_CALLS}
    print(f"calls of ours for a received change: {calls}; the budget is {MOST_RECEIVED_CALLS}")
    for name, most in MOST_RECEIVED_CALLS.items():
        assert most * 0.5 < calls[name] <= most


def test_a_write_of_a_new_key_is_one_set_and_one_publish(warmed_up, redis):
    write_new_keys(warmed_up)
    before = redis.info("stats")["total_net_input_bytes"]

    warmed_up.runtime.writer.flush()

    sent = redis.info("stats")["total_net_input_bytes"] - before
    calls = calls_of(redis)
    scripts_run = calls["evalsha"]
    size = len("task-sentinel/key-000") + len(redis.get("task-sentinel/key-000").partition(b"\n")[2])
    assert {name: calls[name] for name in ("set", "publish", "zadd")} == {
        "set": NEW_KEYS + scripts_run, "publish": NEW_KEYS, "zadd": scripts_run}
    assert "get" not in calls and "mget" not in calls
    print(f"{sent / NEW_KEYS - size:.1f} bytes beside name and value; the budget is {MOST_SENT}")
    assert sent / NEW_KEYS - size < MOST_SENT


def test_a_batch_size_bounds_one_round_trip(make_memsync, loaded):
    memsync = make_memsync(batch_interval=60.0, batch_size=100)
    memsync.runtime.store.connect()
    for number in range(90):
        memsync.write(f"key-{number}", number)
        memsync.sync_task_progress(f"t{number}", 5)

    trips = round_trips(memsync, memsync.force_sync)

    assert trips == 2


@pytest.mark.parametrize("write", [
    lambda memsync: memsync.write("a", 1),
    lambda memsync: memsync.delete("a"),
    lambda memsync: memsync.sync_task_state("t1", {"x": 1}),
    lambda memsync: memsync.sync_task_progress("t1", 50),
    lambda memsync: memsync.sync_task_run("t1", TaskRun("SUCCESS"), run_key(0, 1.0)),
    lambda memsync: memsync.sync_agent_coordination("t1", "a1", 1),
    lambda memsync: memsync.sync_worker_status("w1", 1),
    lambda memsync: memsync.sync_queue({"pending": ["t1"]}),
    lambda memsync: memsync.sync_assignments({"w1": ["t1"]}),
    lambda memsync: memsync.sync_metrics({"done": 1}),
    lambda memsync: memsync.increment_metrics(done=1),
    lambda memsync: memsync.clear_cache(),
    lambda memsync: memsync.update_heartbeat(),
    lambda memsync: memsync.get_metrics(),
])
def test_buffered_write_costs_no_round_trip(warmed_up, write):
    assert round_trips(warmed_up, lambda: write(warmed_up)) == 0


@pytest.mark.parametrize("most, call", [
    (1, lambda memsync: memsync.read("a")),
    (0, lambda memsync: memsync.read("warm")),
    (1, lambda memsync: memsync.read("warm", consistent=True)),
    (1, lambda memsync: memsync.read("warm", max_age=0)),
    (1, lambda memsync: memsync.read_many([f"key-{number}" for number in range(50)])),
    (1, lambda memsync: memsync.get_task_state("t1")),
    (1, lambda memsync: memsync.get_task_progress("t1")),
    (1, lambda memsync: memsync.get_task("t1")),
    (1, lambda memsync: memsync.get_task_agents("t1")),
    (1, lambda memsync: memsync.get_agent_coordination("t1", "a1")),
    (1, lambda memsync: memsync.get_worker_status("w1")),
    (2, lambda memsync: memsync.get_active_workers()),
    (2, lambda memsync: memsync.get_tasks(50)),
    (1, lambda memsync: memsync.get_queue()),
    (2, lambda memsync: memsync.get_assignments()),
    (1, lambda memsync: memsync.get_coordination_metrics()),
    (1, lambda memsync: memsync.enqueue("t1")),
    (1, lambda memsync: memsync.dequeue()),
    (1, lambda memsync: memsync.complete("t1")),
    (7, lambda memsync: memsync.search("*")),
    (1, lambda memsync: memsync.write("a", 1, expected_version=0)),
    (1, lambda memsync: memsync.lock("a", wait=9).acquire()),
    (2, lambda memsync: memsync.lock("b").__enter__().release()),
    (2, lambda memsync: memsync.lock("c").__enter__().extend(9)),
    (2, lambda memsync: memsync.acquire_task_lock("t1") and memsync.release_task_lock("t1")),
    (0, lambda memsync: memsync.lock("a").owned),
    (2, lambda memsync: memsync.locks()),
])
def test_reads_and_atomic_operations_cost_so_many_round_trips(warmed_up, most, call):
    for number in range(60):
        warmed_up.sync_task_state(f"t{number}", {"x": 1})
    warmed_up.force_sync()

    assert round_trips(warmed_up, lambda: call(warmed_up)) <= most


def test_no_reader_goes_through_all_keys(warmed_up, redis):
    for number in range(20):
        warmed_up.sync_task_state(f"t{number}", {"x": 1})
        warmed_up.sync_agent_coordination(f"t{number}", "a1", 1)
    warmed_up.force_sync()
    redis.config_resetstat()

    warmed_up.get_tasks()
    warmed_up.get_workers()
    warmed_up.get_task("t1")
    warmed_up.get_task_agents("t1")

    assert not {"keys", "scan", "hscan", "zscan", "sscan"} & calls_of(redis).keys()


def test_a_missed_read_costs_few_calls(warmed_up, other, count_calls):
    other.write("a", {"number": 1})
    other.force_sync()

    calls = count_calls(lambda: warmed_up.read("a"))

    print(f"calls of ours for a missed read: {calls}; the budget is {MOST_READ_CALLS}")
    assert MOST_READ_CALLS * 0.5 < calls <= MOST_READ_CALLS


def test_a_missed_read_is_at_most_12_calls_deep(warmed_up):
    depths = [0]

    def count(frame, event, _):
        if event in ("call", "return") and "/celery_memsync/" in frame.f_code.co_filename:
            depths.append(depths[-1] + (1 if event == "call" else -1))

    sys.setprofile(count)
    try:
        warmed_up.read("a")
    finally:
        sys.setprofile(None)

    assert 5 < max(depths) <= MOST_DEEP


def test_a_conflict_costs_one_more_round_trip(warmed_up, other):
    other.write("a", 1)
    other.force_sync()
    time.sleep(0.015)
    warmed_up.write("a", 2)

    trips = round_trips(warmed_up, warmed_up.force_sync)

    assert trips == 2


@pytest.mark.parametrize("message", [None, "page 1200 of 1200"])
def test_a_finished_task_costs_less_than_640_bytes(make_memsync, redis, message):
    number = 5_000
    memsync = make_memsync("celery@worker-host-7", batch_interval=60.0, timeout=30.0)
    keys = Keys("task-sentinel")
    memsync.write("warm", 1)
    memsync.force_sync()
    redis.flushall()
    before = redis.info("memory")["used_memory"]

    for serial in range(number):
        task_id, run = str(uuid.uuid4()), f"aBcD1234-{serial:x}"
        key = delivered_key(published_key(f"eFgH5678-{serial:x}"), run)
        progress = Progress(keys.task_location(task_id, PROGRESS), 3600.0, run, key)
        progress.report(1200, 1200, message)
        memsync.sync_task_run(task_id, finished(task_id, run), key)
        memsync.runtime.writer.put(progress)
    memsync.force_sync()
    used = redis.info("memory")["used_memory"] - before

    assert redis.exists(keys.task(task_id), keys.task_index) == 2
    assert used / number < MOST_BYTES


def test_repeated_progress_costs_no_memory(memsync, redis):
    memsync.sync_task_progress("t1", 1, message="x" * 50)
    memsync.force_sync()
    before = redis.memory_usage(Keys("task-sentinel").task("t1"))

    for number in range(2, 100):
        memsync.sync_task_progress("t1", number, message="x" * 50)
        memsync.force_sync()

    assert redis.memory_usage(Keys("task-sentinel").task("t1")) < before + 100
