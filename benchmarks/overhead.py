"""A no-op task in a prefork worker: what recording its state costs, beside plain Celery.

    plain         nothing is recorded; "plain again" is a second such worker and shows the noise
    tracked       Celery's result backend in Redis, with ``task_track_started``
    events        ``-E``: Celery's events, which no process receives
    floor         the end of each task, in batches, and nothing else; see ``floors.py``
    memsync       every stage of every task, its times, queue, worker, process; lists and counters

Each variant has a worker and a database of its own. All run during the whole benchmark and are
idle except for the one that is measured. The messages are published to another database first and
then appear in the queue at once, so that publishing is not in the measured time. CPU is read from
the kernel's clock of each process.
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import common
import floors
import redis
from celery import Celery

from celery_memsync import MemSync

VARIANTS = ("plain", "plain again", "tracked", "events", "floor", "memsync")
STAGING, STORE, RESULTS = 15, 14, 13
TASKS, ROUNDS = common.sized(1500, quick=400), common.sized(15, quick=3)


def make_app(url: str, variant: str, database: int) -> Any:
    app = Celery("bench", broker=f"{url}/{database}")
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True,
                    worker_send_task_events=variant == "events")
    if variant == "tracked":
        app.conf.update(task_ignore_result=False, task_track_started=True,
                        result_backend=f"{url}/{RESULTS}")
    if variant == "floor" and database != STAGING:
        floors.TaskRecorder(f"{url}/{STORE}")
    if variant == "memsync" and database != STAGING:
        app.conf.memsync_backend = f"{url}/{STORE}"
        MemSync(app)
    app.task(name="bench.noop", shared=False)(noop)
    app.finalize()
    return app


def noop() -> None:
    pass


class Variant:
    def __init__(self, url: str, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.database = VARIANTS.index(name) + 1
        self.queue = redis.Redis.from_url(f"{url}/{self.database}")
        self.staging = redis.Redis.from_url(f"{url}/{STAGING}")
        self.store = redis.Redis.from_url(f"{url}/{STORE}")
        self.results = redis.Redis.from_url(f"{url}/{RESULTS}")
        self.app = make_app(url, name, STAGING)
        self.server = self.queue.info("server")["process_id"]

    def run(self) -> common.Round:
        self.staging.flushdb()
        with self.app.producer_or_acquire() as producer:
            for _ in range(TASKS):
                self.app.tasks["bench.noop"].apply_async(producer=producer)
        pids = [self.pid, *common.children_of(self.pid)]
        before = [common.cpu_of(pid) for pid in pids]
        server, began = common.cpu_of(self.server), time.perf_counter()
        self.staging.copy("celery", "celery", destination_db=str(self.database), replace=True)
        while self.queue.llen("celery") or self.queue.hlen("unacked"):
            time.sleep(0.01)
        wall = time.perf_counter() - began
        time.sleep(0.3)
        main, *children = [common.cpu_of(pid) - then for pid, then in zip(pids, before)]
        server = common.cpu_of(self.server) - server
        self.check()
        figures = {"time": wall, "CPU of the worker": main + sum(children), "CPU of main": main,
                   "CPU of the child": sum(children), "CPU of Redis": server}
        return {f"{name}, µs": value / TASKS * 1e6 for name, value in figures.items()}

    def check(self) -> None:
        """See that all tasks were recorded; empty the databases."""
        if self.name in ("floor", "memsync"):
            stored = self.store.dbsize()
            assert stored >= TASKS, f"{stored} records of {TASKS} tasks"
            self.store.flushdb()
        self.results.flushdb()


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(common.server())
        variants = {}
        for name in VARIANTS:
            process = stack.enter_context(common.worker(__file__, name, env={"BENCH_URL": url}))
            variants[name] = Variant(url, name, process.pid)
        for variant in variants.values():
            common.wait_for_worker(variant.queue)
        time.sleep(2)
        runs = {name: variant.run for name, variant in variants.items()}
        common.print_results("overhead", {"A no-op task": common.compare(runs, ROUNDS)})


if __name__ == "__main__":
    if "--worker" in sys.argv:
        name = sys.argv[-1]
        arguments = ["worker", "-c", "1", "-l", "ERROR", "-n", f"{name.replace(' ', '-')}@bench"]
        arguments += ["-E"] if name == "events" else []
        app = make_app(os.environ["BENCH_URL"], name, VARIANTS.index(name) + 1)
        app.worker_main(arguments)
    else:
        main()
