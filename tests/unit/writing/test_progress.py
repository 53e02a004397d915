"""Progress: it never goes backward, whichever process reports it."""
from __future__ import annotations

import os
import threading
import time

import pytest

from celery_memsync import encoding
from celery_memsync import keys as names
from celery_memsync.keys import Keys
from celery_memsync.models.progress import progress_from
from celery_memsync.store.clock import Clock
from celery_memsync.writing import progress as progress_module
from celery_memsync.writing.figures import figures_after
from celery_memsync.writing.progress import Progress, ProgressChange

PROGRESS = Keys("task-sentinel").task_location("t1", names.PROGRESS)
RUN_1, RUN_2 = "chain.0.a", "chain.1.b"


def progress(run_key="", run=None):
    return Progress(PROGRESS, 60.0, run=run, run_key=run_key)


def written(cell):
    return progress_from(encoding.decode(cell.entry_write(Clock()).body))


# -- by itself

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

    assert written(cell)["progress"] == percent


def test_counting_fast_and_reporting_come_to_the_same():
    fast, plain = progress(), progress()

    for current, total, message in [(1, 10, None), (2, None, "two"), (5, None, None), (4, None, "back"), (10, 20, None)]:
        fast.count(current, total, message)
        plain.report(current, total, message)

    times = dict.fromkeys(("updated_at", "started_at", "phase_started_at", "eta"), 0)
    assert {**written(fast), **times} == {**written(plain), **times}


@pytest.fixture
def slow(monkeypatch):
    """A cell at 10 of 100, and what lets a thread go on that compares whether 20 is further."""
    cell = progress()
    compares, may_go_on = threading.Event(), threading.Event()

    def compare_slowly(figures, current, *args):
        if current == 20:
            compares.set()
            may_go_on.wait(10)
        return figures_after(figures, current, *args)

    monkeypatch.setattr(progress_module, "figures_after", compare_slowly)
    cell.report(10, 100, None)
    thread = threading.Thread(target=cell.report, args=(20, None, None))

    def go_on():
        may_go_on.set()
        thread.join(10)

    thread.start()
    assert compares.wait(10)
    yield cell, go_on
    go_on()


@pytest.mark.parametrize("report", [
    lambda cell: cell.report(100, None, None),
    lambda cell: cell.count(100, None, None),
])
def test_report_of_one_thread_does_not_undo_that_of_another(slow, report):
    cell, go_on = slow
    other = threading.Thread(target=report, args=(cell,))
    other.start()
    other.join(0.2)

    go_on()
    other.join(10)

    assert written(cell)["progress"] == 100


def test_process_forked_during_a_report_can_report_too(slow):
    cell, _ = slow

    child = os.fork()
    if child == 0:
        threading.Timer(5, os._exit, (1,)).start()
        cell.report(30, None, None)
        os._exit(0 if written(cell)["progress"] == 30 else 2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_message_is_taken_with_a_lower_figure():
    cell = progress()
    cell.report(50, 100, "half", "crunching")

    cell.report(40, None, "again", fields={"rows": 7})

    shown = written(cell)
    assert (shown["progress"], shown["message"], shown["status"], shown["rows"]) == (50, "again", "crunching", 7)


def test_ten_thousand_reports_are_queued_once():
    cell = progress()
    first = cell.count(0, 10_000, None)
    cell.note_put(cell.reports)
    later = {cell.count(number, 10_000, None) for number in range(1, 10_000)}

    assert (first, later) == (True, {False})
    assert written(cell)["current"] == 9999


def test_a_report_after_the_snapshot_is_queued_again():
    cell = progress()
    cell.report(1, 10, None)
    cell.note_put(cell.reports)
    meanwhile = cell.report(1, 10, None)

    cell.snapshot()

    assert (meanwhile, cell.report(2, 10, None)) == (False, True)
    cell.note_put(cell.reports)
    assert not cell.report(3, 10, None)


@pytest.mark.parametrize("report", [
    lambda cell, number: cell.report(number, 10, None), lambda cell, number: cell.count(number, None, None),
])
def test_what_was_perhaps_not_queued_is_queued_by_the_next_report(report):
    cell = progress()

    # an exception has struck before it was put
    assert [report(cell, 1), report(cell, 2)] == [True, True]


@pytest.mark.parametrize("report", [
    lambda cell, number: cell.report(number, 10, None), lambda cell, number: cell.count(number, None, None),
])
def test_what_was_taken_before_it_was_noted_as_put_is_queued_by_the_next_report(report):
    cell = progress()
    assert report(cell, 1)
    reports = cell.reports
    cell.snapshot()
    cell.note_put(reports)

    assert report(cell, 2)


def test_a_forked_process_has_it_to_queue():
    cell = progress()
    assert cell.report(1, 10, None)
    cell.note_put(cell.reports)

    child = os.fork()
    if child == 0:
        os._exit(0 if cell.report(2, 10, None) else 2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_snapshot_does_not_change_any_more():
    cell = progress()
    cell.report(1, 10, None)

    snapshot = cell.snapshot()
    cell.report(5, 10, None)

    assert written(snapshot)["current"] == 1


def test_progress_that_travels_with_a_retry_keeps_its_phase():
    cell, clock = progress(RUN_1, "first"), Clock()
    cell.report(4, 4, None, phase="downloading")
    cell.report(1, 10, None, phase="converting")
    change = cell.snapshot()
    body = change.entry_write(clock).body

    travelled = ProgressChange.from_row(PROGRESS, encoding.decode(body), RUN_1, 60.0, clock)

    writes = [one.entry_write(clock)._replace(at=0.0, ttl_ms=0) for one in (travelled, change)]
    assert writes[0] == writes[1]
    assert written(travelled)["phase_number"] == 2


@pytest.mark.parametrize("phase", [
    (5, 2, 3.0), ("x", 2.0, 3.0), ("x", True, 3.0), ("x", 10 ** 9, 3.0), ("x", -1, 3.0), ("x", 2, "now"), ("x", 2, -1.0),
])
def test_a_phase_of_a_message_that_is_none_is_refused(phase):
    row = [50, 5, 10, None, None, 1.0, 2.0, None, None, *phase]

    assert ProgressChange.from_row(PROGRESS, row, RUN_1, 60.0, Clock()) is None


# -- through Redis

def test_a_new_phase_is_shown_after_a_later_run_has_begun_and_before(memsync, other):
    first, second = progress(RUN_1, "first"), progress(RUN_2, "second")
    first.report(4, 4, None, phase="downloading")
    memsync.runtime.writer.put(first)
    memsync.force_sync()
    second.report(1, 10, None)
    other.runtime.writer.put(second)
    other.force_sync()

    first.report(1, 10, None, phase="converting")
    memsync.runtime.writer.put(first)
    memsync.force_sync()

    shown = other.get_task_progress("t1")
    assert (shown["run"], shown["phase"], shown["progress"]) == ("second", None, 10)
    before = shown["previous"]
    assert (before["run"], before["phase"], before["progress"]) == ("first", "converting", 10)


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
def test_message_of_a_lower_or_equal_figure_is_read_by_every_process(
    memsync, other, flushed_between,
):
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


def test_higher_figure_of_two_processes_stays_in_any_order_of_flushes(memsync, other):
    memsync.sync_task_progress("t1", 70)
    other.sync_task_progress("t1", 30)

    memsync.force_sync()
    other.force_sync()

    assert memsync.get_task_progress("t1")["progress"] == 70
    assert other.get_task_progress("t1")["progress"] == 70


def test_ten_thousand_reports_leave_one_pending_change(memsync):
    for number in range(10_000):
        memsync.sync_task_progress("t1", None, current=number, total=10_000)

    assert memsync.runtime.writer.pending == 1


def test_a_new_run_starts_over_and_keeps_the_previous(memsync, other):
    first, second = progress(RUN_1, "first"), progress(RUN_2, "second")
    first.report(90, 100, "nearly")
    memsync.runtime.writer.put(first)
    memsync.force_sync()

    second.report(10, 100, "again")
    memsync.runtime.writer.put(second)
    mine = memsync.get_task_progress("t1")
    memsync.force_sync()

    for shown in (mine, other.get_task_progress("t1")):
        assert (shown["progress"], shown["run"], shown["message"]) == (10, "second", "again")
        assert (shown["previous"]["progress"], shown["previous"]["run"]) == (90, "first")


def test_two_runs_written_in_one_batch_are_both_kept(memsync, other):
    for run_key, percent in ((RUN_1, 90), (RUN_2, 10)):
        cell = progress(run_key)
        cell.report(percent, 100, None)
        memsync.runtime.writer.put(cell)

    memsync.force_sync()

    shown = other.get_task_progress("t1")
    assert (shown["progress"], shown["previous"]["progress"]) == (10, 90)


def test_late_report_of_the_former_run_does_not_undo_the_new_one(memsync, other):
    late, new = progress(RUN_1, "first"), progress(RUN_2, "second")
    new.report(10, 100, None)
    memsync.runtime.writer.put(new)
    memsync.force_sync()

    late.report(95, 100, None)
    other.runtime.writer.put(late)
    other.force_sync()

    shown = memsync.get_task_progress("t1")
    assert (shown["progress"], shown["previous"]["progress"]) == (10, 95)


def test_progress_that_is_reported_from_outside_of_the_run_is_of_none(memsync, other):
    cell = progress(RUN_1, "a")
    cell.report(10, None, None, percent=10)
    memsync.runtime.writer.put(cell)
    memsync.force_sync()

    of_run = memsync.get_task_progress("t1")
    other.sync_task_progress("t1", 50)
    other.force_sync()
    from_outside = memsync.get_task_progress("t1")

    assert [(one["progress"], one["run"]) for one in (of_run, from_outside)] == [(10, "a"), (50, None)]
