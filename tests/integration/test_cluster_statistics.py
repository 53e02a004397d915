"""Statistics in a cluster: counted with the index updates, in one slot, and never too high."""
from __future__ import annotations

import pytest
import redis as redis_py

from celery_memsync import StoreError
from celery_memsync.metrics import MemsyncCollector
from celery_memsync.models.task import TaskRun
from celery_memsync.store.errors import note_lost
from tests.support.runs import run_key

WHY = {"type": "ValueError", "message": ""}


def record(memsync, number, status="SUCCESS", **known):
    run = TaskRun(status, name=f"proj.task{number % 3}", queue="celery", published_at=1000.0, started_at=1001.0, runtime=0.3,
                  **known)
    memsync.sync_task_run(f"t{number}", run, run_key(0, 1))


def outcomes(memsync):
    return {one.task: (one.created, one.started, one.outcomes["succeeded"], one.outcomes["failed"], one.runtime.count)
            for one in memsync.runtime.store.read_statistics()}


def test_runs_on_all_nodes_are_counted_once(cluster, make_on_cluster):
    memsync, other = make_on_cluster(failure_types=True), make_on_cluster(failure_types=True)
    for server in cluster.servers:
        server.client().config_resetstat()

    for number in range(60):
        record(memsync, number, *(("FAILURE",) if number % 2 else ()), **({"exception": WHY} if number % 2 else {}))
    memsync.force_sync()
    for number in range(60):
        record(other, number, *(("FAILURE",) if number % 2 else ()), **({"exception": WHY} if number % 2 else {}))
    other.force_sync()

    assert outcomes(memsync) == {f"proj.task{number}": (20, 20, 10, 10, 20) for number in range(3)}
    assert {one.failures["ValueError"] for one in other.runtime.store.read_statistics()} == {10}
    counting = [server for server in cluster.servers if "cmdstat_bitfield" in server.client().info("commandstats")]
    assert len(counting) == 1


def test_a_scrape_reads_a_cluster(make_on_cluster):
    memsync = make_on_cluster()
    record(memsync, 1)
    memsync.force_sync()

    families = {one.name: one for one in MemsyncCollector(memsync).families()}

    assert [sample.value for sample in families["celery_memsync_redis_up"].samples] == [1]
    assert ("proj.task1", "succeeded") in [sample.labels for sample in families["celery_memsync_runs"].samples]


def test_counts_are_never_too_high_after_lost_answers(make_on_cluster, monkeypatch):
    memsync, other = make_on_cluster(), make_on_cluster()
    memsync.force_sync()
    execute_all = memsync.runtime.store.redis.execute_all

    def lose_answer(commands, skip_away=False):
        execute_all(commands)
        lost = redis_py.ConnectionError("lost")
        note_lost(lost)
        return [lost] * len(commands)

    for number in range(30):
        record(memsync, number)
    with monkeypatch.context() as patch:
        patch.setattr(memsync.runtime.store.redis, "execute_all", lose_answer)
        with pytest.raises(StoreError):
            memsync.force_sync()
    record(memsync, 30)
    memsync.force_sync()

    succeeded = sum(counts[2] for counts in outcomes(other).values())
    assert 1 <= succeeded <= 31
    assert {other.get_task_state(f"t{number}")["status"] for number in range(31)} == {"SUCCESS"}
