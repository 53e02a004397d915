"""Locks: what it takes to have one, to hand one over, and to keep a thousand.

    redis-py     ``redis.lock.Lock``: no fence, no renewal, no queue
    evalsha      two scripts of one line by redis-py's client: the least that checks its owner
    memsync      ``memsync.lock``: fence, renewal, queue, and told to who subscribes
    python-redis-lock, celery-once, celery-singleton, pottery: theirs, those that are installed

"hand-over" is the time from giving back in one process to having it in another that waits already. Its peer is the
floor: two processes that pass an item to and fro by LPUSH and BLPOP.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import redis
from redis.lock import Lock

from celery_memsync import MemorySyncManager

TIMES, ROUNDS, HELD = 500, 21, 1000
TURNS, HAND_OVERS = 15, 100

TAKE = "if redis.call('SET',KEYS[1],ARGV[1],'NX','PX',ARGV[2]) then return 1 end return 0"
FREE = "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0"


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


def free_locks(url: str) -> dict[str, Any]:
    """Take and give back a lock that nobody else wants."""
    client = redis.Redis.from_url(url)
    pid = client.info("server")["process_id"]
    take, free = client.script_load(TAKE), client.script_load(FREE)
    with MemorySyncManager(url=url) as memsync:

        def by_redis_py() -> None:
            lock = Lock(client, "l:redis-py", timeout=30)
            lock.acquire()
            lock.release()

        def by_evalsha() -> None:
            client.evalsha(take, 1, "l:evalsha", "token", 30000)
            client.evalsha(free, 1, "l:evalsha", "token")

        def by_memsync() -> None:
            lock = memsync.lock("l")
            lock.acquire()
            lock.release()

        def measure(act: Callable[[], None]) -> common.Round:
            server, cpu, began = common.cpu_of(pid), time.process_time(), time.perf_counter()
            for _ in range(TIMES):
                act()
            wall, cpu, server = (
                time.perf_counter() - began, time.process_time() - cpu, common.cpu_of(pid) - server)
            return {name: seconds / TIMES * 1e6
                    for name, seconds in (("wall_us", wall), ("client_cpu_us", cpu), ("server_cpu_us", server))}

        acts = {"redis-py": by_redis_py, "evalsha": by_evalsha, "memsync": by_memsync, **dict(others(url, client))}
        samples = common.interleave({name: (lambda act=act: measure(act)) for name, act in acts.items()}, ROUNDS)
    return common.table(samples, "redis-py")


def renewals(url: str) -> dict[str, Any]:
    """Renew a thousand locks of one process at once."""
    with MemorySyncManager(url=url, lock_ttl=600.0) as memsync:
        locks = memsync.runtime.locks
        held = [memsync.lock(f"held-{number}") for number in range(HELD)]
        for lock in held:
            lock.acquire()
        seconds = []
        for _ in range(ROUNDS):
            for grant in locks._grants.values():
                grant.renew_at = 0.0
            began = time.perf_counter()
            locks.renew()
            seconds.append((time.perf_counter() - began) * 1e3)
    return {"locks": HELD, "ms": round(statistics.median(seconds), 2), "worst_ms": round(max(seconds), 2)}


def player(me: int, url: str, pipe: Any, stamp: Any, out: Any) -> None:
    client = redis.Redis.from_url(url, socket_timeout=None)
    memsync = MemorySyncManager(url=url)
    lock = memsync.lock("handed", wait=60)
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "blpop": (lambda: client.blpop(["item"], 60), lambda: client.lpush("item", 1)),
        "memsync": (lock.acquire, lock.release),
    }
    chance = random.Random(me)
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS):
        for name in sorted(ways, reverse=bool(turn % 2)):
            acquire, release = ways[name]
            if me == 0 and name == "blpop":
                release()
            if me == 1:
                pipe.recv_bytes()  # the other one has it
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
                pipe.send_bytes(b"r")  # this turn is over
            else:
                pipe.recv_bytes()
                if name == "blpop":
                    acquire()
            seen[name].append(statistics.median(late))
    memsync.shutdown()
    out.put(seen)


def hand_overs(url: str) -> dict[str, Any]:
    """Pass one thing to and fro between two processes."""
    context = multiprocessing.get_context("fork")
    ends = context.Pipe()
    stamp, out = context.RawArray("q", 1), context.Queue()
    players = [context.Process(target=player, args=(me, url, end, stamp, out)) for me, end in enumerate(ends)]
    for process in players:
        process.start()
    seen = [out.get() for _ in players]
    for process in players:
        process.join()
    turns = {name: [{"p50_us": one} for half in seen for one in half[name]] for name in seen[0]}
    return common.table(turns, "blpop")


def main() -> None:
    with common.server() as url:
        result = {"free": free_locks(url), "hand-over": hand_overs(url), "renewal": renewals(url)}
    common.say("locks", "redis-py; blpop", result)


if __name__ == "__main__":
    main()
