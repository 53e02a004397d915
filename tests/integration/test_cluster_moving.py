"""A cluster of which a slot is being moved, perhaps to a node that knows no script."""
from __future__ import annotations

import pytest

from tests.support.threads import in_background
from tests.support.waiting import eventually


@pytest.fixture
def moving(cluster):
    """Begins to move the slot of a key to another node; what the block yields moves some of its keys."""
    def begin(key):
        slot = cluster.slot_of(key)
        return cluster.moving(slot, next(one for one in cluster.servers if one is not cluster.owner(slot)))

    return begin


def test_a_write_to_a_slot_that_moves_loads_the_scripts_on_its_new_node(cluster, make_on_cluster, moving):
    memsync, other = make_on_cluster(batch_interval=60.0), make_on_cluster()
    memsync.force_sync()

    with moving("task-sentinel/a"):
        for server in cluster.servers:
            server.client().script_flush()
        memsync.write("a", 1)
        memsync.force_sync()
        found = other.read("a")

    assert (found, other.read("a")) == (1, 1)


def test_entries_of_one_slot_on_two_nodes_are_written_together(make_on_cluster, moving):
    memsync, other = make_on_cluster(namespace="{ns}", batch_interval=60.0), make_on_cluster(namespace="{ns}")
    names = [f"k{number}" for number in range(4)]
    for name in names[:2]:
        memsync.write(name, 0)
    memsync.force_sync()
    other.read("k0")

    with moving("{ns}/k0") as move_keys:
        move_keys(1)
        for number in (1, 2):
            for name in names:
                memsync.write(name, number)
            memsync.runtime.writer.flush()
        found = [other.read(name) for name in names]
    memsync.force_sync()

    assert found == [2, 2, 2, 2]
    assert other.search("k*") == [f"{{ns}}/{name}" for name in names]


@pytest.mark.parametrize("is_known", [False, True])
def test_a_lock_in_a_slot_that_moves_is_taken_renewed_and_given_back(make_on_cluster, moving, is_known):
    memsync, other = make_on_cluster(), make_on_cluster()
    lock, fences = memsync.lock("l", ttl=0.6), []
    if is_known:
        with lock:
            fences.append(lock.fence)

    with moving("task-sentinel/locks/{l}") as move_keys:
        for _ in range(2):
            with lock:
                fences.append(lock.fence)
                assert not other.lock("l", wait=0.8).acquire()
                lock.check()
            move_keys(1)

    with lock:
        fences.append(lock.fence)
    assert fences == sorted(set(fences))


def test_a_waiter_gets_a_lock_whose_slot_is_being_moved(make_on_cluster, moving):
    memsync, other = make_on_cluster(), make_on_cluster()
    lock, theirs = memsync.lock("w"), other.lock("w", wait=5.0, thread_local=False)

    with lock, moving("task-sentinel/locks/{w}") as move_keys:
        waiting = in_background(theirs.acquire)
        eventually(lambda: move_keys(1) == 0)
        lock.release()
        assert waiting()

    assert [one.worker_id for one in memsync.locks()] == ["w2"]
