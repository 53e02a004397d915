"""Writing many keys, and counting: what it takes until all of it is in Redis.

    pipeline     redis-py: SET in pipelines of 500, and the encoding of the values; again in pipeline_again, whose difference
                 is noise
    least        the same script as memsync, 500 at once, of values that nobody has checked, see ``least.py``
    memsync      ``memsync.write`` of each, then ``force_sync``: versioned, told to who listens, with a ttl
    increments   10,000 ``increment_metrics``, then ``force_sync``; beside HINCRBY in pipelines of 500

The keys are new in "new keys", and there already, by the same writer, in "the same keys again", which are as many as a
process remembers.
"""
from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import common
import least
import redis

from celery_memsync import MemorySyncManager

PEER = "pipeline"
WRITES, CHUNK, ROUNDS = 10_000, 500, 11


def record(number: int) -> dict[str, Any]:
    return {"status": "PROGRESS", "current": number, "total": WRITES, "worker": "celery@host-1", "errors": 3,
            "rate": 1234.5, "file": "customers-2024-11.csv", "note": "reading chunk number forty-two of it, slowly"}


keys: list[str] = []


def rename() -> None:
    """Let all further writes be of keys that nobody has written."""
    turn = next(turns)
    keys[:] = [f"records/{turn}/{number:032x}" for number in range(WRITES)]


turns = itertools.count()


def measure(pid: int, call: Callable[[], object], ready: Callable[[], object]) -> common.Round:
    ready()
    server, client, began = common.cpu_of(pid), time.process_time(), time.perf_counter()
    call()
    wall, client, server = (
        time.perf_counter() - began, time.process_time() - client, common.cpu_of(pid) - server)
    return {"per_second": WRITES / wall, **{
        f"{name}_us": seconds / WRITES * 1e6
        for name, seconds in {"wall": wall, "client_cpu": client, "server_cpu": server}.items()}}


def main() -> None:
    with common.server() as url, MemorySyncManager(url=url) as memsync:
        client = redis.Redis.from_url(url)
        pid = client.info("server")["process_id"]

        def in_chunks(add: Callable[[Any, str, dict[str, Any]], object]) -> None:
            for begin in range(0, WRITES, CHUNK):
                pipeline = client.pipeline(transaction=False)
                for number in range(begin, begin + CHUNK):
                    add(pipeline, keys[number], record(number))
                pipeline.execute()

        def pipeline_set() -> None:
            in_chunks(lambda pipeline, key, value: pipeline.set(key, json.dumps(value)))

        bare = least.Batch(url)

        def least_write() -> None:
            for begin in range(0, WRITES, CHUNK):
                now = int(time.time() * 1000)
                bare.write([(keys[number], "", "* - - 0", now, json.dumps(record(number)).encode())
                            for number in range(begin, begin + CHUNK)])

        def write() -> None:
            for number in range(WRITES):
                memsync.write(keys[number], record(number))
            memsync.force_sync()

        def pipeline_count() -> None:
            in_chunks(lambda pipeline, key, value: pipeline.hincrby("counters", "total", 1))

        def increment() -> None:
            for _ in range(WRITES):
                memsync.increment_metrics(total=1)
            memsync.force_sync()

        def compare(variants: dict[str, Callable[[], object]], ready: Callable[[], object]) -> Any:
            rounds = {name: (lambda call=call: measure(pid, call, ready)) for name, call in variants.items()}
            return common.table(common.interleave(rounds, ROUNDS), PEER)

        writers = {"pipeline": pipeline_set, "pipeline_again": pipeline_set, "least": least_write, "memsync": write}
        result = {
            "new keys": compare(writers, lambda: (client.flushdb(), rename())),
            "the same keys again": compare(writers, lambda: None),
            "increments": compare({"pipeline": pipeline_count, "memsync": increment}, lambda: None),
        }
        memsync.write(keys[0], "written")
        memsync.force_sync()
        stored, counted = client.dbsize(), memsync.get_coordination_metrics()["total"]
        assert stored >= 2 * WRITES and counted == WRITES * (ROUNDS + 1), f"{stored} keys, {counted} counted"
    common.say("writes", PEER, result)


if __name__ == "__main__":
    main()
