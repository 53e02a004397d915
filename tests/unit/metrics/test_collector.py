"""The collector for Prometheus: what it shows, what it costs, and what it does not do."""
from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from celery_memsync.metrics import MemsyncCollector
from celery_memsync.metrics.server import MetricsServer, json_of, text_of
from celery_memsync.models.statistics import MAX_RECORDS, OTHER
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord
from tests.support.redis_calls import round_trips
from tests.support.runs import run_key
from tests.support.stress import stressed

#: Most round trips of a scrape, whatever is there.
MOST_TRIPS = 9


def succeed(memsync, task_id="t1", name="proj.add", queue="celery", status="SUCCESS", **known):
    now = time.time()
    run = TaskRun(status, name=name, queue=queue, published_at=now - 2, started_at=now - 1, runtime=0.3, **known)
    memsync.sync_task_run(task_id, run, run_key(0, 1))


def parsed(text):
    """Return the samples of a scrape by name, and by the values of their labels in the order of their names."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found


def scraped(memsync, **options):
    return parsed(text_of(MemsyncCollector(memsync, **options)))


def record_of(number, **known):
    return WorkerRecord(
        f"w{number:04}", "active", capacity={"total": 8, "active": 3, "free": 5}, queues=("celery", f"q{number % 7}"),
        running=tuple({"id": f"r{number}.{at}", "name": "proj.add", "started_at": 5.0} for at in range(3)),
        depths={"celery": 12}, consuming=True, skew=0.5, rss=50_000_000, **known)


def send_heartbeats(memsync, records):
    for record in records:
        memsync.runtime.store.write_heartbeat(record.worker_id, json.dumps(record.as_dict()).encode(), 60.0)


def test_a_scrape_shows_runs_and_times(memsync, other):
    for number in range(5):
        succeed(memsync, f"t{number}")
    succeed(memsync, "f1", status="FAILURE", exception={"type": "ValueError", "message": ""})
    memsync.force_sync()

    samples = scraped(other)

    assert samples["celery_memsync_runs_total", ("succeeded", "proj.add")] == 5
    assert samples["celery_memsync_runs_total", ("failed", "proj.add")] == 1
    assert samples["celery_memsync_runs_total", ("lost", "proj.add")] == 0
    assert samples["celery_memsync_tasks_created_total", ("proj.add",)] == 6
    assert samples["celery_memsync_run_seconds_count", ("proj.add",)] == 6
    assert samples["celery_memsync_run_seconds_sum", ("proj.add",)] == pytest.approx(1.8)
    assert samples["celery_memsync_run_seconds_bucket", ("0.25", "proj.add")] == 0
    assert samples["celery_memsync_run_seconds_bucket", ("0.5", "proj.add")] == 6
    assert samples["celery_memsync_wait_seconds_bucket", ("1.0", "celery")] == 6
    assert samples["celery_memsync_redis_up", ()] == 1


def test_a_scrape_shows_workers_queues_and_what_waits(memsync, other):
    send_heartbeats(memsync, [record_of(1), record_of(2)])
    now = time.time()
    for task_id, published, eta in (("p1", now - 30, None), ("p2", now - 90, now + 60), ("p3", now - 90, now - 20)):
        run = TaskRun("PENDING", name="proj.add", queue="celery", published_at=published, eta=eta)
        memsync.sync_task_run(task_id, run, "chain.0")
    memsync.increment_metrics(clicks=3)
    with memsync.lock("printer"):
        memsync.force_sync()

        samples = scraped(other, per_worker=True)

    assert samples["celery_memsync_workers", ("active",)] == 2
    assert (samples["celery_memsync_slots", ("busy",)], samples["celery_memsync_slots", ("free",)]) == (6, 10)
    assert samples["celery_memsync_queue_messages", ("celery",)] == 12
    assert samples["celery_memsync_queue_consumers", ("celery",)] == 2
    assert samples["celery_memsync_queue_slots", ("q1", "free")] == 5
    assert samples["celery_memsync_queue_oldest_seconds", ("celery",)] == pytest.approx(30, abs=5)
    assert samples["celery_memsync_queue_oldest_seconds", ("q1",)] == 0
    assert samples["celery_memsync_tasks_running", ("proj.add",)] == 6
    assert samples["celery_memsync_tasks", ("pending",)] == 3
    assert samples["celery_memsync_locks", ()] == 1
    assert samples["celery_memsync_counter", ("clicks",)] == 3
    assert samples["celery_memsync_worker_slots_busy", ("w0001",)] == 3
    assert samples["celery_memsync_clock_skew_seconds", ()] == 0.5


def test_a_queue_without_a_live_worker_has_no_consumers(memsync, other):
    send_heartbeats(memsync, [record_of(1)])
    run = TaskRun("PENDING", name="proj.add", queue="lonely", published_at=time.time() - 30)
    memsync.sync_task_run("p1", run, "chain.0")
    memsync.force_sync()

    samples = scraped(other)

    assert samples["celery_memsync_queue_consumers", ("lonely",)] == 0
    assert samples["celery_memsync_queue_oldest_seconds", ("lonely",)] > 25


def test_a_scrape_of_a_large_fleet_takes_few_round_trips(memsync, other):
    for number in range(400):
        succeed(memsync, f"t{number}", f"proj.task{number % 200}")
        memsync.sync_task_run(
            f"p{number}", TaskRun("PENDING", name="a", queue=f"q{number}", published_at=time.time()), "chain.0")
    memsync.force_sync()
    send_heartbeats(memsync, map(record_of, range(1000)))
    collector = MemsyncCollector(other, per_worker=True)
    other.runtime.store.connect()

    trips = round_trips(other, collector.families)
    text = text_of(collector)

    print(f"{trips} round trips, {len(text)} bytes")
    assert trips <= MOST_TRIPS
    samples = parsed(text)
    assert samples["celery_memsync_slots", ("busy",)] == 3000
    assert samples["celery_memsync_series_dropped", ()] == 800
    assert len([name for name, _ in samples if name == "celery_memsync_tasks_created_total"]) == 201


HOSTILE = ['"', "\\", "\n", "{", "}", "\x00", "é", "\u2028", "\ud800", "a" * 300, " ", "0", '",x="']


def test_hostile_names_are_bounded_and_can_be_parsed(memsync, other):
    number = stressed(100_000, 1_500)
    for at in range(number):
        name = HOSTILE[at % len(HOSTILE)] + (f"{at}" if at % 3 else "")
        succeed(memsync, f"t{at}", name, name[::-1])
        if at % 20_000 == 19_999:
            memsync.force_sync(timeout=60)
    memsync.force_sync(timeout=60)
    send_heartbeats(memsync, [WorkerRecord(
        "w1", queues=tuple(f'q"\n{at}' for at in range(1000)), depths={"q": -5, 'q"\n1': 10 ** 30},
        running=({"id": "x", "name": '"\n'}, "no dict", {"name": ["a"]}), capacity={"total": "x", "free": None})])

    for names in ("celery-memsync", "celery-exporter"):
        samples = scraped(other, names=names)

        counter = "celery_task_succeeded_total" if names == "celery-exporter" else "celery_memsync_tasks_created_total"
        counts = [value for (name, _), value in samples.items() if name == counter]
        assert sum(counts) == number
        assert len(counts) <= MAX_RECORDS + 1
        assert any(OTHER in labels for _, labels in samples)


@pytest.mark.parametrize("harm", [
    lambda redis, key: redis.set(key, b"\xff" * 5000),
    lambda redis, key: redis.setrange(key, 0, b"\xff" * 216),
    lambda redis, key: redis.set(key, b""),
    lambda redis, key: (redis.delete(key), redis.lpush(key, "x")),
    lambda redis, key: redis.delete(key),
])
def test_forged_records_can_be_parsed(memsync, other, redis, harm):
    succeed(memsync)
    memsync.force_sync()

    harm(redis, f"{memsync.runtime.keys.statistics}/celery\nproj.add")

    samples = scraped(other)
    assert samples["celery_memsync_redis_up", ()] == 1
    assert ("celery_memsync_runs_total", ("succeeded", "proj.add")) in samples


def test_a_collector_shows_that_redis_is_away(own_server, make_memsync):
    memsync = make_memsync(url=own_server.url, timeout=0.5)
    succeed(memsync)
    memsync.force_sync()
    collector = MemsyncCollector(memsync)
    server = MetricsServer(collector, "127.0.0.1", 0)
    try:
        assert parsed(text_of(collector))["celery_memsync_redis_up", ()] == 1
        own_server.kill()

        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            status, samples = answer.status, parsed(answer.read().decode())
    finally:
        server.close()

    assert status == 200
    assert samples["celery_memsync_redis_up", ()] == 0
    assert {name for name, _ in samples} == {
        "celery_memsync_redis_up", "celery_memsync_scrape_seconds", "celery_memsync_build_info"}


def test_a_collector_that_is_switched_off_raises_nothing(make_memsync):
    assert scraped(make_memsync(enabled=False))["celery_memsync_redis_up", ()] == 0


def test_a_new_counter_is_shown_as_0_once(memsync, other):
    succeed(memsync)
    memsync.force_sync()
    collector = MemsyncCollector(other)
    assert parsed(text_of(collector))["celery_memsync_runs_total", ("succeeded", "proj.add")] == 1

    succeed(memsync, "t2", "proj.mul")
    memsync.force_sync()
    first, second = parsed(text_of(collector)), parsed(text_of(collector))

    for name, labels in (("runs_total", ("succeeded", "proj.mul")), ("run_seconds_count", ("proj.mul",)),
                         ("run_seconds_bucket", ("+Inf", "proj.mul")), ("run_seconds_sum", ("proj.mul",))):
        assert first[f"celery_memsync_{name}", labels] == 0
        assert second[f"celery_memsync_{name}", labels] > 0
    assert first["celery_memsync_runs_total", ("succeeded", "proj.add")] == 1


def test_a_collector_registers_without_reading(make_memsync):
    memsync = make_memsync(url="redis://127.0.0.1:1/0")
    registry = CollectorRegistry()

    registry.register(MemsyncCollector(memsync))

    assert b"celery_memsync_redis_up 0.0" in generate_latest(registry)


def test_other_names_are_refused(memsync):
    with pytest.raises(ValueError, match="celery-exporter"):
        MemsyncCollector(memsync, names="flower")


def test_json_has_the_same_without_prometheus_client(memsync, other):
    succeed(memsync)
    memsync.force_sync()

    found = json_of(MemsyncCollector(other))

    assert {"labels": {"task": "proj.add", "outcome": "succeeded"}, "value": 1} in found["celery_memsync_runs_total"]
    (row,) = found["celery_memsync_run_seconds"]
    assert (row["count"], row["buckets"]["0.5"], row["buckets"]["+Inf"]) == (1, 1, 1)


@pytest.mark.slow
def test_nothing_but_a_scrape_imports_prometheus_client():
    code = ("import sys, celery_memsync.metrics, celery_memsync.metrics.server, celery_memsync.cli.metrics; "
            "print('prometheus_client' in sys.modules)")

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout == "False\n", done.stderr
