"""Reads: of what was read before, by one thread and by eight, and of what was not.

    memsync                    ``memsync.read``; the caller may change what it gets
    locked_lru                 a dict under a lock, in the order of use; all callers get the same object
    locked_lru_decode          the same, of JSON, which is decoded for every caller
    locked_lru_copy            the same, of what marshal makes of a value: the least that gives every caller an own one
    kombu_lru, cachetools_lru  as locked_lru, the latter if it is installed
    redis_py_cache             redis-py's own cache, and decoding, if the server is new enough; by one thread only: eight
                               that used redis-py 8.1's together did not come back
    get, get_decode            redis-py's GET of the string that memsync keeps, without and with decoding what it holds

Hot keys are read in turn.  In "missed" nobody but memsync has a cache, and every key is read once.
"""
from __future__ import annotations

import itertools
import json
import marshal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import common
import redis
from kombu.utils.functional import LRUCache
from redis.cache import CacheConfig

from celery_memsync import MemorySyncManager

try:
    import cachetools
except ImportError:
    cachetools = None

FLAT = {"status": "PROGRESS", "current": 42, "total": 1000, "worker": "celery@host-1", "errors": 3, "rate": 1234.5,
        "file": "customers-2024-11.csv", "note": "reading chunk number forty-two of it, slowly"}
RECORDS = {
    "flat": FLAT,
    "nested": {**FLAT, "note": ["slowly"], "detail": {"rows": [1, 2, 3], "seen": {"by": "a", "at": 1.5}}},
    "string": "x" * 200,
}
HOT, READS, SLOW, ONCE, THREADS, ROUNDS = 100, 50_000, 1000, 500, 8, 15
PEER = "locked_lru"  # of what is missed: "get"

Read = Callable[[str], object]


class LockedLRU:
    """The plain thing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: OrderedDict[str, Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: str) -> Any:
        with self.lock:
            value = self.items.get(key)
            if value is not None:
                self.items.move_to_end(key)
            return value

    def set(self, key: str, value: Any) -> None:
        with self.lock:
            self.items[key] = value
            if len(self.items) > self.size:
                self.items.popitem(last=False)


def timed(work: Callable[[], object], number: int) -> common.Round:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_us": (time.perf_counter() - began) / number * 1e6, "cpu_us": (time.process_time() - cpu) / number * 1e6}


def in_turn(read: Read, keys: list[str], number: int) -> None:
    for key in itertools.islice(itertools.cycle(keys), number):
        read(key)


def by_threads(read: Read, keys: list[str], number: int) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(THREADS):
            pool.submit(in_turn, read, keys, number // THREADS)


def local_caches(values: dict[str, Any]) -> Iterator[tuple[str, Read]]:
    locked, texts, copies, kombus = LockedLRU(1000), LockedLRU(1000), LockedLRU(1000), LRUCache(1000)
    for key, value in values.items():
        locked.set(key, value)
        texts.set(key, json.dumps(value))
        copies.set(key, marshal.dumps(value))
        kombus[key] = value
    yield "locked_lru", locked.get
    yield "locked_lru_decode", lambda key: json.loads(texts.get(key))
    yield "locked_lru_copy", lambda key: marshal.loads(copies.get(key))
    yield "kombu_lru", kombus.__getitem__
    if cachetools is not None:
        lock, theirs = threading.Lock(), cachetools.LRUCache(1000)
        theirs.update(values)

        def read(key: str) -> Any:
            with lock:
                return theirs.get(key)
        yield "cachetools_lru", read


def decoding(client: Any, root: str) -> Read:
    return lambda key: json.loads(client.get(root + key).split(b"\n")[1])


def own_cache(url: str, root: str) -> tuple[dict[str, Read], str]:
    """Return redis-py's own cache, if there is one here, and what to say of it."""
    try:
        client = redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig())
        client.ping()
    except redis.RedisError as exc:
        return {}, f"could not run here: {exc}"
    return {"redis_py_cache": decoding(client, root)}, "ran"


def main() -> None:
    result: dict[str, Any] = {}
    once = [f"once/{number}" for number in range((ROUNDS + 1) * ONCE)]
    with common.server() as url, MemorySyncManager(url=url) as memsync, MemorySyncManager(url=url) as other:
        client, root = redis.Redis.from_url(url), memsync.settings.namespace + "/"
        result["redis"] = client.info("server")["redis_version"]
        cached, result["redis_py_cache"] = own_cache(url, root)
        values = {f"{kind}/{number}": record for number in range(HOT) for kind, record in RECORDS.items()}
        for key, value in {**values, **dict.fromkeys(once, FLAT)}.items():
            other.write(key, value)
        other.force_sync()
        reads = {"memsync": memsync.read, **dict(local_caches(values))}
        remote = {"memsync": memsync.read, "get": lambda key: client.get(root + key), "get_decode": decoding(client, root)}
        slow = {"get_decode": remote["get_decode"], **cached}
        for kind in RECORDS:
            keys = [f"{kind}/{number}" for number in range(HOT)]
            for title, work in {f"hot, {kind}": in_turn, f"hot, {kind}, {THREADS} threads": by_threads}.items():
                hot = {name: partial(timed, partial(work, read, keys, READS), READS) for name, read in reads.items()}
                hot.update({name: partial(timed, partial(work, read, keys, SLOW), SLOW) for name, read in slow.items()
                            if work is in_turn or name not in cached})
                result[title] = common.table(common.interleave(hot, ROUNDS), PEER)
        hits = memsync.get_metrics()["cache_hits"]
        chunks = [once[at:at + ONCE] for at in range(0, len(once), ONCE)]
        turns = {name: map(partial(in_turn, read, number=ONCE), chunks) for name, read in remote.items()}
        missed = {name: partial(timed, partial(next, turn), ONCE) for name, turn in turns.items()}
        result["missed"] = common.table(common.interleave(missed, ROUNDS), "get")
        assert memsync.get_metrics()["cache_hits"] == hits, "a key that was read once was in the cache"
    common.say("reads", PEER, result)


if __name__ == "__main__":
    main()
