"""Pending changes: how they are joined."""
from __future__ import annotations

import pytest

from celery_memsync import keys as names
from celery_memsync.encoding import decode, encode_fields
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun
from celery_memsync.store.clock import Clock
from celery_memsync.writing.changes import MergeFields, SetValue, StageChange
from celery_memsync.writing.progress import Progress
from celery_memsync.writing.version_tracker import EMPTY_BASE

keys = Keys("task-sentinel")
STATE = keys.task_location("t1", names.STATE)
PROGRESS = keys.task_location("t1", names.PROGRESS)
RUN_1, RUN_2 = "chain.0.a", "chain.1.b"


def progress(run_key="", run=None):
    return Progress(PROGRESS, 60.0, run=run, run_key=run_key)


def fields(**given):
    return MergeFields(STATE, encode_fields(given, "t1", 1000), 60.0)


def stage(status, run_key=RUN_1):
    return StageChange(STATE, TaskRun(status), run_key, 60.0)


def value(body=b"1"):
    return SetValue(STATE, body, 60.0)


def fenced(change, fence):
    change.fence = fence
    return change


def written(change, base=None):
    return decode(change.entry_write(Clock(), EMPTY_BASE._replace(body=base or {})).body)


# -- joining

@pytest.mark.parametrize("older, newer, joined", [
    (value(b"1"), value(b"2"), 2),
    (value(b""), value(b"2"), 2),
    (fields(x=1), value(b"2"), 2),
    (value(b'{"x":1,"y":1}'), fields(x=2), {"x": 2, "y": 1}),
    (value(b'{"x":1}'), fields(), {"x": 1}),
    (fields(x=1, y=1), fields(x=2, z=2), {"x": 2, "y": 1, "z": 2}),
])
def test_two_changes_become_one(older, newer, joined):
    assert written(older.coalesce(newer)) == joined


@pytest.mark.parametrize("older, newer", [
    (value(b""), fields(x=1)), (stage("STARTED"), stage("STARTED", RUN_2)), (stage("STARTED"), value()),
    (progress(RUN_1), progress(RUN_2)), (fields(x=1), progress()), (progress(), value()),
    (fenced(value(), 1), value()), (value(), fenced(value(), 1)), (fenced(value(b"{}"), 1), fields(x=1)),
    (fields(x=1), fenced(fields(y=1), 1)), (fenced(fields(x=1), 1), fenced(value(), 2)),
])
def test_what_can_not_become_one_stays_two(older, newer):
    assert older.coalesce(newer) is None


@pytest.mark.parametrize("older, newer, status", [
    ("STARTED", "SUCCESS", "SUCCESS"), ("SUCCESS", "STARTED", "SUCCESS"), ("PENDING", "RECEIVED", "RECEIVED"),
])
def test_later_of_two_stages_of_one_run_is_written(older, newer, status):
    assert stage(older).coalesce(stage(newer)).task_run.status == status


def test_joining_leaves_the_older_change_as_it_was():
    older = fields(x=1)

    older.coalesce(fields(x=2))

    assert written(older) == {"x": 1}


def test_the_later_ttl_counts():
    newer = SetValue(STATE, b"2", 5.0)

    assert value().coalesce(newer).ttl == 5.0


@pytest.mark.parametrize("stored, written, status", [
    (("RETRY", RUN_1), ("SUCCESS", RUN_1), "SUCCESS"), (("SUCCESS", RUN_1), ("STARTED", RUN_1), "SUCCESS"),
    (("STARTED", RUN_1), ("STARTED", RUN_1), "STARTED"), (("RETRY", RUN_1), ("STARTED", RUN_2), "STARTED"),
    (("STARTED", RUN_2), ("SUCCESS", RUN_1), "SUCCESS"), (("STARTED", RUN_2), ("FAILURE", RUN_1), "STARTED"),
    (("SUCCESS", RUN_1), ("STARTED", RUN_2), "SUCCESS"), (("SUCCESS", RUN_1), ("SUCCESS", RUN_2), "SUCCESS"),
])
def test_a_later_run_or_stage_follows_and_success_absorbs(memsync, other, stored, written, status):
    for manager, (name, run_key) in ((memsync, stored), (other, written)):
        manager.sync_task_run("t1", TaskRun(name, run=run_key), run_key)
        manager.force_sync()

    assert [manager.get_task_state("t1")["status"] for manager in (memsync, other)] == [status] * 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_stages_end_the_same_in_every_order(make_memsync, order):
    managers = [make_memsync(batch_interval=60.0) for _ in range(3)]
    stages = [("STARTED", RUN_1), ("RETRY", RUN_1), ("STARTED", RUN_2)]

    for number in order:
        status, run_key = stages[number]
        managers[number].sync_task_run("t1", TaskRun(status, run=run_key), run_key)
        managers[number].force_sync()

    assert managers[0].get_task_state("t1")["run"] == RUN_2
    assert [(run["status"], run["run"]) for run in managers[0].get_task("t1")["runs"]] == [
        ("RETRY", RUN_1), ("STARTED", RUN_2)]


def test_success_of_a_former_run_absorbs_what_comes_after(memsync, other):
    memsync.sync_task_run("t1", TaskRun("STARTED"), RUN_2)
    memsync.force_sync()

    other.sync_task_run("t1", TaskRun("SUCCESS"), RUN_1)
    other.force_sync()
    memsync.sync_task_run("t1", TaskRun("FAILURE"), RUN_2)
    memsync.force_sync()

    assert other.get_task_state("t1")["status"] == "SUCCESS"
