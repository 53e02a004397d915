"""Memory: what a task's record takes in Redis, and what taking part adds to the processes of a worker.

    three_keys   state, progress and result of 150 bytes each, as three strings with a ttl, as people build it by hand
    memsync      what Celery's signals tell of a finished task, its last progress, its places in index and counters

The workers of "processes" have run the same tasks; "private" is memory that no other process shares (Linux).
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import common
import redis
from celery import Celery

from celery_memsync import MemorySyncManager, MemSync
from celery_memsync.models.order import run_key
from celery_memsync.models.task import TaskRun

RECORDS, TASKS, SETTLED = 20_000, 12_000, 5.0
VARIANTS = ("plain", "plain_again", "memsync")


def make_app(url: str, variant: str) -> Any:
    database = VARIANTS.index(variant) + 1
    app = Celery("bench", broker=f"{url}/{database}")
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
    if variant == "memsync":
        app.conf.memsync_backend = f"{url}/{len(VARIANTS) + 1}"
        MemSync(app)
    app.task(name="bench.noop", shared=False)(noop)
    app.finalize()
    return app


def noop() -> None:
    pass


def used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def records(url: str) -> dict[str, Any]:
    """Return bytes of Redis for each task."""
    client = redis.Redis.from_url(f"{url}/9")
    before = used(client)
    pipeline = client.pipeline(transaction=False)
    for number in range(RECORDS):
        for thing in ("state", "progress", "result"):
            pipeline.set(f"celery/tasks/{number:036}/{thing}", "x" * 150, ex=3600)
        if number % 500 == 0:
            pipeline.execute()
    pipeline.execute()
    three = (used(client) - before) / RECORDS
    client.flushdb()
    with MemorySyncManager("celery@host-1", f"{url}/9", batch_interval=3600.0, max_pending=10 ** 6) as memsync:
        memsync.force_sync()
        before = used(client)
        for number in range(RECORDS):
            now, name = memsync.runtime.store.clock.now(), f"{number:036}"
            run = TaskRun("SUCCESS", name="proj.tasks.convert", queue="celery", worker="celery@host-1", pid=4711,
                          run=f"PtGcmlu6-{number:x}", root_id=name, published_at=now, received_at=now, started_at=now,
                          finished_at=now, runtime=0.25)
            memsync.sync_task_run(name, run, run_key(0, now))
            memsync.sync_task_progress(name, None, current=1000, total=1000, message="converted")
            if number % 500 == 0:
                memsync.force_sync()
        memsync.force_sync()
        ours = (used(client) - before) / RECORDS
    return {"three_keys": round(three), "memsync": round(ours), "ratio": round(ours / three, 3),
            "redis": client.info("server")["redis_version"]}


def private(pid: int) -> int:
    """Return kilobytes that no other process shares."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return sum(int(fields[fields.index(name) + 1]) for name in ("Private_Clean:", "Private_Dirty:"))


def processes(url: str) -> dict[str, Any]:
    """Return kilobytes of a worker's processes before and after some thousand tasks."""
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for variant in VARIANTS:
            process = stack.enter_context(common.worker(__file__, variant, env={"BENCH_URL": url}))
            queue = redis.Redis.from_url(f"{url}/{VARIANTS.index(variant) + 1}")
            while not queue.exists("_kombu.binding.celery.pidbox"):
                time.sleep(0.1)
            time.sleep(SETTLED)
            rows = [[private(pid) for pid in (process.pid, *common.children_of(process.pid))]]
            app = make_app(url, variant)
            with app.producer_or_acquire() as producer:
                for _ in range(TASKS):
                    app.tasks["bench.noop"].apply_async(producer=producer)
            while queue.llen("celery") or queue.hlen("unacked"):
                time.sleep(0.1)
            time.sleep(SETTLED)
            rows.append([private(pid) for pid in (process.pid, *common.children_of(process.pid))])
            found[variant] = {f"{who}_{when}_kb": row[at] for when, row in zip(("idle", "after"), rows)
                              for at, who in enumerate(("main", "child"))}
    found["added_kb"] = {name: found["memsync"][name] - found["plain"][name] for name in found["plain"]}
    return found


def main() -> None:
    with common.server() as url:
        common.say("memory", "plain", {"records": records(url), "processes": processes(url)})


if __name__ == "__main__":
    if "--worker" in sys.argv:
        name = sys.argv[-1]
        make_app(os.environ["BENCH_URL"], name).worker_main(["worker", "-c", "1", "-l", "ERROR", "-n", f"{name}@bench"])
    else:
        main()
