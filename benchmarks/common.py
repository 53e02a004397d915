"""What the benchmarks share: a Redis of their own, interleaving, statistics."""
from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import redis

from celery_memsync.store.embedded import find_server

ROOT = Path(__file__).resolve().parent.parent

Round = dict[str, float]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start an empty redis-server, that which ``BENCH_REDIS_SERVER`` names if it does; give its URL without a database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [os.environ.get("BENCH_REDIS_SERVER") or find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    while True:
        with contextlib.suppress(redis.ConnectionError):
            if client.ping():
                break
        time.sleep(0.05)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def worker(script: str, *args: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker from a benchmark's own file, as ``SCRIPT --worker ARGS``, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, script, "--worker", *args], env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def interleave(variants: dict[str, Callable[[], Round]], rounds: int) -> dict[str, list[Round]]:
    """Run all variants round by round, each round beginning with another one; a first round is not counted."""
    names = list(variants)
    samples: dict[str, list[Round]] = {name: [] for name in names}
    for variant in variants.values():
        variant()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            samples[name].append(variants[name]())
    return samples


def table(samples: dict[str, list[Round]], peer: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return median and quartiles of every figure, and the median of its ratio to the peer of the same round."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows in samples.items():
        result[name] = {}
        for figure in rows[0]:
            values = [row[figure] for row in rows]
            first, _, third = statistics.quantiles(values, n=4)
            ratios = [row[figure] / other[figure] for row, other in zip(rows, samples[peer]) if other[figure]]
            result[name][figure] = {
                "median": _short(statistics.median(values)), "q1": _short(first), "q3": _short(third),
                "ratio": _short(statistics.median(ratios)) if ratios else 0.0,
            }
    return result


def say(name: str, peer: str, result: Any) -> None:
    """Print one JSON document."""
    print(json.dumps({
        "benchmark": name, "peer": peer, "python": platform.python_version(), "celery": celery.__version__,
        "redis-py": redis.__version__, "cpus": os.cpu_count(), "results": result,
    }, indent=1))


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of another process, all its threads (Linux: the process's CPU clock)."""
    return time.clock_gettime((~pid << 3) | 2)


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children (Linux)."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
