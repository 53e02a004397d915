"""Sentinels: the current master is found."""
from __future__ import annotations

import itertools
import threading

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_memsync import MemorySyncManager, StoreError, StoreUnavailable
from celery_memsync.store.client import connect
from tests.support.redis_server import free_port
from tests.support.topologies import Replicated, SentinelServer, execute
from tests.support.waiting import eventually

#: Tasks that are written to while the master is killed.
TASKS = 20


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A master, two replicas and three Sentinels for the tests that let them live."""
    yield from started(tmp_path_factory.mktemp("steady"))


@pytest.fixture
def whole(tmp_path):
    """The same for one test: after a failover the Sentinels take their time until there may be another."""
    yield from started(tmp_path / "whole")


def started(folder):
    replicated = Replicated(folder)
    try:
        yield replicated.start()
    finally:
        replicated.stop()


@pytest.fixture
def make(whole):
    """Makes managers that are shut down at the end."""
    made = []

    def make(worker_id, **settings):
        made.append(MemorySyncManager(worker_id, whole.url, **settings))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown(timeout=0.5)


@pytest.fixture
def lone_sentinel(tmp_path):
    """Starts a Sentinel that calls a server master, whatever becomes of it; returns the URL."""
    made = []

    def start(server):
        made.append(SentinelServer(tmp_path / "sentinel", server.port, quorum=9).start())
        return f"sentinel://127.0.0.1:{made[-1].port}/0?master_name=mymaster"

    yield start
    for sentinel in made:
        sentinel.stop()


def write_all_the_time(memsync, stop):
    for number in itertools.count():
        if stop.is_set():
            return
        for task in range(TASKS):
            memsync.sync_task_state(f"t{task}", {"number": number})
        stop.wait(0.005)


def test_writes_under_way_when_the_master_is_killed_reach_the_next_one(whole, make):
    memsync, other = make("w1", batch_interval=0.01), make("w2")
    stop, received = threading.Event(), {}
    other.subscribe("tasks/*/state", lambda key, value: received.__setitem__(key, value))
    writing = threading.Thread(target=write_all_the_time, args=(memsync, stop))
    writing.start()
    eventually(lambda: len(received) == TASKS)

    whole.fail_over()
    eventually(lambda: memsync.get_metrics()["connected"], timeout=30)
    stop.set()
    writing.join()

    def states_after_the_last_write():
        for task in range(TASKS):
            memsync.sync_task_state(f"t{task}", {"last": True})
        memsync.force_sync()
        # On a busy machine the Sentinels may take the new master for dead, too, and what it had not passed on is lost.
        found = [other.get_task_state(f"t{task}") for task in range(TASKS)]
        return found if all("last" in (state or {}) for state in found) else None

    states = eventually(lambda: unless_away(states_after_the_last_write), timeout=60)
    keys = [f"task-sentinel/tasks/t{task}/state" for task in range(TASKS)]
    eventually(lambda: [received.get(key) for key in keys] == states, timeout=30)
    assert memsync.get_metrics()["dropped"] == 0


def test_a_lock_that_replicas_have_is_held_over_a_failover_and_its_fences_go_on_growing(whole, make):
    memsync, other = make("w1", lock_ttl=60.0, lock_replicas=2), make("w2")
    with memsync.lock("invoice") as lock:
        whole.fail_over()

        eventually(lambda: succeeds(lambda: other.get_queue()), timeout=30)
        assert not other.lock("invoice").acquire()
        lock.check()
    with other.lock("invoice", wait=5.0) as later:
        assert later.fence > lock.fence


def test_copy_is_not_valid_after_a_failover(whole, make):
    memsync, other = make("w1"), make("w2")
    memsync.write("a", 1)
    memsync.force_sync()
    assert [other.read("a"), other.read("a")] == [1, 1]
    eventually(lambda: all(server.client().exists("task-sentinel/a") for server in whole.servers))

    whole.fail_over().client().delete("task-sentinel/a")

    eventually(lambda: succeeds(lambda: other.read("a") is None or 1 / 0), timeout=30)


def test_client_of_a_master_that_steps_down_connects_to_the_next(whole, make):
    memsync = make("w1")
    memsync.write("a", 1)
    memsync.force_sync()
    before = whole.master()

    execute(whole.sentinels[0], "SENTINEL", "FAILOVER", "mymaster")
    eventually(lambda: whole.master() is not before, timeout=30)
    whole.demote(before)
    memsync.write("a", 2)
    eventually(lambda: succeeds(memsync.force_sync), timeout=30)

    assert whole.master().client().exists("task-sentinel/a")
    assert memsync.read("a", consistent=True) == 2


def test_writes_wait_for_a_master_that_has_lost_its_replicas(whole, make):
    memsync, master = make("w1"), whole.master()
    for option, value in (("min-replicas-to-write", 1), ("min-replicas-max-lag", 1)):
        execute(master, "CONFIG", "SET", option, value)
    replicas = [server for server in whole.servers if server is not master]
    for server in replicas:
        server.kill()
    eventually(lambda: not succeeds(lambda: master.client().set("probe", 1)))

    memsync.write("a", 1)
    with pytest.raises(StoreUnavailable, match="too few of its replicas"):
        memsync.force_sync()
    replicas[0].start()
    eventually(lambda: succeeds(memsync.force_sync), timeout=30)

    assert memsync.read("a", consistent=True) == 1


@pytest.mark.parametrize("command", [
    ("SET", "a", "1"), ("EVAL", "return redis.call('SET', KEYS[1], '1')", "1", "a"),
])
def test_a_server_that_takes_no_writes_any_more_is_parted_with(own_server, lone_sentinel, command):
    client = connect(lone_sentinel(own_server), {"retry": Retry(NoBackoff(), 0)})
    assert client.execute_command(*command)

    own_server.client().replicaof("127.0.0.1", free_port())

    with pytest.raises(redis_py.ConnectionError, match="become a replica"):
        client.execute_command(*command)
    with pytest.raises(redis_py.ConnectionError, match="name a replica as master"):
        client.ping()


def test_missing_sentinels_are_skipped(steady):
    url = steady.url.replace("sentinel://", f"sentinel://127.0.0.1:{free_port()};sentinel://", 1)
    with MemorySyncManager("w1", url) as memsync:
        memsync.write("a", 1)
        memsync.force_sync(timeout=5)

        assert memsync.read("a") == 1


def test_sentinel_that_names_a_replica_is_ignored(steady, lone_sentinel):
    replica = next(server for server in steady.servers if server is not steady.master())
    url = steady.url.replace("sentinel://", lone_sentinel(replica).partition("/0")[0] + ";sentinel://", 1)
    with MemorySyncManager("w1", url) as memsync:
        memsync.write("a", 1)
        memsync.force_sync(timeout=5)

        assert steady.master().client().exists("task-sentinel/a")


def test_unknown_master_is_reported_as_redis_being_away(steady):
    memsync = MemorySyncManager("w1", steady.url.replace("mymaster", "unknown"))

    with pytest.raises(StoreError, match="can't be reached"):
        memsync.read("a")


def unless_away(action):
    """Return what an action returns; None if Redis is away."""
    try:
        return action()
    except (StoreError, ZeroDivisionError, redis_py.ResponseError):
        return None


def succeeds(action):
    return unless_away(lambda: (action(), True)) is not None
