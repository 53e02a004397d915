"""The fleet: what an idle worker costs beside a plain one, what a beat costs, how long asking and losing take.

Commands are counted by MONITOR, without those that scripts call.  The workers of the idle part run side by side,
each with a database of its own.  Four real workers are asked for; more of them are simulated, by their beats.
"""
from __future__ import annotations

import contextlib
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
import redis
from celery import Celery

from celery_memsync import MemorySyncManager, MemSync
from celery_memsync.fleet.heartbeat import Heartbeat
from celery_memsync.fleet.lost_workers import LostWorkerMonitor
from celery_memsync.fleet.probe_file import ProbeFile
from celery_memsync.models.order import run_key
from celery_memsync.models.task import TaskRun
from celery_memsync.models.worker import WorkerRecord

#: Databases of the brokers, and of the memory of the one worker that takes part.
PLAIN, MEMSYNC, MEMORY, MANY = 1, 2, 3, 4
SECONDS, ROUNDS, ASKED = 30.0, 3, 15
REAL = 4
FLEETS = (4, 100, 1000, 10_000)
TASKS = 500


def make_app(url: str, database: int) -> Any:
    app = Celery("bench", broker=f"{url}/{database}")
    app.conf.update(broker_connection_retry_on_startup=True)
    if database == MEMSYNC:
        app.conf.memsync_backend = f"{url}/{MEMORY}"
        MemSync(app)
    return app


def observe(url: str, seconds: float) -> Counter[int]:
    """Return how many commands clients sent to each database."""
    counts: Counter[int] = Counter()
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as lines:
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


def idle(url: str, pids: dict[str, int]) -> dict[str, Any]:
    """Return commands per second and CPU of the main process, of a plain worker and of one that takes part."""
    rows = []
    for _ in range(ROUNDS):
        before = {name: common.cpu_of(pid) for name, pid in pids.items()}
        counts = observe(url, SECONDS)
        cpu = {f"{name}_cpu_ms": (common.cpu_of(pid) - before[name]) / SECONDS * 1000 for name, pid in pids.items()}
        rows.append({
            "plain": counts[PLAIN] / SECONDS, "memsync_broker": counts[MEMSYNC] / SECONDS,
            "memsync_memory": counts[MEMORY] / SECONDS, **cpu})
    return {name: sorted(round(row[name], 3) for row in rows) for name in rows[0]}


def timed(action: Callable[[], object], times: int = ASKED) -> dict[str, float]:
    """Return the median and the worst of an action's milliseconds."""
    action()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append((time.perf_counter() - began) * 1000)
    return {"median_ms": round(sorted(taken)[times // 2], 3), "worst_ms": round(max(taken), 3)}


def asking(url: str, app: Any) -> dict[str, Any]:
    """Return how long it takes to learn of real workers, as Celery does it and from the memory."""
    inspect = app.control.inspect
    while len(app.memsync.get_active_workers()) < REAL or len(inspect().ping() or ()) < REAL:
        time.sleep(0.1)
    return {
        "get_active_workers": timed(app.memsync.get_active_workers),
        "get_workers": timed(app.memsync.get_workers),
        "inspect_ping": timed(lambda: inspect().ping(), 3),
        "inspect_stats": timed(lambda: inspect().stats(), 3),
        "inspect_stats_of_a_known_number": timed(lambda: inspect(limit=REAL).stats(), 5),
    }


def probing(url: str) -> dict[str, Any]:
    """Return how long it takes to see whether one worker is well, from outside of it."""
    environment = {**os.environ, "BENCH_URL": url, "PYTHONPATH": str(common.ROOT)}

    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, check=True)

    with tempfile.TemporaryDirectory() as folder:
        file = ProbeFile(f"{folder}/probe")
        file.heard()
        file.write(600.0, True)
        return {
            "probe": timed(lambda: run("-m", "celery_memsync.probe", file.path)),
            "python_that_does_nothing": timed(lambda: run("-c", "pass")),
            "celery_inspect_ping": timed(lambda: run("-m", "celery", "-b", f"{url}/{MEMSYNC}", "inspect", "ping"), 3),
        }


def simulated(manager: MemorySyncManager, number: int) -> Heartbeat:
    store = manager.runtime.store.with_token(f"t{number:07}")
    running = tuple({"id": f"{number:032}-{i}", "name": "proj.tasks.convert", "started_at": 1.0} for i in range(2))
    record = WorkerRecord(
        f"celery@host-{number}", hostname=f"host-{number}", pid=number, pool="prefork", concurrency=8, running=running,
        capacity={"total": 8, "active": 2, "reserved": 0, "free": 6}, queues=("celery",), versions={"celery": "5.7.0"})
    return Heartbeat(store, lambda: record, 60.0, 3600.0)


def growing(url: str) -> dict[str, Any]:
    """Return what a beat and a question cost with more and more workers."""
    client = redis.Redis.from_url(f"{url}/{MANY}")
    with MemorySyncManager("bench", f"{url}/{MANY}", worker_ttl=600.0, cache_size=0) as manager:
        result, number = {}, 0
        for size in FLEETS:
            while number < size:
                number += 1
                beating = simulated(manager, number)
                beating.beat()
            client.config_resetstat()
            beat = timed(beating.beat, 200)
            server = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
            result[size] = {
                "beat_ms": beat["median_ms"], "beat_server_us": server, "stretch": round(beating.stretch, 2),
                "get_active_workers_ms": timed(manager.get_active_workers)["median_ms"],
                "get_workers_ms": timed(manager.get_workers)["median_ms"]}
    return result


def losing(url: str) -> dict[str, float]:
    """Return how long it takes to tell of a lost worker with many tasks, once it was silent for long enough."""
    redis.Redis.from_url(f"{url}/{MANY}").flushdb()
    with MemorySyncManager("bench", f"{url}/{MANY}", batch_interval=60.0) as manager:
        silent, watcher = (manager.runtime.store.with_token(token) for token in ("silent00", "watcher0"))
        told: list[dict[str, Any]] = []
        manager.on("task-lost", lambda **details: told.append(details))
        losses = LostWorkerMonitor(watcher, manager.events, 15.0, lambda: [])
        Heartbeat(silent, lambda: WorkerRecord("silent"), 0.1, 60.0).beat()
        for number in range(TASKS):
            run = TaskRun("STARTED", name="proj.add", worker="silent", run=f"silent00-{number}")
            manager.sync_task_run(f"task-{number}", run, run_key(0, manager.runtime.store.clock.now()))
        manager.force_sync()
        heart = Heartbeat(watcher, lambda: WorkerRecord("watcher"), 0.1, 60.0, on_reply=losses.take_claims)
        while not told:
            began = time.perf_counter()
            heart.send()
            losses.settle()
            taken = time.perf_counter() - began
            time.sleep(0.02)
        assert len(told) == TASKS
        return {"tasks": TASKS, "seconds": round(taken, 3)}


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(common.server())
        pids = {}
        for name, database in (("plain", PLAIN), ("memsync", MEMSYNC)):
            process = stack.enter_context(common.worker(__file__, str(database), env={"BENCH_URL": url}))
            pids[name] = process.pid
            while not redis.Redis.from_url(f"{url}/{database}").exists("_kombu.binding.celery.pidbox"):
                time.sleep(0.1)
        time.sleep(5)
        result = {"idle": idle(url, pids)}
        for number in range(1, REAL):
            stack.enter_context(common.worker(__file__, str(MEMSYNC), f"another{number}", env={"BENCH_URL": url}))
        result.update(asking=asking(url, make_app(url, MEMSYNC)), probing=probing(url))
    with common.server() as url:
        result["fleet"] = growing(url)
        result["losing"] = losing(url)
    common.say("fleet", "plain", result)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _, database, *others = sys.argv[sys.argv.index("--worker"):]
        arguments = ["worker", "-c", "1", "-l", "ERROR", "-n", f"{''.join(others) or 'w'}{database}@bench"]
        make_app(os.environ["BENCH_URL"], int(database)).worker_main(arguments)
    else:
        main()
