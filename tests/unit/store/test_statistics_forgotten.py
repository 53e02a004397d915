"""Records of statistics that are forgotten: no sum that is shown gets less."""
from __future__ import annotations

import pytest

from celery_memsync.metrics import MemsyncCollector
from celery_memsync.metrics.server import json_of
from celery_memsync.models.statistics import FORGOTTEN
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key


def succeed(memsync, task_id, name, queue, **known):
    run = TaskRun(known.pop("status", "SUCCESS"), name=name, queue=queue, published_at=1000.0, started_at=1002.0,
                  runtime=0.3, **known)
    memsync.sync_task_run(task_id, run, run_key(0, 1))


def make_due(memsync, redis, *names):
    """Let records be due to be forgotten, and the next write of any other be its first of a day."""
    key = memsync.runtime.keys.statistics
    for member in redis.zrange(key, 0, -1):
        redis.setrange(key.encode() + b"/" + member, 214, b"\0\1")
    for name in names:
        redis.zadd(key, {name: 1})


def shown(memsync):
    """Return counters, and numbers and sums of histograms, by name and labels."""
    found = {}
    for name, rows in json_of(MemsyncCollector(memsync)).items():
        for row in rows:
            for figure in {"value", "count", "sum"} & row.keys():
                found[(name, *row["labels"].values(), figure)] = row[figure]
    return found


@pytest.fixture
def counted(make_memsync):
    """A client that has counted three tasks of two queues."""
    memsync = make_memsync(failure_types=True)
    for at, (name, queue) in enumerate([("old", "a"), ("old", "a"), ("new", "a"), ("old", "b"), ("new", "b")]):
        succeed(memsync, f"t{at}", name, queue)
    succeed(memsync, "f", "old", "a", status="FAILURE", exception={"type": "ValueError", "message": ""})
    memsync.force_sync()
    return memsync


def test_sums_keep_what_is_forgotten_of_a_queue_and_of_a_task(counted, redis):
    before = shown(counted)
    make_due(counted, redis, "a\nold")

    assert shown(counted).keys() >= before.keys()
    succeed(counted, "t9", "new", "a")
    counted.force_sync()

    after = shown(counted)
    assert b"a\nold" not in redis.zrange(counted.runtime.keys.statistics, 0, -1)
    assert not redis.exists(f"{counted.runtime.keys.statistics}/a\nold")
    for wanted, more in [(("celery_memsync_wait_seconds", "a"), 1), (("celery_memsync_run_seconds", "old"), 0)]:
        assert after[(*wanted, "count")] == before[(*wanted, "count")] + more
        assert after[(*wanted, "sum")] >= before[(*wanted, "sum")] > 0
    for name, *labels in [("runs_total", "old", "succeeded"), ("runs_total", "old", "failed"),
                          ("failures_total", "old", "ValueError"), ("tasks_created_total", "old")]:
        counter = (f"celery_memsync_{name}", *labels, "value")
        assert after[counter] == before[counter]
    assert not any(FORGOTTEN in key for key in after)


def test_what_was_forgotten_stays_as_long_as_its_queue_and_task(counted, redis):
    make_due(counted, redis, "a\nold")
    succeed(counted, "t9", "new", "a")
    counted.force_sync()
    before = shown(counted)

    make_due(counted, redis, f"a\n{FORGOTTEN}", f"{FORGOTTEN}\nold")
    succeed(counted, "t10", "new", "a")
    counted.force_sync()
    assert {key for key in before if shown(counted)[key] < before[key] and key[0].endswith(("_total", "_seconds"))} <= {
        ("celery_memsync_scrape_seconds", "value"), ("celery_memsync_redis_latency_seconds", "value")}

    make_due(counted, redis, "b\nold", "b\nnew", f"{FORGOTTEN}\nold")
    succeed(counted, "t11", "new", "a")
    counted.force_sync()
    make_due(counted, redis, f"b\n{FORGOTTEN}", f"{FORGOTTEN}\nold", "a\nold")
    succeed(counted, "t12", "new", "a")
    counted.force_sync()
    assert {name.decode() for name in redis.zrange(counted.runtime.keys.statistics, 0, -1)} == {
        "a\nnew", f"a\n{FORGOTTEN}", f"{FORGOTTEN}\nnew"}


def test_a_forgotten_record_is_nothing_that_runs_came_to_in_the_last_minutes(counted, redis, make_memsync):
    store = counted.runtime.store
    minute = int(store.clock.now() // 60)
    for at in (minute - 1, minute):
        store.write_history(store.claim_history(at), store.read_statistics())
        make_due(counted, redis, "b\nold", "b\nnew", "a\nold")
        succeed(counted, f"m{at}", "new", "a")
        counted.force_sync()

    ((_, added),) = counted.runtime.statistics.minutes()

    assert added.ended <= 1
    assert sum(one.ended for one in (counted.runtime.statistics.recent(0) or {}).values()) <= 2


@pytest.mark.parametrize("harm", [
    lambda redis, key: redis.set(f"{key}/a\nold", b"\xff" * 5000),
    lambda redis, key: (redis.delete(f"{key}/a\nold"), redis.lpush(f"{key}/a\nold", "x")),
    lambda redis, key: redis.set(f"{key}/a\nold\n", b"text"),
    lambda redis, key: redis.hset(f"{key}/a\nold\n", mapping={f"\xff{at}": "x" * 30 for at in range(100)}),
    lambda redis, key: redis.zadd(key, {f"q\n{at}": float("inf") for at in range(1000)}),
    lambda redis, key: redis.zadd(key, {"no name": 1, "\n": 2, "a\n\n\n": 3, "x\n\t": 4, "\t\ty": 5, "": 6}),
])
def test_foreign_data_in_forgotten_records_hurts_nothing(counted, redis, harm):
    make_due(counted, redis, "a\nold")
    harm(redis, counted.runtime.keys.statistics)

    succeed(counted, "t9", "new", "a")
    counted.force_sync()

    assert counted.get_task_state("t9")["status"] == "SUCCESS"
    after = shown(counted)
    assert after["celery_memsync_redis_up", "value"] == 1
    assert after["celery_memsync_tasks_created_total", "new", "value"] == 3
    assert redis.zcount(counted.runtime.keys.statistics, "-inf", 1000) == 0


def test_sums_of_a_queue_that_ends_get_no_less_while_it_is_shown(make_memsync, redis):
    memsync = make_memsync()
    for at in range(50):
        succeed(memsync, f"t{at}", f"old{at}", "ends")
    memsync.force_sync()
    waits = ("celery_memsync_wait_seconds", "ends", "count")

    for at in range(6):
        make_due(memsync, redis, *(f"ends\nold{number}" for number in range(50) if redis.zscore(
            memsync.runtime.keys.statistics, f"ends\nold{number}")))
        succeed(memsync, f"n{at}", "new", "other")
        memsync.force_sync()
        assert shown(memsync)[waits] == 50

    make_due(memsync, redis, f"ends\n{FORGOTTEN}")
    succeed(memsync, "n9", "new", "other")
    memsync.force_sync()
    assert waits not in shown(memsync)
    assert len(redis.zrange(memsync.runtime.keys.statistics, 0, -1)) == 1
