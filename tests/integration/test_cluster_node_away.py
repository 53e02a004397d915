"""A cluster of which one node is away: what is on the others goes on."""
from __future__ import annotations

import contextlib
import logging
import signal
import time

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import LockLost, StoreUnavailable
from tests.support.publishing import sync_stage
from tests.support.threads import in_background
from tests.support.topologies import Cluster, execute
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters, of which two serve what they have while the third is away."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), replicas=0, patience=15000)
    try:
        cluster.start()
        for server in cluster.servers:
            execute(server, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def home(cluster):
    """The node of the indexes."""
    return cluster.owner_of("{task-sentinel}")


@pytest.fixture
def other_node(cluster, home):
    """A node without the indexes."""
    return next(server for server in cluster.servers if server is not home)


def names_on(cluster, server, number=5):
    """Return users' keys that a node has."""
    return cluster.names_on(server, "task-sentinel/%s", number)


def lock_on(cluster, server):
    """Return the name of a lock that a node has."""
    return cluster.names_on(server, "task-sentinel/locks/{%s}", 1)[0]


def succeeds(condition):
    try:
        return condition()
    except StoreUnavailable:
        return False


@pytest.mark.parametrize("after", [0.1, 0.8])
def test_soft_time_limit_interrupts_a_call_to_a_hanging_node(
    cluster, other_node, make_on_cluster, after,
):
    def strike(*_):
        raise SoftTimeLimitExceeded

    memsync = make_on_cluster(timeout=1.0)
    (name,) = names_on(cluster, other_node, 1)
    memsync.read(name)
    before = signal.signal(signal.SIGALRM, strike)
    other_node.pause()
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        with pytest.raises(SoftTimeLimitExceeded):
            for _ in range(5):
                with contextlib.suppress(StoreUnavailable):
                    memsync.read(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        other_node.resume()


def test_entries_on_other_nodes_are_written_while_one_hangs(
    cluster, home, other_node, make_on_cluster,
):
    memsync, other = make_on_cluster(batch_interval=0.01, timeout=1.0), make_on_cluster()
    lost, healthy = names_on(cluster, other_node), names_on(cluster, home)
    for name in lost + healthy:
        memsync.write(name, 0)
    memsync.force_sync()

    with other_node.paused():
        memsync.write(lost[0], 1)
        for number in range(1, 4):
            for name in healthy:
                memsync.write(name, number)
            eventually(lambda n=number: [other.read(name) for name in healthy] == [n] * len(healthy), timeout=3)
        with pytest.raises(StoreUnavailable, match=lost[0]) as caught:
            memsync.force_sync()
        pending = memsync.get_metrics()["pending_writes"]
    memsync.force_sync(timeout=10.0)

    assert (caught.value.maybe_done, pending) == (True, 1)
    assert other.read(lost[0]) == 1
    assert memsync.get_metrics()["conflicts"] == 0


def test_a_node_that_is_away_is_logged_once(cluster, other_node, make_on_cluster, caplog):
    memsync = make_on_cluster(batch_interval=0.01, timeout=1.0)
    caplog.set_level(logging.INFO, "celery_memsync")
    memsync.force_sync()

    with other_node.paused():
        for name in names_on(cluster, other_node):
            memsync.write(name, 1)
            with pytest.raises(StoreUnavailable):
                memsync.force_sync()
    memsync.force_sync(timeout=10.0)

    eventually(lambda: "All nodes of the cluster take writes again" in caplog.text)
    assert caplog.text.count("takes no writes") == caplog.text.count(f"127.0.0.1:{other_node.port} gave no answer") == 1


def test_nothing_but_lists_waits_for_the_node_of_the_indexes(cluster, home, other_node, make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=60.0, timeout=1.0), make_on_cluster(timeout=1.0)
    (task,) = cluster.names_on(other_node, "task-sentinel/tasks/{%s}/", 1)
    (name,), lock = names_on(cluster, other_node, number=1), memsync.lock(lock_on(cluster, other_node), ttl=1.0)
    memsync.read(name)

    with home.paused():
        assert lock.acquire()
        memsync.increment_metrics(mine=1)
        memsync.write(name, 1)
        sync_stage(memsync, task, "STARTED")
        memsync.runtime.writer.flush()
        found = other.read(name), other.get_task_state(task)["status"]
        for read_list in (memsync.locks, memsync.force_sync):
            with pytest.raises(StoreUnavailable):
                read_list()
        time.sleep(1.5)
        lock.check()
        assert other.read(name) == 1
    eventually(lambda: [one.name for one in memsync.locks()] == [lock.name], timeout=5)
    lock.release()

    assert found == (1, "STARTED")
    assert memsync.get_queue()["processing"] == other.get_queue()["processing"] == [task]
    memsync.force_sync(timeout=10.0)
    counters = other.get_coordination_metrics()
    assert (counters["total"], counters["mine"]) == (1, 1)


def test_a_change_of_the_queue_that_was_not_sent_is_not_in_doubt(cluster, home, other_node, make_on_cluster):
    memsync = make_on_cluster(batch_interval=60.0, timeout=1.0)
    (task,) = cluster.names_on(other_node, "task-sentinel/tasks/{%s}/", 1)
    memsync.get_queue()

    with home.paused():
        sync_stage(memsync, task, "STARTED")
        memsync.runtime.writer.flush()
        with pytest.raises(StoreUnavailable) as caught:
            memsync.dequeue()

    assert caught.value.maybe_done is False


def test_a_process_starts_without_the_node_of_the_indexes(
    cluster, home, other_node, make_on_cluster,
):
    (name,) = names_on(cluster, other_node, number=1)
    with home.paused():
        memsync = make_on_cluster(batch_interval=0.01, timeout=1.5)
        memsync.write(name, 1)

        eventually(lambda: succeeds(lambda: memsync.read(name, consistent=True) == 1), timeout=5)


def test_changes_are_delivered_while_the_node_of_the_indexes_is_away(cluster, home, other_node, make_on_cluster):
    memsync, received = make_on_cluster(batch_interval=0.01, timeout=1.0), {}
    other = make_on_cluster(timeout=1.0)
    (name,) = names_on(cluster, other_node, number=1)
    memsync.read(name)
    other.subscribe(name, lambda key, value: received.__setitem__(key, value))
    memsync.write(name, 0)
    eventually(lambda: received == {f"task-sentinel/{name}": 0})

    with home.paused():
        time.sleep(0.1)
        eventually(
            lambda: memsync.write(name, 1) is None and set(received.values()) == {1}, timeout=9)


def test_held_lock_survives_a_hanging_node_of_another_lock(
    cluster, home, other_node, make_on_cluster,
):
    memsync = make_on_cluster(timeout=1.0)
    healthy, lost = memsync.lock(lock_on(cluster, home), ttl=1.5), memsync.lock(lock_on(cluster, other_node), ttl=1.5)
    assert healthy.acquire() and lost.acquire()

    with other_node.paused():
        time.sleep(2.0)
        healthy.check()
        with pytest.raises(LockLost):
            lost.check()


def test_an_atomic_operation_tries_a_node_that_has_just_given_no_answer(cluster, other_node, make_on_cluster):
    memsync = make_on_cluster(batch_interval=0.01, timeout=1.0)
    lost, other = names_on(cluster, other_node, 2)
    memsync.read(lost)
    with other_node.paused():
        memsync.write(lost, 1)
        with pytest.raises(StoreUnavailable):
            memsync.force_sync()

    entry = memsync.write(other, 1, expected_version=0)

    assert entry.version == 1


def test_nodes_are_read_at_the_same_time(cluster, make_on_cluster):
    memsync, keys = make_on_cluster(), [names_on(cluster, server, number=1)[0] for server in cluster.servers]
    pipeline = memsync.runtime.store.redis.pipeline()
    for key in keys:
        pipeline.execute_command("BLPOP", f"task-sentinel/{key}", 2)
    answers = in_background(pipeline.execute)

    eventually(lambda: [one.client().info("clients")["blocked_clients"] for one in cluster.servers] == [1, 1, 1], timeout=2)
    for server, key in zip(cluster.servers, keys):
        server.client().rpush(f"task-sentinel/{key}", 1)

    assert [value for _, value in answers()] == [b"1"] * 3
