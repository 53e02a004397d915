"""Where the cost grows: what one operation costs while there are more and more of others.

    tasks      whose records are in Redis: a stage or a progress written, a task read, the newest
               hundred, the queue, a lock
    workers    that send heartbeats: a heartbeat, and reading all of them, for each
    writers    processes, of which Redis keeps something each: a write of each in turn

"slope" is that of cost over number in a log-log plot, by least squares: 0 is flat, 1 is in
proportion.
"""
from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import common
import redis
from simulated import heartbeat_of, record_task

from celery_memsync import MemorySyncManager
from celery_memsync.conflicts import Resolvers
from celery_memsync.events import Events
from celery_memsync.fleet.heartbeat import Heartbeat
from celery_memsync.store import Store
from celery_memsync.writing.changes import SetValue
from celery_memsync.writing.conflict_settler import ConflictSettler
from celery_memsync.writing.writer import BatchWriter

TASKS = common.sized((1_000, 10_000, 100_000, 1_000_000), quick=(1_000, 10_000))
WORKERS = common.sized((10, 100, 1000, 10_000), quick=(10, 100, 1000))
WRITERS = common.sized((1, 10, 100, 1000), quick=(1, 10, 100))
TIMES, ROUNDS, BATCH = 40, 7, 100

#: Costs of each operation, by number.
Rows = dict[int, dict[str, float]]


def cost(action: Callable[[int], object], number: int = TIMES) -> float:
    """Return the median of microseconds that a call takes, over rounds of many."""
    rows = []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        for at in range(number):
            action(turn * number + at)
        rows.append((time.perf_counter() - began) / number * 1e6)
    return statistics.median(rows)


def slope(costs: Mapping[int, float]) -> float:
    """Return the exponent with which a cost grows."""
    numbers = [math.log(number) for number in costs]
    found, _ = statistics.linear_regression(numbers, [math.log(one) for one in costs.values()])
    return round(found, 3)


def summed(rows: Rows) -> dict[str, Any]:
    """Return costs by operation and number, and their slopes."""
    names = list(next(iter(rows.values())))
    by_name = {name: {number: row[name] for number, row in rows.items()} for name in names}
    return {name: {"us": {number: common.rounded(one) for number, one in costs.items()},
                   "slope": slope(costs)}
            for name, costs in by_name.items()}


def by_tasks(url: str) -> dict[str, Any]:
    """Measure with more and more tasks."""
    client = redis.Redis.from_url(url)
    with MemorySyncManager("bench", url, cache_size=0, batch_interval=3600.0, batch_size=1000,
                           max_pending=10 ** 6, default_ttl=86400.0) as memsync:
        rows: Rows = {}
        there = 0
        for size in TASKS:
            print(".", end="", file=sys.stderr, flush=True)
            while there < size:
                for number in range(there, min(size, there + 1000)):
                    record_task(memsync, f"task-{number:08}", number)
                there = min(size, there + 1000)
                memsync.force_sync()
            serial = iter(range(10 ** 9))

            def stages(_: int, size: int = size) -> None:
                for _ in range(BATCH):
                    number = next(serial)
                    record_task(memsync, f"new-{size}-{number}", number)
                memsync.force_sync()

            def progress(at: int, size: int = size) -> None:
                for number in range(BATCH):
                    name = f"task-{number * (size // BATCH):08}"
                    memsync.sync_task_progress(name, None, current=at, total=10 ** 6)
                memsync.force_sync()

            def read(at: int, size: int = size) -> None:
                memsync.get_task_state(f"task-{at * 7919 % size:08}")

            def lock(_: int) -> None:
                held = memsync.lock("l")
                held.acquire()
                held.release()

            rows[size] = {
                "stage of a new task, in a batch": cost(stages, 4) / BATCH,
                "progress, in a batch": cost(progress, 4) / BATCH,
                "task read": cost(read),
                "newest 100 tasks": cost(lambda _: memsync.get_tasks(limit=100), 5),
                "queue": cost(lambda _: memsync.get_queue(limit=100)),
                "lock acquired and released": cost(lock),
            }
        bytes_each = round(client.info("memory")["used_memory"] / client.dbsize())
    return {**summed(rows), "bytes of Redis for each task": bytes_each}


def by_workers(url: str) -> dict[str, Any]:
    """Measure with more and more workers."""
    with MemorySyncManager("bench", url, worker_ttl=3600.0, cache_size=0) as memsync:
        rows: Rows = {}
        hearts: list[Heartbeat] = []
        for size in WORKERS:
            print(".", end="", file=sys.stderr, flush=True)
            while len(hearts) < size:
                hearts.append(heartbeat_of(memsync, len(hearts)))
                hearts[-1].send()
            rows[size] = {
                "heartbeat": cost(lambda at: hearts[at % len(hearts)].send()),
                "all workers read, each": cost(lambda _: memsync.get_workers(), 1) / size,
            }
    return summed(rows)


def by_writers(url: str) -> dict[str, Any]:
    """Measure with more and more processes that write; each has a token and its own numbers."""
    with MemorySyncManager("bench", url) as memsync:
        resolvers = Resolvers("last_write_wins", memsync.settings.namespace)
        keys = memsync.runtime.store.keys
        rows: Rows = {}
        for size in WRITERS:
            print(".", end="", file=sys.stderr, flush=True)
            stores: list[Store] = [
                memsync.runtime.store.with_token(f"w{number:07}") for number in range(size)]
            settler = ConflictSettler(memsync.runtime.store.clock, "bench", resolvers, 10 ** 6)
            writers = [
                BatchWriter(store, Events(), settler, interval=3600.0, batch_size=500,
                            max_pending=1000, on_put=lambda _: None,
                            copies=())
                for store in stores]

            def write(at: int, writers: list[BatchWriter] = writers) -> None:
                writer = writers[at % len(writers)]
                for number in range(BATCH):
                    path = f"own/{at % len(writers)}/{number}"
                    writer.put(SetValue(keys.location(path), b'"value"', 600.0))
                writer.flush()

            def write_the_same(at: int, writers: list[BatchWriter] = writers) -> None:
                writer = writers[at % len(writers)]
                writer.put(SetValue(keys.location("shared/key"), b'"value"', 600.0))
                writer.flush()

            for at in range(size):
                write(at)
            rows[size] = {"write of an own key, in a batch": cost(write, 5) / BATCH,
                          "write of one shared key": cost(write_the_same)}
            for writer in writers:
                writer.close(1.0)
    return summed(rows)


def main() -> None:
    facts = {}
    for name, measure in (("tasks", by_tasks), ("workers", by_workers), ("writers", by_writers)):
        with common.server() as url:
            facts[name] = measure(url)
    common.print_results("growth", {}, **facts)


if __name__ == "__main__":
    main()
