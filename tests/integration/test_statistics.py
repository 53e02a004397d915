"""Statistics equal what the bodies of tasks have written into files."""
from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pytest

from celery_memsync.metrics import MemsyncCollector
from celery_memsync.models.order import run_key_of
from celery_memsync.models.task import TaskRun
from celery_memsync.store import scripts
from tests.support.fleet import Fleet
from tests.support.ledger_tasks import LATE, NAMES, rows
from tests.support.lossy_proxy import LossyProxy
from tests.support.stress import stressed
from tests.support.waiting import eventually

#: How a task ends, and how many of a hundred do.
WAYS = {"succeed": 70, "fail": 12, "retry": 10, "ignore": 4, "die": 2}

LEDGER = "tests.support.ledger_tasks"

pytestmark = pytest.mark.timeout(stressed(900, 120))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory, broker, store):
    """A fleet behind a proxy that loses answers, after many tasks have ended in every way."""
    proxy = LossyProxy(store.port)
    fleet = Fleet(
        tmp_path_factory.mktemp("ledger"), broker, store, include=[LEDGER], memsync_worker_ttl=2.0,
        memsync_failure_types=True, memsync_history=True, worker_prefetch_multiplier=2)
    fleet.proxy = proxy
    doomed_queue = f"{fleet.name}-doomed"
    lossy = {"memsync_backend": proxy.url}
    doomed = fleet.worker("-c", "4", "-Q", doomed_queue, **lossy)
    fleet.start_all(doomed, *(fleet.worker("-c", stressed("12", "4"), **lossy) for _ in range(2)))
    proxy.cut(scripts.ENTRY_WRITE.sha.encode(), 10 ** 6, chance=0.05)
    yield run_everything(fleet, doomed, doomed_queue)
    fleet.close()
    proxy.listener.close()


def run_everything(fleet, doomed, doomed_queue):
    tasks = [fleet.app.tasks[name] for name in NAMES]
    chosen = random.Random(7)
    number = stressed(10_000, 120)
    for at in range(number):
        how = chosen.choices(list(WAYS), list(WAYS.values()))[0]
        result = tasks[at % 50].apply_async((how, chosen.uniform(*stressed((0.1, 0.4), (0.05, 0.15)))))
        if at % 100 == 7:
            tasks[at % 50].apply_async((how, 0.03), task_id=result.id)
    wait_ended(fleet)
    for at in range(stressed(10, 2)):
        result = tasks[at].apply_async((("succeed and die", "fail and die")[at % 2], 0.03))
        fleet.wait(result, "SUCCESS", "FAILURE")
        wait_ended(fleet)
    results = [tasks[at].apply_async(("hang", 0), queue=doomed_queue) for at in range(4)]
    for result in results:
        fleet.wait(result, "STARTED")
    os.killpg(doomed.process.pid, signal.SIGKILL)
    for result in results:
        fleet.wait(result, "LOST", timeout=30)
    fleet.proxy.cut(b"", 0)
    return fleet


def wait_ended(fleet):
    """Wait until no task is pending or running."""
    with fleet.broker.client() as client:
        eventually(lambda: not client.llen(fleet.name) and not fleet.unacked(), timeout=stressed(500, 60))
    eventually(lambda: not any(fleet.reader.get_queue().values()), timeout=stressed(500, 60))


def written(fleet):
    """Return by task and queue what the bodies have written, as counts."""
    by_record, open_runs = {}, Counter()
    for row in rows(fleet.notes_file):
        counts = by_record.setdefault((row["name"], row["queue"]), Counter())
        if row["what"] == "begin":
            counts["started"] += 1
            counts["waits"] += not row["retries"]
            open_runs[row["name"], row["queue"]] += 1
        else:
            counts[row["what"]] += 1
            counts["runtimes"] += 1
            counts["seconds"] += row["seconds"]
            open_runs[row["name"], row["queue"]] -= 1
        counts.setdefault("ids", set()).add(row["id"])
    for (name, queue), count in open_runs.items():
        by_record[name, queue]["lost" if name in LATE or queue != fleet.name else "failed"] += count
    for counts in by_record.values():
        counts["created"] = len(counts.pop("ids"))
    return by_record


def counted(one):
    return Counter({"created": one.created, "started": one.started, **one.outcomes, "waits": one.wait.count,
                    "runtimes": one.runtime.count})


def read(fleet):
    return {(one.task, one.queue): one for one in fleet.reader.runtime.store.read_statistics()}


def test_every_count_equals_what_the_bodies_wrote(ledger):
    expected = written(ledger)
    eventually(lambda: sum(one.ended for one in read(ledger).values()) >= sum(
        counts["started"] for counts in expected.values()), timeout=20)

    found = read(ledger)

    assert len(found) == 54
    differences = [
        f"{record}: {name} is {counted(found[record])[name]}, written {counts[name]}"
        for record, counts in expected.items() for name in counted(found[record])
        if counted(found[record])[name] != counts[name]]
    assert not differences, "\n".join(differences)
    assert found.keys() == expected.keys()
    assert sum(one.revised for one in found.values()) == 0
    assert ledger.proxy.cuts == 0


def test_sums_of_runtimes_are_those_of_the_bodies(ledger):
    expected, found = written(ledger), read(ledger)

    ours = sum(one.runtime.sum for one in found.values())
    assert ours == pytest.approx(sum(counts["seconds"] for counts in expected.values()), rel=stressed(0.01, 0.05))


def test_a_second_writer_of_an_end_counts_nothing(ledger):
    before = {record: counted(one) for record, one in read(ledger).items()}
    tasks = ledger.reader.get_tasks(limit=50)
    store = ledger.reader.runtime.store
    whole = store.read_tasks([task["id"] for task in tasks])

    for task, stored in zip(tasks, whole):
        stage = stored.slots[1]
        ledger.reader.sync_task_run(task["id"], TaskRun.read(stage, task["id"]), run_key_of(stage.header.run))
    ledger.reader.force_sync()

    assert {record: counted(one) for record, one in read(ledger).items()} == before


def test_failures_are_counted_by_exception(ledger):
    found = read(ledger)

    types = Counter()
    for one in found.values():
        assert sum(one.failures.values()) == one.outcomes["failed"]
        types.update(one.failures)
    assert types.keys() <= {"ValueError", "WorkerLostError"} and types["ValueError"]


def test_workers_keep_the_history_of_each_minute(ledger):
    store = ledger.reader.runtime.store
    minute = int(store.clock.now() // 60)

    kept = eventually(lambda: store.read_minutes(range(minute - 30, minute + 3)))

    assert max(one.ended for one in kept.values()) <= sum(one.ended for one in read(ledger).values())


def test_a_scrape_has_the_same_counts(ledger):
    found = read(ledger)
    families = {one.name: one for one in MemsyncCollector(ledger.reader).families()}

    runs = Counter()
    for (task, outcome), value in families["celery_memsync_runs"].samples:
        runs[task, outcome] += value
    assert +runs == +Counter({(task, outcome): sum(
        one.outcomes[outcome] for one in found.values() if one.task == task) for task, outcome in runs})
    waits = sum(sample.value.count for sample in families["celery_memsync_wait_seconds"].samples)
    assert waits == sum(one.wait.count for one in found.values())
