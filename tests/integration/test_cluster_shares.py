"""Which node of a cluster does how much for writes: counted, for a speed would depend on the machine."""
from __future__ import annotations

import pytest

from celery_memsync.models.task import TaskRun
from celery_memsync.store import index_queue
from tests.support.redis_calls import calls_of
from tests.support.runs import run_key
from tests.support.waiting import eventually

#: Tasks of each batch; batches of each of two processes.
TASKS, BATCHES = 100, 5

STAGES = ("PENDING", "STARTED", "SUCCESS")


def record(memsync, task, status):
    run = TaskRun(status, name="proj.add", queue="celery", published_at=1000.0, started_at=1001.0, runtime=0.3)
    memsync.sync_task_run(task, run, run_key(0, 1))


@pytest.fixture
def calls_by_node(cluster, make_on_cluster):
    """What each node was called for by the batches of two processes, of which none is waited for in the lists."""
    writers = [make_on_cluster(batch_interval=3600.0) for _ in range(2)]
    for number, memsync in enumerate(writers):
        record(memsync, f"first{number}", "PENDING")
        memsync.force_sync()
    for server in cluster.servers:
        server.client().config_resetstat()

    for batch in range(BATCHES):
        for status in STAGES:
            for number, memsync in enumerate(writers):
                for task in range(TASKS):
                    record(memsync, f"t{number}-{batch}-{task}", status)
                memsync.runtime.writer.flush()
    for memsync in writers:
        memsync.force_sync()
    return [calls_of(server.client()) for server in cluster.servers]


def test_each_node_has_about_a_third_of_the_commands_of_writes(calls_by_node):
    counts = [sum(calls.values()) for calls in calls_by_node]

    shares = [count / sum(counts) for count in counts]

    assert sum(counts) > 2 * BATCHES * TASKS * len(STAGES)
    assert all(0.8 / 3 <= share <= 1.2 / 3 for share in shares), shares


def test_no_command_of_every_write_goes_to_one_node(calls_by_node):
    entries = 2 * BATCHES * TASKS * len(STAGES)
    wholes = {name: sum(calls.get(name, 0) for calls in calls_by_node) for calls in calls_by_node for name in calls}

    often = {name: count for name, count in wholes.items() if count > entries / 5}
    central = {name for name, count in often.items() if max(calls.get(name, 0) for calls in calls_by_node) > count / 2}

    assert "evalsha" in often
    assert central == set()


def test_lists_of_another_process_follow_batches_that_are_not_waited_for(make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=0.01), make_on_cluster()

    for number in range(50):
        record(memsync, f"t{number}", "PENDING")
    for number in range(40):
        record(memsync, f"t{number}", "STARTED")
    for number in range(30):
        record(memsync, f"t{number}", "SUCCESS")

    ids = [f"t{number}" for number in range(50)]
    expected = {"pending": set(ids[40:]), "processing": set(ids[30:40])}
    eventually(lambda: {name: set(listed) for name, listed in other.get_queue().items()} == expected)
    assert {task["id"] for task in other.get_tasks(limit=60)} == set(ids)


def test_a_task_that_has_started_is_listed_at_once(make_on_cluster, monkeypatch):
    monkeypatch.setattr(index_queue, "CALL_INTERVAL", 3600.0)
    memsync, other = make_on_cluster(batch_interval=0.01), make_on_cluster()
    record(memsync, "first", "PENDING")
    eventually(lambda: other.get_queue()["pending"] == ["first"])

    record(memsync, "t", "STARTED")

    eventually(lambda: other.get_queue()["processing"] == ["t"])


def test_an_end_whose_index_update_was_lost_leaves_the_lists_when_it_is_written_again(make_on_cluster):
    killed, parent, other = make_on_cluster(), make_on_cluster(), make_on_cluster()
    record(killed, "t", "STARTED")
    killed.force_sync()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed.runtime.store._index, "add", lambda update, urgent: None)
        record(killed, "t", "SUCCESS")
        killed.force_sync()
    assert other.get_queue()["processing"] == ["t"]

    record(parent, "t", "SUCCESS")
    parent.force_sync()

    assert other.get_queue()["processing"] == []
