"""What is shared: entries as Redis keeps them, runs, progress, workers."""
from __future__ import annotations

import itertools

import pytest

from celery_memsync import encoding
from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.models.order import FINAL, RANKS, later_status, rank_of
from celery_memsync.models.progress import at_status, encode_progress, progress_from
from celery_memsync.models.task import TaskRun, describe_exception, merge_state
from celery_memsync.models.worker import WorkerRecord

HEADER = b"7 1.2:chain.0.run 4 0 1700000000000 60000 -25 abcdefgh.12,ijklmnop.3 worker 1@host"


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no message")


class Outer:
    class Inner(Exception):
        pass


def test_a_header_is_read_with_spaces_in_the_worker_id():
    header = Header.parse(HEADER)

    assert header.version == 7
    assert (header.run, header.rank, header.fence) == ("1.2:chain.0.run", "4", 0)
    assert (header.time, header.ttl_ms) == (1700000000000, 60000)
    assert (header.stored_at, header.expires_at) == (1699999999975, 1700000060000)
    assert header.writes == "abcdefgh.12,ijklmnop.3"
    assert header.worker_id == "worker 1@host"


@pytest.mark.parametrize("text", [b"", b"garbage", b"a b c d e f g h\n{}", b"\xff\xfe", b"1 - - 0\n{}", b'{"json": true}'])
def test_what_is_no_entry_is_refused(text):
    with pytest.raises(ValueError):
        StoredEntry.parse(text)


def test_a_body_may_hold_newlines():
    stored = StoredEntry.parse(HEADER + b"\n[\n1\n]")

    assert stored.body == b"[\n1\n]"


def test_an_entry_without_a_body_is_deleted():
    assert StoredEntry.parse(HEADER + b"\n").deleted
    assert not StoredEntry.parse(HEADER + b"\nnull").deleted


@pytest.mark.parametrize("now, expired", [(1700000059.999, False), (1700000060.0, True), (1700000000.0, False)])
def test_an_entry_is_over_when_its_ttl_is(now, expired):
    stored = StoredEntry.parse(HEADER + b"\n1")

    assert stored.expired(now) is expired


def test_an_entry_shows_seconds():
    entry = StoredEntry.parse(HEADER + b"\n1").entry("task-sentinel/a", 1)

    assert (entry.version, entry.timestamp, entry.ttl, entry.worker_id) == (7, 1700000000.0, 60.0, "worker 1@host")


def test_an_entry_does_not_change():
    entry = StoredEntry.parse(HEADER + b"\n1").entry("task-sentinel/a", 1)

    with pytest.raises(AttributeError):
        entry.value = 2


# -- stages

@pytest.mark.parametrize("earlier, later", [
    ("PENDING", "RECEIVED"), ("RECEIVED", "STARTED"), ("STARTED", "RETRY"), ("STARTED", "FAILURE"), ("STARTED", "LOST"),
    ("LOST", "FAILURE"), ("RETRY", "SUCCESS"), ("FAILURE", "SUCCESS"), ("REVOKED", "SUCCESS"), ("LOST", "SUCCESS"),
    ("PENDING", "crunching"), ("crunching", "SUCCESS"), ("RETRY", "REVOKED"),
])
def test_a_later_stage_wins_in_both_orders(earlier, later):
    assert later_status(earlier, later) == later
    assert later_status(later, earlier) == later


def test_success_absorbs_every_other_status():
    assert {later_status(status, "SUCCESS") for status in RANKS} == {"SUCCESS"}
    assert {later_status("SUCCESS", status) for status in RANKS} == {"SUCCESS"}


@pytest.mark.parametrize("status", [None, 5, [], "crunching", ""])
def test_status_set_by_users_ranks_as_started(status):
    assert rank_of(status) == rank_of("STARTED")


def test_every_final_status_comes_after_the_work():
    assert all(rank_of(status) > rank_of("STARTED") for status in FINAL)


# -- runs

@pytest.mark.parametrize("run", [
    TaskRun("PENDING"),
    TaskRun("PENDING", name="add", published_at=1.5),
    TaskRun("FAILURE", name="add", run="r1", retries=3, root_id="t1", exception={"type": "E", "message": "m"}),
    TaskRun("SUCCESS", root_id="root", parent_id="t1", group="g1", runtime=0.0, kwargs="{}"),
])
def test_a_run_comes_back_as_it_was(run):
    assert TaskRun.from_row(encoding.decode(run.encode("t1")), "t1") == run


@pytest.mark.parametrize("figure", [float("inf"), float("-inf"), float("nan"), 1e300, -1e300, 10 ** 400])
def test_impossible_time_is_not_encoded(figure):
    run = TaskRun("PENDING", published_at=figure, runtime=figure)

    assert TaskRun.from_row(encoding.decode(run.encode("t1")), "t1") == TaskRun("PENDING")


@pytest.mark.parametrize("figure", [10 ** 400, -10 ** 400, 10 ** 16])
def test_impossible_time_is_not_decoded(figure):
    body = TaskRun("PENDING", published_at=5.0).encode("t1").replace(b"50000", str(figure).encode())

    assert TaskRun.from_row(encoding.decode(body), "t1") == TaskRun("PENDING")


def test_what_is_not_known_is_not_shown():
    run = TaskRun("STARTED", name="add", retries=0)

    assert run.as_dict() == {"status": "STARTED", "name": "add", "retries": 0}


def test_a_run_of_a_newer_version_is_read():
    body = TaskRun("STARTED", header="g").encode("t1")[:-1] + b',"new",5]'

    assert TaskRun.from_row(encoding.decode(body), "t1") == TaskRun("STARTED", header="g")


@pytest.mark.parametrize("row", [None, 5, "text", {}, [], [5], [None], [["STARTED"]]])
def test_what_is_no_run_reads_as_nothing(row):
    assert TaskRun.from_row(row, "t1") is None


@pytest.mark.parametrize("row", [None, 5, "text"])
def test_what_is_no_progress_reads_as_nothing(row):
    assert progress_from(row) is None


@pytest.mark.parametrize("row", [[], ["x"], [[], {}, "a", 4, 5, "b", "c", 8, "d"], [True, None, float("nan")]])
def test_figures_of_another_kind_read_as_unknown(row):
    assert progress_from(row)["progress"] is None
    assert progress_from(row)["eta"] is None


@pytest.mark.parametrize("known", [None, 5, "text", [], {}])
def test_worker_record_of_a_foreign_value_has_only_a_name(known):
    assert WorkerRecord.from_dict("w1", known) == WorkerRecord("w1")


def test_evolve_leaves_the_run_as_it_was():
    run = TaskRun("STARTED", name="add")

    later = run.evolve(status="SUCCESS", runtime=1.0)

    assert (run.status, run.runtime) == ("STARTED", None)
    assert later == TaskRun("SUCCESS", name="add", runtime=1.0)


@pytest.mark.parametrize("exc, described", [
    (ValueError("no"), {"type": "ValueError", "message": "no"}),
    (KeyError(), {"type": "KeyError", "message": ""}),
    (Outer.Inner("x"), {"type": "Outer.Inner", "message": "x"}),
    (Unprintable(), {"type": "Unprintable", "message": "<its message can't be shown>"}),
])
def test_an_exception_is_described_by_type_and_message(exc, described):
    assert describe_exception(exc) == described


def test_a_long_message_is_cut():
    assert len(describe_exception(ValueError("x" * 100_000))["message"]) < 1010


@pytest.mark.parametrize("run, own, state", [
    (None, None, None),
    (TaskRun("STARTED"), None, {"status": "STARTED", "retries": 0}),
    (None, {"a": 1}, {"a": 1}),
    (TaskRun("STARTED", name="add"), {"a": 1}, {"status": "STARTED", "name": "add", "retries": 0, "a": 1}),
    (TaskRun("STARTED"), {"status": "crunching"}, {"status": "crunching", "retries": 0}),
    (TaskRun("SUCCESS"), {"status": "crunching"}, {"status": "SUCCESS", "retries": 0}),
    (TaskRun("PENDING"), {"status": "SUCCESS"}, {"status": "SUCCESS", "retries": 0}),
])
def test_state_merges_records_of_signals_and_of_users(run, own, state):
    assert merge_state(run, own) == state


# -- progress

@pytest.mark.parametrize("percent, started, updated, eta", [
    (50, 100.0, 110.0, 10.0), (25, 100.0, 110.0, 30.0), (100, 100.0, 110.0, 0.0), (0, 100.0, 110.0, None),
    (None, 100.0, 110.0, None), (50, None, 110.0, None), (50, 100.0, 100.0, None), (50, 100.0, 99.0, None),
])
def test_the_eta_is_what_is_left_at_the_pace_so_far(percent, started, updated, eta):
    body = encode_progress((percent, None, None, None, None, started, updated, None, None))

    assert progress_from(encoding.decode(body))["eta"] == eta


def test_progress_shows_every_field_and_the_tasks_own():
    body = encode_progress((50, 5, 10, "half", "crunching", 1.0, 2.0, "r1", {"rows": 7}))

    assert progress_from(encoding.decode(body)) == {
        "progress": 50, "current": 5, "total": 10, "message": "half", "status": "crunching", "started_at": 1.0,
        "updated_at": 2.0, "run": "r1", "eta": 1.0, "rows": 7, "phase": None, "phase_number": 1, "phase_started_at": 1.0,
        "stalled_at": None}


def test_own_fields_do_not_hide_the_figures():
    body = encode_progress((50, None, None, None, None, 1.0, 2.0, None, {"progress": 99}))

    assert progress_from(encoding.decode(body))["progress"] == 50


@pytest.mark.parametrize("known", list(itertools.product([0, 9], [None, "x"])))
def test_short_rows_are_filled_up(known):
    percent, message = known

    assert progress_from(encoding.decode(encode_progress((percent, None, None, message))))["message"] == message


# -- workers

def test_a_worker_record_comes_back_as_it_was():
    record = WorkerRecord(
        "w1@host", "busy", "host", 7, "prefork", 4, {"total": 4, "free": 0}, ("celery",), ({"id": "t1"},), {"total": 9},
        1000, 1.5, (0.1, 0.2, 0.3), 1.0, {"python": "3.11"}, 3, 0.001, True, 2.0)

    assert WorkerRecord.from_dict(record.worker_id, record.as_dict()) == record


def test_a_worker_record_of_another_version_is_read():
    record = WorkerRecord.from_dict("w1", {"worker_id": "w1", "new": 1})

    assert record == WorkerRecord("w1")


@pytest.mark.parametrize("known, shown", [({"current": 3, "total": 10}, 100.0), ({"current": 3}, 100.0), ({}, None)])
def test_success_is_100_percent_of_what_was_reported(known, shown):
    assert at_status(progress_from(known), "SUCCESS")["progress"] == shown
