"""`progress` and `track` in the body of a task."""
from __future__ import annotations

import threading

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import MemSync, NotInTask


@pytest.fixture
def memsync(redis_url):
    """The manager of an app whose tasks run eagerly."""
    app = Celery("progress", broker="memory://", set_as_current=False)
    app.conf.update(memsync_backend=redis_url, memsync_batch_interval=60.0)
    memsync = MemSync(app)
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


def run(memsync, body):
    """Run a function as the body of a task; return what its progress was at the end of that."""
    def run_body():
        body()
        return memsync.get_task_progress("t1")

    return memsync.app.task(name=body.__qualname__, shared=False)(run_body).apply(task_id="t1").get(
        disable_sync_subtasks=False)


def shown(progress):
    return tuple(progress[name] for name in ("progress", "current", "total", "phase", "phase_number"))


class Stream:
    """Something to iterate whose length fails."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        raise self.error

    def __iter__(self):
        return iter("abc")


# -- phases

def test_progress_of_a_phase_has_a_total_and_a_message_of_its_own(memsync):
    def body():
        memsync.progress(4, 4, "fetched", phase="downloading", file="a.mp4")
        memsync.progress(1, 10, phase="converting")

    progress = run(memsync, body)

    assert shown(progress) == (10, 1, 10, "converting", 2)
    assert (progress["message"], progress["file"]) == (None, "a.mp4")


def test_progress_of_a_phase_goes_on_while_its_name_is_repeated_or_left_out(memsync):
    def body():
        memsync.progress(1, 10, phase="converting")
        memsync.progress(2, phase="converting")
        memsync.progress(3)

    assert shown(run(memsync, body)) == (30, 3, 10, "converting", 1)


def test_progress_of_a_phase_is_later_than_what_was_flushed_of_the_one_before(memsync):
    def body():
        memsync.progress(4, 4, phase="downloading")
        memsync.force_sync()
        memsync.progress(1, 10, phase="converting")
        memsync.force_sync()

    assert shown(run(memsync, body)) == (10, 1, 10, "converting", 2)


def test_track_begins_a_phase_each_time(memsync):
    def body():
        for _ in memsync.track("abcd"):
            pass
        for number in memsync.track(range(4), message="again"):
            if number == 1:
                break

    progress = run(memsync, body)

    assert shown(progress) == (25, 1, 4, None, 2)
    assert progress["message"] == "again"


def test_track_shows_the_inner_one_of_two_loops(memsync):
    seen = []

    def body():
        for _ in memsync.track("ab", phase="chapters"):
            for _ in memsync.track("xyz", phase="pages"):
                pass
            seen.append(shown(memsync.get_task_progress("t1")))

    run(memsync, body)

    assert seen == [(100, 3, 3, "pages", 2), (100, 3, 3, "pages", 3)]


def test_track_keeps_a_total_that_is_corrected_on_the_way(memsync):
    def body():
        for number in memsync.track(iter("abcd"), total=3):
            if number == "b":
                memsync.progress(2, 8)

    assert shown(run(memsync, body)) == (50, 4, 8, None, 1)


def test_eta_is_that_of_the_phase(memsync):
    def body():
        memsync.progress(1, 2, phase="slow")
        memsync.runtime.writer.flush()
        memsync.progress(0, 4, phase="fast")
        memsync.progress(2)

    progress = run(memsync, body)

    assert progress["started_at"] <= progress["phase_started_at"] <= progress["updated_at"]
    assert progress["eta"] is None or progress["eta"] == pytest.approx(
        progress["updated_at"] - progress["phase_started_at"], abs=0.002)


def test_a_thread_that_reports_by_id_goes_on_with_the_phase_of_the_task(memsync):
    def body():
        memsync.progress(4, 4, phase="downloading")
        memsync.progress(1, 10, phase="converting")
        memsync.force_sync()
        thread = threading.Thread(target=memsync.sync_task_progress, args=("t1", None), kwargs={"current": 5})
        thread.start()
        thread.join()

    assert shown(run(memsync, body)) == (50, 5, 10, "converting", 2)
    assert memsync.runtime.progress == {}


# -- iterables

@pytest.mark.parametrize("error", [TypeError("no length"), ValueError(), RuntimeError()])
def test_track_has_no_total_if_the_length_raises(memsync, error):
    items = []

    progress = run(memsync, lambda: items.extend(memsync.track(Stream(error))))

    assert items == ["a", "b", "c"]
    assert shown(progress) == (100, 3, 3, None, 1)


def test_track_lets_a_soft_time_limit_through(memsync):
    with pytest.raises(SoftTimeLimitExceeded):
        run(memsync, lambda: list(memsync.track(Stream(SoftTimeLimitExceeded()))))


def test_track_only_iterates_outside_of_a_task(memsync):
    assert list(memsync.track(Stream(TypeError()), message="abc", phase="x")) == ["a", "b", "c"]
    assert memsync.get_metrics()["pending_writes"] == 0


def test_progress_outside_of_a_task_is_an_error(memsync):
    with pytest.raises(NotInTask):
        memsync.progress(1, 2)


# -- at the end

@pytest.mark.parametrize("ending, expected", [(None, (100, 10, 10)), (ValueError("no"), (30, 3, 10))])
def test_progress_of_an_ended_task_is_100_percent_of_a_success_and_has_no_eta(memsync, ending, expected):
    @memsync.app.task(name="ending", shared=False)
    def body():
        memsync.progress(1, 10)
        memsync.progress(3)
        if ending is not None:
            raise ending

    body.apply(task_id="t1", throw=False)
    progress = memsync.get_task_progress("t1")
    (listed,) = memsync.get_tasks()

    assert (progress["progress"], progress["current"], progress["total"], progress["eta"]) == (*expected, None)
    assert memsync.get_task("t1")["progress"] == listed["progress"] == progress


def test_a_success_shows_the_last_phase(memsync):
    @memsync.app.task(name="phases", shared=False)
    def body():
        memsync.progress(4, 4, phase="downloading")
        memsync.progress(1, 8, phase="converting")

    body.apply(task_id="t1")

    assert shown(memsync.get_task_progress("t1")) == (100, 8, 8, "converting", 2)
