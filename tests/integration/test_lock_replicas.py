"""Locks that replicas must have before they are had."""
from __future__ import annotations

import pytest

from celery_memsync import MemorySyncManager, StoreError
from tests.support.redis_server import RedisServer
from tests.support.threads import in_background
from tests.support.waiting import eventually

KEY = "task-sentinel/locks/{printer}"


@pytest.fixture
def replica(own_server, tmp_path):
    """A replica of the test's own server, up to date."""
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(own_server.port)).start()
    own_server.client().config_set("repl-diskless-sync-delay", 0)
    eventually(lambda: replica.client().info("replication")["master_link_status"] == "up", timeout=30)
    eventually(lambda: own_server.client().execute_command("WAIT", 1, 100) == 1, timeout=30)
    yield replica
    replica.stop()


@pytest.fixture
def make(own_server, replica):
    """Makes managers whose locks by default need one replica."""
    made = []

    def make(lock_replicas=1, **settings):
        made.append(MemorySyncManager(f"w{len(made) + 1}", own_server.url, lock_replicas=lock_replicas, **settings))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown(timeout=0.5)


def holder(server):
    """Return the record of the holder of the lock on a server."""
    text = server.client().get(KEY) or b""
    return text.partition(b"\n")[2]


def test_a_lock_that_is_had_is_on_the_replica(make, replica):
    with make().lock("printer"):

        assert b'"w1"' in holder(replica)


def test_a_lock_that_the_replica_does_not_get_is_not_had_and_given_back(make, replica):
    memsync, other = make(), make(lock_replicas=0)
    replica.pause()

    with pytest.raises(StoreError, match="0 replicas"):
        memsync.lock("printer").acquire()

    assert other.lock("printer", wait=10.0).acquire()


def test_waiter_has_the_lock_when_the_replica_has_it(make, replica):
    memsync, other = make(), make()
    with memsync.lock("printer"):
        theirs = other.lock("printer", wait=20.0)
        waiting = in_background(lambda: (theirs.acquire(), holder(replica)))
        eventually(lambda: [one.waiters for one in memsync.locks()] == [1])

    taken, known = waiting()

    assert taken and b'"w2"' in known


def test_lease_that_a_replica_does_not_get_is_not_valid(make, replica):
    memsync, lost = make(lock_ttl=2.0), []
    memsync.on("lock-lost", lambda name, **_: lost.append(name))
    lock = memsync.lock("printer")
    assert lock.acquire()

    replica.pause()

    eventually(lambda: lost == ["printer"], timeout=20)
    assert not lock.owned


def test_an_extension_that_the_replica_does_not_get_is_refused_and_the_lease_stays(make, replica):
    with make(lock_ttl=60.0).lock("printer") as lock:
        replica.pause()

        with pytest.raises(StoreError, match="memsync_lock_replicas asks for 1"):
            lock.extend(120.0)

        assert lock.owned
        replica.resume()
        lock.extend(120.0)


def test_it_costs_one_more_round_trip_to_take_and_none_to_give_back(make, own_server):
    memsync = make(lock_ttl=60.0)
    with memsync.lock("printer"):
        pass
    own_server.client().config_resetstat()

    with memsync.lock("printer"):
        pass

    calls = own_server.client().info("commandstats")
    assert (calls["cmdstat_evalsha"]["calls"], calls["cmdstat_wait"]["calls"]) == (3, 1)
