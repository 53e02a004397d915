"""What a scrape shows, and what it is to show."""
from __future__ import annotations

import json
import time

from prometheus_client.parser import text_string_to_metric_families

from celery_memsync.metrics import MemsyncCollector
from celery_memsync.metrics.server import text_of
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord
from tests.support.runs import run_key


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
