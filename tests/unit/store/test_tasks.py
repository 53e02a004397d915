"""From the stages of tasks follow the list in which each is, and what is counted: once for each run."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync.keys import STAGE, Keys
from celery_memsync.models.order import rank_of
from celery_memsync.models.task import TaskRun
from celery_memsync.store import EntryWrite
from tests.support.runs import run_key
from tests.support.waiting import eventually

#: What is published, two deliveries of it, and a retry of the first.
RUNS = {"p": "chain.0", "a": "chain.0.a", "b": "chain.0.b", "c": "chain.1.c"}


def record_stage(memsync, stage, task_id="t"):
    """Record a stage: its run, its status, and how long the run took."""
    run, status, *runtime = stage.split()
    record = TaskRun(status, runtime=float(runtime[0]) if runtime else None)
    memsync.sync_task_run(task_id, record, RUNS[run])


def counters(memsync):
    """Return the counters that are not zero."""
    return {name: value for name, value in memsync.get_coordination_metrics().items() if value}


def list_of(memsync, task_id="t"):
    """Return the list in which a task is."""
    return ",".join(name for name, ids in memsync.get_queue().items() if task_id in ids)


#: What is recorded in this order; what is counted; the list at the end.
STAGES = {
    "it was published": (["p PENDING"], {}, "pending"),
    "a worker has it": (["p PENDING", "a RECEIVED"], {}, "pending"),
    "it is running": (["p PENDING", "a RECEIVED", "a STARTED"], {}, "processing"),
    "it has a status of its own": (["a STARTED", "a READING"], {}, "processing"),
    "success": (["p PENDING", "a RECEIVED", "a STARTED", "a SUCCESS 2"], {"succeeded": 1, "runtime": 2}, ""),
    "success at once": (["a SUCCESS 0.125"], {"succeeded": 1, "runtime": 0.125}, ""),
    "failure": (["p PENDING", "a STARTED", "a FAILURE 0.5"], {"failed": 1, "runtime": 0.5}, ""),
    "revoked in the queue": (["p PENDING", "a REVOKED"], {"revoked": 1}, ""),
    "revoked while running": (["p PENDING", "a STARTED", "a REVOKED"], {"revoked": 1}, ""),
    "ignored": (["p PENDING", "a STARTED", "a IGNORED 1"], {"ignored": 1, "runtime": 1}, ""),
    "rejected": (["p PENDING", "a STARTED", "a REJECTED 1"], {"ignored": 1, "runtime": 1}, ""),
    "skipped": (["p PENDING", "a STARTED", "a SKIPPED"], {"skipped": 1}, ""),
    "lost": (["p PENDING", "a STARTED", "a LOST"], {"lost": 1}, ""),
    "to be retried": (["p PENDING", "a STARTED", "a RETRY 1"], {"retried": 1, "runtime": 1}, "pending"),
    "retried": (["a STARTED", "a RETRY 1", "c RECEIVED", "c STARTED"], {"retried": 1, "runtime": 1}, "processing"),
    "retry, success": (["a STARTED", "a RETRY 1", "c STARTED", "c SUCCESS 2"],
                       {"retried": 1, "succeeded": 1, "runtime": 3}, ""),
    "late retry, running": (
        ["a STARTED", "c STARTED", "a RETRY 1"], {"retried": 1, "runtime": 1}, "processing"),
    "late retry, waiting": (["a STARTED", "c RECEIVED", "a RETRY 1"], {"retried": 1, "runtime": 1}, "pending"),
    "late retry, never started": (["c STARTED", "a RETRY 1"], {"retried": 1, "runtime": 1}, "processing"),
    "late retry, success": (["a STARTED", "c STARTED", "c SUCCESS 2", "a RETRY 1"],
                            {"retried": 1, "succeeded": 1, "runtime": 3}, ""),
    "late publishing, success": (["a STARTED", "a SUCCESS 1", "p PENDING"], {"succeeded": 1, "runtime": 1}, ""),
    "late publishing, failure": (["a STARTED", "a FAILURE 1", "p PENDING"], {"failed": 1, "runtime": 1}, ""),
    "late publishing, running": (["a STARTED", "p PENDING"], {}, "processing"),
    "late receiving": (["a STARTED", "a RECEIVED", "p PENDING"], {}, "processing"),
    "late start, success": (["a SUCCESS 1", "a STARTED", "a RECEIVED"], {"succeeded": 1, "runtime": 1}, ""),
    "late start, retry": (["a RETRY 1", "a STARTED"], {"retried": 1, "runtime": 1}, "pending"),
    "failure, then revoked": (["a STARTED", "a FAILURE 2", "a REVOKED"], {"failed": 1, "runtime": 2}, ""),
    "revoked, then failure": (["a STARTED", "a REVOKED", "a FAILURE 2"], {"failed": 1, "runtime": 2}, ""),
    "rejected, then failure": (["a STARTED", "a REJECTED 2", "a FAILURE"], {"ignored": 1, "runtime": 2}, ""),
    "lost, then success": (["a STARTED", "a LOST", "a SUCCESS 1"], {"succeeded": 1, "runtime": 1}, ""),
    "lost, runs again": (["a STARTED", "a LOST", "b STARTED"], {"lost": 1}, "processing"),
    "lost, success of another run": (["a STARTED", "a LOST", "b STARTED", "b SUCCESS 1"],
                                     {"lost": 1, "succeeded": 1, "runtime": 1}, ""),
    "two runs, one running": (
        ["a STARTED", "b STARTED", "a FAILURE 1"], {"failed": 1, "runtime": 1}, "processing"),
    "two runs, both a success": (["a STARTED", "b STARTED", "a SUCCESS 1", "b SUCCESS 2"],
                                 {"succeeded": 2, "runtime": 3}, ""),
    "two runs, the later first": (["a STARTED", "b STARTED", "b SUCCESS 2", "a SUCCESS 1"],
                                  {"succeeded": 2, "runtime": 3}, ""),
    "two runs, one of each": (["a STARTED", "b STARTED", "b FAILURE 2", "a SUCCESS 1"],
                              {"failed": 1, "succeeded": 1, "runtime": 3}, ""),
    "a success, then a failure": (["a SUCCESS 1", "b STARTED", "b FAILURE 2"],
                                  {"failed": 1, "succeeded": 1, "runtime": 3}, ""),
    "put back and run again": (["a STARTED", "a REJECTED 1", "b RECEIVED", "b SUCCESS 1"],
                               {"ignored": 1, "succeeded": 1, "runtime": 2}, ""),
}

WAYS = {
    "one by one": lambda memsync, other, stages: [
        (record_stage(memsync, one), memsync.force_sync()) for one in stages],
    "by two processes": lambda memsync, other, stages: [
        (record_stage(writer, one), writer.force_sync())
        for one, writer in zip(stages, [memsync, other] * len(stages))],
    "at once": lambda memsync, other, stages: (
        [record_stage(memsync, one) for one in stages], memsync.force_sync()),
    "each twice": lambda memsync, other, stages: [
        (record_stage(writer, one), writer.force_sync())
        for one in stages for writer in (memsync, memsync, other)],
    "all of it twice": lambda memsync, other, stages: [
        (record_stage(memsync, one), memsync.force_sync()) for one in stages * 2],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STAGES)
def test_each_run_is_counted_once_and_its_task_is_in_one_list(memsync, other, name, way):
    stages, counted, in_list = STAGES[name]

    WAYS[way](memsync, other, stages)

    assert counters(other) == {"total": 1, **counted}
    assert list_of(other) == in_list


def test_a_batch_that_is_sent_twice_is_counted_once(memsync, other):
    stages = [
        ("t1", "STARTED", "a"), ("t1", "RETRY", "a"), ("t1", "SUCCESS", "c"),
        ("t2", "SUCCESS", "a"), ("t3", "RECEIVED", "a"),
    ]
    now = time.monotonic()
    batch = [
        EntryWrite(Keys("task-sentinel").task_location(task_id, STAGE), "run", RUNS[run], rank_of(status), 0, now, 60_000,
                   serial, TaskRun(status).encode(task_id), 500_000 if status in ("SUCCESS", "RETRY") else 0)
        for serial, (task_id, status, run) in enumerate(stages, 1)
    ]

    for _ in range(3):
        memsync.runtime.store.write_entries(batch)

    assert counters(other) == {"total": 3, "succeeded": 2, "retried": 1, "runtime": 1.5}
    assert other.get_queue() == {"pending": ["t3"], "processing": []}


def test_every_retry_of_many_is_counted(memsync, other):
    for number in range(20):
        for status in ("STARTED", "RETRY"):
            memsync.sync_task_run("t", TaskRun(status), run_key(number, number))
            memsync.force_sync()
    memsync.sync_task_run("t", TaskRun("SUCCESS"), run_key(20, 20))
    memsync.force_sync()

    assert counters(other) == {"total": 1, "retried": 20, "succeeded": 1}


def test_tasks_recorded_at_the_same_time_are_all_counted(make_memsync, other):
    everybody = [make_memsync(batch_interval=0.001) for _ in range(4)]

    def work(memsync, number):
        for serial in range(100):
            end = "a SUCCESS 0.5" if serial % 2 else "a FAILURE 0.5"
            for stage in ("p PENDING", "a STARTED", end):
                record_stage(memsync, stage, f"{number}-{serial}")
                record_stage(memsync, stage, f"shared-{serial}")

    threads = [threading.Thread(target=work, args=pair) for pair in zip(everybody, range(4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for memsync in everybody:
        memsync.force_sync()

    assert counters(other) == {"total": 500, "succeeded": 250, "failed": 250, "runtime": 250}
    assert other.get_queue() == {"pending": [], "processing": []}


# -- the order of those that wait

def test_tasks_wait_in_the_order_in_which_they_were_published(memsync, other):
    ids = [f"{number}" for number in range(2500)]
    now = round(memsync.runtime.store.clock.now(), 4)  # between two of these a sum may be rounded either way

    for number, task_id in enumerate(ids):
        run = TaskRun("PENDING", published_at=round(now + number / 10_000, 4))
        (memsync, other)[number % 2].sync_task_run(task_id, run, RUNS["p"])
    for process in (other, memsync):
        process.force_sync()

    assert other.get_queue(5000)["pending"] == ids


@pytest.mark.parametrize("first, then", [("p PENDING", "a RECEIVED")])
def test_a_task_keeps_its_place_when_a_worker_has_it(memsync, other, first, then):
    for task_id in "abcd":
        record_stage(memsync, first, task_id)
        memsync.force_sync()

    for task_id in "cb":
        record_stage(other, then, task_id)
        other.force_sync()

    assert memsync.get_queue()["pending"] == ["a", "b", "c", "d"]


def test_task_recorded_again_keeps_its_position(memsync, other):
    for task_id in "abc":
        record_stage(memsync, "p PENDING", task_id)
        memsync.force_sync()

    last = memsync.runtime.store.clock.now()
    eventually(lambda: memsync.runtime.store.clock.now() > last + 0.01)
    record_stage(memsync, "p PENDING", "a")
    memsync.force_sync()

    assert other.get_queue()["pending"] == ["a", "b", "c"]


@pytest.mark.parametrize("stage", ["p PENDING", "a STARTED", "a RETRY"])
def test_stage_written_after_its_ttl_leaves_nothing(memsync, other, redis, stage):
    run, status = stage.split()
    memsync.sync_task_run("t", TaskRun(status), RUNS[run], ttl=0.05)
    written_at = memsync.runtime.store.clock.now()
    eventually(lambda: memsync.runtime.store.clock.now() > written_at + 0.1)

    memsync.force_sync()

    assert other.get_queue() == {"pending": [], "processing": []}
    assert [key for key in redis.keys() if redis.pttl(key) == -1] == [b"task-sentinel//{clock}"]


@pytest.mark.slow
def test_what_crashed_processes_left_is_forgotten_while_others_go_on(make_memsync, memsync, redis):
    brief = make_memsync(batch_interval=60.0, default_ttl=0.5)
    for number in range(200):
        record_stage(brief, "p PENDING", f"old-{number}")
    brief.force_sync()
    memsync.sync_task_run("alive", TaskRun("PENDING"), RUNS["p"])
    memsync.force_sync()

    def only_one_is_left():
        record_stage(brief, "p PENDING", "new")
        record_stage(brief, "a SUCCESS", "new")
        record_stage(brief, "p PENDING", "newer")
        brief.force_sync()
        return redis.zcard(memsync.runtime.store.keys.pending) <= 2

    eventually(only_one_is_left)
    assert memsync.get_queue()["pending"][0] == "alive"


def test_a_task_to_be_retried_waits_behind_the_others(memsync, other):
    stages = [
        ("a STARTED", "first"), ("p PENDING", "second"), ("a RETRY", "first"),
        ("p PENDING", "third")]
    for stage, task_id in stages:
        last = memsync.runtime.store.clock.now()
        eventually(lambda: memsync.runtime.store.clock.now() > last + 0.002)
        record_stage(memsync, stage, task_id)
    memsync.force_sync()

    assert other.get_queue()["pending"] == ["second", "first", "third"]


@pytest.mark.slow
def test_task_recorded_again_stays_when_others_expire(make_memsync, memsync):
    brief = make_memsync(batch_interval=60.0, default_ttl=3.0)
    for number, stage in enumerate(("a RECEIVED", "a STARTED") * 2):
        record_stage(brief, stage, f"{number}")
    brief.force_sync()

    def only_these_are_left():
        record_stage(brief, "a RECEIVED", "0")
        record_stage(brief, "a STARTED", "1")
        brief.force_sync()
        return not list_of(memsync, "2") and not list_of(memsync, "3")

    eventually(only_these_are_left)

    assert memsync.get_queue() == {"pending": ["0"], "processing": ["1"]}
    assert [memsync.get_task_state(f"{number}") is not None for number in range(4)] == [True, True, False, False]


def test_dequeue_takes_what_was_published(memsync, other):
    record_stage(memsync, "p PENDING", "first")
    record_stage(memsync, "a RECEIVED", "second")
    record_stage(memsync, "a STARTED", "running")
    memsync.force_sync()

    taken = [other.dequeue(), memsync.dequeue(), other.dequeue()]

    assert taken == ["first", "second", None]
    assert other.get_queue() == {"pending": [], "processing": ["running", "first", "second"]}
