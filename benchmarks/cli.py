"""Commands over a large memory: 1,000 workers, 100,000 tasks, 1,000 locks.

Prints the seconds of each command, all told, beside those of ``celery report`` (what Celery takes to start), and the
slowest commands of the server. Usage: ``python benchmarks/cli.py [WORKERS TASKS LOCKS]``
"""
from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import redis
from celery import Celery
from common import ROOT, server

from celery_memsync import MemorySyncManager, encoding
from celery_memsync.models.worker import WorkerRecord

COMMANDS = (["status"], ["tasks"], ["tasks", "--name", "shop.*", "--status", "failure"], ["tasks", "--sort", "runtime"],
            ["tasks", "--since", "10m", "--worker", "w7@*"], ["workers"], ["locks"], ["task", "task-000042"],
            ["task", "task-09999"], ["why", "task-099999"], ["doctor"])
ROUNDS = 3

app = Celery("cli", broker=os.environ.get("BENCH_URL", "memory://"))
app.conf.memsync_backend = os.environ.get("BENCH_URL", "redis://")


def fill(url: str, workers: int, tasks: int, locks: int) -> list[object]:
    """Tell of a fleet; return what must live as long as it does."""
    memsync = MemorySyncManager(worker_id="filler", url=url, max_pending=tasks + 10, lock_ttl=600.0)
    for number in range(workers):
        record = WorkerRecord(f"w{number}@host", pool="prefork", concurrency=4, queues=("celery",), consuming=True,
                              capacity={"total": 4, "active": 1, "reserved": 0, "free": 3}, depths={"celery": 7})
        memsync.runtime.store.write_heartbeat(record.worker_id, encoding.dumps(record.as_dict()), 3600.0, timeout=1800.0)
    for number in range(tasks):
        memsync.sync_task_state(f"task-{number:06d}", {
            "status": "FAILURE" if number % 100 == 0 else "SUCCESS", "name": ("shop.pay", "mail.send")[number % 2],
            "worker": f"w{number % workers}@host", "runtime": number % 97 / 10, "finished_at": time.time()})
        if number % 1000 == 999:
            memsync.force_sync()
    memsync.force_sync()
    held = [memsync.lock(f"lock-{number}", ttl=600.0) for number in range(locks)]
    for lock in held:
        lock.acquire()
    return [memsync, *held]


def seconds(url: str, *command: str) -> float:
    """Run a command as a user does; return how long it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "celery", "-A", "cli", *command], cwd=ROOT / "benchmarks", check=False,
                   env={**os.environ, "BENCH_URL": url, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Fill, ask, print."""
    sizes = [int(arg) for arg in sys.argv[1:]] or [1000, 100_000, 1000]
    with server() as url:
        url += "/0"
        keep = fill(url, *sizes)
        client = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", 1000)
        print(f"{'celery report':46} {statistics.median(seconds(url, 'report') for _ in range(ROUNDS)):.2f} s")
        for command in COMMANDS:
            client.slowlog_reset()
            took = statistics.median(seconds(url, "memsync", *command) for _ in range(ROUNDS))
            slow = {row["command"].split()[0].decode(): 0.0 for row in client.slowlog_get(128)}
            for row in client.slowlog_get(128):
                name = row["command"].split()[0].decode()
                slow[name] = max(slow[name], row["duration"] / 1000)
            told = ", ".join(f"{name} {most:.1f} ms" for name, most in slow.items()) or "none over 1 ms"
            print(f"{'memsync ' + ' '.join(command):46} {took:.2f} s  {told}")
        del keep


if __name__ == "__main__":
    main()
