"""Deferred changes: those of a run are made when a batch is made."""
from __future__ import annotations

import threading

import pytest
from celery import Celery

from celery_memsync import MemSync
from celery_memsync.integration.requests import timestamp
from celery_memsync.integration.runs import ActiveRun
from celery_memsync.writing.changes import DeferredChange
from celery_memsync.writing.writer import YOUNG
from tests.support.waiting import eventually

KEY = "chain.0.run"


@pytest.fixture
def make_memsync(redis_url):
    """Makes memories of apps, which are shut down at the end of the test."""
    made = []

    def make(url=None, **settings):
        app = Celery("drafts", set_as_current=False)
        made.append(MemSync(app, backend=url or redis_url, worker_id=f"w-{len(made)}", **settings))
        return made[-1]

    yield make
    for memsync in made:
        memsync.signals.disconnect()
        memsync.shutdown(timeout=0.5)


class ScriptedChange(DeferredChange):
    """A deferred change with given answers."""

    __slots__ = ("answers", "memsync", "done_by_now", "calls", "thread")

    def __init__(self, memsync, *answers, age=0.0, done=False):
        clock = memsync.runtime.store.clock
        super().__init__(clock.monotonic(clock.now() - age))
        self.memsync, self.answers, self.done_by_now, self.calls = memsync, list(answers), done, 0
        self.thread = None

    @property
    def key(self):
        return self.memsync.runtime.keys.task("t1")

    @property
    def done(self):
        return self.done_by_now

    def changes(self):
        self.calls += 1
        self.thread = threading.current_thread().name
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return [run_of(self.memsync).stage_change(status=answer, name="proj.add")]


def run_of(memsync):
    return ActiveRun(memsync, memsync.runtime, "t1", {}, {"key": KEY, "run": "r1"}, "proj.add", 0.0, 5.0)


def status(memsync):
    return (memsync.get_task_state("t1") or {}).get("status")


def test_deferred_change_is_read_at_once_and_written(make_memsync):
    memsync = make_memsync(batch_interval=60.0)

    memsync.runtime.writer.defer(ScriptedChange(memsync, "STARTED"))

    assert memsync.runtime.writer.pending == 1
    assert status(memsync) == "STARTED"
    assert memsync.runtime.writer.pending == 0
    assert memsync.get_metrics()["writes"] == 1
    assert status(make_memsync()) == "STARTED"


def test_deferred_change_invalidates_the_cached_copy(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    assert memsync.get_task_state("t1") is None
    assert memsync.get_task_state("t1") is None

    memsync.runtime.writer.defer(ScriptedChange(memsync, "STARTED"))

    assert status(memsync) == "STARTED"


def test_deferred_change_is_written_without_a_read(make_memsync):
    memsync, other = make_memsync(batch_interval=0.05), make_memsync()

    memsync.runtime.writer.defer(ScriptedChange(memsync, "STARTED"))

    eventually(lambda: status(other) == "STARTED")


def test_a_young_draft_is_left_for_the_next_batch_unless_it_is_done(make_memsync):
    memsync = make_memsync(batch_interval=10.0)
    writer = memsync.runtime.writer
    young = ScriptedChange(memsync, "RECEIVED")
    done = ScriptedChange(memsync, "SUCCESS", done=True)
    old = ScriptedChange(memsync, "STARTED", age=2.0)
    for draft in (young, done, old):
        writer.defer(draft)

    writer._thread.run_now()
    eventually(lambda: writer.counts["syncs"])

    assert (young.calls, done.calls, old.calls) == (0, 1, 1)
    assert writer.pending == 1
    assert YOUNG * 10.0 < 2.0
    memsync.force_sync()
    assert young.calls == 1


def test_run_deferred_again_is_written_again(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    run = run_of(memsync)
    memsync.runtime.writer.defer(run)
    assert status(memsync) == "STARTED"
    assert memsync.runtime.writer.pending == 0

    run.end("SUCCESS", 5, run.at + 1.5)
    memsync.runtime.writer.defer(run)
    memsync.force_sync()

    state = memsync.get_task_state("t1")
    assert (state["status"], state["runtime"]) == ("SUCCESS", 1.5)
    assert memsync.get_metrics()["writes"] == 2


def test_failing_deferred_change_is_dropped_and_logged(make_memsync, caplog):
    memsync = make_memsync(batch_interval=60.0)
    memsync.runtime.writer.defer(ScriptedChange(memsync, ZeroDivisionError("oh")))
    memsync.runtime.writer.defer(ScriptedChange(memsync, IndexError("oh")))
    memsync.runtime.writer.defer(ScriptedChange(memsync, "STARTED"))

    memsync.force_sync()

    assert status(memsync) == "STARTED"
    assert memsync.get_metrics()["dropped"] == 2
    assert caplog.text.count("could not be described") == 2
    assert "entries were pending" not in caplog.text


def test_deferred_changes_are_made_in_the_writer_thread(make_memsync):
    memsync = make_memsync(batch_interval=60.0, batch_size=10)
    drafts = [ScriptedChange(memsync, "STARTED") for _ in range(30)]

    for draft in drafts:
        memsync.runtime.writer.defer(draft)
    memsync.force_sync()
    memsync.runtime.writer.defer(ScriptedChange(memsync, "SUCCESS"))
    read = status(memsync)

    assert {draft.thread for draft in drafts} == {"memsync-writer"}
    assert read == "SUCCESS"


def test_shutdown_writes_deferred_changes_and_opens_no_connection(make_memsync):
    memsync, other = make_memsync(batch_interval=60.0), make_memsync()
    memsync.force_sync()
    clock = memsync.runtime.store.clock
    clock.offset += 1000.0  # so that its times differ from those of another
    active = run_of(memsync)
    memsync.runtime.writer.defer(active)
    active.end("SUCCESS", None, 5.0)
    ended = clock.at(5.0)

    memsync.shutdown()

    assert memsync._lifetime.runtime is None
    state = other.get_task_state("t1")
    assert (state["status"], state["finished_at"]) == ("SUCCESS", pytest.approx(ended, abs=1.0))


def test_drafts_have_a_bound_while_the_thread_waits_for_redis(make_memsync, own_server):
    memsync = make_memsync(
        url=own_server.url, batch_interval=60.0, max_pending=100, backend_options={"socket_timeout": 10})
    memsync.force_sync()
    under_way = ScriptedChange(memsync, "STARTED", done=True)
    own_server.pause()
    memsync.runtime.writer.defer(under_way)
    memsync.runtime.writer._thread.run_now()
    eventually(lambda: under_way.calls)

    for _ in range(250):
        memsync.runtime.writer.defer(ScriptedChange(memsync, "STARTED"))
    pending = memsync.runtime.writer.pending
    own_server.resume()
    memsync.force_sync()

    assert pending == 101
    assert memsync.get_metrics()["dropped"] == 150


def test_deferred_changes_of_many_threads_are_all_written(make_memsync):
    memsync = make_memsync(batch_interval=0.01)

    def run(number):
        for at in range(200):
            active = ActiveRun(memsync, memsync.runtime, f"t{number}-{at}", {}, {"key": KEY}, "proj.add", 0.0, 5.0)
            memsync.runtime.writer.defer(active)
            active.end("SUCCESS", None, 1.0)
            memsync.runtime.writer.defer(active)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync()

    statuses = {(task["id"], task["state"]["status"]) for task in memsync.get_tasks(limit=5000)}
    assert statuses == {(f"t{number}-{at}", "SUCCESS") for number in range(8) for at in range(200)}


@pytest.mark.parametrize("moment", [None, "never", 5.0, [], {}, "2026-13-45", float("inf"), 10 ** 400])
def test_an_eta_that_is_none_is_passed_over(moment):
    assert timestamp(moment) is None
