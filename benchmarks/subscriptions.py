"""A change, from the flush in one process until the handlers of others are called with it.

    psubscribe     redis-py: ``publish``, and a handler of ``psubscribe`` that ``get_message`` calls
    floor          stored and published by one script, received and decoded on a bare socket
    memsync        ``memsync.subscribe``; the writer writes a key and flushes it
    memsync watch  ``memsync.watch``, likewise

A latency begins just before the flush, or the publishing, by the clock that all processes share.
"in the writer" is what the flush takes. Each listener is a process; those of the other variants are
idle meanwhile. Between two changes there is time for all listeners to receive one, so that no
queue is measured.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import common
import floors
import redis

from celery_memsync import MemorySyncManager

LISTENERS = (1, 10, 100)
CHANGES, ROUNDS = common.sized(60, quick=20), common.sized(11, quick=3)

#: Seconds between two changes, and as many more for each listener.
PAUSE, PAUSE_FOR_EACH = 0.005, 0.0003

fork = multiprocessing.get_context("fork")


class Report:
    """Notes when a listener received each change; sends the times off after the last of a round."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.received: dict[int, float] = {}

    def ready(self) -> None:
        self.pipe.send("ready")

    def __call__(self, key: Any, number: int) -> None:
        self.received[number] = time.monotonic()
        if number == CHANGES - 1:
            self.pipe.send(self.received)
            self.received = {}


# -- listeners, each with the pattern of its keys


def subscribe(url: str, pattern: str, report: Report) -> None:
    memsync = MemorySyncManager(url=url)
    memsync.subscribe(pattern, report)
    report.ready()
    time.sleep(3600)


def watch(url: str, pattern: str, report: Report) -> None:
    with MemorySyncManager(url=url).watch(pattern) as changes:
        report.ready()
        for change in changes:
            report(change.key, change.value)


def psubscribe(url: str, pattern: str, report: Report) -> None:
    def handle(message: dict[str, Any]) -> None:
        report(message["channel"], int(message["data"]))

    client: Any = redis.Redis.from_url(url)
    listener = client.pubsub()
    listener.psubscribe(**{pattern: handle})
    listener.get_message(timeout=10)
    report.ready()
    while True:
        listener.get_message(timeout=10)


def listen(url: str, pattern: str, report: Report) -> None:
    floors.listen(url, pattern, report.ready, report)


# -- writers, which return when they began


def write(memsync: MemorySyncManager, key: str, number: int) -> float:
    memsync.write(key, number)
    began = time.monotonic()
    memsync.force_sync()
    return began


def publish(call: Callable[[str, int], object], key: str, number: int) -> float:
    began = time.monotonic()
    call(key, number)
    return began


# -- measurement


@contextlib.contextmanager
def listeners(
    target: Callable[[str, str, Report], None], url: str, pattern: str, number: int,
) -> Iterator[list[Any]]:
    """Run listeners until the end of the block; yield the pipes on which they report."""
    pipes, processes = [], []
    try:
        for _ in range(number):
            ours, theirs = fork.Pipe(duplex=False)
            arguments = (url, pattern, Report(theirs))
            processes.append(fork.Process(target=target, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        for pipe in pipes:
            receive(pipe)
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def receive(pipe: Any) -> Any:
    if not pipe.poll(30):
        raise RuntimeError("a listener has not received all changes")
    return pipe.recv()


def measure(prefix: str, change: Callable[[str, int], float], pipes: list[Any]) -> common.Round:
    began, took = {}, 0.0
    for number in range(CHANGES):
        at = time.perf_counter()
        began[number] = change(f"{prefix}/{number}", number)
        took += time.perf_counter() - at
        time.sleep(PAUSE + PAUSE_FOR_EACH * len(pipes))
    latencies = sorted(
        (when - began[number]) * 1e6
        for pipe in pipes for number, when in receive(pipe).items())
    return {"time, µs": latencies[len(latencies) // 2],
            "99 % below, µs": latencies[len(latencies) * 99 // 100],
            "received, %": len(latencies) / CHANGES / len(pipes) * 100,
            "in the writer, µs": took / CHANGES * 1e6}


def main() -> None:
    tables = {}
    with common.server() as url, MemorySyncManager(url=url) as memsync:
        publishing = partial(publish, redis.Redis.from_url(url).publish)
        writing = partial(write, memsync)
        variants = {
            "psubscribe": (psubscribe, publishing), "psubscribe again": (psubscribe, publishing),
            "floor": (listen, partial(publish, floors.publisher(url))),
            "memsync": (subscribe, writing), "memsync watch": (watch, writing),
        }
        for number in LISTENERS:
            with contextlib.ExitStack() as stack:
                measured = {}
                for name, (target, change) in variants.items():
                    prefix = name.replace(" ", "-")
                    pipes = stack.enter_context(listeners(target, url, f"{prefix}/*", number))
                    measured[name] = partial(measure, prefix, change, pipes)
                tables[f"{number} listening"] = common.compare(measured, ROUNDS)
    common.print_results("subscriptions", tables)


if __name__ == "__main__":
    main()
