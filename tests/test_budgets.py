"""What it costs: round trips and Redis's memory."""
from __future__ import annotations

import threading
import time
import uuid

import pytest

from celery_memsync.keys import PROGRESS, Keys
from celery_memsync.models.order import run_key
from celery_memsync.models.task import TaskRun
from celery_memsync.store import scripts
from celery_memsync.writing.progress import Progress

#: Bytes of Redis memory for one finished task.
MOST_BYTES = 800


def calls_of(redis):
    """Return how often each command was called since the statistics were reset."""
    ours = {"cmdstat_info", "cmdstat_config|resetstat", "cmdstat_config"}
    return {name[8:]: stats["calls"] for name, stats in redis.info("commandstats").items() if name not in ours}


def round_trips(memsync, act):
    """Return how often this thread, while ``act`` runs, sends something to Redis after it has read what came before."""
    steps = []
    caller = threading.get_ident()
    kind = memsync.store.redis.connection_pool.connection_class

    def noting(step, original):
        def note(*args, **kwargs):
            if threading.get_ident() == caller:
                steps.append(step)
            return original(*args, **kwargs)
        return note

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "send_packed_command", noting("send", kind.send_packed_command))
        patch.setattr(kind, "read_response", noting("read", kind.read_response))
        act()
    return sum(step == "send" != before for before, step in zip([None, *steps], steps))


@pytest.fixture
def warm(memsync, redis):
    """A manager that is connected, whose link is up, and whose scripts Redis knows."""
    for script in vars(scripts).values():
        if isinstance(script, scripts.Script):
            redis.script_load(script.text)
    memsync.write("warm", 1)
    memsync.increment_metrics(warm=1)
    memsync.dequeue()
    with memsync.lock("warm") as lock:
        lock.extend(60)
    memsync.force_sync()
    memsync.read("warm")
    redis.config_resetstat()
    return memsync


def finished(task_id, run):
    """Return a run as Celery's signals tell it at its end."""
    return TaskRun(
        "SUCCESS", name="proj.tasks.render_report", queue="celery", worker="celery@worker-host-7", pid=48211, run=run,
        root_id=task_id, published_at=1722500000.123, received_at=1722500000.135, started_at=1722500000.138,
        finished_at=1722500003.334, runtime=3.196012,
    )


def test_a_flush_of_300_writes_is_one_round_trip_of_three_calls(warm, redis):
    for number in range(300):
        warm.write(f"key-{number}", number)

    trips = round_trips(warm, warm.writer.flush)

    assert trips == 1
    assert calls_of(redis)["evalsha"] == 3


def test_a_barrier_costs_one_more_if_redis_reads_the_batch_in_pieces(warm):
    for number in range(100):
        warm.write(f"key-{number}", "x" * 100)

    trips = round_trips(warm, warm.force_sync)

    assert trips == 2


def test_a_flush_of_counters_alone_is_one_round_trip(warm):
    warm.increment_metrics(done=1)

    trips = round_trips(warm, warm.force_sync)

    assert trips == 1


def test_a_batch_size_bounds_one_round_trip(make_memsync, redis):
    memsync = make_memsync(batch_interval=60.0, batch_size=100)
    memsync.store.connect()
    for number in range(90):
        memsync.write(f"key-{number}", number)
        memsync.sync_task_progress(f"t{number}", 5)

    trips = round_trips(memsync, memsync.force_sync)

    assert trips == 2


@pytest.mark.parametrize("tell", [
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
def test_telling_costs_no_round_trip(warm, tell):
    assert round_trips(warm, lambda: tell(warm)) == 0


@pytest.mark.parametrize("most, ask", [
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
def test_asking_and_deciding_cost_so_many_round_trips(warm, most, ask):
    for number in range(60):
        warm.sync_task_state(f"t{number}", {"x": 1})
    warm.force_sync()

    assert round_trips(warm, lambda: ask(warm)) <= most


def test_no_reader_goes_through_all_keys(warm, redis):
    for number in range(20):
        warm.sync_task_state(f"t{number}", {"x": 1})
        warm.sync_agent_coordination(f"t{number}", "a1", 1)
    warm.force_sync()
    redis.config_resetstat()

    warm.get_tasks()
    warm.get_workers()
    warm.get_task("t1")
    warm.get_task_agents("t1")

    assert not {"keys", "scan", "hscan", "zscan", "sscan"} & calls_of(redis).keys()


def test_a_conflict_costs_one_more_round_trip(warm, other):
    other.write("a", 1)
    other.force_sync()
    time.sleep(0.015)
    warm.write("a", 2)

    trips = round_trips(warm, warm.force_sync)

    assert trips == 2


@pytest.mark.parametrize("message", [None, "page 1200 of 1200"])
def test_a_finished_task_costs_less_than_800_bytes(make_memsync, redis, message):
    number = 5_000
    memsync = make_memsync("celery@worker-host-7", batch_interval=60.0)
    keys = Keys("task-sentinel")
    memsync.write("warm", 1)
    memsync.force_sync()
    redis.flushall()
    before = redis.info("memory")["used_memory"]

    for serial in range(number):
        task_id, run, key = str(uuid.uuid4()), f"aBcD1234-{serial:x}", run_key(0, 1722500000.123)
        progress = Progress(keys.task_location(task_id, PROGRESS), 3600.0, run, key)
        progress.report(1200, 1200, message)
        memsync.sync_task_run(task_id, finished(task_id, run), key)
        memsync.writer.put(progress)
    memsync.force_sync()
    used = redis.info("memory")["used_memory"] - before

    assert redis.exists(keys.task(task_id), keys.task_index) == 2
    assert used / number < MOST_BYTES


def test_progress_told_again_and_again_costs_no_memory(memsync, redis):
    memsync.sync_task_progress("t1", 1, message="x" * 50)
    memsync.force_sync()
    before = redis.memory_usage(Keys("task-sentinel").task("t1"))

    for number in range(2, 100):
        memsync.sync_task_progress("t1", number, message="x" * 50)
        memsync.force_sync()

    assert redis.memory_usage(Keys("task-sentinel").task("t1")) < before + 100


def test_ids_of_many_writers_do_not_pile_up_in_an_entry(make_memsync, redis):
    used = []

    for number in range(12):
        manager = make_memsync(batch_interval=60.0)
        manager.sync_task_state("t1", {"x": number})
        manager.force_sync()
        used.append(redis.strlen(Keys("task-sentinel").task("t1")))

    assert used[11] <= used[3] + 8
