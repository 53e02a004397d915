"""Gauges of a scrape: queues, running tasks, locks and workers, also of foreign data."""
from __future__ import annotations

import time

import pytest

from celery_memsync.keys import PROGRESS
from celery_memsync.models.progress import stalled
from celery_memsync.models.statistics import MAX_RECORDS, OTHER
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.store import EntryWrite
from tests.support.runs import run_key
from tests.support.scrapes import record_of, scraped, send_heartbeats


def test_queues_of_messages_crowd_out_none_that_workers_consume(memsync, other):
    now = time.time()
    for number in range(150):
        run = TaskRun("PENDING", name="a", queue=f"a{number:03}", published_at=now - 50)
        memsync.sync_task_run(f"p{number}", run, "chain.0")
    memsync.force_sync()
    send_heartbeats(memsync, [WorkerRecord(
        "w1", queues=("zebra", 'bad"\n', "bad\x00"), depths={"zebra": 4, 'bad"\n': 3, "bad\x00": 2}, capacity={"total": 2})])

    samples = scraped(other)

    assert samples["celery_memsync_queue_messages", ("zebra",)] == 4
    assert samples["celery_memsync_queue_messages", (OTHER,)] == 5
    assert samples["celery_memsync_queue_consumers", (OTHER,)] == 1
    assert samples["celery_memsync_queue_oldest_seconds", (OTHER,)] > 40


def test_running_tasks_above_the_limit_are_counted_together(memsync, other):
    send_heartbeats(memsync, [WorkerRecord(f"w{worker}", running=tuple(
        {"id": f"r{worker}.{at}", "name": f"task{worker}.{at}" if at else "\n", "started_at": 5.0} for at in range(100)))
        for worker in range(7)])

    samples = scraped(other)

    running = {labels[0]: value for (name, labels), value in samples.items() if name == "celery_memsync_tasks_running"}
    assert sum(running.values()) == 700
    assert len(running) <= MAX_RECORDS + 1


def test_a_forged_time_of_sending_makes_no_task_the_oldest(memsync, other):
    for at, published in enumerate((1.0, -1e10, 1e10)):
        run = TaskRun("PENDING", name="proj.add", queue="celery", published_at=published)
        memsync.sync_task_run(f"p{at}", run, "chain.0")
    memsync.force_sync()

    assert scraped(other)["celery_memsync_queue_oldest_seconds", ("celery",)] < 60


def test_a_scrape_counts_stalled_tasks_and_callers_that_wait_for_locks(memsync, other, redis):
    began = time.time() - 100
    for task_id, status, stalled_at in (("s1", "STARTED", began + 50), ("s2", "STARTED", None), ("s3", "SUCCESS", began)):
        memsync.sync_task_run(task_id, TaskRun(status, name="proj.add", started_at=began), run_key(0, 1))
        memsync.sync_task_progress(task_id, 10)
        memsync.force_sync()
        if stalled_at:
            store = memsync.runtime.store
            (task,) = store.read_tasks([task_id])
            header = task.slots[PROGRESS].header
            store.write_entries([EntryWrite(
                store.keys.task_location(task_id, PROGRESS), str(header.version), "", header.rank, 0, time.monotonic(),
                header.ttl_ms, 10 ** 6, stalled(task.slots[PROGRESS].value, stalled_at, began, None))])
    send_heartbeats(memsync, [WorkerRecord("w1", running=(
        *({"id": f"s{at}", "name": "proj.add", "started_at": began} for at in (1, 2, 3)),
        {"id": "no id/", "started_at": 1}, {"id": "x", "started_at": "y"}, {"id": "unknown", "started_at": 10 ** 400}))])
    with memsync.lock("printer"):
        redis.rpush(memsync.runtime.keys.lock_location("printer").key + "/queue/", "a", "b")
        redis.zadd(memsync.runtime.keys.locks, {b"no lock \xff": 10 ** 14})

        samples = scraped(other)

    assert samples["celery_memsync_tasks_stalled", ()] == 1
    assert samples["celery_memsync_lock_waiters", ()] == 2


@pytest.mark.parametrize("harm", ["text", "list", "number", "negative"])
def test_foreign_totals_of_workers_hurt_neither_heartbeat_nor_scrape(memsync, other, redis, harm):
    key = memsync.runtime.keys.worker_totals
    {"text": lambda: redis.set(key, "x"), "list": lambda: redis.rpush(key, "x"),
     "number": lambda: redis.hset(key, "lost", "9" * 300), "negative": lambda: redis.hset(key, "lost", "-5")}[harm]()

    send_heartbeats(memsync, [record_of(1)])

    assert scraped(other)["celery_memsync_workers_lost_total", ()] == 0
