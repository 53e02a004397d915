"""A no-op task in a prefork worker: what keeping its state costs, beside plain Celery and Celery's own ways to do so.

    plain         nothing is kept; "plain_again" is the same once more and shows the noise
    tracked       Celery's result backend in Redis, with ``task_track_started``
    events        ``-E``: Celery's events, which nobody listens to
    least         the least that one can do, see ``least.py``: the end of every task in batches, and nothing else
    memsync       every stage of every task, its times, queue, worker, process; lists and counters

Every variant has a worker and a database of its own; all live during the run
and idle except the one that is measured.  The messages are published to
another database first and then appear in the queue at once, so that publishing
is not in the measured time.  CPU is read from the kernel's clock of every process.
"""
from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

import common
import least
import redis
from celery import Celery

from celery_memsync import MemSync

VARIANTS = ("plain", "plain_again", "tracked", "events", "least", "memsync")
PEER = "plain"
STAGING, MEMORY, RESULTS = 15, 14, 13
TASKS, ROUNDS = 3000, 7


def make_app(url: str, variant: str, database: int) -> Any:
    app = Celery("bench", broker=f"{url}/{database}")
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True,
                    worker_send_task_events=variant == "events")
    if variant == "tracked":
        app.conf.update(task_ignore_result=False, task_track_started=True, result_backend=f"{url}/{RESULTS}")
    if variant == "least" and database != STAGING:
        least.Tracker(f"{url}/{MEMORY}")
    if variant == "memsync" and database != STAGING:
        app.conf.memsync_backend = f"{url}/{MEMORY}"
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
        self.memory = redis.Redis.from_url(f"{url}/{MEMORY}")
        self.results = redis.Redis.from_url(f"{url}/{RESULTS}")
        self.app = make_app(url, name, STAGING)
        self.server = self.queue.info("server")["process_id"]

    def run(self) -> common.Round:
        self.staging.flushdb()
        with self.app.producer_or_acquire() as producer:
            for _ in range(TASKS):
                self.app.tasks["bench.noop"].apply_async(producer=producer)
        pids = [self.pid, *common.children_of(self.pid)]
        before, server, began = [common.cpu_of(pid) for pid in pids], common.cpu_of(self.server), time.perf_counter()
        self.staging.copy("celery", "celery", destination_db=self.database, replace=True)
        while self.queue.llen("celery") or self.queue.hlen("unacked"):
            time.sleep(0.01)
        wall = time.perf_counter() - began
        time.sleep(0.3)
        main, *children = [common.cpu_of(pid) - then for pid, then in zip(pids, before)]
        redis_cpu = common.cpu_of(self.server) - server
        if self.name == "tracked":
            self.results.flushdb()
        if self.name in ("least", "memsync"):
            stored = self.memory.dbsize()
            assert stored >= TASKS, f"{stored} records of {TASKS} tasks"
            self.memory.flushdb()
        figures = {"wall": wall, "worker_cpu": main + sum(children), "main_cpu": main, "child_cpu": sum(children),
                   "redis_cpu": redis_cpu}
        return {f"{name}_us": value / TASKS * 1e6 for name, value in figures.items()}


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(common.server())
        variants = {}
        for name in VARIANTS:
            process = stack.enter_context(common.worker(__file__, name, env={"BENCH_URL": url}))
            variants[name] = Variant(url, name, process.pid)
        for variant in variants.values():
            while not variant.queue.exists("_kombu.binding.celery.pidbox"):
                time.sleep(0.1)
        time.sleep(2)
        samples = common.interleave({name: variant.run for name, variant in variants.items()}, ROUNDS)
        common.say("overhead", PEER, common.table(samples, PEER))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        name = sys.argv[-1]
        arguments = ["worker", "-c", "1", "-l", "ERROR", "-n", f"{name}@bench", *(["-E"] if name == "events" else [])]
        make_app(os.environ["BENCH_URL"], name, VARIANTS.index(name) + 1).worker_main(arguments)
    else:
        main()
