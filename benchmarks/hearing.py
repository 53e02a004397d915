"""How long a change takes to other processes, from the flush in one to the handler in another.

    subscribe    ``memsync.subscribe``; the writer writes a key and flushes it
    watch        ``memsync.watch``, likewise
    psubscribe   redis-py: ``publish``, and a handler of ``psubscribe`` that ``get_message`` calls
    least        the same, but stored and published by one script, decoded, and handed over to a thread of the handler's

A latency is counted from just before the flush, or the publishing, by the clock that all processes share; "teller_us"
is what it takes the writer.  Every listener is a process; those of the other variants idle meanwhile.  Between two
changes there is time for all listeners of all variants to hear of one: what is measured is how long that takes, and
not a queue.
"""
from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any

import common
import redis

from celery_memsync import MemorySyncManager

PEER = "psubscribe"
LISTENERS = (1, 10, 100)
CHANGES, KEYS, ROUNDS = 100, 50, 9

#: Seconds between two changes, and as many more for each listener.
PAUSE, PAUSE_FOR_EACH = 0.005, 0.0003

STORE = 'redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2]) redis.call("PUBLISH", KEYS[1], ARGV[1])'

fork = multiprocessing.get_context("fork")


class Report:
    """Notes when one listener heard of each change and sends that off when it has heard of all of a round."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.heard: dict[int, float] = {}

    def __call__(self, key: Any, number: int) -> None:
        self.heard[number] = time.monotonic()
        if number == CHANGES - 1:
            self.pipe.send(self.heard)
            self.heard = {}


def subscribe(url: str, pipe: Any) -> None:
    memsync = MemorySyncManager(url=url)
    memsync.subscribe("subscribe/*", Report(pipe))
    pipe.send("ready")
    time.sleep(3600)


def watch(url: str, pipe: Any) -> None:
    report, memsync = Report(pipe), MemorySyncManager(url=url)
    with memsync.watch("watch/*") as changes:
        pipe.send("ready")
        for change in changes:
            report(change.key, change.value)


def psubscribe(url: str, pipe: Any) -> None:
    report = Report(pipe)
    listener = redis.Redis.from_url(url).pubsub()
    listener.psubscribe(**{"psubscribe/*": lambda message: report(message["channel"], int(message["data"]))})
    listener.get_message(timeout=10)
    pipe.send("ready")
    while True:
        listener.get_message(timeout=10)


def least(url: str, pipe: Any) -> None:
    report, arrived = Report(pipe), SimpleQueue()
    threading.Thread(target=lambda: [report(*arrived.get()) for _ in itertools.count()], daemon=True).start()
    listener = redis.Redis.from_url(url).pubsub()
    listener.psubscribe(**{"least/*": lambda message: arrived.put((message["channel"], json.loads(message["data"])))})
    listener.get_message(timeout=10)
    pipe.send("ready")
    while True:
        listener.get_message(timeout=10)


def write(memsync: MemorySyncManager, key: str, number: int) -> float:
    memsync.write(key, number)
    began = time.monotonic()
    memsync.force_sync()
    return began


def store(client: Any, sha: str, key: str, number: int) -> float:
    body = json.dumps(number)
    began = time.monotonic()
    client.evalsha(sha, 1, key, body, 3_600_000)
    return began


def publish(client: Any, key: str, number: int) -> float:
    began = time.monotonic()
    client.publish(key, number)
    return began


@contextlib.contextmanager
def listeners(listen: Callable[[str, Any], None], url: str, number: int) -> Iterator[list[Any]]:
    """Run listeners until the end of the block; give the pipes on which they report."""
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = fork.Pipe(duplex=False)
            processes.append(fork.Process(target=listen, args=(url, theirs), daemon=True))
            processes[-1].start()
            pipes.append(ours)
        for pipe in pipes:
            collect(pipe)
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def collect(pipe: Any) -> Any:
    if not pipe.poll(30):
        raise RuntimeError("a listener has not heard of all changes")
    return pipe.recv()


def measure(name: str, change: Callable[[str, int], float], pipes: list[Any]) -> common.Round:
    began, took = {}, 0.0
    for number in range(CHANGES):
        at = time.perf_counter()
        began[number] = change(f"{name}/{number % KEYS}", number)
        took += time.perf_counter() - at
        time.sleep(PAUSE + PAUSE_FOR_EACH * len(pipes))
    heard = [(number, when) for pipe in pipes for number, when in collect(pipe).items()]
    latencies = sorted((when - began[number]) * 1e6 for number, when in heard)
    return {"p50_us": latencies[len(latencies) // 2], "p99_us": latencies[len(latencies) * 99 // 100],
            "heard": len(heard) / len(pipes), "teller_us": took / CHANGES * 1e6}


def main() -> None:
    result = {}
    with common.server() as url, MemorySyncManager(url=url) as memsync:
        client = redis.Redis.from_url(url)
        writing = partial(write, memsync)
        storing = partial(store, client, client.script_load(STORE))
        changes = {"subscribe": writing, "watch": writing, "least": storing, "psubscribe": partial(publish, client)}
        for number in LISTENERS:
            with contextlib.ExitStack() as stack:
                variants = {}
                for listen in (subscribe, watch, least, psubscribe):
                    name = listen.__name__
                    pipes = stack.enter_context(listeners(listen, url, number))
                    variants[name] = partial(measure, name, changes[name], pipes)
                result[f"{number} listening"] = common.table(common.interleave(variants, ROUNDS), PEER)
    common.say("hearing", PEER, result)


if __name__ == "__main__":
    main()
