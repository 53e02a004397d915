"""A soft time limit raises at any bytecode of a task: nothing of ours may be left locked or lost by it."""
from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import Resolution, background_loop, manager
from celery_memsync.reading import cache, reader
from celery_memsync.writing import pending, requests, writer
from tests.support.stress import stressed
from tests.support.strikes import strike

#: What a barrier runs through in the thread of its caller.
MODULES = (background_loop, cache, manager, pending, reader, requests, writer)

SECONDS = str(stressed(10.0))

SCRIPT = """
import random, signal, sys, time
from celery_memsync import MemorySyncManager

class Limit(Exception):
    pass

def strike(*_):
    raise Limit

seed = int(sys.argv[2])
chance = random.Random(seed)
memsync = MemorySyncManager(worker_id="w", url=sys.argv[1], batch_interval=0.005, batch_size=20)
memsync.sync_task_state("t", {"count": 0})
memsync.force_sync()  # what is imported at the first use is: an interrupted import locks Python up by itself
signal.signal(signal.SIGALRM, strike)
struck = count = 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.0005)
        for _ in range(200):
            count += 1
            memsync.sync_task_progress("t", None, current=count, total=10**9)
            memsync.sync_task_state("t", {"count": count})
            memsync.sync_task_state(f"other-{count % 50}", {"count": count})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Limit:
        struck += 1
signal.setitimer(signal.ITIMER_REAL, 0)
memsync.sync_task_state("t", {"count": count})
memsync.sync_task_progress("t", None, current=count, total=10**9)
memsync.force_sync(timeout=10)
state, progress = memsync.get_task_state("t"), memsync.get_task_progress("t")
print(struck, count, state["count"], progress["current"])
memsync.shutdown()
"""


def test_exceptions_at_any_bytecode_leave_nothing_locked_and_nothing_lost(redis_url):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, redis_url, "20261122", SECONDS], capture_output=True, text=True, timeout=60)

    struck, count, state, progress = map(int, run.stdout.split() or [0, 0, -1, -1])
    assert run.returncode == 0, run.stderr
    assert struck > 50
    assert (state, progress) == (count, count)


BARRIERS = """
import random, signal, sys, time
from celery.exceptions import SoftTimeLimitExceeded
from celery_memsync import MemorySyncManager

def strike(*_):
    raise SoftTimeLimitExceeded

chance = random.Random(int(sys.argv[2]))
memsync = MemorySyncManager(url=sys.argv[1], batch_interval=60.0)
memsync.sync_task_state("t", {"count": 0})
memsync.force_sync()
signal.signal(signal.SIGALRM, strike)
struck = 0
end, least = time.monotonic() + float(sys.argv[3]), int(sys.argv[4])
while struck < least or time.monotonic() < end:
    for number in range(100):
        memsync.write(f"key-{number}", struck)
        memsync.sync_task_state(f"t{number}", {"count": struck})
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.005)
        memsync.force_sync()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except SoftTimeLimitExceeded:
        struck += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
memsync.force_sync(timeout=10)
metrics = memsync.get_metrics()
print(struck, metrics["dropped"], metrics["pending_writes"], metrics["conflicts"])
memsync.shutdown()
"""


def test_a_limit_in_the_middle_of_a_barrier_drops_nothing(redis_url):
    run = subprocess.run(
        [sys.executable, "-c", BARRIERS, redis_url, "20261128", SECONDS, "21"], capture_output=True, text=True, timeout=60)

    struck, *others = map(int, run.stdout.split() or [0])
    assert run.returncode == 0, run.stderr
    assert struck > 20
    assert others == [0, 0, 0]


def test_a_limit_that_a_handler_of_an_event_raises_is_no_matter_of_the_task(memsync, other):
    def strike(**_):
        raise SoftTimeLimitExceeded

    memsync.on("batch-flushed", strike)
    memsync.write("a", 1)

    memsync.force_sync()

    assert memsync.events.wait_idle(5)
    assert other.read("a") == 1


@pytest.mark.parametrize("write, read", [
    (lambda memsync, value: memsync.write("a", value), lambda memsync: memsync.read("a", consistent=True)),
    (lambda memsync, value: memsync.sync_task_state("t", value), lambda memsync: memsync.get_task_state("t")),
])
def test_a_limit_that_a_resolver_raises_is_a_failure_of_the_resolver(
    make_memsync, other, write, read,
):
    threads = []

    def resolve(entries):
        threads.append(threading.current_thread().name)
        raise SoftTimeLimitExceeded

    memsync = make_memsync(batch_interval=60.0, conflict_resolver=resolve)
    strategies = []
    memsync.on("conflict-resolved", lambda strategy, **_: strategies.append(strategy))
    write(other, {"x": 1})
    other.force_sync()
    write(memsync, {"x": 2})

    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert (read(other), memsync.get_metrics()["conflicts"]) == ({"x": 2}, 1)
    assert strategies == ["failed: SoftTimeLimitExceeded"]
    assert threads == ["memsync-resolver"]


@pytest.mark.parametrize("write, read", [
    (lambda memsync, value: memsync.write("a", value), lambda memsync: memsync.read("a", consistent=True)),
    (lambda memsync, value: memsync.sync_task_state("t", value), lambda memsync: memsync.get_task_state("t")),
])
def test_soft_time_limit_during_a_resolver_reaches_the_task(
    make_memsync, other, write, read,
):
    def resolve(entries):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        struck.wait(10)
        return Resolution({"x": sum(entry.value["x"] for entry in entries)}, "sum", [])

    def strike_task(*_):
        raise SoftTimeLimitExceeded

    struck = threading.Event()
    memsync = make_memsync(batch_interval=60.0, conflict_resolver=resolve)
    write(other, {"x": 1})
    other.force_sync()
    write(memsync, {"x": 2})
    before = signal.signal(signal.SIGUSR1, strike_task)

    try:
        with pytest.raises(SoftTimeLimitExceeded):
            memsync.force_sync()
    finally:
        signal.signal(signal.SIGUSR1, before)
    struck.set()
    memsync.force_sync()

    assert (read(other), memsync.get_metrics()["conflicts"]) == ({"x": 3}, 1)


#: Bytecodes between two at which a barrier is struck.
STRIDE = 1


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="where signals are handled differs")
@pytest.mark.parametrize("act", [
    lambda memsync: memsync.force_sync(), lambda memsync: memsync.read_many(["a", "tasks/t/state"]),
], ids=["force_sync", "read_many"])
def test_an_exception_at_any_bytecode_of_a_barrier_loses_nothing(memsync, other, act):
    def write(number):
        memsync.write("a", number)
        memsync.sync_task_state("t", {f"x{number % 3}": number})
        memsync.increment_metrics(n=1)

    write(0)
    number = strike(lambda: act(memsync), None, *MODULES)
    memsync.force_sync()
    counted, fields, wrong = 1, {"x0": 0}, []

    for at in range(1, number + 1, STRIDE):
        write(at)
        counted, fields[f"x{at % 3}"] = counted + 1, at
        strike(lambda: act(memsync), at, *MODULES)
        memsync.force_sync()
        stored = (other.read("a", consistent=True), other.read("tasks/t/state", consistent=True),
                  other.get_coordination_metrics())
        if stored != (at, fields, {"n": counted}):
            wrong.append((at, stored))

    assert number > 20
    assert wrong == []
    assert memsync.runtime.writer.pending == 0
    assert memsync.get_metrics()["conflicts"] == 0
