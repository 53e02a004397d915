"""Why a task is where it is, judged by what is known of it."""
from __future__ import annotations

import json

import pytest

from celery_memsync import TaskCancelled
from celery_memsync.cli.why import KnownTask, reason_of
from celery_memsync.models.lock import LockRecord
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.models.workflow import Group, Workflow, WorkflowNode
from tests.support.paths import ROOT

NOW = 1_000_000.0
PROGRESS = {"progress": 0.0, "current": None, "total": None, "message": None, "eta": None, "stalled_at": None}
LOCK = LockRecord("invoice:7", 5, "w9", "t9", NOW - 60, 20.0, 1)


def known(status, progress=None, workers=(), awaited=None, position=None, **state):
    task = {"state": {"status": status, **state}, "progress": progress}
    return KnownTask("t1", task, workers, awaited, position, NOW, interval=5.0)


def worker(worker_id="w1", status="active", queues=("q",), free=1, last_beat=NOW - 3, **facts):
    return WorkerRecord(
        worker_id, status, queues=queues, capacity={"free": free, "total": 2}, last_beat=last_beat, **facts)


def planned(task_id, status="STARTED", **state):
    """Return a step that is not sent yet, of a chain whose second step has a status, or of a chord."""
    two = WorkflowNode("task", "two", status, 40.0, "proj.two", NOW - 12, worker="w1@h")
    one, three = (WorkflowNode("task", name, end, figure) for name, end, figure in (
        ("one", "SUCCESS", 100.0), ("three", "PENDING", 0.0)))
    header = WorkflowNode("group", "g", "STARTED", 37.5, group=Group("g", 8, 3, 2, 1, 2, 37.5))
    body = WorkflowNode("task", "body", "PENDING", 0.0)
    root = WorkflowNode("chord", "body", "STARTED", 20.0, children=(header, body)) if task_id == "body" else \
        WorkflowNode("chain", "three", "STARTED", 50.0, children=(one, two, three))
    task = {"state": {"status": "PENDING", "never_ran": False, **state}, "progress": None}
    return KnownTask(task_id, task, now=NOW, workflow=Workflow("one", root, 50.0))


REASONS = [
    ("unknown", "Unknown task t1: never sent", KnownTask("t1", None)),
    ("revoke-sent", "no worker has confirmed it", KnownTask("t1", {"state": {"revoke_requested_at": NOW - 1}}, now=NOW)),
    ("no-status", "has recorded a status of it.", KnownTask("t1", {"state": {"mine": 1}}, now=NOW)),
    ("no-status", "its progress is 10%", KnownTask("t1", {"state": None, "progress": {
        "progress": 10.0, "current": None, "total": None, "eta": None}}, now=NOW)),
    ("succeeded", "2.0s", known("SUCCESS", runtime=2.0, finished_at=NOW - 5, worker="w1")),
    ("failed", "ValueError: no cup", known("FAILURE", exception={"type": "ValueError", "message": "no cup"})),
    ("revoked", "revoked", known("REVOKED")),
    ("skipped", "lock of task t9 on w9", known("SKIPPED", lock={"task_id": "t9", "worker_id": "w9"})),
    ("ended", "IGNORED", known("IGNORED")),
    ("worker-lost", "w1 was lost", known("LOST", worker="w1")),
    ("worker-lost", "WorkerLostError: shut down", known("LOST", worker="w1", exception={
        "type": "WorkerLostError", "message": "shut down"})),
    ("retrying", "in 30.0s: OSError: away",
     known("RETRY", eta=NOW + 30, exception={"type": "OSError", "message": "away"})),
    ("locked", "task t9 on w9", known("RETRY", lock={"task_id": "t9", "worker_id": "w9", "since": NOW - 9})),
    ("locked", "the lock invoice:7 of task t9 on w9", known("STARTED", awaited=LOCK, started_at=NOW - 5)),
    ("worker-lost", "no heartbeat for 30.0s",
     known("STARTED", worker="w1", workers=[worker(status="lost", last_beat=NOW - 30)])),
    ("worker-late", "runs on w1, which has sent no heartbeat for 11.0s",
     known("STARTED", worker="w1", started_at=NOW - 60, workers=[worker(last_beat=NOW - 11)])),
    ("worker-late", "w1 has it, which has sent no heartbeat for 11.0s",
     known("RECEIVED", worker="w1", workers=[worker(last_beat=NOW - 11)])),
    ("running", "It has run on w1 for 1m00s",
     known("STARTED", worker="w1", started_at=NOW - 60, workers=[worker(last_beat=NOW - 11, stretch=2.0)])),
    ("worker-gone", "back in the broker: w1", known("RECEIVED", worker="w1", workers=[worker(status="offline")])),
    ("worker-gone", "shut down", known("STARTED", worker="w1", workers=[worker(status="offline")])),
    ("retrying", "in 30.0s, attempt 2 of 4: OSError: away",
     known("RETRY", retry_at=NOW + 30, retries=0, max_retries=3, started_at=NOW - 1,
           exception={"type": "OSError", "message": "away"})),
    ("retrying", "in 30.0s, attempt 2 of 4.", known("RETRY", retry_at=NOW + 30, retries=1, max_retries=3)),
    ("revoke-sent", "A revoke was sent at 1970-01-12 13:46:39", known("PENDING", revoke_requested_at=NOW - 1)),
    ("revoke-sent", "no worker has confirmed it", known("RETRY", revoke_requested_at=NOW - 1, published_at=NOW - 5)),
    ("waiting", "It waits", known("PENDING", queue="q", revoke_requested_at=NOW - 9, published_at=NOW - 5,
                                  workers=[worker()])),
    ("message-gone", "purged or refused", known("PENDING", queue="q", published_at=NOW - 9,
                                                workers=[worker(empty_since={"q": NOW - 5})])),
    ("waiting", "It waits", known("PENDING", queue="q", published_at=NOW - 3,
                                  workers=[worker(empty_since={"q": NOW - 5})])),
    ("cancelled", "It is cancelled by web1 at 1970-01-12 13:46:40Z: too late. A worker skips it",
     known("PENDING")._replace(cancelled=TaskCancelled("web1", None, NOW, "too late"))),
    ("cancelled", "A worker skips it", known("RETRY")._replace(cancelled=TaskCancelled("web1"))),
    ("cancelled", "It runs on w1, and is cancelled by web1 in task t0 at",
     known("STARTED", worker="w1", workers=[worker()])._replace(cancelled=TaskCancelled("web1", "t0"))),
    ("succeeded", "It succeeded", known("SUCCESS")._replace(cancelled=TaskCancelled("web1"))),
    ("running", "for 5.0s", known("STARTED", worker="w1", workers=[worker()], started_at=NOW - 5)),
    ("stalled", "0%, but has stalled: it has reported nothing for 10m00s.", known(
        "STARTED", {**PROGRESS, "stalled_at": NOW - 1, "updated_at": NOW - 600}, [worker()], worker="w1")),
    ("stalled", "It runs on w1, but has stalled: it has reported nothing for 10m00s.", known(
        "STARTED", {**PROGRESS, "progress": None, "stalled_at": NOW - 1, "updated_at": NOW - 600}, [worker()], worker="w1")),
    ("eta", "in 1m30s", known("RECEIVED", worker="w1", eta=NOW + 90)),
    ("reserved", "all its 2 slots", known("RECEIVED", worker="w1", workers=[worker(status="busy", free=0)])),
    ("reserved", "not begun", known("RECEIVED", worker="w1", workers=[worker()], received_at=NOW - 3)),
    ("no-worker", "no worker is alive", known("PENDING", queue="q", workers=[worker(status="lost", last_beat=NOW - 30)])),
    ("no-consumer", "consumes the queue q", known("PENDING", queue="q", workers=[worker(queues=("other",))])),
    ("not-consuming", "takes messages", known("PENDING", queue="q", workers=[worker(consuming=False)])),
    ("not-consuming", "takes messages", known("PENDING", queue="q", workers=[worker(status="draining")])),
    ("depends", "step 2 of 3 (proj.two), running on w1@h for 12.0s, 40%.", planned("three")),
    ("depends", "step 2 of 3 (proj.two), which waits.", planned("three", status="RECEIVED")),
    ("depends", "step 2 of 3 (proj.two), which is RETRY.", planned("three", status="RETRY")),
    ("depends", "the header of its chord (group 3/8, 1 failed), 38%.", planned("body")),
    ("depends", "the task before it has ended", planned("two")),
    ("revoke-sent", "no worker has confirmed it", planned("three", revoke_requested_at=NOW)),
    ("never-ran", "is FAILURE: proj.bad (t0), before it, ended as FAILURE: ValueError: no cup.", known(
        "FAILURE", never_ran=True, exception={"type": "ValueError", "message": "no cup"},
        cause={"task_id": "t0", "status": "FAILURE", "name": "proj.bad"})),
    ("never-ran", "is CANCELLED: - (t0), before it, ended as LOST.", known(
        "CANCELLED", never_ran=True, cause={"task_id": "t0", "status": "LOST", "name": None})),
    ("never-ran", "revoked before it was sent", known("REVOKED", never_ran=True)),
    ("waiting", "position 3 of all", known("PENDING", queue="q", workers=[worker(consuming=True)], position=2)),
]


@pytest.mark.parametrize("reason, text, given", REASONS)
def test_a_task_is_where_it_is_for_a_reason(reason, text, given):
    found = reason_of(given)

    assert found.reason == reason
    assert text in found.answer


def test_each_reason_is_in_the_schema_and_in_the_reference():
    reasons = {reason for reason, _, _ in REASONS}
    reference = (ROOT / "docs" / "reference" / "commands.md").read_text()
    schema = json.loads((ROOT / "docs" / "reference" / "commands.schema.json").read_text())

    assert reasons == set(schema["properties"]["why"]["properties"]["reason"]["enum"])
    assert {one for one in reasons if f"`{one}`" not in reference} == set()


def test_task_whose_worker_has_found_no_stall_is_running():
    progress = {**PROGRESS, "current": 5, "total": 10, "updated_at": NOW - 900}

    found = reason_of(known("STARTED", progress, [worker()], worker="w1", started_at=NOW - 1000))

    assert found.reason == "running"
    assert found.answer == "It has run on w1 for 16m40s, 0%, 5 of 10; it reported last 15m00s ago."


@pytest.mark.parametrize("status", ["SUCCESS", "RETRY", "STARTED", "RECEIVED", "PENDING", "MINE", 7, None])
@pytest.mark.parametrize("junk", ["x", [], {}, True, 1e400, None])
def test_why_accepts_any_state_and_progress(status, junk):
    names = ("eta", "started_at", "finished_at", "received_at", "runtime", "lock", "exception", "queue", "worker")

    found = reason_of(known(status, None, [worker()], **dict.fromkeys(names, junk)))

    assert found.answer


HELD = {"count": 1, "renewed_at": NOW - 3, "interval": 20.0, "visibility_timeout": 60.0}


@pytest.mark.parametrize("status, facts, reason", [
    ("RECEIVED", {}, "reserved"), ("RECEIVED", {"eta": NOW + 60}, "eta"),
    ("STARTED", {"running": ({"id": "t1", "held": True},)}, "running")])
def test_message_that_its_worker_renews_is_shown(status, facts, reason):
    running = facts.pop("running", ())
    holder = worker(held_messages=HELD, running=running)

    found = reason_of(known(status, worker="w1", workers=[holder], started_at=NOW - 9, received_at=NOW - 9, **facts))

    assert found.reason == reason
    assert found.answer.endswith("Its message is held by w1, renewed 3.0s ago.")
    assert found.evidence["message"] == {"held_by": "w1", "renewed_at": NOW - 3}


@pytest.mark.parametrize("status, facts", [
    ("RECEIVED", {}), ("RECEIVED", {"held_messages": HELD, "status": "lost"}), ("SUCCESS", {"held_messages": HELD}),
    ("STARTED", {"held_messages": HELD, "running": ({"id": "t1"}, {"id": "t2", "held": True}, 5)}),
    ("RECEIVED", {"held_messages": {"renewed_at": "now"}})])
def test_message_that_its_worker_does_not_renew_is_not_shown(status, facts):
    found = reason_of(known(status, worker="w1", workers=[worker(**facts)]))

    assert "message is held" not in found.answer and "message" not in found.evidence
