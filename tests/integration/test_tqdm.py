"""Bars of tqdm that report, in real workers."""
from __future__ import annotations

import pytest

from tests.support.fleet import TASKS, Fleet

BARS = "tests.support.bar_tasks"

POOLS = {"prefork": ["-c", "2"], "threads": ["-P", "threads", "-c", "2"], "solo": ["-P", "solo"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet with a worker of each pool, each with a queue of its own."""
    fleet = Fleet(tmp_path_factory.mktemp("bars"), broker, store, include=[TASKS, BARS])
    fleet.start_all(*(fleet.worker(*args, "-Q", f"{fleet.name}-{pool}") for pool, args in POOLS.items()))
    yield fleet
    fleet.close()


def send(fleet, pool, name, *args):
    return fleet.app.tasks[f"{BARS}.{name}"].apply_async(args, queue=f"{fleet.name}-{pool}")


@pytest.mark.parametrize("pool", POOLS)
def test_bar_reports_to_other_processes_while_it_runs(fleet, pool, tmp_path):
    sign = tmp_path / "go-on"

    result = send(fleet, pool, "resize", str(sign), 4)
    halfway = fleet.wait_progress(result, 4)
    sign.touch()
    fleet.wait(result, "SUCCESS")

    assert (halfway["progress"], halfway["message"], halfway["phase_number"]) == (40, "resizing", 1)
    assert fleet.wait_progress(result, 10)["phase_number"] == 1


def test_bars_one_after_the_other_are_phases(fleet):
    result = send(fleet, "prefork", "two_loops")
    fleet.wait(result, "SUCCESS")

    progress = fleet.wait_progress(result, 3)

    assert (progress["message"], progress["phase_number"]) == ("converting", 2)


def test_bars_of_other_processes_go_on_when_one_is_killed_that_has_the_lock(fleet, tmp_path):
    sign = tmp_path / "go-on"
    running = send(fleet, "prefork", "resize", str(sign), 4)
    fleet.wait_progress(running, 4)

    fleet.wait(send(fleet, "prefork", "die_in_a_bar"), "FAILURE")
    sign.touch()

    fleet.wait(running, "SUCCESS")
    fleet.wait(send(fleet, "prefork", "two_loops"), "SUCCESS")


def test_bars_leave_no_line_in_the_log_of_a_worker(fleet):
    fleet.wait(send(fleet, "solo", "two_loops"), "SUCCESS")

    lines = [line for worker in fleet.workers for line in worker.output().splitlines()]
    assert len(lines) > 10
    assert [line for line in lines if "it/s" in line or "%|" in line] == []
