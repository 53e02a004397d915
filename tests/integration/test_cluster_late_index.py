"""Subscriptions in a cluster, where what is written is in the indexes a moment later."""
from __future__ import annotations

import pytest

from celery_memsync import StoreUnavailable
from tests.support.waiting import eventually


def refuse(*_):
    raise StoreUnavailable("not now")


def test_a_key_that_comes_late_into_the_index_is_delivered_after_a_lost_connection(
    cluster, make_on_cluster,
):
    memsync, other, received = make_on_cluster(batch_interval=0.01), make_on_cluster(), {}
    (name,) = cluster.names_on(cluster.servers[0], "task-sentinel/%s", 1)
    other.subscribe("n*", lambda key, value: received.__setitem__(key, value))
    late, add = [], memsync.runtime.store._index.add
    with pytest.MonkeyPatch.context() as away:
        away.setattr(other.runtime.store, "listen", refuse)
        for server in cluster.servers:
            server.client().client_kill_filter(_type="pubsub", skipme=True)
        away.setattr(memsync.runtime.store._index, "add", lambda update, urgent: late.append(update))
        memsync.write(name, 1)
        eventually(lambda: late)
    other.subscribe("m", lambda key, value: received.__setitem__(key, value))
    eventually(lambda: memsync.write("m", 1) is None and "task-sentinel/m" in received, timeout=20)

    for update in late:
        add(update)

    eventually(lambda: received.get(f"task-sentinel/{name}") == 1, timeout=20)


@pytest.mark.parametrize("wrote_before", [False, True])
def test_a_key_of_a_process_that_was_killed_is_found_after_its_next_write(make_on_cluster, wrote_before):
    killed, memsync = make_on_cluster(), make_on_cluster()
    if wrote_before:
        memsync.write("a", 0)
        memsync.delete("a")
        memsync.force_sync()
    with pytest.MonkeyPatch.context() as away:
        away.setattr(killed.runtime.store._index, "add", lambda update, urgent: None)
        killed.write("a", 1)
        killed.force_sync()
    before = memsync.search("a*")

    memsync.write("a", 2)
    memsync.force_sync()

    assert before == [] and memsync.search("a*") == ["task-sentinel/a"]


def test_a_task_that_several_processes_write_is_in_the_index_once(make_on_cluster):
    first, second = make_on_cluster(), make_on_cluster()

    for number in range(3):
        for memsync in (first, second):
            memsync.sync_task_state("t1", {"n": number})
            memsync.force_sync()

    assert first.runtime.store.read_recent_tasks(10).task_ids == ["t1"]


def test_a_task_of_a_process_that_was_killed_is_found_after_its_next_write(make_on_cluster):
    killed, memsync = make_on_cluster(), make_on_cluster()
    with pytest.MonkeyPatch.context() as away:
        away.setattr(killed.runtime.store._index, "add", lambda update, urgent: None)
        killed.sync_task_state("t1", {"a": 1})
        killed.force_sync()
    before = memsync.get_tasks()

    for number in range(3):
        memsync.sync_task_state("t1", {"b": number})
        memsync.force_sync()

    assert before == [] and [task["id"] for task in memsync.get_tasks()] == ["t1"]
    assert memsync.runtime.store.read_recent_tasks(10).task_ids.count("t1") == 1
