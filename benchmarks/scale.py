"""A large fleet on one Redis, and the same load on a cluster: what is full first.

    one Redis   a million task records, 10,000 workers that send heartbeats, 100 processes that
                write tasks, twice as many a second in each step, until Redis or the clients have no
                CPU left
    a cluster   of three masters, the same processes: each node's share of commands and of CPU

A task is two entries, one by its producer and one by its worker, each in a batch of its process.
Clients and servers share the cores of one machine, and the clients need more of them than Redis
does. So "full at" is calculated: from the CPU that Redis was measured to take for a task, and not
from where the clients ended.
"""
from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import common
import redis
from celery import Celery
from load import Sampler, Writers, fill, fork, manager, process, read_and_lock, send_heartbeats

from celery_memsync import MemorySyncManager, MemSync
from celery_memsync.metrics import MemsyncCollector

WORKERS, TASKS, WRITERS = common.sized((10_000, 1_000_000, 100), quick=(300, 20_000, 8))
#: Tasks a second in the first step, and on the cluster; steps at most; seconds of each, and before.
FIRST_RATE, CLUSTER_RATE = common.sized((250, 2000), quick=(100, 1000))
STEPS, SECONDS, SETTLE = common.sized((8, 15.0, 5.0), quick=(3, 2.0, 1.0))
CLUSTER_SECONDS, CALLS = common.sized((30.0, 5), quick=(4.0, 1))

#: Entries that are written of a task.
ENTRIES = 2
#: Parts of a core at which Redis is full, and of the wanted rate below which the clients are.
FULL, BEHIND = 0.9, 0.85
#: What the page calculates with: bytes of memory, seconds that a task is kept, bytes a second.
MEMORY, TTL, NETWORK = 16 * 2 ** 30, 3600.0, 125e6
#: Parts of the writes from which on a command is on the path of all, and of its calls on one node.
OFTEN, MOST = 0.2, 0.5

QUANTILES = {"p50": 0.5, "p99": 0.99}
Row = dict[str, float]


def listed(rows: Mapping[str, Row]) -> common.Table:
    """Return a table of figures without ratios."""
    return {name: {figure: {"median": common.rounded(value)} for figure, value in row.items()}
            for name, row in rows.items()}


class Usage(NamedTuple):
    """What was used until some time; the difference of two is what was used between them."""

    at: float
    tasks: float
    clients: float
    redis: float
    network: float

    @classmethod
    def read(cls, client: Any, pid: int, writers: Writers) -> Usage:
        tasks, clients, _ = writers.read()
        stats = client.info("stats")
        network = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        return cls(time.monotonic(), tasks, clients, common.cpu_of(pid), network)

    def since(self, other: Usage) -> Usage:
        return Usage(*(mine - before for mine, before in zip(self, other)))


# -- one Redis


def fill_redis(url: str) -> dict[str, Any]:
    """Record tasks by two processes; return what that took."""
    client: Any = redis.Redis.from_url(url)
    pid, bytes_before = client.info("server")["process_id"], client.info("memory")["used_memory"]
    ours, theirs = fork.Pipe()
    began, cpu = time.monotonic(), common.cpu_of(pid)
    with process(fill, url, 0, TASKS // 2, theirs), process(fill, url, TASKS // 2, TASKS, theirs):
        clients = ours.recv() + ours.recv()
    entries, seconds = ENTRIES * TASKS, time.monotonic() - began
    return {
        "entries, 1/s": entries / seconds,
        "CPU of Redis, µs an entry": (common.cpu_of(pid) - cpu) / entries * 1e6,
        "CPU of the clients, µs an entry": clients / entries * 1e6,
        "memory, bytes a task": (client.info("memory")["used_memory"] - bytes_before) / TASKS}


def indexes(client: Any, memsync: MemorySyncManager) -> dict[str, Row]:
    """Return the size of everything that is not of one task or worker."""
    keys, sizes = memsync.runtime.store.keys, {
        b"stream": client.xlen, b"hash": client.hlen, b"zset": client.zcard}
    named = {"tasks": keys.task_index, "pending": keys.pending, "processing": keys.processing,
             "metrics": keys.metrics, "statistics": keys.statistics, "workers": keys.workers,
             "heartbeats": keys.heartbeats, "locks": keys.locks, "names": keys.names}
    return {name: {"items": sizes[client.type(key)](key),
                   "memory, KB": client.memory_usage(key, samples=50) / 1024}
            for name, key in named.items() if client.exists(key)}


def slowest(client: Any) -> float:
    """Return how many milliseconds the longest command took since the last call."""
    durations = [one["duration"] for one in client.slowlog_get(1000)]
    client.slowlog_reset()
    return max(durations, default=0) / 1000


def timed_reads(client: Any, url: str, memsync: MemorySyncManager) -> dict[str, Row]:
    """Return how long it takes to read with as many tasks and workers as there are."""
    actions: dict[str, Callable[[], object]] = {
        "get_workers": memsync.get_workers, "get_active_workers": memsync.get_active_workers,
        "get_tasks(limit=100)": lambda: memsync.get_tasks(limit=100),
        "get_queue(limit=100)": lambda: memsync.get_queue(limit=100),
        "search of one task": lambda: list(memsync.search(f"tasks/task-{42:032}/*")),
        "a scrape of metrics": lambda: list(MemsyncCollector(memsync).collect()),
        **{f"celery memsync {name}": partial(run_celery, url, "memsync", name)
           for name in ("status", "doctor")}}
    rows = {}
    for name, action in actions.items():
        slowest(client)
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        rows[name] = {"time, ms": statistics.median(times) * 1000, "longest command, ms": slowest(client)}
    return rows


def run_celery(url: str, *arguments: str) -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    path = f"{common.ROOT}{os.pathsep}{folder}"
    subprocess.run(
        [sys.executable, "-m", "celery", "-A", "scale", *arguments], check=False,
        env={**os.environ, "BENCH_URL": url, "PYTHONPATH": path}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)


def make_app(url: str) -> Any:
    app = Celery("scale", broker=f"{url}/1")
    app.conf.memsync_backend = url
    MemSync(app)
    return app


def quantiles(latencies: Mapping[str, list[float]]) -> Row:
    """Return quantiles of latencies in milliseconds."""
    return {f"{name}, {word}, ms": sorted(times)[int(part * (len(times) - 1))] * 1000
            for name, times in sorted(latencies.items()) for word, part in QUANTILES.items()}


class Step(NamedTuple):
    """What was measured at one rate."""

    wanted: float
    used: Usage
    latencies: Row
    longest: float
    pending: float

    @property
    def rate(self) -> float:
        return self.used.tasks / self.used.at

    @property
    def is_last(self) -> bool:
        """Whether Redis or the clients have no CPU left."""
        return self.used.redis / self.used.at > FULL or self.is_behind

    @property
    def is_behind(self) -> bool:
        return self.rate < BEHIND * self.wanted

    def row(self) -> Row:
        entries = ENTRIES * self.used.tasks or float("inf")
        return {
            "tasks, 1/s": self.rate, "CPU of Redis, part of a core": self.used.redis / self.used.at,
            "CPU of Redis, µs an entry": self.used.redis / entries * 1e6,
            "CPU of the writers, µs an entry": self.used.clients / entries * 1e6,
            "network, MB/s": self.used.network / self.used.at / 1e6,
            "pending writes of a process": self.pending / WRITERS}


def measure_steps(
    client: Any, writers: Writers, readers: Sampler, heartbeats: Sampler,
) -> Iterator[Step]:
    """Yield what is used, and how long others wait, at no writes and then at ever more."""
    pid, rate = client.info("server")["process_id"], 0.0
    for _ in range(1 + STEPS):
        print(".", end="", file=sys.stderr, flush=True)
        writers.set_rate(rate)
        time.sleep(SETTLE)
        slowest(client), readers.read(), heartbeats.read()
        before = Usage.read(client, pid, writers)
        time.sleep(SECONDS)
        used = Usage.read(client, pid, writers).since(before)
        latencies = quantiles({**readers.read(), **heartbeats.read()})
        step = Step(rate, used, latencies, slowest(client), writers.read()[2])
        yield step
        if rate and step.is_last:
            break
        rate = 2 * rate or FIRST_RATE
    writers.set_rate(0.0)


def full_first(idle: Step, step: Step, filled: Row) -> dict[str, Row]:
    """Return what a task takes of each resource of Redis, and at how many a second that is full."""
    tasks = step.used.tasks
    cpu = (step.used.redis / step.used.at - idle.used.redis / idle.used.at) * step.used.at / tasks
    network = (step.used.network - idle.used.network) / tasks
    left = 1 - idle.used.redis / idle.used.at
    return {
        "a core of Redis, µs": {"of a task": cpu * 1e6, "full at tasks, 1/s": left / cpu},
        "16 GiB, tasks kept for an hour, bytes": {
            "of a task": filled["memory, bytes a task"],
            "full at tasks, 1/s": MEMORY / TTL / filled["memory, bytes a task"]},
        "a network of 1 Gbit/s, bytes": {
            "of a task": network, "full at tasks, 1/s": NETWORK / network},
        "for comparison: a core of the writers, µs": {
            "of a task": step.used.clients / tasks * 1e6,
            "full at tasks, 1/s": tasks / step.used.clients}}


def one_redis() -> tuple[dict[str, common.Table], dict[str, Any]]:
    """Measure one Redis."""
    with common.server() as url:
        client: Any = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", 500)
        client_limit = int(client.config_get("maxclients")["maxclients"])
        filled = fill_redis(url)
        readers = Sampler(read_and_lock, url, TASKS)
        heartbeats = Sampler(send_heartbeats, url, WORKERS)
        writers = Writers(url, WRITERS)
        with heartbeats.running():
            with readers.running(), writers.running():
                steps = list(measure_steps(client, writers, readers, heartbeats))
                connections = client.info("clients")["connected_clients"] / (2 + WRITERS)
            with manager("reader", url) as memsync:
                reads = timed_reads(client, url, memsync)
                sizes = indexes(client, memsync)
        sustained = [one for one in steps if one.wanted and not one.is_behind] or steps[1:]
        full = full_first(steps[0], sustained[-1], filled)
        commands = sorted(client.info("commandstats").items(), key=lambda one: -one[1]["usec"])
        named = {f"{one.wanted:,.0f} tasks a second": one for one in steps}
        return {
            f"Writing {TASKS:,} tasks": listed({"memsync": filled}),
            f"Load by {WRITERS} processes": listed({name: one.row() for name, one in named.items()}),
            "Latency under that load": listed(
                {name: {**one.latencies, "longest command, ms": one.longest}
                 for name, one in named.items()}),
            "What is full first": listed(full),
            "Reads at that size": listed(reads),
            "Indexes at that size": listed(sizes),
            "Commands of Redis": listed({
                name[8:]: {"calls": one["calls"], "µs each": one["usec_per_call"]}
                for name, one in commands[:8]}),
        }, {
            "The size": f"{TASKS:,} task records, {WORKERS:,} workers, {WRITERS} writing processes",
            "Full first": min(
                list(full)[:3], key=lambda name: full[name]["full at tasks, 1/s"]).rpartition(",")[0],
            "Why the steps ended": "the clients had no CPU left" if steps[-1].is_behind else
                                   "Redis had no CPU left" if steps[-1].is_last else
                                   "the last step was reached",
            "Connections": f"{connections:.1f} of a writing process; {client_limit:,} of Redis",
        }


# -- a cluster


class NodeUsage(NamedTuple):
    """What a node did."""

    commands: Counter[str]
    cpu: float
    keys: int

    @classmethod
    def read(cls, client: Any) -> NodeUsage:
        stats, cpu = client.info("commandstats"), client.info("cpu")
        calls = Counter({name[8:]: one["calls"] for name, one in stats.items()
                         if not re.match("cmdstat_(info|config|ping|dbsize)", name)})
        return cls(calls, cpu["used_cpu_user"] + cpu["used_cpu_sys"], client.dbsize())


def share_of(parts: list[float]) -> list[float]:
    return [part / max(1e-9, sum(parts)) for part in parts]


def farthest(shares: list[float]) -> float:
    """Return by which part of it the share farthest from an equal one differs from that."""
    return max(abs(share * len(shares) - 1) for share in shares)


def a_cluster() -> tuple[dict[str, common.Table], dict[str, Any]]:
    """Measure the shares of the nodes of a cluster."""
    with common.cluster() as urls:
        clients: list[Any] = [redis.Redis.from_url(url) for url in urls]
        url = "redis+cluster://" + ",".join(url.rpartition("/")[2] for url in urls)
        writers = Writers(url, WRITERS)
        with writers.running():
            writers.set_rate(CLUSTER_RATE)
            time.sleep(5 * SETTLE)
            tasks, before = writers.read()[0], list(map(NodeUsage.read, clients))
            began = time.monotonic()
            time.sleep(CLUSTER_SECONDS)
            after, tasks = list(map(NodeUsage.read, clients)), writers.read()[0] - tasks
            seconds = time.monotonic() - began
    calls = [one.commands - its.commands for one, its in zip(after, before)]
    cpus = [one.cpu - its.cpu for one, its in zip(after, before)]
    commands, cpu, keys = share_of([one.total() for one in calls]), share_of(cpus), share_of(
        [float(one.keys) for one in after])
    entries = max(1.0, ENTRIES * tasks)
    whole = sum(calls, Counter[str]())
    central = [name for name, count in whole.items()
               if count > OFTEN * entries and max(one[name] for one in calls) > MOST * count]
    names = [f"node {number}" for number in range(1, 1 + len(urls))]
    return {
        "Shares of the nodes of a cluster": listed({
            name: {"commands": commands[at], "CPU": cpu[at], "keys": keys[at]}
            for at, name in enumerate(names)}),
        "The node farthest from a third": listed({
            common.OURS: {"commands": farthest(commands), "CPU": farthest(cpu)}}),
        "Commands of the nodes, for each entry": listed({
            name: dict(zip(names, (one[name] / entries for one in calls)))
            for name, _ in whole.most_common(12)}),
    }, {
        "Load of the cluster": f"{tasks / seconds:,.0f} tasks a second by {WRITERS} processes, "
                               f"{sum(cpus) / entries * 1e6:.0f} µs of CPU of its nodes an entry",
        "Commands of every write that go to one node": ", ".join(central) or "none",
    }


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tables, facts = one_redis()
    more, others = a_cluster()
    common.print_results("scale", {**tables, **more}, **facts, **others)


if "BENCH_URL" in os.environ:
    app = make_app(os.environ["BENCH_URL"])

if __name__ == "__main__":
    main()
