"""The command line before a crowd: 1,000 workers, 100,000 tasks, 1,000 locks.

Each command runs as a user types it; what importing Celery alone takes is the floor.  Beside the time it is told how long
Redis was held longest by one command (SLOWLOG): nobody else is served meanwhile.
"""
from __future__ import annotations

import os
import subprocess
import sys
import time

import common
import redis

from celery_memsync import MemorySyncManager
from celery_memsync.heartbeat import Heartbeat
from celery_memsync.records import TaskRun, WorkerRecord, run_key

WORKERS, TASKS, LOCKS, ROUNDS = 1000, 100_000, 1000, 3

STATUSES = ("SUCCESS", "SUCCESS", "SUCCESS", "FAILURE", "STARTED", "RECEIVED", "RETRY", "PENDING")

COMMANDS = [
    ["status"], ["tasks"], ["tasks", "--limit", "1000"], ["tasks", "--status", "REVOKED"], ["tasks", "--sort", "runtime"],
    ["task", "task-000123"], ["task", "task-00012"], ["why", "task-099999"], ["workers"], ["workers", "worker-17@"], ["locks"],
    ["queue"], ["search", "tasks/task-0001*/state"], ["metrics"], ["assignments"], ["doctor"],
]


def fill(url: str) -> None:
    """Put a crowd into Redis."""
    memory = MemorySyncManager(worker_id="bench", url=url, max_pending=10_000, default_ttl=3600.0)
    now = time.time()
    for number in range(TASKS):
        status = STATUSES[number % len(STATUSES)]
        run = TaskRun(status=status, name=f"proj.task_{number % 20}", queue="default", worker=f"worker-{number % WORKERS}@host",
                      started_at=now - 60, runtime=(number % 100) / 10, run=f"run-{number}")
        memory.sync_task_run(f"task-{number:06}", run, run_key(0, now))
        if number % 5000 == 4999:
            memory.force_sync(30)
    for number in range(WORKERS):
        record = WorkerRecord(worker_id=f"worker-{number}@host", status="active", last_beat=now, pool="prefork", concurrency=8,
                              capacity={"total": 8, "active": 2, "reserved": 2, "free": 6}, queues=["default"], started_at=now)
        Heartbeat(memory.store.twin(f"t{number:07}"), lambda record=record: record, 1800.0, 3600.0).beat()
    for number in range(LOCKS):
        memory.lock(f"lock-{number}", ttl=3600).acquire()
    # The locks are to stay: nothing is given back.
    os._exit(0)


def timed(arguments: list[str], url: str) -> tuple[float, int]:
    """Run a program to its end; return how long that took in milliseconds, and its exit code."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, "CROWD_URL": url, "PYTHONPATH": str(common.ROOT)},
                          cwd=common.ROOT / "benchmarks", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000, done.returncode


def main() -> None:
    with common.server() as url:
        subprocess.run([sys.executable, __file__, "--fill", f"{url}/2"], check=True)
        client = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", 1000)
        floor = min(timed(["-c", "import celery.bin.celery, celery.app.base, kombu, redis"], url)[0] for _ in range(ROUNDS))
        print(f"{'':40} {'ms':>7} {'over import':>12} {'held Redis ms':>14}")
        for command in COMMANDS:
            client.slowlog_reset()
            rounds = [timed(["-m", "celery", "-A", "crowd", "memsync", *command], url) for _ in range(ROUNDS)]
            slow = client.slowlog_get(100)
            longest = max(slow, key=lambda one: one["duration"], default=None)
            held = "" if longest is None else f"{longest['duration'] / 1000:.1f} {longest['command'].split()[0].decode()}"
            ms = sorted(one for one, _ in rounds)[len(rounds) // 2]
            print(f"{' '.join(command):40} {ms:7.0f} {ms - floor:12.0f} {held:>14}  exit {rounds[0][1]}", flush=True)


if "CROWD_URL" in os.environ:
    from celery import Celery

    app = Celery("crowd", broker=f"{os.environ['CROWD_URL']}/1")
    app.conf.memsync_backend = f"{os.environ['CROWD_URL']}/2"

if __name__ == "__main__":
    fill(sys.argv[2]) if "--fill" in sys.argv else main()
