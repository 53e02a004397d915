"""A cluster whose nodes have different clocks."""
from __future__ import annotations

import pytest

from celery_memsync.cli.checks import examine_nodes
from tests.support.publishing import sync_stage
from tests.support.stepped_clock import SteppedServer
from tests.support.topologies import Cluster
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters whose clocks can be set."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), replicas=0, patience=15000, make_server=SteppedServer)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def off_node(request, cluster):
    """A node without the indexes, whose clock is by default 90 seconds ahead."""
    home = cluster.owner_of("{task-sentinel}")
    node = next(server for server in cluster.servers if server is not home)
    node.set_clock(getattr(request, "param", 90))
    cluster.wait_linked()
    yield node
    node.set_clock(0)


@pytest.mark.parametrize("off_node", [-4000, -5, 90], indirect=True)
def test_everything_on_a_node_with_another_clock_is_as_on_the_others(cluster, off_node, make_on_cluster):
    memsync, other, received = make_on_cluster(batch_interval=0.01), make_on_cluster(), {}
    names = cluster.names_on(off_node, "task-sentinel/%s", 3)
    (task,) = cluster.names_on(off_node, "task-sentinel/tasks/{%s}/", 1)
    (lock,) = cluster.names_on(off_node, "task-sentinel/locks/{%s}", 1)
    other.subscribe("n*", lambda key, value: received.__setitem__(key, value))
    paths = [f"task-sentinel/{name}" for name in names]

    for value in (1, 2):
        for name in names:
            memsync.write(name, value)
        memsync.force_sync()
        eventually(lambda v=value: received == dict.fromkeys(paths, v))
    sync_stage(memsync, task, "STARTED")
    memsync.force_sync()
    with memsync.lock(lock, ttl=20.0):
        (held,) = eventually(other.locks)
    entry = other.read_entry(names[0])

    assert [other.read(name) for name in names] == [2, 2, 2]
    assert other.search("n*") == paths
    assert other.get_task_state(task)["status"] == "STARTED"
    assert other.get_queue()["processing"] == [task]
    assert (held.name, round(held.ttl)) == (lock, 20)
    assert abs(entry.timestamp - other.runtime.store.clock.now()) < 5
    assert other.write(names[0], 3, expected_version=entry.version).version == entry.version + 1


def test_a_deleted_key_written_again_by_an_earlier_clock_is_found(cluster, off_node, make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=60.0), make_on_cluster()
    (name,) = cluster.names_on(off_node, "task-sentinel/%s", 1)
    memsync.write(name, 1)
    memsync.force_sync()
    memsync.delete(name)
    memsync.force_sync()
    assert other.search("n*") == []

    off_node.set_clock(-8000)
    memsync.write(name, 2)
    memsync.force_sync()

    assert other.search("n*") == [f"task-sentinel/{name}"]
    assert other.read(name, consistent=True) == 2


def test_doctor_names_a_node_with_another_clock(cluster, off_node, make_on_cluster):
    memsync = make_on_cluster()

    (finding,) = examine_nodes(memsync.runtime.store.node_skews())

    assert not finding.fine
    assert f"127.0.0.1:{off_node.port}" in finding.what
