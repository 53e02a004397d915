"""The command line, beside Celery's own: one idle worker, a large store, and every start of Celery.

A large store has 1,000 workers, 100,000 tasks and 1,000 locks; ``celery report`` shows what Celery
takes to start. Celery's command line loads our entry point, also for other commands; the floor is
the same import without it.
"""
from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import redis
from celery import Celery
from simulated import heartbeat_of

from celery_memsync import Lock, MemorySyncManager, MemSync

ROUNDS, LARGE_ROUNDS = common.sized(11, quick=1), common.sized(3, quick=1)
WORKERS, TASKS, LOCKS = common.sized((1000, 100_000, 1000), quick=(100, 10_000, 100))

IMPORT = "import celery.bin.celery"
WITHOUT_US = ("import importlib.metadata as m; found = m.entry_points; "
              f"m.entry_points = lambda **a: []; {IMPORT}")
IMPORTS = {"without our entry point": ["-c", WITHOUT_US], "with it": ["-c", IMPORT]}

ONE_WORKER = ("inspect ping", "status", "memsync workers", "memsync status", "memsync doctor",
              "memsync --help")
LARGE_STORE = common.sized((
    "report", "memsync status", "memsync tasks", "memsync tasks --name shop.* --status failure",
    "memsync tasks --sort runtime", "memsync tasks --since 10m --worker celery@host-7",
    "memsync workers", "memsync locks", "memsync task task-000042", "memsync task task-09999",
    "memsync why task-099999", "memsync doctor"), quick=("report", "memsync status"))

#: Milliseconds from which on Redis logs a command as slow.
SLOW = 1.0


def make_app(url: str) -> Any:
    app = Celery("commands", broker=f"{url}/1")
    app.conf.update(broker_connection_retry_on_startup=True, memsync_backend=f"{url}/2")
    MemSync(app)
    return app


def run(url: str, arguments: list[str], check: bool = True) -> common.Round:
    """Run a Python program to its end; return how long it took."""
    folder = os.path.dirname(os.path.abspath(__file__))
    path = f"{common.ROOT}{os.pathsep}{folder}"
    environment = {**os.environ, "BENCH_URL": url, "PYTHONPATH": path}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=check,
                   stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"time, ms": wall * 1000, "CPU, ms": cpu * 1000}


def celery(command: str) -> list[str]:
    return ["-m", "celery", "-A", "commands", *command.split()]


def one_worker() -> dict[str, common.Table]:
    """Measure commands about a worker, and the start of any command."""
    with common.server() as url, common.worker(__file__, env={"BENCH_URL": url}):
        with MemorySyncManager(worker_id="bench", url=f"{url}/2") as memsync:
            while not any(worker.consuming for worker in memsync.get_workers()):
                time.sleep(0.2)
        time.sleep(5)  # until it receives Celery's remote control, too
        commands = {f"celery {command}": partial(run, url, celery(command))
                    for command in ONE_WORKER}
        imports = {name: partial(run, url, arguments) for name, arguments in IMPORTS.items()}
        return {"Commands about one worker": common.compare(commands, ROUNDS),
                "Import of Celery's command line": common.compare(imports, ROUNDS)}


def fill(memsync: MemorySyncManager) -> list[Lock]:
    """Record workers, tasks and locks; return the locks, which are held while they are kept."""
    for number in range(WORKERS):
        heartbeat_of(memsync, number).send()
    for number in range(TASKS):
        memsync.sync_task_state(f"task-{number:06d}", {
            "status": "FAILURE" if number % 100 == 0 else "SUCCESS",
            "name": ("shop.pay", "mail.send")[number % 2],
            "worker": f"celery@host-{number % WORKERS}", "runtime": number % 97 / 10,
            "finished_at": time.time()})
        if number % 1000 == 999:
            memsync.force_sync()
    memsync.force_sync()
    locks = [memsync.lock(f"lock-{number}", ttl=600.0) for number in range(LOCKS)]
    for lock in locks:
        lock.acquire()
    return locks


def large_store() -> common.Table:
    """Measure commands about a large store, and the slowest command that each sends to Redis."""
    with common.server() as url, MemorySyncManager(
            worker_id="filler", url=f"{url}/2", max_pending=TASKS + 10, lock_ttl=600.0) as memsync:
        locks = fill(memsync)
        client = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", int(SLOW * 1000))

        def measured(command: str) -> Callable[[], common.Round]:
            def measure() -> common.Round:
                client.slowlog_reset()
                # Some find something, or nothing, and end with 1.
                row = run(url, celery(command), check=False)
                slowest = max((one["duration"] for one in client.slowlog_get(128)), default=0)
                return {**row, "slowest command of Redis, ms": slowest / 1000}
            return measure

        table = common.compare(
            {f"celery {command}": measured(command) for command in LARGE_STORE}, LARGE_ROUNDS)
        assert all(lock.owned for lock in locks)
        return table


def main() -> None:
    tables = {**one_worker(), "Commands about a large store": large_store()}
    common.print_results("commands", tables, **{
        "A large store": f"{WORKERS:,} workers, {TASKS:,} tasks, {LOCKS:,} locks"})


if "BENCH_URL" in os.environ:
    app = make_app(os.environ["BENCH_URL"])

if __name__ == "__main__":
    if "--worker" in sys.argv:
        app.worker_main(["worker", "-c", "1", "-l", "ERROR"])
    else:
        main()
