"""A run that waits for its next try is remembered until then."""
from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from celery.exceptions import Retry

from celery_memsync import MemSync
from celery_memsync.integration.runs import ActiveRun
from tests.support.runs import run_key


@pytest.fixture
def memsync(redis_url):
    memsync = MemSync(Celery("retries", set_as_current=False), backend=redis_url, default_ttl=10.0, batch_interval=60.0)
    yield memsync
    memsync.signals.disconnect()
    memsync.shutdown(timeout=0.5)


@pytest.mark.parametrize("when", [500, 500.0, "eta"])
def test_record_and_progress_outlive_the_time_of_the_next_try(memsync, redis, when):
    run = ActiveRun(memsync, memsync.runtime, "t1", {}, {"key": run_key(0, 1.0), "run": "r1"}, "proj.add", 0.0, 5.0)
    assert run.progress.report(4, 10, None)
    memsync.runtime.writer.put(run.progress)
    memsync.force_sync()

    eta = datetime.now(timezone.utc) + timedelta(seconds=500)
    run.end("RETRY", Retry("later", None, eta if when == "eta" else when), time.monotonic())
    memsync.runtime.writer.put(run.progress)
    memsync.runtime.writer.defer(run)
    memsync.force_sync()

    state, progress = memsync.read_entry("tasks/t1/state"), memsync.read_entry("tasks/t1/progress")
    assert state.value["status"] == "RETRY"
    assert [round(entry.ttl / 10) >= 50 for entry in (state, progress)] == [True, True]
    assert any(redis.pttl(key) > 500_000 for key in redis.keys("*t1*"))


@pytest.mark.parametrize("when", [None, True, -5, "soon"])
def test_run_without_a_time_for_the_next_try_has_the_usual_ttl(memsync, when):
    run = ActiveRun(memsync, memsync.runtime, "t1", {}, {"key": run_key(0, 1.0), "run": "r1"}, "proj.add", 0.0, 5.0)

    run.end("RETRY", Retry("later", None, when), time.monotonic())

    (change,) = run.changes()
    assert change.ttl == pytest.approx(10.0, abs=1)
