"""`tqdm` that reports the progress of the running task."""
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import threading

import pytest
from tqdm.contrib.concurrent import thread_map

from celery_memsync.contrib.tqdm import tqdm, trange

pytestmark = pytest.mark.usefixtures("own_lock")


def shown(progress):
    return tuple(progress[name] for name in ("progress", "current", "total", "message", "phase_number"))


# -- what is reported

def test_bar_reports_count_total_and_description(run):
    def body():
        for number in tqdm([1, 2, 3, 4], desc="resizing", mininterval=0):
            if number == 3:
                break

    assert shown(run(body)) == (50, 2, 4, "resizing", 1)


def test_bar_reports_while_it_runs(run, memsync):
    seen = []

    def body():
        for _ in tqdm(range(3), mininterval=0, miniters=1):
            seen.append(memsync.get_task_progress("t1")["current"])

    run(body)

    assert seen == [0, 1, 2]


def test_bar_reports_its_last_count_when_it_was_not_due(run):
    def body():
        for _ in tqdm(range(1000), mininterval=60):
            pass

    assert shown(run(body)) == (100, 1000, 1000, None, 1)


def test_bar_reports_no_more_often_than_it_is_due(run, memsync):
    reports = []

    def body():
        for _ in tqdm(range(100_000), mininterval=60):
            pass
        reports.append(memsync.runtime.progress["t1"].reports)

    run(body)

    assert reports[0] <= 3


def test_bar_without_a_total_reports_the_count(run):
    def body():
        for _ in tqdm(iter("abc"), mininterval=0):
            pass

    assert shown(run(body)) == (None, 3, None, None, 1)


def test_bar_updated_by_hand_reports_what_it_is_given(run):
    def body():
        with tqdm(total=10.0, initial=2, mininterval=0) as bar:
            bar.update(3.5)
            bar.set_description("unpacking")
            bar.set_postfix(loss=0.25)

    progress = run(body)

    assert shown(progress) == (55, 5.5, 10, "unpacking", 1)
    assert progress["postfix"] == "loss=0.25"


def test_bar_with_a_delay_reports_at_its_end(run):
    def body():
        for _ in tqdm(range(5), delay=60):
            pass

    assert shown(run(body)) == (100, 5, 5, None, 1)


def test_bar_of_a_loop_that_raises_has_reported_how_far_it_came(run, memsync):
    def body():
        with contextlib.suppress(ValueError):
            for number in tqdm(range(10), mininterval=0):
                if number == 4:
                    raise ValueError
        assert memsync.get_task_progress("t1")["current"] == 4
        for _ in trange(3):
            pass

    assert shown(run(body)) == (100, 3, 3, None, 2)


def test_bar_with_figures_that_are_none_leaves_them_out(run, memsync):
    def body():
        bar = tqdm(total=-5, initial=float("nan"))
        bar.close()
        memsync.progress(1, 2)

    assert shown(run(body))[:3] == (50, 1, 2)


def test_bar_reports_in_a_thread_that_has_the_context(run):
    def body():
        bar = tqdm(total=4, mininterval=0)
        thread = threading.Thread(target=contextvars.copy_context().run, args=(bar.update, 3))
        thread.start()
        thread.join()
        bar.close()

    assert shown(run(body)) == (75, 3, 4, None, 1)


# -- several bars

def test_bar_inside_of_another_one_does_not_report(run):
    def body():
        for _ in trange(3, desc="outer", mininterval=0):
            for _ in trange(7, desc="inner", mininterval=0, leave=False):
                pass

    assert shown(run(body)) == (100, 3, 3, "outer", 1)


def test_bar_after_another_one_is_the_next_phase(run):
    def body():
        for _ in trange(3, desc="downloading"):
            pass
        for _ in tqdm(range(4), desc="converting", mininterval=0):
            break

    assert shown(run(body)) == (0, 0, 4, "converting", 2)


def test_bar_after_one_that_was_not_closed_is_the_next_phase(run):
    def body():
        first = tqdm(total=2)
        first.update(2)
        second = tqdm(total=4, mininterval=0)
        second.update(1)
        second.refresh()
        first.refresh()

    assert shown(run(body)) == (25, 1, 4, None, 2)


def test_bar_that_is_reset_is_the_next_phase(run):
    def body():
        with tqdm(total=2, mininterval=0) as bar:
            bar.update(1)
            bar.reset(total=8)
            bar.update(2)

    assert shown(run(body)) == (25, 2, 8, None, 2)


def test_phase_of_the_task_itself_ends_that_of_a_bar(run, memsync):
    def body():
        for _ in tqdm(range(5), mininterval=0):
            memsync.progress(1, 4, phase="checking")

    assert shown(run(body)) == (25, 1, 4, None, 2)


def test_bar_after_a_phase_of_the_task_itself_reports_beside_one_that_is_open(run, memsync):
    def body():
        first = tqdm(total=5, mininterval=0)
        memsync.progress(1, 4, phase="checking")
        for _ in trange(3, desc="later"):
            pass
        first.close()

    assert shown(run(body)) == (100, 3, 3, "later", 3)


def test_bars_of_two_tasks_report_both(memsync):
    app = memsync.app

    @app.task(shared=False)
    def inner():
        for _ in trange(3):
            pass

    @app.task(shared=False)
    def outer():
        for number in trange(4):
            inner.apply(task_id=f"inner-{number}")

    outer.apply(task_id="outer")

    assert memsync.get_task_progress("outer")["total"] == 4
    assert memsync.get_task_progress("inner-0")["total"] == 3


# -- asyncio, and libraries that take a class

async def stream(count):
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def test_bar_reports_an_asynchronous_loop(run):
    async def loop():
        async for _ in tqdm(stream(3), total=3, desc="outer", mininterval=0):
            async for _ in tqdm(stream(5), total=5, mininterval=0):
                pass

    assert shown(run(lambda: asyncio.run(loop()))) == (100, 3, 3, "outer", 1)


def test_bar_reports_what_is_gathered(run):
    async def gather():
        assert await tqdm.gather(*(asyncio.sleep(0, number) for number in range(4))) == [0, 1, 2, 3]

    assert shown(run(lambda: asyncio.run(gather()))) == (100, 4, 4, None, 1)


def test_bar_reports_for_a_library_that_takes_its_class(run):
    def body():
        assert thread_map(abs, [-1, -2, -3], max_workers=2, tqdm_class=tqdm) == [1, 2, 3]

    assert shown(run(body)) == (100, 3, 3, None, 1)


# -- what is drawn

@pytest.mark.parametrize("options", [{}, {"disable": None}, {"file": None}])
def test_bar_of_a_task_draws_nothing_and_reports(run, capsys, options):
    def body():
        for _ in tqdm(range(3), **options):
            pass

    assert shown(run(body))[:3] == (100, 3, 3)
    assert capsys.readouterr() == ("", "")


def test_bar_of_a_task_draws_into_the_file_that_it_is_given(run):
    file = io.StringIO()

    def body():
        for _ in tqdm(range(3), desc="resizing", file=file):
            pass

    assert shown(run(body))[:3] == (100, 3, 3)
    assert "resizing: 100%" in file.getvalue()


def test_bar_for_terminals_only_reports_and_draws_nothing(run):
    file = io.StringIO()

    def body():
        for _ in tqdm(range(3), disable=None, file=file):
            pass

    assert shown(run(body))[:3] == (100, 3, 3)
    assert file.getvalue() == ""


def test_bar_that_is_disabled_does_not_report(run):
    def body():
        for _ in tqdm(range(3), disable=True):
            pass

    assert run(body) is None


def test_bar_outside_of_a_task_is_drawn_as_any_other(capsys):
    for _ in tqdm(range(3), desc="alone"):
        pass

    assert "alone: 100%" in capsys.readouterr().err


# -- what must not happen to a task

@pytest.mark.parametrize("description", [b"resizing", 7, None])
def test_bar_with_a_description_that_is_no_text_leaves_it_out(run, description):
    def body():
        bar = tqdm(total=4, desc=description, mininterval=0)
        bar.desc = description
        bar.update(3)
        bar.refresh()
        bar.close()

    assert shown(run(body)) == (75, 3, 4, None, 1)


def test_bar_inside_of_one_whose_total_is_no_number_does_not_fail(run):
    def body():
        outer = tqdm(total="many", mininterval=0)
        for _ in trange(7, desc="inner"):
            pass
        outer.update(3)
        outer.close()

    assert shown(run(body))[:2] == (None, 3)


def test_bar_of_a_task_that_has_ended_reports_no_more(run, memsync):
    bars = []

    def body():
        bars.append(tqdm(total=10, mininterval=0))
        bars[0].update(4)

    run(body)
    bars[0].update(5)
    bars[0].close()

    assert memsync.read("tasks/t1/progress")["current"] == 4
