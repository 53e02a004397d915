"""What waits in memory: how changes are joined, and progress that does not go back."""
from __future__ import annotations

import os
import threading
import time

import pytest

from celery_memsync import keys as names
from celery_memsync import values
from celery_memsync.changes import MergeFields, Progress, SetValue, TellRun, follows, percent_of, progress_rank
from celery_memsync.clock import Clock
from celery_memsync.keys import Keys
from celery_memsync.records import Header, TaskRun, progress_from
from celery_memsync.values import decode, encode_fields

keys = Keys("task-sentinel")
STATE = keys.task_place("t1", names.STATE)
PROGRESS = keys.task_place("t1", names.PROGRESS)
RUN_1, RUN_2 = "0000001700000000000", "0010001700000000000"


def progress(run_key="", run=None):
    return Progress(PROGRESS, 60.0, run=run, run_key=run_key)


def fields(**given):
    return MergeFields(STATE, encode_fields(given, "t1", 1000), 60.0)


def stage(status, run_key=RUN_1):
    return TellRun(STATE, TaskRun(status), run_key, 60.0)


def value(body=b"1"):
    return SetValue(STATE, body, 60.0)


def written(change, base=None):
    return decode(change.content(Clock(), base or {}).body)


def told(cell):
    return progress_from(values.decode(cell.content(Clock(), {}).body))


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
    assert written(older.followed_by(newer)) == joined


@pytest.mark.parametrize("older, newer", [
    (value(b""), fields(x=1)), (stage("STARTED"), stage("STARTED", RUN_2)), (stage("STARTED"), value()),
    (progress(RUN_1), progress(RUN_2)), (fields(x=1), progress()), (progress(), value()),
])
def test_what_can_not_become_one_stays_two(older, newer):
    assert older.followed_by(newer) is None


@pytest.mark.parametrize("older, newer, status", [
    ("STARTED", "SUCCESS", "SUCCESS"), ("SUCCESS", "STARTED", "SUCCESS"), ("PENDING", "RECEIVED", "RECEIVED"),
])
def test_of_two_stages_of_one_run_the_later_is_told(older, newer, status):
    assert stage(older).followed_by(stage(newer)).task_run.status == status


def test_joining_leaves_the_older_change_as_it_was():
    older = fields(x=1)

    older.followed_by(fields(x=2))

    assert written(older) == {"x": 1}


def test_the_later_ttl_counts():
    newer = SetValue(STATE, b"2", 5.0)

    assert value().followed_by(newer).ttl == 5.0


@pytest.mark.parametrize("rank, run, stored, expected", [
    ("2", RUN_1, ("2", RUN_1), False), ("4", RUN_1, ("2", RUN_1), True), ("2", RUN_2, ("5", RUN_1), True),
    ("9", RUN_1, ("2", RUN_2), True), ("2", RUN_2, ("9", RUN_1), False), ("9", RUN_2, ("9", RUN_1), False),
    ("5", RUN_1, ("2", RUN_2), False),
])
def test_a_later_run_or_stage_follows_and_success_absorbs(rank, run, stored, expected):
    header = Header(1, stored[1], stored[0], 0, 0, 0, 0, "-", "w1")

    assert follows(run, rank, header) is expected


# -- progress by itself

@pytest.mark.parametrize("current, total, percent", [
    (0, 10, 0), (5, 10, 50), (10, 10, 100), (11, 10, 100), (0, 0, 100), (5, None, None), (None, 10, None), (0.5, 2, 25),
])
def test_percent_is_reckoned_from_current_and_total(current, total, percent):
    assert percent_of(current, total) == percent


@pytest.mark.parametrize("lower, higher", [
    ((None, 1), (None, 2)), ((None, 9), (None, 10)), ((None, 10 ** 15), (0, 1)), ((9, 1), (10, 1)), ((99.9, 1), (100, 1)),
    ((0.001, 1), (0.002, 1)),
])
def test_ranks_of_progress_sort_as_text(lower, higher):
    assert progress_rank(*lower) < progress_rank(*higher)


@pytest.mark.parametrize("reports, percent", [
    ([(30, None, None), (20, None, None)], 30),
    ([(None, 5, 10), (None, 3, None)], 50),
    ([(None, 5, 10), (40, None, None)], 50),
    ([(None, 5, None), (None, 3, None), (None, None, 10)], 50),
    ([(50, None, None), (None, 1, 10)], 50),
    ([(50, None, None), (None, 7, None)], 50),
    ([(100, None, None), (0, None, None)], 100),
])
def test_progress_does_not_go_back(reports, percent):
    cell = progress()

    for one, current, total in reports:
        cell.report(current, total, None, percent=one)

    assert told(cell)["progress"] == percent


def test_counting_fast_and_reporting_come_to_the_same():
    fast, plain = progress(), progress()

    for current, total, message in [(1, 10, None), (2, None, "two"), (5, None, None), (4, None, "back"), (10, 20, None)]:
        fast.count(current, total, message)
        plain.report(current, total, message)

    assert {**told(fast), "updated_at": 0, "started_at": 0, "eta": 0} == {
        **told(plain), "updated_at": 0, "started_at": 0, "eta": 0}


class Slow(float):
    """A figure that is compared as slowly as a test wants."""

    def __init__(self, _):
        self.compared, self.go_on = threading.Event(), threading.Event()

    def __ge__(self, other):
        if other:
            self.compared.set()
            self.go_on.wait(10)
        return float(self) >= other


@pytest.fixture
def slow():
    """A cell at 10 of 100, and what lets go on a thread that just compares whether 20 is further."""
    cell, figure = progress(), Slow(20)
    cell.report(10, 100, None)
    thread = threading.Thread(target=cell.report, args=(figure, None, None))

    def go_on():
        figure.go_on.set()
        thread.join(10)

    thread.start()
    assert figure.compared.wait(10)
    yield cell, go_on
    go_on()


@pytest.mark.parametrize("tell", [
    lambda cell: cell.report(100, None, None),
    lambda cell: cell.count(100, None, None),
])
def test_of_two_threads_none_takes_back_what_the_other_has_told(slow, tell):
    cell, go_on = slow
    other = threading.Thread(target=tell, args=(cell,))
    other.start()
    other.join(0.2)

    go_on()
    other.join(10)

    assert told(cell)["progress"] == 100


def test_a_process_forked_while_a_thread_tells_can_tell_too(slow):
    cell, _ = slow

    child = os.fork()
    if child == 0:
        threading.Timer(5, os._exit, (1,)).start()
        cell.report(30, None, None)
        os._exit(0 if told(cell)["progress"] == 30 else 2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_words_are_taken_with_a_lower_figure():
    cell = progress()
    cell.report(50, 100, "half", "crunching")

    cell.report(40, None, "again", fields={"rows": 7})

    shown = told(cell)
    assert (shown["progress"], shown["message"], shown["status"], shown["rows"]) == (50, "again", "crunching", 7)


def test_ten_thousand_reports_are_queued_once():
    cell = progress()
    first = cell.count(0, 10_000, None)
    cell.was_queued()

    later = {cell.count(number, 10_000, None) for number in range(1, 10_000)}

    assert (first, later) == (True, {False})
    assert told(cell)["current"] == 9999


def test_a_report_after_the_snapshot_is_queued_again():
    cell = progress()
    cell.report(1, 10, None)
    cell.was_queued()

    cell.snapshot()

    assert cell.report(2, 10, None)


def test_a_snapshot_does_not_change_any_more():
    cell = progress()
    cell.report(1, 10, None)

    snapshot = cell.snapshot()
    cell.report(5, 10, None)

    assert told(snapshot)["current"] == 1


# -- progress through Redis

def test_progress_shows_figures_times_and_what_is_left(memsync, other):
    memsync.sync_task_progress("t1", None, current=1, total=4, message="one")
    time.sleep(0.05)
    memsync.sync_task_progress("t1", None, "crunching", current=2)
    memsync.force_sync()

    shown = other.get_task_progress("t1")

    assert (shown["progress"], shown["current"], shown["total"]) == (50, 2, 4)
    assert (shown["message"], shown["status"]) == ("one", "crunching")
    assert 0.04 < shown["updated_at"] - shown["started_at"] < 5
    assert shown["eta"] == pytest.approx(shown["updated_at"] - shown["started_at"], abs=0.01)
    assert "previous" not in shown


@pytest.mark.parametrize("flushed_between", [True, False])
def test_words_are_taken_with_a_lower_or_equal_figure_by_every_reader(memsync, other, flushed_between):
    memsync.sync_task_progress("t1", 50, message="half")
    if flushed_between:
        memsync.force_sync()

    memsync.sync_task_progress("t1", 40, message="again")
    mine = memsync.get_task_progress("t1")
    memsync.force_sync()

    assert (mine["progress"], mine["message"]) == (50, "again")
    assert (other.get_task_progress("t1")["progress"], other.get_task_progress("t1")["message"]) == (50, "again")


def test_a_lower_figure_of_another_process_is_ignored(memsync, other):
    memsync.sync_task_progress("t1", 50, message="half")
    memsync.force_sync()

    other.sync_task_progress("t1", 30, message="less")
    other.force_sync()

    assert memsync.get_task_progress("t1")["progress"] == 50


def test_the_higher_figure_of_two_processes_stays_whoever_is_flushed_last(memsync, other):
    memsync.sync_task_progress("t1", 70)
    other.sync_task_progress("t1", 30)

    memsync.force_sync()
    other.force_sync()

    assert memsync.get_task_progress("t1")["progress"] == 70
    assert other.get_task_progress("t1")["progress"] == 70


def test_ten_thousand_reports_leave_one_pending_change(memsync):
    for number in range(10_000):
        memsync.sync_task_progress("t1", None, current=number, total=10_000)

    assert memsync.writer.pending == 1


def test_a_new_run_starts_over_and_keeps_the_previous(memsync, other):
    first, second = progress(RUN_1, "first"), progress(RUN_2, "second")
    first.report(90, 100, "nearly")
    memsync.writer.put(first)
    memsync.force_sync()

    second.report(10, 100, "again")
    memsync.writer.put(second)
    mine = memsync.get_task_progress("t1")
    memsync.force_sync()

    for shown in (mine, other.get_task_progress("t1")):
        assert (shown["progress"], shown["run"], shown["message"]) == (10, "second", "again")
        assert (shown["previous"]["progress"], shown["previous"]["run"]) == (90, "first")


def test_two_runs_told_in_one_batch_are_both_kept(memsync, other):
    for run_key, percent in ((RUN_1, 90), (RUN_2, 10)):
        cell = progress(run_key)
        cell.report(percent, 100, None)
        memsync.writer.put(cell)

    memsync.force_sync()

    shown = other.get_task_progress("t1")
    assert (shown["progress"], shown["previous"]["progress"]) == (10, 90)


def test_a_late_word_of_the_former_run_does_not_undo_the_new_one(memsync, other):
    late, new = progress(RUN_1, "first"), progress(RUN_2, "second")
    new.report(10, 100, None)
    memsync.writer.put(new)
    memsync.force_sync()

    late.report(95, 100, None)
    other.writer.put(late)
    other.force_sync()

    shown = memsync.get_task_progress("t1")
    assert (shown["progress"], shown["previous"]["progress"]) == (10, 95)


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
