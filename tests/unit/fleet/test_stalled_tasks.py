"""Stalled tasks: each stall of a running task is recorded and reported once, until there is new progress."""
from __future__ import annotations

import time

import pytest

from celery_memsync.fleet.stalled_tasks import StallMonitor, WatchedTask
from celery_memsync.keys import PROGRESS
from celery_memsync.writing.progress import Progress
from tests.support.simulated_worker import SimulatedWorker
from tests.support.waiting import eventually

#: Seconds without progress after which tasks stall here.
LIMIT = 0.2


class StallingWorker(SimulatedWorker):
    """A worker that watches its tasks, and reports their progress as a pool process does."""

    def __init__(self, manager):
        super().__init__(manager, "w1", interval=0.3, timeout=5.0)
        self.events.on("task-stalled", lambda **details: self.emitted.append(("task-stalled", details)))
        self.watched = {}
        self.progress = {}
        self.monitor = self.new_monitor()

    def new_monitor(self):
        return StallMonitor(self.store, self.events, lambda: list(self.watched.values()), 0.0, 60.0)

    def watches(self, task_id):
        key, run, began = self.has(task_id), f"{self.store.token}-{task_id}", self.store.clock.now()
        self.watched[task_id] = WatchedTask(task_id, "proj.add", run, key, began, LIMIT)
        self.progress[task_id] = Progress(self.store.keys.task_location(task_id, PROGRESS), 60.0, run, key)

    def reports(self, task_id, current):
        self.progress[task_id].report(current, 10, None)
        self.manager.runtime.writer.put(self.progress[task_id])
        self.manager.runtime.writer.flush()

    def looks(self, times=1):
        """Send heartbeats, and look after each; return how many stalls were reported in all."""
        for _ in range(times):
            self.send_heartbeat()
            self.monitor.take_reply(self.heartbeats[-1])
            self.monitor.check()
        self.events.wait_idle(5)
        return len(self.events_of("task-stalled"))

    def looks_for(self, seconds):
        """Look again and again for some time, as a worker does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.looks()
            time.sleep(0.02)
        return self.looks()


@pytest.fixture
def worker(make_memsync):
    worker = StallingWorker(make_memsync("w1", batch_interval=60.0))
    worker.send_heartbeat()
    return worker


@pytest.mark.parametrize("reported", [True, False], ids=["with progress", "without progress"])
def test_task_that_stands_still_is_recorded_and_reported_once(worker, other, reported):
    worker.watches("t1")
    if reported:
        worker.reports("t1", 4)
    since = (other.get_task_progress("t1") or {}).get("updated_at", worker.watched["t1"].started_at)

    assert worker.looks() == 0
    stalls = worker.looks_for(2 * LIMIT)

    (event,) = worker.events_of("task-stalled")
    progress = other.get_task_progress("t1")
    assert stalls == 1
    assert event == {"task_id": "t1", "name": "proj.add", "worker_id": "w1", "since": pytest.approx(since, abs=0.002)}
    assert progress["stalled_at"] - since >= LIMIT
    assert (progress["current"], progress["progress"]) == ((4, 40) if reported else (None, None))
    assert progress["updated_at"] == pytest.approx(since, abs=0.002)
    assert other.get_task_state("t1")["status"] == "STARTED"


def test_new_progress_ends_a_stall_and_the_next_one_is_reported_again(worker, other):
    worker.watches("t1")
    worker.looks_for(2 * LIMIT)
    stalled = other.get_task_progress("t1")["stalled_at"]

    worker.reports("t1", 0)

    assert stalled is not None
    assert other.get_task_progress("t1")["stalled_at"] is None
    assert worker.looks() == 1
    assert worker.looks_for(3 * LIMIT) == 2


def test_task_that_reports_does_not_stall(worker):
    worker.watches("t1")
    for number in (1, 2, 3, 4, 4, 4, 4, 4):  # the same figure is a sign of life, too
        worker.reports("t1", number)
        worker.looks_for(LIMIT / 4)

    assert worker.events_of("task-stalled") == []


def test_what_arrives_between_two_looks_is_no_stall(worker):
    worker.watches("t1")
    time.sleep(LIMIT)
    first = worker.looks()

    worker.reports("t1", 1)

    assert first == worker.looks(2) == 0


def test_what_arrives_while_a_stall_is_recorded_is_no_stall(worker, other, monkeypatch):
    worker.watches("t1")
    worker.reports("t1", 1)
    write = worker.monitor.store.write_entries

    def report_and_write(writes):
        if writes:
            worker.reports("t1", 2)
        return write(writes)

    monkeypatch.setattr(worker.monitor.store, "write_entries", report_and_write)
    time.sleep(LIMIT)

    assert worker.looks(2) == 0
    assert (other.get_task_progress("t1")["current"], other.get_task_progress("t1")["stalled_at"]) == (2, None)


def test_time_in_which_the_worker_stood_still_does_not_count(worker):
    worker.watches("t1")
    time.sleep(0.6)  # longer than between two heartbeats: it, or Redis, was paused

    assert worker.looks(3) == 0
    assert worker.looks_for(2 * LIMIT) == 1


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "LOST", "RETRY"])
def test_run_that_is_not_running_does_not_stall(worker, status):
    worker.watches("t1")
    worker.record_stage("t1", status)

    assert worker.looks_for(3 * LIMIT) == 0


def test_end_of_a_task_ends_its_stall(worker, other):
    worker.watches("t1")
    worker.looks_for(2 * LIMIT)

    worker.record_stage("t1", "SUCCESS")

    assert worker.events_of("task-stalled")
    assert (other.get_task_progress("t1")["stalled_at"], other.get_task_progress("t1")["progress"]) == (None, None)


def test_stall_whose_recording_was_not_answered_is_reported(worker):
    worker.watches("t1")
    worker.looks_for(2 * LIMIT)
    worker.monitor = worker.new_monitor()  # knows nothing of the write that it finds

    assert worker.looks(5) == 2


def test_next_run_has_no_previous_progress_of_a_run_that_reported_none(worker, other):
    worker.watches("t1")
    worker.looks_for(2 * LIMIT)

    worker.tasks["t1"] = "chain.1.d2"
    worker.record_stage("t1", "STARTED")
    worker.progress["t1"] = Progress(worker.store.keys.task_location("t1", PROGRESS), 60.0, "r2", "chain.1.d2")
    worker.reports("t1", 1)

    progress = other.get_task_progress("t1")
    assert (progress["current"], progress["stalled_at"], progress.get("previous")) == (1, None, None)


@pytest.mark.parametrize("body", [b"{}", b'"x"', b'[1,"x",{},[],null,"y","z"]'])
def test_progress_that_another_program_wrote_stalls_as_any_other(worker, redis, body):
    worker.watches("t1")
    worker.reports("t1", 1)
    key = worker.store.keys.task("t1")
    record = redis.get(key)
    redis.set(key, record[:record.rindex(b"\n")] + b"\n" + body)

    assert worker.looks_for(3 * LIMIT) == 1


def test_thread_of_the_monitor_looks_after_a_heartbeat(worker):
    worker.watches("t1")

    def reported():
        worker.send_heartbeat()
        worker.monitor.note_reply(worker.heartbeats[-1])
        return worker.events_of("task-stalled")

    try:
        assert len(eventually(reported)) == 1
    finally:
        worker.monitor.stop(1)
