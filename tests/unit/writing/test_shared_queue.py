"""The queue that all processes share: what comes first goes first, and nothing goes twice."""
from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time

import pytest

from celery_memsync import InvalidKey
from celery_memsync.models.task import TaskRun
from tests.support.paths import ROOT
from tests.support.runs import run_key
from tests.support.stress import stressed
from tests.support.waiting import eventually

QUEUE = "coordination/queue"

#: Processes that all put tasks in, take some out and complete those, and count.
MANY = """
import json, multiprocessing, sys
from celery_memsync import MemorySyncManager

memsync = MemorySyncManager(url=sys.argv[1])

def work(number):
    taken = []
    for serial in range(int(sys.argv[2])):
        assert memsync.enqueue(f"{number}-{serial}")
        taken.append(memsync.dequeue())
        assert memsync.complete(taken[-1])
        for _ in range(10):
            memsync.increment_metrics(count=1, half=0.5, large=10 ** 13 + 1, down=-1)
    return taken

with multiprocessing.get_context("fork").Pool(8) as pool:
    rows = pool.map(work, range(8), chunksize=1)
    pool.close()
    pool.join()
print(json.dumps(rows))
"""


def version(memsync):
    """Return the version of the queue, 0 if it was never written."""
    entry = memsync.read_entry(QUEUE)
    return 0 if entry is None else entry.version


def fill(memsync, pending=(), processing=()):
    """Make the lists of the queue those."""
    memsync.sync_queue({"pending": pending, "processing": processing})
    memsync.force_sync()


# -- the queue, by hand

def test_tasks_are_taken_in_the_order_in_which_they_were_added(memsync, other):
    ids = ["zebra", "10", "9", "ant", "0", "1", " a b ", "\u00e9t\u00e9"]
    for number, task_id in enumerate(ids):
        assert (memsync, other)[number % 2].enqueue(task_id)

    taken = [(other, memsync)[number // 3 % 2].dequeue() for number in range(len(ids))]

    assert taken == ids
    assert memsync.dequeue() is None


def test_task_is_pending_then_processing_then_removed(memsync, other):
    memsync.enqueue("a")
    memsync.enqueue("b")

    first = other.get_queue()
    memsync.dequeue()
    second = other.get_queue()
    completed = other.complete("a")

    assert first == {"pending": ["a", "b"], "processing": []}
    assert second == {"pending": ["b"], "processing": ["a"]}
    assert completed is True
    assert memsync.get_queue() == {"pending": ["b"], "processing": []}


@pytest.mark.parametrize("in_list", ["pending", "processing"])
def test_a_task_that_is_in_a_list_is_not_put_there_again(memsync, other, in_list):
    fill(memsync, **{in_list: ["a", "b"]})
    before = memsync.get_queue()

    added = other.enqueue("a")

    assert added is False
    assert memsync.get_queue() == before
    assert other.enqueue("c") is True


@pytest.mark.parametrize("lists, known", [
    ({"pending": ["a", "b"]}, True), ({"processing": ["b", "a"]}, True), ({"pending": ["b"]}, False), ({}, False),
])
def test_complete_returns_whether_the_task_was_there(memsync, other, lists, known):
    fill(memsync, **lists)

    answers = [other.complete("a"), other.complete("a")]

    assert answers == [known, False]
    assert "a" not in [*memsync.get_queue()["pending"], *memsync.get_queue()["processing"]]


def test_nothing_is_taken_from_an_empty_queue(memsync):
    fill(memsync, processing=["a"])

    assert memsync.dequeue() is None
    assert memsync.get_queue() == {"pending": [], "processing": ["a"]}


def test_a_completed_task_can_come_again_and_is_the_last_then(memsync):
    for task_id in ("a", "b"):
        memsync.enqueue(task_id)

    memsync.complete(memsync.dequeue())

    assert memsync.enqueue("a")
    assert [memsync.dequeue(), memsync.dequeue()] == ["b", "a"]


def test_sync_queue_replaces_the_lists_that_it_names_and_no_other(memsync, other):
    fill(memsync, ["a", "b"], ["c"])

    memsync.sync_queue({"pending": ["x", "a", "x", "y"]})
    memsync.force_sync()
    other.sync_queue({"processing": iter(["z"])})
    other.force_sync()

    assert memsync.get_queue() == {"pending": ["x", "a", "y"], "processing": ["z"]}


@pytest.mark.parametrize("count", [1, 300, 50_000])
def test_what_comes_after_a_long_list_is_behind_it(make_memsync, other, count):
    memsync = make_memsync(batch_interval=60.0, timeout=30.0)
    fill(memsync, [f"{number}" for number in range(count)])

    other.enqueue("last")

    pending = memsync.get_queue(count + 1)["pending"]
    assert pending == [*(f"{number}" for number in range(count)), "last"]


@pytest.mark.parametrize("act, answer, queue", [
    (lambda memsync: memsync.enqueue("c"), True, {"pending": ["a", "c"], "processing": ["b"]}),
    (lambda memsync: memsync.enqueue("a"), False, {"pending": ["a"], "processing": ["b"]}),
    (lambda memsync: memsync.dequeue(), "a", {"pending": [], "processing": ["b", "a"]}),
    (lambda memsync: memsync.complete("b"), True, {"pending": ["a"], "processing": []}),
])
def test_atomic_operation_comes_after_earlier_buffered_writes(memsync, other, act, answer, queue):
    memsync.sync_queue({"pending": ["a"], "processing": ["b"]})

    returned = act(memsync)
    shown = memsync.get_queue()
    memsync.force_sync()

    assert returned == answer
    assert shown == queue
    assert other.get_queue() == queue


@pytest.mark.slow
def test_eight_processes_take_every_task_once_and_lose_no_count(redis_url, memsync):
    each = stressed(1000, 200)
    done = subprocess.run(
        [sys.executable, "-c", MANY, redis_url, str(each)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    taken = [task_id for row in json.loads(done.stdout) for task_id in row]
    assert sorted(taken) == sorted(f"{number}-{serial}" for number in range(8) for serial in range(each))
    assert memsync.get_queue() == {"pending": [], "processing": []}
    assert memsync.get_coordination_metrics() == {
        "count": 80 * each, "half": 40 * each, "large": 80 * each * (10 ** 13 + 1), "down": -80 * each}
    assert version(memsync) == 3 * 8 * each


def test_threads_of_one_process_take_every_task_once(memsync):
    ids = [f"{number}" for number in range(400)]
    fill(memsync, ids)
    taken = []

    threads = [threading.Thread(target=lambda: taken.extend(iter(memsync.dequeue, None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(ids)


# -- reading it

def test_the_queue_is_an_entry_like_others(memsync, other):
    assert memsync.read(QUEUE) is None
    memsync.enqueue("a")

    entry = other.read_entry(f"task-sentinel/{QUEUE}")

    assert (entry.key, entry.version, entry.worker_id) == (f"task-sentinel/{QUEUE}", 1, memsync.worker_id)
    assert entry.value == other.read(QUEUE) == other.read_many([QUEUE])[QUEUE] == {"pending": ["a"], "processing": []}
    assert entry.timestamp == pytest.approx(time.time(), abs=5)
    assert other.search("coordination/*") == [f"task-sentinel/{QUEUE}"]


@pytest.mark.parametrize("act, step", [
    (lambda memsync: memsync.enqueue("new"), 1),
    (lambda memsync: memsync.enqueue("a"), 0),
    (lambda memsync: memsync.dequeue(), 1),
    (lambda memsync: (memsync.dequeue(), memsync.dequeue()), 1),
    (lambda memsync: memsync.complete("a"), 1),
    (lambda memsync: memsync.complete("new"), 0),
    (lambda memsync: memsync.sync_queue({"processing": ["x"]}), 1),
    (lambda memsync: memsync.sync_task_run("t", TaskRun("PENDING"), run_key(0, 1)), 1),
    (lambda memsync: memsync.sync_task_run("a", TaskRun("STARTED"), run_key(0, 1)), 1),
    (lambda memsync: memsync.sync_task_run("a", TaskRun("SUCCESS"), run_key(0, 1)), 1),
    (lambda memsync: memsync.sync_task_run("t", TaskRun("SUCCESS"), run_key(0, 1)), 0),
    (lambda memsync: memsync.increment_metrics(n=1), 0),
])
def test_the_version_of_the_queue_grows_with_each_change_of_it(memsync, other, act, step):
    fill(memsync, ["a"])
    before = version(other)

    act(memsync)
    memsync.force_sync()

    assert version(other) == version(memsync) == before + step


@pytest.mark.parametrize("thing", ["queue", "metrics"])
@pytest.mark.parametrize("act", [
    lambda memsync, key: memsync.write(key, {}),
    lambda memsync, key: memsync.write(f"task-sentinel/{key}", {"pending": []}, expected_version=0),
    lambda memsync, key: memsync.delete(key),
])
def test_what_has_no_value_in_one_piece_can_not_be_written_as_one(memsync, thing, act):
    with pytest.raises(InvalidKey, match=f"sync_{thing}"):
        act(memsync, f"coordination/{thing}")

    assert memsync.runtime.writer.pending == 0


def test_a_queue_of_100000_is_read_in_part(make_memsync, other, redis):
    fill(make_memsync(batch_interval=60.0, timeout=30.0), [f"{number}" for number in range(100_000)])
    redis.config_resetstat()

    few, many = other.get_queue(limit=10), other.get_queue()
    first = other.dequeue()

    assert few == {"pending": [f"{number}" for number in range(10)], "processing": []}
    assert len(many["pending"]) == 1000
    assert first == "0"
    assert redis.info("stats")["total_net_output_bytes"] < 100_000


@pytest.mark.parametrize("name", ["queue-synced", "write"])
def test_event_of_the_queue_is_emitted_after_it_is_stored(memsync, other, name):
    emitted = []
    memsync.on(name, lambda **details: emitted.append((details, other.get_queue())))
    memsync.sync_queue({"pending": ["a"]})
    memsync.sync_queue({"processing": ["b"]})
    before = list(emitted)

    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    queue = {"pending": ["a"], "processing": ["b"]}
    details = {"queue": queue} if name == "queue-synced" else {"key": f"task-sentinel/{QUEUE}", "value": queue}
    assert before == []
    assert emitted == [(details, queue)]


# -- how long it is kept

@pytest.mark.parametrize("act", [
    lambda memsync: memsync.enqueue("b"),
    lambda memsync: memsync.dequeue(),
    lambda memsync: memsync.complete("a"),
    lambda memsync: memsync.sync_queue({"processing": ["b"]}),
    lambda memsync: memsync.increment_metrics(n=1),
    lambda memsync: memsync.sync_assignments({"w1": ["a"]}),
    *(lambda memsync, status=status: memsync.sync_task_run("t", TaskRun(status), run_key(0, 1))
      for status in ("PENDING", "STARTED", "SUCCESS")),
])
def test_all_that_is_coordinated_has_a_ttl(memsync, other, redis, act):
    other.sync_queue({"pending": ["a"]})
    other.force_sync()

    act(memsync)
    memsync.force_sync()

    ttls = {key: redis.ttl(key) for key in redis.keys("*coordination*")}
    assert len(ttls) >= 3
    assert all(0 < ttl <= 3601 for ttl in ttls.values()), ttls


def test_tasks_that_are_enqueued_one_right_after_the_other_come_in_that_order(memsync, other):
    ids = [f"{number:x}" for number in random.sample(range(10_000), 300)]

    for number, task_id in enumerate(ids):
        (memsync, other)[number % 2].enqueue(task_id)

    assert [memsync.dequeue() for _ in ids] == ids
    assert memsync.get_queue()["processing"] == ids


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_tasks_behind_those_that_are_over_are_seen(make_memsync, memsync, limit):
    brief = make_memsync(batch_interval=60.0, default_ttl=0.3)
    brief.sync_queue({"pending": [f"{number}" for number in range(20)]})
    brief.force_sync()
    memsync.enqueue("alive")

    eventually(lambda: memsync.get_queue(limit)["pending"] == ["alive"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 1500])
def test_tasks_leave_when_their_time_is_over(make_memsync, memsync, count):
    brief = make_memsync(batch_interval=60.0, default_ttl=1.0)
    fill(brief, [f"{number}" for number in range(count)], ["p"])
    memsync.enqueue("alive")

    eventually(lambda: memsync.get_queue() == {"pending": ["alive"], "processing": []})
    time.sleep(0.2)  # what this process takes for Redis's time may be ahead by half a round trip

    assert [memsync.dequeue(), memsync.dequeue()] == ["alive", None]
    assert memsync.complete("p") is False
    assert memsync.enqueue("0") is True
