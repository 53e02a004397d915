"""A soft time limit raises at any bytecode of a task: nothing of ours may be left locked or lost by it."""
from __future__ import annotations

import subprocess
import sys

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import Resolution
from tests.support.stress import stressed

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
memsync.sync_task_state("t", {"told": 0})
memsync.force_sync()  # what is imported at the first use is: an interrupted import locks Python up by itself
signal.signal(signal.SIGALRM, strike)
struck = told = 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.0005)
        for _ in range(200):
            told += 1
            memsync.sync_task_progress("t", None, current=told, total=10**9)
            memsync.sync_task_state("t", {"told": told})
            memsync.sync_task_state(f"other-{told % 50}", {"told": told})
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Limit:
        struck += 1
signal.setitimer(signal.ITIMER_REAL, 0)
memsync.sync_task_state("t", {"told": told})
memsync.sync_task_progress("t", None, current=told, total=10**9)
memsync.force_sync(timeout=10)
print(struck, told, memsync.get_task_state("t")["told"], memsync.get_task_progress("t")["current"])
memsync.shutdown()
"""


def test_exceptions_at_any_bytecode_leave_nothing_locked_and_nothing_lost(redis_url):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, redis_url, "20261122", SECONDS], capture_output=True, text=True, timeout=60)

    struck, told, state, progress = map(int, run.stdout.split() or [0, 0, -1, -1])
    assert run.returncode == 0, run.stderr
    assert struck > 50
    assert (state, progress) == (told, told)


BARRIERS = """
import random, signal, sys, time
from celery.exceptions import SoftTimeLimitExceeded
from celery_memsync import MemorySyncManager

def strike(*_):
    raise SoftTimeLimitExceeded

chance = random.Random(int(sys.argv[2]))
memsync = MemorySyncManager(url=sys.argv[1], batch_interval=60.0)
memsync.sync_task_state("t", {"told": 0})
memsync.force_sync()
signal.signal(signal.SIGALRM, strike)
struck = 0
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    for number in range(100):
        memsync.write(f"key-{number}", struck)
        memsync.sync_task_state(f"t{number}", {"told": struck})
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
        [sys.executable, "-c", BARRIERS, redis_url, "20261128", SECONDS], capture_output=True, text=True, timeout=60)

    struck, *others = map(int, run.stdout.split() or [0])
    assert run.returncode == 0, run.stderr
    assert struck > 20
    assert others == [0, 0, 0]


def test_a_limit_in_a_handler_of_an_event_reaches_the_task(memsync, other):
    def strike(**_):
        raise SoftTimeLimitExceeded

    memsync.on("batch-flushed", strike)
    memsync.write("a", 1)

    with pytest.raises(SoftTimeLimitExceeded):
        memsync.force_sync()

    assert other.read("a") == 1


@pytest.mark.parametrize("tell, ask", [
    (lambda memsync, value: memsync.write("a", value), lambda memsync: memsync.read("a", consistent=True)),
    (lambda memsync, value: memsync.sync_task_state("t", value), lambda memsync: memsync.get_task_state("t")),
])
def test_a_limit_in_a_resolver_reaches_the_task_and_the_conflict_is_settled_later(make_memsync, other, tell, ask):
    strikes = [SoftTimeLimitExceeded]

    def resolve(entries):
        if strikes:
            raise strikes.pop()
        return Resolution({"x": sum(entry.value["x"] for entry in entries)}, "sum", [])

    memsync = make_memsync(batch_interval=60.0, conflict_resolver=resolve)
    tell(other, {"x": 1})
    other.force_sync()
    tell(memsync, {"x": 2})

    with pytest.raises(SoftTimeLimitExceeded):
        memsync.force_sync()
    memsync.force_sync()

    assert (ask(other), memsync.get_metrics()["conflicts"]) == ({"x": 3}, 1)
