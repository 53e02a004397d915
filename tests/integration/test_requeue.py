"""Tasks of a lost worker are sent again, once, as they were."""
from __future__ import annotations

import json
import signal

import pytest
from celery import chord, group

from tests.support.waiting import eventually

#: Of the fleets of these tests, in seconds.
INTERVAL, TTL = 0.3, 1.5


@pytest.fixture
def fleet(make_fleet):
    return make_fleet(memsync_worker_ttl=TTL, memsync_heartbeat_interval=INTERVAL)


def kill(worker):
    """Kill the whole of a worker."""
    worker.signal(signal.SIGKILL)


def start_two(fleet, slots="1"):
    """Return a worker that takes all, and others that go on when it was killed."""
    first = fleet.start_worker("-c", slots)
    others = [fleet.worker("-c", "2"), fleet.worker("-P", "threads", "-c", "2")]
    return first, others


def kept(fleet):
    """Return the messages that Redis keeps for a fleet."""
    with fleet.store.client() as client:
        return [run for key in client.keys(f"{fleet.name}//*/messages/*") for run in client.hkeys(key)]


def test_opted_in_tasks_run_again_once_with_all_options(fleet):
    first, others = start_two(fleet, "6")
    link, link_error = fleet.task("note_args").s("link"), fleet.task("note_args").s("error")
    plain = fleet.task("hold_again").apply_async(
        ("a",), {"x": [1, "ö"]}, link=link, link_error=link_error, headers={"mark": "m1"}, priority=3)
    chained = (fleet.task("hold_again").s("b") | fleet.task("note_args").s("chain")).apply_async()
    gathered = chord(
        group(fleet.task("hold_again").s(key) for key in "cd"),
        fleet.task("note_args").s("chord")).apply_async()
    results = [plain, chained.parent, *gathered.parent.results]
    ids = [result.id for result in results]
    once = [fleet.send("sleep", 60), fleet.send("hold_late")]
    for task_id in [*ids, *(result.id for result in once)]:
        eventually(lambda: fleet.notes("begin", task_id) and fleet.status(task_id) == "STARTED")
    for other in others:
        other.start()

    kill(first)

    for result in results:
        fleet.wait_runs(result, ["LOST", "SUCCESS"], timeout=20)
    assert chained.get(timeout=10) == ["b", "chain"]
    assert [sorted(one) if isinstance(one, list) else one for one in gathered.get(timeout=10)] == [["c", "d"], "chord"]
    again = fleet.notes("begin", plain.id)
    assert len(again) == 2
    assert {name: again[0][name] for name in ("key", "facts", "argsrepr", "mark")} == \
        {name: again[1][name] for name in ("key", "facts", "argsrepr", "mark")}
    assert (again[1]["facts"], again[1]["mark"]) == ({"x": [1, "ö"]}, "m1")
    assert fleet.notes("end", plain.id)[0]["before"] == 3
    assert fleet.state(plain.id)["recoveries"] == 1
    rows = [json.loads(line) for line in fleet.notes_file.read_text().splitlines()]
    assert [row["args"] for row in rows if row["what"] == "note_args" and "link" in row["args"]] == [["a", "link"]]
    assert [len(fleet.notes("begin", task_id)) for task_id in ids] == [2, 2, 2, 2]
    assert [len(fleet.notes("task-lost", task_id)) for task_id in ids] == [1, 1, 1, 1]
    assert [fleet.status(result.id) for result in once] == ["LOST", "LOST"]
    assert [len(fleet.notes("begin", result.id)) for result in once] == [1, 1]
    eventually(lambda: fleet.reader.get_queue() == {"pending": [], "processing": []})
    eventually(lambda: kept(fleet) == [])


def test_a_task_that_kills_its_workers_is_sent_again_so_often_and_no_more(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=TTL, memsync_heartbeat_interval=INTERVAL)
    workers = [fleet.worker("-c", "1", "-Q", queue) for queue in (fleet.name, fleet.name, fleet.name, "none")]
    workers[3].start()
    result = fleet.send("kill_own_worker")

    for number, worker in enumerate(workers[:3]):
        worker.start()
        eventually(lambda: len(fleet.notes("begin", result.id)) == number + 1, timeout=15)
        eventually(lambda: len(fleet.notes("task-lost", result.id)) == number + 1, timeout=15)

    assert fleet.runs(result.id) == ["LOST", "LOST", "LOST"]
    with fleet.broker.client() as client:
        assert client.llen(fleet.name) == 0
    assert fleet.state(result.id)["recoveries"] == 2


def test_a_worker_that_is_back_after_its_task_was_sent_again_leaves_two_runs(fleet):
    paused = fleet.start_worker("-P", "threads", "-c", "2")
    other = fleet.worker("-c", "2")
    result = fleet.send("hold_again", "a", 4.0)
    eventually(lambda: fleet.notes("begin", result.id) and fleet.status(result.id) == "STARTED")
    other.start()

    paused.pause()
    eventually(lambda: fleet.runs(result.id) == ["LOST", "SUCCESS"], timeout=15)
    paused.signal(signal.SIGCONT)

    fleet.wait_record(paused, lambda record: record.status == "active")
    eventually(lambda: fleet.runs(result.id) == ["SUCCESS", "SUCCESS"])
    assert fleet.state(result.id)["worker"] == other.name
    assert len(fleet.notes("begin", result.id)) == 2


@pytest.mark.acceptance
def test_a_broker_that_is_away_when_a_worker_is_lost_gets_its_tasks_later(make_fleet, own_broker):
    fleet = make_fleet(
        broker=own_broker, memsync_worker_ttl=TTL, memsync_heartbeat_interval=INTERVAL, result_backend=None)
    first, others = start_two(fleet)
    result = fleet.send("hold_again", "a")
    eventually(lambda: fleet.notes("begin", result.id) and kept(fleet))
    others[0].start()

    own_broker.stop()
    kill(first)
    fleet.wait(result, "LOST", timeout=15)
    assert len(fleet.notes("task-lost", result.id)) == 1
    own_broker.start()

    fleet.wait(result, "SUCCESS", timeout=30)
    assert len(fleet.notes("begin", result.id)) == 2
    assert len(fleet.notes("worker-lost", first.name)) == 1
