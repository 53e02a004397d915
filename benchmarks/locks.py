"""Locks: what it takes to acquire and release one, to hand one over, and to renew a thousand.

    redis-py     ``redis.lock.Lock``: no fence, no renewal, no queue
    floor        two scripts of one line on a bare socket; see ``floors.py``
    evalsha      the same scripts by redis-py's client
    memsync      ``memsync.lock``: fence, renewal, queue; each change is published
    python-redis-lock, celery-once, celery-singleton, pottery: theirs, those that are installed

A hand-over is the time from the release in one process to the end of the acquisition in another
that waits already. Its peer are two processes that pass an item to and fro by LPUSH and BLPOP of
redis-py; the floor is the same on bare sockets.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import common
import floors
import redis
from redis.lock import Lock

from celery_memsync import MemorySyncManager

TIMES, ROUNDS, HELD = common.sized(500, quick=200), common.sized(21, quick=4), 1000
TURNS, HAND_OVERS = common.sized(15, quick=3), common.sized(100, quick=50)

#: How to acquire and how to release.
Way = tuple[Callable[[], Any], Callable[[], Any]]


def others(url: str, client: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the locks of other packages that are installed here."""
    with contextlib.suppress(ImportError):
        import redis_lock

        def by_python_redis_lock() -> None:
            lock = redis_lock.Lock(client, "python-redis-lock", expire=30)
            lock.acquire()
            lock.release()
        yield "python-redis-lock", by_python_redis_lock
    with contextlib.suppress(ImportError):
        from celery_once.backends.redis import Redis

        once = Redis({"url": url, "default_timeout": 30})

        def by_celery_once() -> None:
            once.raise_or_lock("celery-once", 30)
            once.clear_lock("celery-once")
        yield "celery-once", by_celery_once
    with contextlib.suppress(ImportError):
        from celery_singleton.backends.redis import RedisBackend

        singleton = RedisBackend(url)

        def by_celery_singleton() -> None:
            singleton.lock("celery-singleton", "task", 30)
            singleton.unlock("celery-singleton")
        yield "celery-singleton", by_celery_singleton
    with contextlib.suppress(ImportError):
        from pottery import Redlock

        def by_pottery() -> None:
            lock = Redlock(key="pottery", masters={client}, auto_release_time=30)
            lock.acquire()
            lock.release()
        yield "pottery", by_pottery


def free_locks(url: str) -> common.Table:
    """Acquire and release a lock that no other process wants."""
    client = redis.Redis.from_url(url)
    pid = client.info("server")["process_id"]
    acquire, release = client.script_load(floors.ACQUIRE), client.script_load(floors.RELEASE)
    with MemorySyncManager(url=url) as memsync:

        def by_redis_py() -> None:
            lock = Lock(client, "redis-py", timeout=30)
            lock.acquire()
            lock.release()

        def by_evalsha() -> None:
            client.evalsha(acquire, 1, "evalsha", "token", 30000)
            client.evalsha(release, 1, "evalsha", "token")

        def by_memsync() -> None:
            lock = memsync.lock("free")
            lock.acquire()
            lock.release()

        def measure(act: Callable[[], None]) -> common.Round:
            server, cpu, began = common.cpu_of(pid), time.process_time(), time.perf_counter()
            for _ in range(TIMES):
                act()
            wall, cpu, server = (
                time.perf_counter() - began, time.process_time() - cpu,
                common.cpu_of(pid) - server)
            figures = {"time": wall, "CPU of the client": cpu, "CPU of Redis": server}
            return {f"{name}, µs": seconds / TIMES * 1e6 for name, seconds in figures.items()}

        acts = {"redis-py": by_redis_py, "floor": floors.locker(url), "evalsha": by_evalsha,
                "memsync": by_memsync, **dict(others(url, client))}
        return common.compare(
            {name: partial(measure, act) for name, act in acts.items()}, ROUNDS)


def renewals(url: str) -> str:
    """Renew a thousand locks of one process at once."""
    with MemorySyncManager(url=url, lock_ttl=600.0) as memsync:
        locks = memsync.runtime.locks
        held = [memsync.lock(f"held-{number}") for number in range(HELD)]
        for lock in held:
            lock.acquire()
        times = []
        for _ in range(ROUNDS):
            for lease in locks._leases.values():
                lease.renew_at = 0.0
            began = time.perf_counter()
            locks.renew()
            times.append((time.perf_counter() - began) * 1e3)
    return f"{statistics.median(times):.1f} ms, at worst {max(times):.1f} ms"


# -- handing over


def ways(url: str) -> tuple[MemorySyncManager, dict[str, Way]]:
    """Return the ways to hand over by name, and the manager of one of them."""
    client, memsync = redis.Redis.from_url(url, socket_timeout=None), MemorySyncManager(url=url)
    lock = memsync.lock("handed", wait=60)

    def by_blpop(item: str) -> Way:
        return lambda: client.blpop([item], 60), lambda: client.lpush(item, 1)

    peer = "BLPOP"
    return memsync, {peer: by_blpop("item"), common.again(peer): by_blpop("item again"),
                     common.FLOOR: floors.baton(url), "memsync": (lock.acquire, lock.release)}


def play(me: int, url: str, pipe: Any, stamp: Any, out: Any) -> None:
    """Be one of the two processes; put the median latencies of each turn by way."""
    memsync, all_ways = ways(url)
    chance = random.Random(me)
    medians: dict[str, list[float]] = {name: [] for name in all_ways}
    names = list(all_ways)
    for turn in range(TURNS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            acquire, release = all_ways[name]
            is_lock = name == "memsync"
            if me == 0 and not is_lock:
                release()  # puts the item into the list
            if me == 1:
                pipe.recv_bytes()  # the other process has it
            late = []
            for number in range(HAND_OVERS):
                acquire()
                now = time.perf_counter_ns()
                if me or number:
                    late.append((now - stamp[0]) / 1e3)
                pipe.send_bytes(b"x")
                time.sleep(chance.uniform(0.003, 0.008))
                stamp[0] = time.perf_counter_ns()
                release()
                if me == 0 or number < HAND_OVERS - 1:
                    pipe.recv_bytes()
            if me == 1:
                pipe.send_bytes(b"r")  # this turn has ended
            else:
                pipe.recv_bytes()
                if not is_lock:
                    acquire()
            medians[name].append(statistics.median(late))
    memsync.shutdown()
    out.put(medians)


def hand_overs(url: str) -> common.Table:
    """Pass one thing to and fro between two processes."""
    context = multiprocessing.get_context("fork")
    ends = context.Pipe()
    stamp, out = context.RawArray("q", 1), context.Queue()
    players = [context.Process(target=play, args=(me, url, end, stamp, out))
               for me, end in enumerate(ends)]
    for process in players:
        process.start()
    halves = [out.get() for _ in players]
    for process in players:
        process.join()
    return common.table({
        name: [{"time, µs": median} for half in halves for median in half[name]]
        for name in halves[0]})


def main() -> None:
    with common.server() as url:
        tables = {"Acquiring and releasing a free lock": free_locks(url),
                  "Handing a lock to another process": hand_overs(url)}
        renewal = renewals(url)
    common.print_results(
        "locks", tables, **{f"Renewing {HELD:,} locks of one process": renewal})


if __name__ == "__main__":
    main()
