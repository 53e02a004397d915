"""What is weaker in a cluster than in one Redis, as `docs/why.md` has it."""
from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.publishing import sync_stage
from tests.support.waiting import eventually

#: Records that a task has begun, and is killed before the node of the indexes is back.
PROGRAM = """
import os, signal, sys, time
from celery_memsync import MemorySyncManager
from tests.support.publishing import sync_stage
memsync = MemorySyncManager("killed", sys.argv[1], batch_interval=0.01, timeout=1.0)
sync_stage(memsync, sys.argv[2], "STARTED")
memsync.runtime.writer.flush()
print("written", flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(cluster):
    """The node of the indexes."""
    return cluster.owner_of("{task-sentinel}")


def test_a_task_of_a_process_that_is_killed_between_the_two_writes_is_listed_with_its_next_stage(
    cluster, home, make_on_cluster,
):
    other_node = next(server for server in cluster.servers if server is not home)
    (task,) = cluster.names_on(other_node, "task-sentinel/tasks/{%s}/", 1)
    memsync = make_on_cluster()
    memsync.read("nothing")

    with home.paused():
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, cluster.url, task], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    listed = [row["id"] for row in memsync.get_tasks()]
    status = memsync.get_task_state(task)["status"]
    sync_stage(memsync, task, "SUCCESS")

    assert (listed, status) == ([], "STARTED")
    assert [row["id"] for row in memsync.get_tasks()] == [task]
    assert memsync.get_coordination_metrics()["succeeded"] == 1


def test_nothing_that_is_read_from_a_cluster_is_kept(make_on_cluster):
    memsync = make_on_cluster()
    memsync.write("a", 1)
    memsync.force_sync()

    found = [memsync.read("a") for _ in range(3)]

    metrics = memsync.get_metrics()
    assert (found, metrics["cache_hits"], metrics["cache"]["size"]) == ([1, 1, 1], 0, 0)


def test_that_a_node_was_emptied_is_found_out_when_an_entry_is_read(cluster, make_on_cluster):
    memsync, invalidated = make_on_cluster(), []
    (name,) = cluster.names_on(cluster.servers[0], "task-sentinel/%s", 1)
    memsync.write(name, 1, ttl=2.0)
    memsync.subscribe(name, lambda key, value: None, on_invalidate=invalidated.append)
    memsync.force_sync()

    cluster.servers[0].client().flushall()

    assert memsync.read(name) is None
    eventually(lambda: invalidated == [f"task-sentinel/{name}"], timeout=10)


def test_a_namespace_with_a_tag_is_on_one_node(cluster, make_on_cluster):
    memsync = make_on_cluster(namespace="{shop}")
    sync_stage(memsync, "t1", "STARTED")
    memsync.write("a", 1)
    memsync.force_sync()
    with memsync.lock("l"):
        sizes = {server.port: server.client().dbsize() for server in cluster.servers}

    assert [port for port, size in sizes.items() if size] == [cluster.owner_of("{shop}").port]
