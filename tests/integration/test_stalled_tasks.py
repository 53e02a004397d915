"""Stalled tasks, in real workers of every pool: found by their workers, shown by the commands, never found falsely."""
from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.support.fleet import TASKS, Fleet
from tests.support.flows import FLOWS, sig
from tests.support.shell import Shell, plain
from tests.support.waiting import eventually

#: Seconds without a report after which tasks stall here, and between two heartbeats.
LIMIT, INTERVAL = 1.0, 0.3

CONF = {"memsync_stall_timeout": LIMIT, "memsync_heartbeat_interval": INTERVAL}

POOLS = {"prefork": ["-c", "4"], "threads": ["-P", "threads", "-c", "2"], "solo": ["-P", "solo"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with a worker of each pool, each with a queue of its own."""
    fleet = Fleet(tmp_path_factory.mktemp("stalled"), broker, store, **CONF)
    fleet.start_all(*(fleet.worker(*args, "-Q", f"{fleet.name}-{pool}") for pool, args in POOLS.items()))
    yield fleet
    fleet.close()


def send(fleet, sign, pool="prefork", last=2, name="report_by_signs"):
    result = fleet.send(name, str(sign), last, queue=f"{fleet.name}-{pool}")
    fleet.wait(result, "STARTED")
    return result


def stalled_at(fleet, result):
    return (fleet.reader.get_task_progress(result.id) or {}).get("stalled_at")


def test_stall_is_found_in_every_pool_and_ends_with_the_next_report(fleet, tmp_path):
    results = {pool: send(fleet, tmp_path / pool, pool) for pool in POOLS}
    silent = [eventually(lambda: stalled_at(fleet, result)) for result in results.values()]

    for pool in POOLS:
        (tmp_path / f"{pool}1").touch()
    cleared = [eventually(lambda: (one := fleet.reader.get_task_progress(result.id))["current"] and one)["stalled_at"]
               for result in results.values()]
    again = [eventually(lambda: stalled_at(fleet, result)) for result in results.values()]
    for pool in POOLS:
        (tmp_path / f"{pool}2").touch()
    ends = [fleet.wait(result, "SUCCESS") for result in results.values()]

    assert cleared == [None] * len(POOLS)
    assert all(later > earlier for earlier, later in zip(silent, again))
    for result, worker, end in zip(results.values(), fleet.workers, ends):
        first, second = (one["details"] for one in fleet.notes("task-stalled", result.id))
        assert (first["name"], first["worker_id"]) == (f"{TASKS}.report_by_signs", worker.name)
        assert first["since"] == pytest.approx(end["started_at"], abs=LIMIT / 2)
        assert second["since"] > first["since"] + LIMIT
        assert f"Task {TASKS}.report_by_signs[{result.id}] has stalled" in worker.output()
        assert stalled_at(fleet, result) is None


def test_task_may_be_exempt(fleet, tmp_path):
    exempt = send(fleet, tmp_path / "a", name="report_by_signs_and_never_stall", last=1)
    other = send(fleet, tmp_path / "a", last=1)

    eventually(lambda: stalled_at(fleet, other))
    time.sleep(2 * INTERVAL)
    found = stalled_at(fleet, exempt)
    (tmp_path / "a1").touch()

    assert found is None
    fleet.wait(exempt, "SUCCESS")
    assert fleet.notes("task-stalled", exempt.id) == []


def test_commands_show_a_stalled_task(fleet, tmp_path):
    shell = Shell(fleet.env())
    result = send(fleet, tmp_path / "b")
    (tmp_path / "b1").touch()
    fleet.wait_progress(result, 1)
    eventually(lambda: stalled_at(fleet, result))

    lines = {name: [line for line in plain(shell.run(name)).splitlines() if result.id in line]
             for name in ("tasks", "status")}
    why = plain(shell.run("why", result.id))
    task = plain(shell.run("task", result.id))
    followed = shell.run("follow", "--timeout", "0.5", result.id).stdout
    found = json.loads(plain(shell.run("why", "--json", result.id)))
    (tmp_path / "b2").touch()

    assert all("50% stalled" in line for rows in lines.values() for line in rows)
    assert list(map(len, lines.values())) == [1, 1]
    assert "50%, 1 of 2, but has stalled: it has reported nothing for" in why
    assert "50%, 1 of 2, stalled since 20" in task
    assert "50%, 1 of 2, stalled since 20" in followed
    assert (found["reason"], found["evidence"]["progress"]["stalled_at"] > 0) == ("stalled", True)
    fleet.wait(result, "SUCCESS")


@pytest.mark.acceptance
@pytest.mark.parametrize("paused", ["worker", "Redis"])
def test_pause_of_redis_or_of_the_whole_worker_is_no_stall(make_fleet, own_store, paused):
    fleet = make_fleet(store=own_store, include=[TASKS, FLOWS], **CONF)
    worker = fleet.start_worker("-c", "1")
    result = sig(fleet, "wait", seconds=3 * LIMIT).apply_async()
    fleet.wait(result, "STARTED")
    eventually(lambda: fleet.reader.get_task_progress(result.id))

    if paused == "worker":
        os.killpg(worker.process.pid, signal.SIGSTOP)
        time.sleep(2 * LIMIT)
        os.killpg(worker.process.pid, signal.SIGCONT)
    else:
        with own_store.paused():
            time.sleep(2 * LIMIT)
    fleet.wait(result, "SUCCESS", timeout=20)

    assert fleet.notes("task-stalled", result.id) == []
