"""Why a task is where it is, of what is known."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_memsync import LockRecord, WorkerRecord
from celery_memsync.reasons import STALLED_AFTER, Known, reason_of
from celery_memsync.records import RUN_FIELDS

NOW = 1_800_000_000.0

HELD = LockRecord("invoice:7", 12, "w1@host", "t0", NOW - 90, 25.0, 1)


def worker(name="w1@host", status="active", **more):
    return WorkerRecord(worker_id=name, status=status, last_beat=NOW - 2, **{
        "queues": ["default"], "capacity": {"total": 4, "free": 0}, **more})


def reason(status=None, pending=(), workers=(), locks=(), progress=None, runs=None, **facts):
    state = None if status is None else {"status": status, "worker": "w1@host", "queue": "default", **facts}
    task = None if state is None else {"state": state, "progress": progress, "runs": runs or [state], "agents": {}}
    return reason_of("t1", Known(task, list(pending), list(workers), list(locks), NOW))


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "SKIPPED"])
def test_what_has_ended_is_told_by_how(status):
    found = reason(status, finished_at=NOW - 5, exception={"type": "ValueError", "message": "no"})

    assert found.reason == status.lower()
    assert "ValueError: no" in found.answer
    assert found.evidence["finished_at"] == NOW - 5


@pytest.mark.parametrize("facts, word, part", [
    (dict(), "unknown", "Nobody has told"),
    (dict(status="PENDING", eta=NOW + 7200), "scheduled", "2 hours from now"),
    (dict(status="PENDING"), "no-consumer", "queue default"),
    (dict(status="PENDING", workers=[worker(status="lost")]), "no-consumer", "queue default"),
    (dict(status="PENDING", workers=[worker(queues=["other"])]), "no-consumer", "queue default"),
    (dict(status="PENDING", workers=[worker(consuming=False)]), "no-consumer", "take no messages"),
    (dict(status="PENDING", workers=[worker()], pending=["t0", "t1"]), "waiting", "position 2"),
    (dict(status="PENDING", workers=[worker()], pending=["t0"]), "waiting", "more than 1 "),
    (dict(status="RECEIVED", workers=[worker()]), "received", "0 of 4 free"),
    (dict(status="RECEIVED", workers=[worker(status="lost")]), "worker-lost", "silent for 2 seconds"),
    (dict(status="RECEIVED", eta=NOW + 30, workers=[worker()]), "scheduled", "30 seconds from now"),
    (dict(status="RETRY", exception={"type": "OSError", "message": "busy"}), "retrying", "OSError: busy"),
    (dict(status="RETRY", lock={"name": "invoice:7"}, locks=[HELD]), "held-back", "for task t0 since 90 seconds"),
    (dict(status="RETRY", lock={"name": "invoice:8"}, locks=[HELD]), "retrying", "tried again"),
    (dict(status="SKIPPED", lock={"name": "x", "worker_id": "w2"}), "skipped", "held by w2"),
    (dict(status="LOST"), "lost", "w1@host went silent"),
    (dict(status="STARTED", started_at=NOW - 5, workers=[worker()]), "running", "for 5 seconds"),
    (dict(status="STARTED", started_at=NOW - 5, workers=[worker(status="lost")]), "worker-lost", "is lost"),
    (dict(status="STARTED", started_at=NOW - STALLED_AFTER - 60, pid=7, workers=[worker()]), "stalled", "--pid 7"),
    (dict(status="indexing", workers=[worker()]), "running", "status indexing"),
])
def test_what_has_not_ended_is_told_by_what_it_waits_for(facts, word, part):
    found = reason(**facts)

    assert (found.reason, part in found.answer) == (word, True), found


def test_a_task_that_a_lock_held_back_is_so_too_when_its_worker_has_it_again():
    runs = [{"status": "RETRY", "lock": {"name": "invoice:7"}}, {"status": "RECEIVED", "lock": None}]

    found = reason("RECEIVED", runs=runs, eta=NOW + 3, workers=[worker()], locks=[HELD])

    assert found.reason == "held-back"
    assert found.evidence["lock"]["fence"] == 12


def test_progress_keeps_a_long_task_from_looking_stalled():
    progress = {"progress": 40.0, "current": 40, "total": 100, "message": None, "updated_at": NOW - 5}

    found = reason("STARTED", started_at=NOW - 5000, progress=progress, workers=[worker()], locks=[
        LockRecord("mine", 1, "w1@host", "t1", NOW - 9, 20.0)])

    assert found.reason == "running" and "40 %" in found.answer
    assert [lock["name"] for lock in found.evidence["locks"]] == ["mine"]


ODD = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@given(state=st.fixed_dictionaries({"status": ODD | st.sampled_from(["STARTED", "RETRY", "PENDING", "RECEIVED"])},
                                   optional={name: ODD | st.dictionaries(st.text(), ODD) for name in RUN_FIELDS[1:]}),
       progress=st.none() | st.dictionaries(st.sampled_from(["progress", "current", "updated_at"]), ODD))
def test_whatever_somebody_has_told_there_is_an_answer(state, progress):
    task = {"state": state, "progress": progress, "runs": [state], "agents": {}}

    found = reason_of("t1", Known(task, [], [worker()], [HELD], NOW))

    assert found.reason and found.answer.endswith((".", "?"))
