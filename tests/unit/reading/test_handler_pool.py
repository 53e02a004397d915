"""The pool of handler threads by itself: no job is lost, none runs twice at a time, the limit holds."""
from __future__ import annotations

import random
import threading
import time

import pytest

from celery_memsync.reading import handler_pool
from celery_memsync.reading.handler_pool import HandlerPool, Job
from tests.support.stress import stressed
from tests.support.waiting import eventually


class Counted:
    """A job that does what was put in since its last run, and may be slow or raise."""

    def __init__(self, pool, draw, running, slow=0.001):
        self.pool = pool
        self.draw = draw
        self.slow = slow
        self.running = running
        self.overlaps = 0
        self.put = self.done = 0
        self.inside = False
        self.job = Job(self.run, lambda: "counted")

    def submit(self):
        self.put += 1
        self.pool.submit(self.job)

    def run(self):
        self.overlaps += self.inside
        self.inside = True
        self.running.append(self)
        try:
            put = self.put
            time.sleep(self.draw.random() * self.slow)
            if self.draw.random() < 0.02:
                raise self.draw.choice([ValueError, SystemExit])("of a job")
            self.done = put
            return self.draw.random() < 0.1
        finally:
            self.running.remove(self)
            self.inside = False


@pytest.fixture
def pool():
    pool = HandlerPool(3)
    yield pool
    pool.close(0)


@pytest.mark.parametrize("seed", range(3))
def test_every_job_runs_after_its_last_submission_and_never_twice_at_a_time(pool, monkeypatch, seed):
    monkeypatch.setattr(handler_pool, "IDLE_TIMEOUT", 0.003)
    monkeypatch.setattr(handler_pool, "RETRY_PAUSE", 0.01)
    draw, running, most = random.Random(seed), [], 0
    jobs = [Counted(pool, draw, running) for _ in range(50)]

    end = time.monotonic() + stressed(10.0, 0.5)
    while time.monotonic() < end:
        draw.choice(jobs).submit()
        most = max(most, len(running))
        time.sleep(draw.choice([0, 0, 0.0001, 0.005]))

    eventually(lambda: pool.check() or all(job.done == job.put for job in jobs))
    assert most <= 3
    assert sum(job.overlaps for job in jobs) == 0


def test_a_job_that_was_slow_does_not_count_from_the_start(pool, monkeypatch):
    monkeypatch.setattr(handler_pool, "SLOW_AFTER", 0.1)
    free, quick, began = threading.Event(), threading.Event(), []

    def block():
        began.append(time.monotonic())
        free.wait(0.3 if len(began) <= 6 else 30)
        return False

    jobs = [Job(block, lambda: "slow") for _ in range(6)]
    for job in jobs:
        pool.submit(job)
    eventually(lambda: pool.check() or all(job.slow for job in jobs))
    for job in jobs:
        pool.submit(job)
    pool.submit(Job(lambda: quick.set(), lambda: "quick"))

    assert quick.wait(0.05 + 5)
    eventually(lambda: len(began) == 12)
    free.set()


def test_an_urgent_job_waits_for_no_limit(pool):
    free, urgent = threading.Event(), threading.Event()
    for _ in range(20):
        pool.submit(Job(lambda: free.wait(30) and False, lambda: "blocks"))

    pool.submit(Job(lambda: urgent.set(), lambda: "urgent", urgent=True))

    assert urgent.wait(10)
    free.set()


def test_what_fails_is_logged_once_and_tried_until_it_works(pool, caplog):
    caplog.set_level("INFO")
    answers = iter([ValueError("first"), ValueError("second"), False])

    def fail():
        answer = next(answers)
        if answer:
            raise answer
        return answer

    job = Job(fail, lambda: "proj.handler")
    pool.submit(job)

    eventually(lambda: pool.check() or "work again after 2 failures" in caplog.text)
    assert caplog.text.count("Deliveries are delayed (proj.handler): first") == 1
    assert "second" not in caplog.text


def test_a_pool_that_was_closed_runs_nothing_and_its_threads_end(pool):
    calls, before = [], threading.active_count()
    pool.submit(Job(lambda: calls.append(1), lambda: "one"))
    eventually(lambda: calls)

    pool.close(1)
    pool.submit(Job(lambda: calls.append(2), lambda: "two"))

    eventually(lambda: threading.active_count() <= before)
    assert calls == [1]
