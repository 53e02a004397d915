"""Two releases in one fleet: old producers with new workers, the reverse, and a rolling restart under load."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from celery_memsync.models.formats import FORMAT
from tests.support.other_release import VERSION, OtherRelease
from tests.support.paths import ROOT
from tests.support.waiting import eventually

pytestmark = pytest.mark.acceptance

THREADS = ("-P", "threads", "-c", "4")

#: Sends tasks of several kinds until its input ends, reads what became of them, and prints that.
PRODUCER = """
import json, select, sys, time
from tests.support.proj import app, memsync
from celery_memsync import __version__

sent = []
while True:
    sent.append(app.tasks["tests.support.tasks.count_to"].delay(3).id)
    sent.append(app.tasks["tests.support.tasks.add"].delay(1, 2).id)
    if len(sent) % 20 == 0:
        sent.append(app.tasks["tests.support.tasks.retry_once"].delay().id)
    if select.select([sys.stdin], [], [], 0.1)[0]:
        break
memsync.force_sync()
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    states = {one: (memsync.get_task_state(one) or {}).get("status") for one in sent}
    if set(states.values()) == {"SUCCESS"}:
        break
    time.sleep(0.2)
print(json.dumps({"version": __version__, "states": states}))
"""


@pytest.fixture(scope="module")
def other_release(tmp_path_factory):
    """The release before this one."""
    return OtherRelease(tmp_path_factory.mktemp("other"))


@pytest.fixture
def fleet(make_fleet):
    return make_fleet(worker_log_format="%(levelname)s %(name)s %(message)s", memsync_worker_ttl=3.0)


@pytest.fixture
def make_producer(fleet, tmp_path):
    """Starts producers, of another release if one is given."""
    made = []

    def make(release=None):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **fleet.env(), **(release.env if release else {})}
        made.append(subprocess.Popen(
            [sys.executable, "-c", PRODUCER], cwd=tmp_path, env=env, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.wait()


def end(producer):
    """Let a producer send no more; return its version and the statuses of its tasks as it reads them."""
    out, errors = producer.communicate("\n", timeout=100)
    assert (producer.returncode, errors) == (0, "")
    shown = json.loads(out)
    return shown["version"], shown["states"]


def complaints(*workers):
    """Return what workers have logged that should not be in a log."""
    return [line for worker in workers for line in worker.output().splitlines()
            if re.match(r"(ERROR|CRITICAL|Traceback)|WARNING celery_memsync", line)]


def format_of(fleet):
    """Return the format in which a new process of this release writes."""
    store = fleet.manager().runtime.store
    store.format.number
    store.connect()
    return store.format.number


def assert_all_done(fleet, states):
    """Check what a producer has read, and read it here."""
    assert set(states.values()) == {"SUCCESS"}, states
    assert {fleet.status(task_id) for task_id in states} == {"SUCCESS"}


@pytest.mark.parametrize("is_worker_old", [True, False], ids=["old worker, new producer", "new worker, old producer"])
def test_releases_work_together(fleet, other_release, make_producer, is_worker_old):
    worker = other_release.worker(fleet, *THREADS) if is_worker_old else fleet.worker(*THREADS)
    worker.start()
    producer = make_producer(None if is_worker_old else other_release)
    record = fleet.wait_record(worker, lambda record: record.counters.get("total", 0) > 30, timeout=60)

    version, states = end(producer)

    assert_all_done(fleet, states)
    assert (version == VERSION) == (record.versions["celery-memsync"] != VERSION) == (not is_worker_old)
    assert (record.format, format_of(fleet)) == (FORMAT - is_worker_old,) * 2
    assert complaints(worker) == []


def test_rolling_restart_under_load_loses_no_task(fleet, other_release, make_producer):
    old = fleet.start_all(*(other_release.worker(fleet, *THREADS) for _ in range(2)))
    producers = [make_producer(other_release), make_producer()]
    before = format_of(fleet)
    during = []
    new = []

    for worker in old:
        fleet.wait_record(worker, lambda record: record.counters.get("total", 0) > 20, timeout=60)
        new.append(fleet.start_worker(*THREADS))
        fleet.wait_record(new[-1], lambda record: record.counters.get("total", 0) > 20, timeout=60)
        during.append(format_of(fleet))
        assert worker.stop() == 0
    eventually(lambda: format_of(fleet) == FORMAT, 20)
    ended = [end(producer) for producer in producers]

    assert (before, during) == (FORMAT - 1, [FORMAT - 1] * 2)
    assert [version == VERSION for version, _ in ended] == [True, False]
    for _, states in ended:
        assert_all_done(fleet, states)
    assert complaints(*old, *new) == []
