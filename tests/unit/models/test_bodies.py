"""Bodies of runs and progress: what takes no room, and that it comes back all the same."""
from __future__ import annotations

import pytest

from celery_memsync import encoding
from celery_memsync.models.order import delivered_key, published_key, run_id_of
from celery_memsync.models.progress import decode_progress, encode_progress
from celery_memsync.models.task import STORED_FIELDS, TaskRun


@pytest.mark.parametrize("run_id", [None, "r1", "r2"])
@pytest.mark.parametrize("run_key", ["", published_key("c1"), delivered_key(published_key("c1"), "r1")])
def test_id_of_a_run_comes_back_whether_its_header_names_it_or_not(run_id, run_key):
    run = TaskRun("STARTED", root_id="t1", run=run_id)

    assert TaskRun.from_row(encoding.decode(run.encode("t1", run_key)), "t1", run_id_of(f"1.1:{run_key}")) == run


def test_run_without_an_id_comes_back_without_one_from_the_header_of_another():
    run = TaskRun("STARTED", root_id="t1")

    assert TaskRun.from_row(encoding.decode(run.encode("t1")), "t1", "r1") == run


@pytest.mark.parametrize("root_id", [None, "t1", "t2"])
def test_root_of_a_task_comes_back_whether_it_is_its_own_or_not(root_id):
    run = TaskRun("STARTED", root_id=root_id)

    assert TaskRun.from_row(encoding.decode(run.encode("t1")), "t1") == run


def test_times_are_stored_as_tenths_of_a_millisecond_since_the_one_before():
    key = delivered_key(published_key("c1"), "r1")
    run = TaskRun("RETRY", root_id="t1", run="r1", published_at=1e9, started_at=1e9 + 0.25, finished_at=1e9 + 0.2,
                  runtime=0.1, retry_at=1e9 + 60.2)

    row = encoding.decode(run.encode("t1", key))

    assert row[5:11] == [10 ** 13, None, 2500, -500, 100_000, None]
    assert row[STORED_FIELDS.index("retry_at")] == 600_000
    assert TaskRun.from_row(row, "t1", "r1") == run


def test_what_most_runs_have_in_common_takes_no_room():
    run = TaskRun("SUCCESS", "add", "q", "w", 1, "r1", root_id="t1", published_at=1.0, received_at=1.0, started_at=1.0,
                  finished_at=1.0, runtime=0.5)

    body = run.encode("t1", delivered_key(published_key("c1"), "r1"))

    assert body == b'["SUCCESS","add","q","w",1,10000,0,0,0,500000]'


def test_progress_stores_times_as_milliseconds_since_the_one_before():
    body = encode_progress((50, 5, 10, None, None, 1000.0, 1002.5, None, None, "read", 2, 1001.0, 1004.0))

    assert encoding.decode(body)[4:6] + encoding.decode(body)[11:] == [1_000_000, 2500, -1500, 3000]
    assert decode_progress(encoding.decode(body))["stalled_at"] == 1004.0


@pytest.mark.parametrize("times", [("x", 1.5), (10 ** 400, []), ({}, True)])
def test_times_that_are_none_read_as_unknown(times):
    known = decode_progress([None] * 4 + [*times, "r"])

    assert (known["started_at"], known["updated_at"], known["run"]) == (None, None, "r")
