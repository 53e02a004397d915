"""A cluster whose nodes are full, forbid something, or hold junk."""
from __future__ import annotations

import pytest

from celery_memsync import StoreRefused, StoreUnavailable
from tests.support.junk import JUNK
from tests.support.publishing import sync_stage
from tests.support.topologies import execute


@pytest.mark.parametrize("is_home", [False, True])
def test_a_node_that_is_full_keeps_nothing_from_the_others(cluster, make_on_cluster, is_home):
    memsync, other = make_on_cluster(batch_interval=60.0), make_on_cluster()
    assert memsync.read("nothing") is None
    home = cluster.owner_of(memsync.runtime.store.keys.about)
    full = home if is_home else next(server for server in cluster.servers if server is not home)
    names = [f"k{number}" for number in range(30)]
    elsewhere = [name for name in names if cluster.owner_of(f"task-sentinel/{name}") is not full]
    for name in names:
        memsync.write(name, 1)

    execute(full, "CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="it is full"):
            memsync.force_sync()
        there = [name for name in names if other.read(name)]
    finally:
        execute(full, "CONFIG", "SET", "maxmemory", "0")
    memsync.force_sync(timeout=10.0)

    assert there == elsewhere
    assert other.search("k*") == sorted(f"task-sentinel/{name}" for name in names)


def test_a_right_to_channels_that_is_taken_away_in_a_cluster_takes_nothing_back(cluster, make_on_cluster):
    for server in cluster.servers:
        execute(
            server, "ACL", "SETUSER", "mute", "reset", "on", ">secret", "allkeys", "allchannels",
            "+@all")
    memsync = make_on_cluster(url=cluster.url.replace("://", "://mute:secret@", 1), batch_interval=60.0)
    other = make_on_cluster()
    names = [f"k{number}" for number in range(30)]
    for server in cluster.servers:
        execute(server, "ACL", "SETUSER", "mute", "resetchannels")
    for name in names:
        memsync.write(name, 1)

    memsync.force_sync()
    unpublished = memsync.runtime.store.unpublished
    for server in cluster.servers:
        execute(server, "ACL", "SETUSER", "mute", "allchannels")
    memsync.force_sync()

    assert (unpublished, memsync.runtime.store.unpublished) == (30, 0)
    assert len(other.search("k*")) == 30


def test_more_writes_than_a_script_can_take_go_in_parts(make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=60.0, batch_size=10_000), make_on_cluster()
    for number in range(5000):
        memsync.write(f"k{number}", 1)
    memsync.force_sync(timeout=20)

    assert len(other.search("k*", limit=10_000)) == 5000


@pytest.mark.parametrize("kind", JUNK)
def test_writes_go_on_with_junk_in_the_bookkeeping_of_a_cluster(cluster, make_on_cluster, kind):
    memsync, other = make_on_cluster(batch_interval=60.0), make_on_cluster()
    sync_stage(memsync, "t1", "STARTED")
    memsync.force_sync()
    keys = memsync.runtime.store.keys
    for key in (keys.done(memsync.runtime.store.token, "notes"), keys.noted):
        client = next(one.client() for one in cluster.servers if one.client().exists(key))
        JUNK[kind](client, key)

        for number in range(3):
            sync_stage(memsync, f"{key[-5:]}-{number}", "STARTED")
            memsync.force_sync()

    known = [task["id"] for task in other.get_tasks()]
    assert {f"{key[-5:]}-{number}" for key in (keys.noted, "notes") for number in range(3)} <= set(known)


def test_a_value_that_is_too_large_for_a_node_keeps_nothing_from_others(cluster, make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=60.0, max_value_size=4 * 2 ** 20), make_on_cluster()
    names = cluster.names_on(cluster.servers[0], "task-sentinel/%s", 10)
    for server in cluster.servers:
        execute(server, "CONFIG", "SET", "proto-max-bulk-len", 2 ** 20)
    memsync.write(names[0], "x" * 2 ** 21)
    for name in names[1:]:
        memsync.write(name, 1)

    try:
        with pytest.raises(StoreRefused, match=names[0]):
            memsync.force_sync(timeout=1.0)
        found = other.read_many(names)
    finally:
        for server in cluster.servers:
            execute(server, "CONFIG", "SET", "proto-max-bulk-len", 512 * 2 ** 20)
    memsync.force_sync(timeout=5.0)

    assert found == {names[0]: None, **dict.fromkeys(names[1:], 1)}
    assert len(other.read(names[0])) == 2 ** 21
