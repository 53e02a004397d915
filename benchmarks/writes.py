"""Writing many keys, and counting: what it takes until all of it is in Redis.

    pipeline     redis-py: SET in pipelines of 500, and the encoding of the values
    floor        a script for 100 keys that compares versions and sets ttls; see ``floors.py``
    memsync      ``memsync.write`` of each, then ``force_sync``: versioned, published, with a ttl

The keys are new in "New keys", and there already, by the same writer, in "The same keys again",
which are as many as a process remembers. In "Increments" the pipeline holds HINCRBY, memsync calls
``increment_metrics``, and the floor adds in the process.
"""
from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import common
import floors
import redis

from celery_memsync import MemorySyncManager

WRITES, CHUNK, ROUNDS = 10_000, 500, common.sized(15, quick=4)


def record(number: int) -> dict[str, Any]:
    return {"status": "PROGRESS", "current": number, "total": WRITES, "worker": "celery@host-1",
            "errors": 3, "rate": 1234.5, "file": "customers-2024-11.csv",
            "note": "reading chunk number forty-two of it, slowly"}


def measure(pid: int, call: Callable[[], None], ready: Callable[[], None]) -> common.Round:
    ready()
    server, client, began = common.cpu_of(pid), time.process_time(), time.perf_counter()
    call()
    wall, client, server = (
        time.perf_counter() - began, time.process_time() - client, common.cpu_of(pid) - server)
    figures = {"time": wall, "CPU of the client": client, "CPU of Redis": server}
    return {f"{name}, µs": seconds / WRITES * 1e6 for name, seconds in figures.items()}


def main() -> None:
    with common.server() as url, MemorySyncManager(url=url) as memsync:
        client = redis.Redis.from_url(url)
        pid = client.info("server")["process_id"]
        writer, counter = floors.Writer(url), floors.Counter(url)
        keys, turns = [""] * WRITES, itertools.count()

        def rename() -> None:
            """Let all further writes be of new keys."""
            turn = next(turns)
            client.flushdb()
            keys[:] = [f"records/{turn}/{number:032x}" for number in range(WRITES)]

        def in_chunks(add: Callable[[Any, str, dict[str, Any]], object]) -> None:
            for begin in range(0, WRITES, CHUNK):
                pipeline = client.pipeline(transaction=False)
                for number in range(begin, begin + CHUNK):
                    add(pipeline, keys[number], record(number))
                pipeline.execute()

        def pipeline_set() -> None:
            in_chunks(lambda pipeline, key, value: pipeline.set(key, json.dumps(value)))

        def floor_write() -> None:
            writer.write((keys[number], record(number)) for number in range(WRITES))

        def write() -> None:
            for number in range(WRITES):
                memsync.write(keys[number], record(number))
            memsync.force_sync()

        def pipeline_count() -> None:
            in_chunks(lambda pipeline, key, value: pipeline.hincrby("counters", "total", 1))

        def floor_count() -> None:
            for _ in range(WRITES):
                counter.add("total", 1)
            counter.flush()

        def increment() -> None:
            for _ in range(WRITES):
                memsync.increment_metrics(total=1)
            memsync.force_sync()

        def compare(
            variants: Mapping[str, Callable[[], None]], ready: Callable[[], None],
        ) -> common.Table:
            return common.compare(
                {name: partial(measure, pid, call, ready) for name, call in variants.items()},
                ROUNDS)

        writers = {"pipeline": pipeline_set, "floor": floor_write, "memsync": write}
        counters = {"pipeline": pipeline_count, "floor": floor_count, "memsync": increment}
        tables = {
            "New keys": compare(writers, rename),
            "The same keys again": compare(writers, lambda: None),
            "Increments": compare(counters, lambda: None),
        }
        memsync.write(keys[0], "written")
        memsync.force_sync()
        stored, counted = client.dbsize(), memsync.get_coordination_metrics()["total"]
        assert stored >= 3 * WRITES, f"{stored} keys"
        assert counted == WRITES * (ROUNDS + 1), f"{counted} counted"
    common.print_results("writes", tables)


if __name__ == "__main__":
    main()
