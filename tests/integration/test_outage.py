"""Redis away: tasks go on as if nothing were, and nothing is forgotten."""
from __future__ import annotations

import signal
import time

import pytest

from tests.support.stress import stressed
from tests.support.waiting import eventually

CALLS = 10_000

#: Longest time for all those calls; with Redis there they take some tens of milliseconds.
ALLOWED = 2.0

#: Longest time for one of them; a scheduler's slice or two, but no round trip that times out.
ALLOWED_ONCE = 0.5

TASKS = stressed(5_000, 1_000)


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet with a Redis of its own for the shared state."""
    return make_fleet(store=own_store)


def test_progress_takes_no_time_while_redis_is_there(fleet):
    fleet.start_worker("-c", "1")

    took = fleet.send("count_to", CALLS).get(timeout=30)

    assert took["seconds"] < ALLOWED
    assert took["longest"] < ALLOWED_ONCE


@pytest.mark.parametrize("how", stressed(["stopped", "paused"], ["stopped"]))
def test_progress_takes_no_time_while_redis_is_away_and_is_there_afterwards(fleet, own_store, how):
    take_away(own_store, how)
    worker = fleet.start_worker("-c", "1")

    result = fleet.send("count_to", CALLS)

    took = result.get(timeout=30)
    assert took["seconds"] < ALLOWED
    assert took["longest"] < ALLOWED_ONCE
    assert f"records worker {worker.name}" not in worker.output()
    wake(own_store, how)
    fleet.wait(result, "SUCCESS")
    fleet.wait_progress(result, CALLS)
    eventually(lambda: f"records worker {worker.name}" in worker.output())


@pytest.mark.parametrize("how", stressed(["stopped", "paused", "killed"], ["paused"]))
def test_progress_takes_no_time_while_redis_goes_away(fleet, own_store, tmp_path, how):
    fleet.start_worker("-c", "1")
    result = fleet.send("count_to_in_halves", CALLS, str(tmp_path / "go on"))
    eventually(lambda: fleet.notes("half", result.id))

    take_away(own_store, how)
    (tmp_path / "go on").touch()

    took = result.get(timeout=30)
    assert took["seconds"] < ALLOWED
    assert took["longest"] < ALLOWED_ONCE
    wake(own_store, how)
    fleet.wait(result, "SUCCESS")
    eventually(lambda: fleet.reader.get_task_progress(result.id)["current"] == CALLS)


@pytest.mark.parametrize("how, seconds", stressed([("stopped", 10), ("paused", 3)], [("stopped", 3)]))
def test_no_task_of_thousands_is_missing_after_an_outage(fleet, own_store, how, seconds):
    worker = fleet.start_worker("-c", "2")
    nothing = fleet.task("nothing")
    ids = [nothing.delay().id for _ in range(TASKS // 3)]
    eventually(lambda: fleet.status(ids[0]) == "SUCCESS")

    take_away(own_store, how)
    until = time.monotonic() + seconds
    ids += [nothing.delay().id for _ in range(TASKS // 3)]
    time.sleep(max(0.0, until - time.monotonic()))
    wake(own_store, how)
    ids += [nothing.delay().id for _ in range(TASKS - len(ids))]

    eventually(lambda: fleet.status(ids[-1]) == "SUCCESS", timeout=30)
    assert statuses(fleet, ids, timeout=30) == {"SUCCESS": TASKS}
    assert "raised" not in worker.output()
    assert worker.output().count("succeeded in") == TASKS


def test_a_worker_goes_on_when_redis_comes_back_without_its_data(make_fleet, store_without_data):
    fleet = make_fleet(store=store_without_data)
    worker = fleet.start_worker("-c", "2")
    fleet.wait(fleet.send("add", 1, 1), "SUCCESS")
    store_without_data.kill()
    assert fleet.send("add", 1, 2).get(timeout=10) == 3

    store_without_data.start()

    result = fleet.send("add", 1, 3)
    assert fleet.wait(result, "SUCCESS")["worker"] == worker.name
    fleet.wait_record(worker, lambda record: record.status == "active")


@pytest.mark.parametrize("pool", [["-c", "1"], ["-P", "solo"]], ids=lambda pool: pool[1])
def test_ended_tasks_stay_away_when_redis_loses_its_data(fleet, own_store, pool):
    worker = fleet.start_worker(*pool)
    ended = [fleet.send("fail") for _ in range(10)]
    for result in ended:
        fleet.wait(result, "FAILURE")
    heartbeats = fleet.record(worker).sequence

    with own_store.client() as client:
        client.flushdb()
    # The worker learns from the reply to a heartbeat that its data are lost, and a batch later what
    # it
    # writes is there.
    fleet.wait_record(worker, lambda record: record.sequence > heartbeats)
    time.sleep(1.0)

    assert [fleet.status(result.id) for result in ended] == [None] * len(ended)
    assert fleet.reader.get_queue() == {"pending": [], "processing": []}


def test_outage_is_logged_once_and_not_at_every_try(fleet, own_store):
    worker = fleet.start_worker("-c", "1")
    fleet.wait(fleet.send("add", 1, 1), "SUCCESS")

    own_store.stop()
    for number in range(10):
        fleet.send("add", number, 1).get(timeout=10)
        time.sleep(0.3)
    own_store.start()

    fleet.wait(fleet.send("add", 1, 1), "SUCCESS")
    # The worker's main process and its child have noticed it, each for itself.
    eventually(lambda: worker.output().count("answers again after") == worker.output().count("Trying again until"))
    assert worker.output().count("Trying again until") == 2
    assert own_store.url not in worker.output()


@pytest.fixture
def store_without_data(own_store):
    """A Redis that loses all data when it is killed."""
    own_store.keep = False
    own_store.stop(signal.SIGKILL)
    own_store.start()
    return own_store


def take_away(server, how):
    """Make a Redis unavailable; it keeps its data, unless killed."""
    {"stopped": server.stop, "paused": server.pause, "killed": server.kill}[how]()


def wake(server, how):
    """Let it speak again."""
    (server.resume if how == "paused" else server.start)()


def statuses(fleet, ids, timeout):
    """Return how many tasks have which status, when all are a success or the time is up."""
    waiting, found = list(ids), {}
    deadline = time.monotonic() + timeout
    while waiting and time.monotonic() < deadline:
        entries = fleet.reader.read_many(f"tasks/{task_id}/state" for task_id in waiting)
        known = [(entry or {}).get("status", "missing") for entry in entries.values()]
        found["SUCCESS"] = found.get("SUCCESS", 0) + known.count("SUCCESS")
        waiting = [task_id for task_id, status in zip(waiting, known) if status != "SUCCESS"]
        rest = {status: known.count(status) for status in set(known) - {"SUCCESS"}}
        time.sleep(0.1)
    return {**found, **rest}
