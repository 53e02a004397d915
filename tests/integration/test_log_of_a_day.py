"""Every line that this package logs in a day in the life of a fleet, as an operator reads it.

The lines are compared with ``tests/golden/log_of_a_day.txt``; ``MEMSYNC_GOLDEN=write`` writes it anew.
"""
from __future__ import annotations

import os
import re
import signal
import time

from tests.support.paths import ROOT
from tests.support.waiting import eventually

GOLDEN = ROOT / "tests" / "golden" / "log_of_a_day.txt"

#: What differs from day to day.
VARIABLE = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "<id>"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
    (r"-fleet-\d+@", "@"),
    (r"fleet-\d+", "<fleet>"),
    (r"(celery-memsync|celery|redis-py) \d[^ ,\n]*", r"\1 <version>"),
    (r"(for|after) \d+(\.\d+)? s", r"\1 <n> s"),
    (r"Could not [^(]+ \(", "Could not <do this> ("),
    (r"it (refused|closed) the connection; [^?]*\?", "<cause, and what to do>"),
)


def lines_of(worker):
    """Return what this package has logged in a worker, without what differs from day to day."""
    found = re.findall(r"^(\w+) celery_memsync\S* (.*)$", worker.output(), re.M)
    text = "\n".join(f"{level:<8} {message}" for level, message in found)
    for pattern, replacement in VARIABLE:
        text = re.sub(pattern, replacement, text, flags=re.M)
    # The listener and the heartbeat notice each for itself that Redis is back.
    return re.sub(r"(INFO .* answers again .*)\n(INFO .* was restarted .*)", r"\2\n\1", text).splitlines()


def logs(worker, text):
    eventually(lambda: text in worker.output(), 20, f"{worker.name} does not log {text!r}")


def test_log_of_a_day_shows_an_operator_what_happened_and_no_more(make_fleet, own_store):
    fleet = make_fleet(
        store=own_store, memsync_worker_ttl=3.0, memsync_heartbeat_interval=1.0,
        worker_log_format="%(levelname)s %(name)s %(message)s")
    threads = ("-P", "threads", "-c", "2")

    # Start, and work.
    steady = fleet.start_worker(*threads)
    killed = fleet.start_worker(*threads, "-Q", "risky")
    assert fleet.send("add", 1, 2).get(timeout=10) == 3

    # A worker is killed: its tasks are lost, and the one that opted in is sent again.
    held = [fleet.task(name).apply_async((*args, 60), queue="risky") for name, *args in (("hold_again", "key"), ("sleep",))]
    for one in held:
        fleet.wait(one, "STARTED")
    fleet.wait_running(killed, *held)
    killed.stop(signal.SIGKILL)
    logs(steady, "Requeued task")

    # A worker stands still, and comes back.
    away = fleet.start_worker(*threads, "-Q", "other")
    away.pause()
    logs(steady, f"Worker {away.name} lost")
    away.signal(signal.SIGCONT)
    logs(away, "is back")

    # Redis is away, and comes back.
    own_store.stop()
    for worker in (steady, away):
        logs(worker, "Trying again")
    fleet.send("add", 1, 2).get(timeout=10)
    time.sleep(1)
    own_store.start()
    for worker in (steady, away):
        logs(worker, "answers again")
        logs(worker, "Redis was restarted")

    # Stop.
    for worker in (steady, away):
        worker.stop()

    found = "\n".join(
        f"== {name}\n" + "\n".join(lines_of(worker))
        for name, worker in (("steady", steady), ("killed", killed), ("away", away))) + "\n"
    if os.environ.get("MEMSYNC_GOLDEN") == "write":
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()
