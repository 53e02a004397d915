"""Shared by the benchmarks: a Redis of their own, rounds in turns, statistics, the JSON they print."""
from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import celery
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from celery_memsync.store.embedded import find_server

ROOT = Path(__file__).resolve().parent.parent

#: Whether to measure little, for a first impression; see :func:`sized`.
QUICK = bool(os.environ.get("BENCH_QUICK"))

#: Names in every table: this package, and the prototype that does the least, see ``floors.py``.
OURS, FLOOR = "memsync", "floor"

#: What a variant measured in one round.
Round = dict[str, float]

#: Statistics of each figure of each variant; the first variant is the peer.
Table = dict[str, dict[str, dict[str, float]]]

T = TypeVar("T")


def sized(full: T, quick: T) -> T:
    """Return how much to measure: less in quick mode."""
    return quick if QUICK else full


# -- processes


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """Start an empty redis-server; yield its URL without a database.

    ``BENCH_REDIS_SERVER`` names another binary.
    """
    port = free_port()
    binary = os.environ.get("BENCH_REDIS_SERVER") or find_server()
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        client = redis.Redis(port=port)
        while True:
            with contextlib.suppress(redis.ConnectionError):
                if client.ping():
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """Return a port on which no process listens, and not on the one 10,000 above it either.

    That is the second port of a node of a cluster. Both are below those that the kernel gives away.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with (contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            return port


@contextlib.contextmanager
def cluster(masters: int = 3) -> Iterator[list[str]]:
    """Start an empty cluster without replicas; yield the URLs of its masters, without a database."""
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(masters)]
        urls = [stack.enter_context(server("--cluster-enabled", "yes", "--dir", folder))
                for folder in folders]
        clients: list[Any] = [redis.Redis.from_url(url) for url in urls]
        for number, client in enumerate(clients):
            slots = range(number * SLOTS // masters, (number + 1) * SLOTS // masters)
            client.execute_command("CLUSTER ADDSLOTS", *slots)
        for url in urls[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", url.rpartition(":")[2])
        while not all(_is_whole(client, masters) for client in clients):
            time.sleep(0.05)
        yield urls


def _is_whole(client: Any, masters: int) -> bool:
    info = client.cluster("info")
    return bool(info["cluster_state"] == "ok") and int(info["cluster_known_nodes"]) == masters


@contextlib.contextmanager
def worker(script: str, *args: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``SCRIPT --worker ARGS``, a Celery worker, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, script, "--worker", *args],
        env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_worker(client: redis.Redis) -> None:
    """Wait until a worker has declared its queue of remote control, the last of its start."""
    while not client.exists("_kombu.binding.celery.pidbox"):
        time.sleep(0.1)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of another process, all its threads (Linux: the process's clock)."""
    return time.clock_gettime((~pid << 3) | 2)


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children (Linux)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for one in threads for child in (one / "children").read_text().split()]


# -- measurement


def again(peer: str) -> str:
    """Return the name under which a peer is measured a second time, which shows the noise."""
    return f"{peer} again"


def compare(variants: Mapping[str, Callable[[], Round]], rounds: int) -> Table:
    """Measure variants in turns, the first of which is the peer.

    The peer is measured twice, unless there is a second one of its kind already.
    """
    peer = next(iter(variants))
    doubled = {peer: variants[peer], again(peer): variants[peer], **variants}
    return table(interleave(doubled, rounds))


def interleave(
    variants: Mapping[str, Callable[[], Round]], rounds: int,
) -> dict[str, list[Round]]:
    """Measure all variants in each round, beginning with another one each time.

    A first round is not counted.
    """
    names = list(variants)
    samples: dict[str, list[Round]] = {name: [] for name in names}
    for variant in variants.values():
        variant()
    for number in range(rounds):
        print(".", end="", file=sys.stderr, flush=True)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            samples[name].append(variants[name]())
    return samples


def table(samples: Mapping[str, list[Round]]) -> Table:
    """Return the statistics of each figure of each variant.

    They are the median, and the median of the ratios to the first variant of the same round with
    the interval in which it is (``low`` to ``high``).
    """
    peers = next(iter(samples.values()))
    result: Table = {}
    for name, rows in samples.items():
        result[name] = {}
        for figure in rows[0]:
            facts = {"median": statistics.median(row[figure] for row in rows)}
            ratios = [row[figure] / peer[figure] for row, peer in zip(rows, peers) if peer[figure]]
            if ratios:
                low, high = median_interval(ratios)
                facts.update(ratio=statistics.median(ratios), low=low, high=high)
            result[name][figure] = {fact: rounded(value) for fact, value in facts.items()}
    return result


def median_interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a median, from the order of the values alone."""
    ordered = sorted(values)
    count = len(ordered)
    rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ordered[rank], ordered[count - 1 - rank]


def rounded(value: float) -> float:
    """Return a figure with four significant digits."""
    return float(f"{value:.4g}")


def print_results(name: str, tables: Mapping[str, Table], **facts: Any) -> None:
    """Print one JSON document: tables by title, and whatever else was found."""
    print(json.dumps({
        "benchmark": name, "quick": QUICK, "python": platform.python_version(),
        "celery": celery.__version__, "redis-py": redis.__version__, "tables": tables,
        "facts": facts,
    }, indent=1))
