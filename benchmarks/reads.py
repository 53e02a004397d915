"""Reads: of what was read before, by one thread and by eight, and of what was not.

    memsync                    ``memsync.read``; the caller may change what it gets
    floor                      a dict under a lock; not cached: GET on a bare socket, and decoding
    locked LRU                 the same in the order of use; all callers get the same object
    locked LRU, decoded        of JSON, which is decoded for each caller
    locked LRU, copied         of what marshal makes of a value, so that each caller has its own
    kombu LRU, cachetools LRU  as locked LRU, the latter if it is installed
    redis-py cache             redis-py's own cache, and decoding, if the server is new enough; by
                               one thread only: eight that used redis-py 8.1's together hung
    GET, GET decoded           redis-py's GET of the string that memsync stores

Cached keys are read in turn. In "Not cached" only memsync has a cache, and each key is read once.
"""
from __future__ import annotations

import contextlib
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
import floors
import redis
from kombu.utils.functional import LRUCache
from redis.cache import CacheConfig

from celery_memsync import MemorySyncManager

FLAT = {"status": "PROGRESS", "current": 42, "total": 1000, "worker": "celery@host-1", "errors": 3,
        "rate": 1234.5, "file": "customers-2024-11.csv",
        "note": "reading chunk number forty-two of it, slowly"}
RECORDS = {
    "flat": FLAT,
    "nested": {**FLAT, "note": ["slowly"],
               "detail": {"rows": [1, 2, 3], "seen": {"by": "a", "at": 1.5}}},
    "string": "x" * 200,
}
HOT, THREADS, ROUNDS = 100, 8, common.sized(15, quick=4)

#: Reads in a round: of a cache in this process, of others, and of keys that are not cached.
READS, SLOW, ONCE = common.sized(50_000, quick=20_000), common.sized(1000, quick=300), 500

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
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"time, µs": wall / number * 1e6, "CPU of the client, µs": cpu / number * 1e6}


def in_turn(read: Read, keys: list[str], number: int) -> None:
    for key in itertools.islice(itertools.cycle(keys), number):
        read(key)


def by_threads(read: Read, keys: list[str], number: int) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(THREADS):
            pool.submit(in_turn, read, keys, number // THREADS)


def local_caches(values: dict[str, Any]) -> Iterator[tuple[str, Read]]:
    """Yield caches in this process, the peer first."""
    locked, texts, copies = LockedLRU(1000), LockedLRU(1000), LockedLRU(1000)
    kombus = LRUCache(1000)  # type: ignore[no-untyped-call]
    for key, value in values.items():
        locked.set(key, value)
        texts.set(key, json.dumps(value))
        copies.set(key, marshal.dumps(value))
        kombus[key] = value
    yield "locked LRU", locked.get
    yield "floor", floors.Cache(values).get
    yield "locked LRU, decoded", lambda key: json.loads(texts.get(key))
    yield "locked LRU, copied", lambda key: marshal.loads(copies.get(key))
    yield "kombu LRU", kombus.__getitem__
    with contextlib.suppress(ImportError):
        import cachetools

        lock = threading.Lock()
        theirs: Any = cachetools.LRUCache(1000)
        theirs.update(values)

        def read(key: str) -> Any:
            with lock:
                return theirs.get(key)
        yield "cachetools LRU", read


def decoding(client: Any, root: str) -> Read:
    return lambda key: json.loads(client.get(root + key).split(b"\n")[1])


def own_cache(url: str, root: str) -> tuple[dict[str, Read], str]:
    """Return redis-py's own cache, if it works here, and whether it does."""
    try:
        client = redis.Redis.from_url(url, protocol=3, cache_config=CacheConfig())
        client.ping()
    except redis.RedisError as exc:
        return {}, f"could not run here: {exc}"
    return {"redis-py cache": decoding(client, root)}, "ran"


def main() -> None:
    tables: dict[str, common.Table] = {}
    once = [f"once/{number}" for number in range((ROUNDS + 1) * ONCE)]
    with (common.server() as url, MemorySyncManager(url=url) as memsync,
          MemorySyncManager(url=url) as other):
        client, root = redis.Redis.from_url(url), memsync.settings.namespace + "/"
        version = client.info("server")["redis_version"]
        cached, remark = own_cache(url, root)
        values = {f"{kind}/{number}": record
                  for number in range(HOT) for kind, record in RECORDS.items()}
        for key, value in {**values, **dict.fromkeys(once, FLAT)}.items():
            other.write(key, value)
        other.force_sync()
        reads = {**dict(local_caches(values)), "memsync": memsync.read}
        slow = {"GET decoded": decoding(client, root), **cached}
        for kind in RECORDS:
            keys = [f"{kind}/{number}" for number in range(HOT)]
            for title, work in ((f"Cached, {kind}", in_turn),
                                (f"Cached, {kind}, {THREADS} threads", by_threads)):
                hot = {name: partial(timed, partial(work, read, keys, READS), READS)
                       for name, read in reads.items()}
                hot.update({name: partial(timed, partial(work, read, keys, SLOW), SLOW)
                            for name, read in slow.items()
                            if work is in_turn or name not in cached})
                tables[title] = common.compare(hot, ROUNDS)
        hits = memsync.get_metrics()["cache_hits"]
        get = lambda key: client.get(root + key)  # noqa: E731
        remote = {"GET": get, "GET again": get, "floor": floors.reader(url, root),
                  "GET decoded": slow["GET decoded"], "memsync": memsync.read}
        chunks = [once[at:at + ONCE] for at in range(0, len(once), ONCE)]
        turns = {name: map(partial(in_turn, read, number=ONCE), chunks)
                 for name, read in remote.items()}
        tables["Not cached"] = common.compare(
            {name: partial(timed, partial(next, turn), ONCE) for name, turn in turns.items()},
            ROUNDS)
        assert memsync.get_metrics()["cache_hits"] == hits, "a key read once was in the cache"
    common.print_results("reads", tables, Redis=version, **{"redis-py's own cache": remark})


if __name__ == "__main__":
    main()
