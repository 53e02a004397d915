"""Processes that load a Redis: some write tasks at a rate that is set, one sends heartbeats, one reads.

They are forked from one process, which has imported everything, so a hundred of them share most of
their memory. Each ends with the block that started it, or with the process that did.
"""
from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from simulated import heartbeat_of, record_task, send_task

from celery_memsync import MemorySyncManager, MemSyncError

fork = multiprocessing.get_context("fork")

#: Seconds between two heartbeats of a worker of a small fleet: the default of memsync_heartbeat_interval.
HEARTBEAT_INTERVAL = 5.0

#: Seconds for which a writer gathers what it has to do, and between two reads of the process that reads.
TICK, PAUSE = 0.1, 0.02

#: Of a writer that is behind: seconds of work that it forgets.
BEHIND = 1.0

#: How much a writer steps back: latencies are to show how long Redis takes, and not how long a core is waited for.
NICE = 10

#: How much is in each row of the shared counters of writers: tasks, CPU seconds, pending writes.
COUNTERS = 3


def manager(name: str, url: str, **settings: Any) -> MemorySyncManager:
    """Return a manager with which nothing expires while a benchmark runs."""
    settings = {"default_ttl": 86400.0, "cache_size": 0, "timeout": 30.0, **settings}
    return MemorySyncManager(name, url, **settings)


@contextlib.contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run a function in a process that is forked, until the end of the block."""
    parent = os.getpid()

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        target(lambda: os.getppid() == parent, *args)
        os._exit(0)

    one = fork.Process(target=run, daemon=True)
    one.start()
    try:
        yield
    finally:
        one.kill()
        one.join(10)


class Writers:
    """Processes that write tasks; each is sent and ends, in two batches.

    Args:
        number: Of processes.
    """

    def __init__(self, url: str, number: int) -> None:
        self.url, self.number = url, number
        self._rate = fork.Value("d", 0.0, lock=False)
        self._rows = fork.Array("d", COUNTERS * number, lock=False)

    def set_rate(self, tasks: float) -> None:
        """Set how many tasks all of them together write in a second."""
        self._rate.value = tasks / self.number

    def read(self) -> tuple[float, float, float]:
        """Return tasks, CPU seconds and pending writes of all until now."""
        rows = list(self._rows)
        return sum(rows[0::COUNTERS]), sum(rows[1::COUNTERS]), sum(rows[2::COUNTERS])

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start them; end them with the block."""
        with contextlib.ExitStack() as stack:
            for number in range(self.number):
                stack.enter_context(process(self._write, number))
            yield

    def _write(self, is_wanted: Callable[[], bool], number: int) -> None:
        os.nice(NICE)
        memsync = manager(f"writer-{number}", self.url)
        sent: list[tuple[str, int]] = []
        at, written, due = COUNTERS * number, 0, 0.0
        then = time.monotonic() + random.random() * TICK
        while is_wanted():
            time.sleep(max(0.0, then - time.monotonic()))
            then = max(then + TICK, time.monotonic() - BEHIND)
            ended, sent = sent, []
            for task_id, serial in ended:
                record_task(memsync, task_id, serial)
            due += self._rate.value * TICK
            while due >= 1:
                due, serial = due - 1, number << 32 | written
                sent.append((f"{number:04x}0000-{random.getrandbits(64):016x}-{written:08x}", serial))
                send_task(memsync, *sent[-1])
                written += 1
            used = resource.getrusage(resource.RUSAGE_SELF)
            self._rows[at:at + COUNTERS] = [
                written - len(sent) / 2, used.ru_utime + used.ru_stime, memsync.runtime.writer.pending]


def fill(is_wanted: Callable[[], bool], url: str, begin: int, end: int, pipe: Any) -> None:
    """Record tasks, sent and ended, in full batches; name them by their numbers."""
    memsync = manager("filler", url, batch_interval=3600.0, batch_size=1000, max_pending=10_000)
    for first in range(begin, end, 1000):
        numbers = range(first, min(first + 1000, end))
        for record in (send_task, record_task):
            for number in numbers:
                record(memsync, f"task-{number:032}", number)
            memsync.force_sync()
    pipe.send(time.process_time())
    while is_wanted():
        time.sleep(0.1)


class Sampler:
    """A process that does the same again and again, and measures how long it takes.

    Args:
        target: Calls what it is given with a name and a latency in seconds.
    """

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self._target, self._args = target, args
        self._ours, self._theirs = fork.Pipe()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start it; end it with the block. It is ready when this returns."""
        with process(self._run):
            assert self._ours.recv() == "ready"
            yield

    def read(self) -> dict[str, list[float]]:
        """Return the latencies since the last call, by name."""
        self._ours.send("read")
        latencies: dict[str, list[float]] = self._ours.recv()
        return latencies

    def _run(self, is_wanted: Callable[[], bool]) -> None:
        latencies: dict[str, list[float]] = {}

        def note(name: str, action: Callable[[], object]) -> None:
            began = time.perf_counter()
            with contextlib.suppress(MemSyncError):  # it has taken as long as that took to be raised
                action()
            latencies.setdefault(name, []).append(time.perf_counter() - began)
            if self._theirs.poll():
                self._theirs.recv()
                self._theirs.send(dict(latencies))
                latencies.clear()

        self._target(is_wanted, note, lambda: self._theirs.send("ready"), *self._args)


def read_and_lock(
    is_wanted: Callable[[], bool], note: Callable[..., None], ready: Callable[[], None],
    url: str, tasks: int,
) -> None:
    """Read tasks of `fill`, and take a lock that is free, one after the other."""
    memsync = manager("sampler", url)
    ready()
    while is_wanted():
        task_id = f"task-{random.randrange(tasks):032}"
        note("a read", lambda: memsync.get_task_state(task_id))
        lock = memsync.lock(f"lock-{random.randrange(1000)}")
        note("a lock", lambda: lock.acquire() and lock.release())
        time.sleep(PAUSE)


def send_heartbeats(
    is_wanted: Callable[[], bool], note: Callable[..., None], ready: Callable[[], None],
    url: str, workers: int,
) -> None:
    """Send the heartbeats of workers, as often as the package has each of them do so."""
    memsync = manager("heartbeats", url)
    hearts = [heartbeat_of(memsync, number, HEARTBEAT_INTERVAL) for number in range(workers)]
    due = [(0.0, number) for number in range(workers)]
    is_ready = False
    while is_wanted():
        at, number = due[0]
        if at and not is_ready:
            is_ready = True
            ready()
        time.sleep(max(0.0, at - time.monotonic()))
        heart = hearts[number]
        note("a heartbeat", heart.send)
        heapq.heapreplace(due, (time.monotonic() + heart.interval * heart.stretch, number))
