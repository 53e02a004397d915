"""Memory: what a task's record takes in Redis, and what this package adds to a worker.

    three strings  state, progress and result of 150 bytes each, with a ttl, as people do by hand
    floor          state and progress as one such string, and the task's id in a stream
    memsync        what Celery's signals record of a finished task, its last progress, its places
                   in index and counters

The workers have run the same tasks. Private memory is what no other process shares (Linux).
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import floors
import redis
from celery import Celery
from simulated import record_task

from celery_memsync import MemorySyncManager, MemSync

RECORDS, TASKS = 20_000, common.sized(12_000, quick=2000)

#: Seconds that a worker is left alone before its memory is read.
SETTLED = common.sized(5.0, quick=2.0)

VARIANTS = ("plain", "plain again", "memsync")


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


# -- records in Redis


def records(url: str) -> common.Table:
    """Return bytes of Redis for each task."""
    client = redis.Redis.from_url(f"{url}/9")

    def bytes_of(store: Callable[[], object]) -> common.Round:
        client.flushdb()
        before = used(client)
        store()
        return {"bytes": (used(client) - before) / RECORDS}

    def three_strings() -> None:
        pipeline = client.pipeline(transaction=False)
        for number in range(RECORDS):
            for name in ("state", "progress", "result"):
                pipeline.set(f"celery/tasks/{number:036}/{name}", "x" * 150, ex=3600)
            if number % 500 == 0:
                pipeline.execute()
        pipeline.execute()

    def floor() -> None:
        floors.store_task_records(
            f"{url}/9", ((f"{number:036}", "x" * 300) for number in range(RECORDS)))

    with MemorySyncManager("celery@host-1", f"{url}/9", batch_interval=3600.0,
                           max_pending=10 ** 6) as memsync:
        memsync.force_sync()
        stores = {"three strings": three_strings, "three strings again": three_strings,
                  "floor": floor, "memsync": lambda: record_tasks(memsync)}
        rows = {name: [bytes_of(store)] for name, store in stores.items()}
    return common.table(rows)


def used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def record_tasks(memsync: MemorySyncManager) -> None:
    for number in range(RECORDS):
        name = f"{number:036}"
        record_task(memsync, name, number)
        memsync.sync_task_progress(name, None, current=1000, total=1000, message="converted")
        if number % 500 == 0:
            memsync.force_sync()
    memsync.force_sync()


# -- processes


def private(pid: int) -> float:
    """Return megabytes that no other process shares."""
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    names = ("Private_Clean:", "Private_Dirty:")
    return sum(int(fields[fields.index(name) + 1]) for name in names) / 1024


def of_processes(process: Any) -> dict[str, float]:
    """Return the private memory of a worker's main process and of its child."""
    main, child = (private(pid) for pid in (process.pid, *common.children_of(process.pid)))
    return {"main": main, "a child": child}


def run_tasks(url: str, variant: str) -> None:
    """Have a worker run all tasks."""
    app = make_app(url, variant)
    with app.producer_or_acquire() as producer:
        for _ in range(TASKS):
            app.tasks["bench.noop"].apply_async(producer=producer)
    queue = redis.Redis.from_url(f"{url}/{VARIANTS.index(variant) + 1}")
    while queue.llen("celery") or queue.hlen("unacked"):
        time.sleep(0.1)


def processes(url: str) -> common.Table:
    """Return megabytes of a worker's processes before and after some thousand tasks."""
    rows: dict[str, list[common.Round]] = {}
    with contextlib.ExitStack() as stack:
        for variant in VARIANTS:
            process = stack.enter_context(
                common.worker(__file__, variant, env={"BENCH_URL": url}))
            database = VARIANTS.index(variant) + 1
            common.wait_for_worker(redis.Redis.from_url(f"{url}/{database}"))
            time.sleep(SETTLED)
            idle = of_processes(process)
            run_tasks(url, variant)
            time.sleep(SETTLED)
            found = {f"{name} at first, MB": size for name, size in idle.items()}
            found.update({f"{name}, MB": size for name, size in of_processes(process).items()})
            plain = rows["plain"][0] if rows else found
            found.update({f"added to {name}, MB": found[f"{name}, MB"] - plain[f"{name}, MB"]
                          for name in idle})
            rows[variant] = [found]
    return common.table(rows)


def main() -> None:
    with common.server() as url:
        version = redis.Redis.from_url(url).info("server")["redis_version"]
        tables = {"A task's record": records(url), "Private memory of a worker": processes(url)}
    common.print_results("memory", tables, Redis=version, **{"Tasks of each worker": TASKS})


if __name__ == "__main__":
    if "--worker" in sys.argv:
        name = sys.argv[-1]
        arguments = ["worker", "-c", "1", "-l", "ERROR", "-n", f"{name.replace(' ', '-')}@bench"]
        make_app(os.environ["BENCH_URL"], name).worker_main(arguments)
    else:
        main()
