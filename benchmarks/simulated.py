"""Tasks and workers of which there are only records, as many as a benchmark wants."""
from __future__ import annotations

from celery_memsync import MemorySyncManager
from celery_memsync.fleet.heartbeat import Heartbeat
from celery_memsync.models.order import delivered_key, published_key
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.types import RunningTask


def send_task(memsync: MemorySyncManager, task_id: str, number: int) -> None:
    """Record a task that was sent, as Celery's signals do in its producer."""
    now = memsync.runtime.store.clock.now()
    facts = TaskRun("PENDING", name="proj.tasks.convert", queue="celery", root_id=task_id,
                    published_at=now)
    memsync.sync_task_run(task_id, facts, published_key(f"eFgH5678-{number:x}"))


def record_task(memsync: MemorySyncManager, task_id: str, number: int) -> None:
    """Record a finished task, as Celery's signals do at its end."""
    now, run = memsync.runtime.store.clock.now(), f"PtGcmlu6-{number:x}"
    facts = TaskRun(
        "SUCCESS", name="proj.tasks.convert", queue="celery", worker="celery@host-1", pid=4711,
        run=run, root_id=task_id, published_at=now - 0.3, received_at=now - 0.29,
        started_at=now - 0.25, finished_at=now, runtime=0.25)
    key = delivered_key(published_key(f"eFgH5678-{number:x}"), run)
    memsync.sync_task_run(task_id, facts, key)


def heartbeat_of(memsync: MemorySyncManager, number: int, interval: float = 60.0) -> Heartbeat:
    """Return the heartbeat of a worker with two running tasks; it is not sent yet."""
    store = memsync.runtime.store.with_token(f"t{number:07}")
    running = tuple(RunningTask(id=f"{number:032}-{i}", name="proj.tasks.convert", started_at=1.0) for i in range(2))
    record = WorkerRecord(
        f"celery@host-{number}", hostname=f"host-{number}", pid=number, pool="prefork",
        concurrency=8, running=running, queues=("celery",), consuming=True,
        capacity={"total": 8, "active": 2, "reserved": 0, "free": 6}, depths={"celery": 7},
        versions={"celery": "5.7.0"})
    return Heartbeat(store, lambda: record, interval, 3600.0)
