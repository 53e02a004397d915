from __future__ import annotations

import itertools

import pytest

from celery_memsync import WorkerRecord, encoding
from celery_memsync.keys import PROGRESS, STAGE, STATE, Keys
from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.models.order import RANKS
from celery_memsync.models.progress import encode_progress
from celery_memsync.models.task import TaskRun
from celery_memsync.reading.projections import (
    active_workers,
    entry_of,
    progress_of,
    runs_of,
    state_of,
    worker_record,
    worker_records,
)
from celery_memsync.store import Task

keys = Keys("ns")


def stored(body, run="-", version=1, time=1000, worker="w", rank="-"):
    return StoredEntry(Header(version, run, rank, 0, time, 60_000, 0, "-", worker), body)


def life(status, key="-", **known):
    return stored(TaskRun(status, **known).encode("t1"), key)


def test_state_is_the_record_of_celery_overlaid_by_that_of_users():
    slots = {STAGE: life("STARTED", name="proj.add"), STATE: stored(encoding.dumps({"customer": 7}))}

    state = state_of("t1", slots)

    assert state == {"status": "STARTED", "name": "proj.add", "retries": 0, "customer": 7}


def test_status_set_by_users_shows_until_celery_records_a_later_one():
    own = stored(encoding.dumps({"status": "reading"}))

    assert state_of("t1", {STAGE: life("STARTED"), STATE: own})["status"] == "reading"
    assert state_of("t1", {STAGE: life("FAILURE"), STATE: own})["status"] == "FAILURE"


def test_projections_of_an_unknown_task_are_none():
    assert state_of("t1", {}) is None
    assert progress_of(Task({}, {}, {}), None) is None
    assert entry_of(keys.location("a"), {1: None}, 1.0) is None


def test_runs_are_in_the_order_that_redis_gave_them_whichever_was_written_last():
    task = Task({STAGE: life("SUCCESS", "1.1:c.0.a", run="a")}, {STAGE: [life("FAILURE", "1.1:c.1.b", run="b")]}, {})

    assert [(run["run"], run["status"]) for run in runs_of("t1", task)] == [("a", "SUCCESS"), ("b", "FAILURE")]


def test_progress_shows_the_last_of_the_run_before():
    now, before = (stored(encode_progress((percent, None, None, None))) for percent in (5, 80))

    progress = progress_of(Task({PROGRESS: now}, {PROGRESS: [before]}, {}), None)

    assert (progress["progress"], progress["previous"]["progress"]) == (5, 80)


@pytest.mark.parametrize("status, expected", [
    (None, (40, 4, 15.0)), ("STARTED", (40, 4, 15.0)), ("CRUNCHING", (40, 4, 15.0)), (5, (40, 4, 15.0)),
    ("SUCCESS", (100, 10, None)), *((status, (40, 4, None)) for status in sorted(RANKS.keys() - {"STARTED", "SUCCESS"})),
])
def test_progress_is_100_percent_of_a_success_and_has_an_eta_while_the_task_runs(status, expected):
    body = encode_progress((40, 4, 10, None, None, 10.0, 20.0))
    task = Task({PROGRESS: stored(body)}, {PROGRESS: [stored(body)]}, {})

    progress = progress_of(task, {"status": status})

    assert (progress["progress"], progress["current"], progress["eta"]) == expected
    assert (progress["previous"]["progress"], progress["previous"]["eta"]) == (40, None)


@pytest.mark.parametrize("row, current, total", [
    ((None, 7), 7, None), ((None, None, None, "at it"), None, None), ((100.0, 0, 0), 0, 0)])
def test_progress_of_a_success_has_the_total_as_current_where_it_is_known(row, current, total):
    progress = progress_of(Task({PROGRESS: stored(encode_progress(row))}, {}, {}), {"status": "SUCCESS"})

    assert (progress["progress"], progress["current"], progress["total"]) == (100, current, total)


def test_version_of_a_state_counts_the_writes_of_both_parts():
    parts = {STAGE: stored(TaskRun("STARTED").encode("t1"), version=2), STATE: stored(b'{"x":1}', version=3, worker="me")}

    entry = entry_of(keys.location("tasks/t1/state"), parts, 1.0)

    assert (entry.version, entry.key) == (5, "ns/tasks/t1/state")


def test_worker_without_heartbeat_is_lost_unless_it_went_offline():
    heartbeats = {
        name: stored(encoding.dumps({"status": name}), time=5000) for name in ("active", "offline")}

    assert worker_record("w1", heartbeats["active"], since=4.0).status == "active"
    assert worker_record("w1", heartbeats["active"], since=6.0).status == "lost"
    assert worker_record("w1", heartbeats["offline"], since=6.0).status == "offline"


def test_workers_set_by_hand_are_listed_beside_those_with_heartbeat():
    rows = {
        "w2/heartbeat": stored(encoding.dumps({"status": "busy"}), time=5000),
        "w1/status": stored(b'"up"', time=5000)}

    assert [(one.worker_id, one.status) for one in worker_records(rows, since=4.0)] == [
        ("w1", "active"), ("w2", "busy")]


def test_active_workers_agree_with_worker_records():
    rows = {
        "w0/status": stored(b'"up"', time=5000), "w00/status": stored(b'"up"', time=3000),
        "w9/heartbeat": stored(b"{")}
    seconds, stretches, statuses = (1, 3, 5), (1.0, 2.5), ("active", "busy", "draining", "offline")
    for number, (time, stretch, status) in enumerate(itertools.product(seconds, stretches, statuses)):
        record = WorkerRecord(f"w{number}", status, stretch=stretch)
        body = encoding.dumps(record.as_dict())
        rows[f"w1{number}/heartbeat"] = stored(body, time=time * 1000, rank=record.pulse())
        rows[f"w2{number}/heartbeat"] = stored(body, time=time * 1000)

    active = active_workers(rows, since=4.0, ttl=2.0)

    assert active == [one.worker_id for one in worker_records(rows, since=4.0, ttl=2.0)
                      if one.status not in ("lost", "offline")]
    assert len(active) == 1 + 2 * (3 * 2 + 3)


@pytest.mark.parametrize("rank", ["active:1", "-", "active:x", ":", "active", "offline:1", "active:nan", "active:1:2"])
def test_active_workers_accept_any_rank_of_a_heartbeat(rank):
    rows = {"w1/heartbeat": stored(b'{"status":"active"}', time=5000, rank=rank)}

    assert active_workers(rows, since=4.0, ttl=2.0) == (
        [] if rank.startswith("offline") else ["w1"])
    assert active_workers(rows, since=6.0, ttl=2.0) == []


def test_active_workers_do_not_read_bodies_of_heartbeats():
    rows = {"w1/heartbeat": stored(b"[" * 10, time=5000, rank=WorkerRecord("w1").pulse())}

    assert active_workers(rows, since=4.0) == ["w1"]
