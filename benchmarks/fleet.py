"""Workers: what an idle one costs, how long it takes to read who is alive, and to mark lost tasks.

Three idle workers run at the same time, each with a database of its own: a plain one, another
plain one, which shows the noise, and one with this package. MONITOR counts the commands of clients
without those that scripts call. Four real workers are read; more are simulated by their heartbeats.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import common
import floors
import redis
from celery import Celery
from simulated import heartbeat_of

from celery_memsync import MemorySyncManager, MemSync
from celery_memsync.fleet.heartbeat import Heartbeat
from celery_memsync.fleet.lost_workers import LostWorkerMonitor
from celery_memsync.fleet.probe_file import ProbeFile
from celery_memsync.models.order import delivered_key
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord

#: Databases: brokers of the idle workers, the store, and simulated workers.
BROKERS = {"plain": 1, "plain again": 2, "memsync": 3}
STORE, SIMULATED = 4, 5
SECONDS, ROUNDS = common.sized(30.0, quick=5.0), common.sized(3, quick=2)
READS, READ_ROUNDS = 15, common.sized(7, quick=2)
REAL, SIZES = 4, (4, 100, 1000, 10_000)
TASKS = 500


def make_app(url: str, database: int) -> Any:
    app = Celery("bench", broker=f"{url}/{database}")
    app.conf.update(broker_connection_retry_on_startup=True)
    if database == BROKERS["memsync"]:
        app.conf.memsync_backend = f"{url}/{STORE}"
        MemSync(app)
    return app


def timed(action: Callable[[], object], times: int = 1) -> Callable[[], common.Round]:
    """Return a function that measures an action."""
    def run() -> common.Round:
        began = time.perf_counter()
        for _ in range(times):
            action()
        return {"time, µs": (time.perf_counter() - began) / times * 1e6}
    return run


# -- idle workers


def count_commands(url: str, seconds: float) -> Counter[int]:
    """Return how many commands clients sent to each database."""
    counts: Counter[int] = Counter()
    port = int(url.rpartition(":")[2])
    with (socket.create_connection(("127.0.0.1", port)) as connection,
          connection.makefile("rb") as lines):
        connection.sendall(b"MONITOR\r\n")
        connection.settimeout(seconds + 60)
        end = time.monotonic() + seconds
        for line in lines:
            found = re.search(rb" \[(\d+) (\S+)", line)
            if found and found.group(2) != b"lua]":
                counts[int(found.group(1))] += 1
            if time.monotonic() > end:
                return counts
    return counts


def idle(url: str, pids: dict[str, int]) -> common.Table:
    """Return commands and CPU of idle workers."""
    samples: dict[str, list[common.Round]] = {name: [] for name in pids}
    for _ in range(ROUNDS):
        before = {name: common.cpu_of(pid) for name, pid in pids.items()}
        counts = count_commands(url, SECONDS)
        for name, pid in pids.items():
            samples[name].append({
                "commands to the broker, 1/s": counts[BROKERS[name]] / SECONDS,
                "commands to the store, 1/s": counts[STORE] / SECONDS * (name == "memsync"),
                "CPU of main, ms/s": (common.cpu_of(pid) - before[name]) / SECONDS * 1000})
    return common.table(samples)


# -- real workers


def real_workers(app: Any) -> dict[str, common.Table]:
    """Return how long it takes to read of real workers, as Celery does it and from the store."""
    inspect, memsync = app.control.inspect, app.memsync
    while len(memsync.get_active_workers()) < REAL or len(inspect().ping() or ()) < REAL:
        time.sleep(0.1)
    floor = floors.reader_of_workers(
        app.conf.memsync_backend, [f"worker-{number}" for number in range(REAL)])
    alive = {"inspect ping": timed(lambda: inspect().ping()), "floor": timed(floor, READS),
             "memsync": timed(memsync.get_active_workers, READS)}
    records = {"inspect stats": timed(lambda: inspect().stats()),
               "inspect stats, known number": timed(lambda: inspect(limit=REAL).stats()),
               "memsync": timed(memsync.get_workers, READS)}
    return {f"Which of {REAL} workers are alive": common.compare(alive, READ_ROUNDS),
            f"Records of {REAL} workers": common.compare(records, READ_ROUNDS)}


def probes(url: str) -> common.Table:
    """Return how long it takes to see from outside whether one worker is well."""
    environment = {**os.environ, "BENCH_URL": url, "PYTHONPATH": str(common.ROOT)}
    broker = f"{url}/{BROKERS['memsync']}"

    def run(*command: str) -> Callable[[], common.Round]:
        return timed(lambda: subprocess.run(
            [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, check=True))

    with tempfile.TemporaryDirectory() as folder:
        file = ProbeFile(f"{folder}/probe")
        file.note_reply()
        file.write(600.0, True)
        return common.compare({
            "celery inspect ping": run("-m", "celery", "-b", broker, "inspect", "ping"),
            "floor": run("-c", "pass"),  # a Python that does nothing
            "memsync": run("-m", "celery_memsync.probe", file.path)}, READ_ROUNDS)


# -- simulated workers


def simulated_workers(url: str) -> dict[str, common.Table]:
    """Return what a heartbeat and a read cost with more and more workers."""
    client = redis.Redis.from_url(f"{url}/{SIMULATED}")
    hearts: list[Heartbeat] = []
    tables: dict[str, common.Table] = {}
    heartbeats: dict[str, list[common.Round]] = {}
    with MemorySyncManager(
            "bench", f"{url}/{SIMULATED}", worker_ttl=600.0, cache_size=0) as memsync:

        def hvals() -> list[Any]:
            return [json.loads(text) for text in client.hvals("peer")]

        for size in SIZES:
            while len(hearts) < size:
                hearts.append(heartbeat_of(memsync, len(hearts)))
                hearts[-1].send()
            names = [f"celery@host-{number}" for number in range(size)]
            text = json.dumps(hearts[0].describe().as_dict())
            client.hset("peer", mapping=dict.fromkeys(names, text))
            floor = floors.reader_of_workers(f"{url}/{SIMULATED}", names)
            tables[f"Reading {size:,} simulated workers"] = common.compare({
                "HVALS of JSON": timed(hvals), "floor": timed(floor),
                "memsync": timed(memsync.get_active_workers),
                "memsync, records": timed(memsync.get_workers)}, common.sized(15, quick=4))
            client.config_resetstat()
            sent = timed(hearts[-1].send, 200)()
            calls = client.info("commandstats")["cmdstat_evalsha"]
            heartbeats[f"{size:,} workers"] = [{**sent, "in Redis, µs": calls["usec_per_call"]}]
    return {**tables, "A heartbeat": common.table(heartbeats)}


def lost_worker(url: str) -> str:
    """Return how long it takes to mark all tasks of a lost worker."""
    logging.getLogger("celery_memsync").setLevel(logging.ERROR)  # it warns of the loss
    redis.Redis.from_url(f"{url}/{SIMULATED}").flushdb()
    with MemorySyncManager("bench", f"{url}/{SIMULATED}", batch_interval=60.0) as memsync:
        store, lost_tasks = memsync.runtime.store, []
        lost, watcher = (store.with_token(token) for token in ("lost0000", "watcher0"))
        memsync.on("task-lost", lambda **details: lost_tasks.append(details))
        monitor = LostWorkerMonitor(watcher, memsync.events, 15.0, lambda: [])
        Heartbeat(lost, lambda: WorkerRecord("lost"), 0.1, 60.0).send()
        for number in range(TASKS):
            name = f"lost0000-{number}"
            run = TaskRun("STARTED", name="proj.add", worker="lost", run=name)
            memsync.sync_task_run(f"task-{number}", run, delivered_key(None, name))
        memsync.force_sync()
        heartbeat = Heartbeat(
            watcher, lambda: WorkerRecord("watcher"), 0.1, 60.0, on_reply=monitor.take_claims)
        while not lost_tasks:
            began = time.perf_counter()
            heartbeat.send()
            monitor.settle()
            taken = time.perf_counter() - began
            time.sleep(0.02)
        memsync.events.wait_idle(5)
        assert len(lost_tasks) == TASKS, f"{len(lost_tasks)} tasks are lost"
        return f"{taken * 1000:.0f} ms"


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(common.server())
        pids = {}
        for name, database in BROKERS.items():
            process = stack.enter_context(
                common.worker(__file__, str(database), env={"BENCH_URL": url}))
            pids[name] = process.pid
            common.wait_for_worker(redis.Redis.from_url(f"{url}/{database}"))
        time.sleep(5)
        tables = {"An idle worker": idle(url, pids)}
        for number in range(1, REAL):
            stack.enter_context(common.worker(
                __file__, str(BROKERS["memsync"]), f"another{number}", env={"BENCH_URL": url}))
        tables.update(real_workers(make_app(url, BROKERS["memsync"])))
        tables["A probe of one worker"] = probes(url)
    with common.server() as url:
        tables.update(simulated_workers(url))
        facts = {f"Marking {TASKS} tasks of a lost worker": lost_worker(url)}
    common.print_results("fleet", tables, **facts)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _, broker, *others = sys.argv[sys.argv.index("--worker"):]
        name = f"{''.join(others) or 'w'}{broker}@bench"
        app = make_app(os.environ["BENCH_URL"], int(broker))
        app.worker_main(["worker", "-c", "1", "-l", "ERROR", "-n", name])
    else:
        main()
