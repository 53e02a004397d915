"""A cluster whose masters are killed and whose slots move, while it is in use."""
from __future__ import annotations

import itertools
import threading
import time

import pytest

from celery_memsync import MemorySyncManager, StoreError
from tests.support.publishing import sync_stage
from tests.support.threads import in_background
from tests.support.topologies import Cluster, execute
from tests.support.waiting import eventually, succeeds

#: Tasks that are recorded while the cluster changes.
TASKS = 30


def started(folder, **options):
    cluster = Cluster(folder, **options)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def cluster(tmp_path):
    """Three masters and a replica of each, for one test."""
    yield from started(tmp_path / "cluster")


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """The same for the tests that let all of them live."""
    yield from started(tmp_path_factory.mktemp("cluster"), patience=15000)


@pytest.fixture
def make():
    """Makes managers, which are shut down at the end of the test."""
    made = []

    def make(cluster, worker_id, **settings):
        made.append(MemorySyncManager(worker_id, cluster.url, **settings))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown(timeout=0.5)


class Load:
    """Writes to all tasks again and again, in a thread, until the end of the block; then for the last time."""

    def __init__(self, memsync):
        self.memsync = memsync
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join()
        for task in range(TASKS):
            self.memsync.sync_task_state(f"t{task}", {"last": True})
            sync_stage(self.memsync, f"t{task}", "SUCCESS")
        eventually(lambda: succeeds(self.memsync.force_sync), timeout=20)

    def _write(self):
        for number in itertools.count():
            if self._stop.is_set():
                return
            for task in range(TASKS):
                self.memsync.sync_task_state(f"t{task}", {"number": number})
            self.rounds = number
            self._stop.wait(0.005)


def check_states(memsync, received):
    """Check that what was written last is stored, and was received."""
    states = {f"t{task}": memsync.get_task_state(f"t{task}") for task in range(TASKS)}

    assert all(state["last"] is True and state["status"] == "SUCCESS" for state in states.values())
    eventually(
        lambda: {key.split("/")[-2]: value for key, value in received.items()} == states,
        timeout=20)


@pytest.mark.parametrize("which", [pytest.param("home", marks=pytest.mark.acceptance), "another"])
def test_writes_under_way_when_a_master_is_killed_reach_the_next_one(cluster, make, which):
    memsync, other, received = make(cluster, "w1", batch_interval=0.01), make(cluster, "w2"), {}
    other.subscribe("tasks/*/state", lambda key, value: received.__setitem__(key, value))

    with Load(memsync) as load:
        eventually(lambda: load.rounds > 5)
        home = cluster.owner_of(memsync.runtime.store.keys.about)
        cluster.fail_over(home if which == "home" else next(one for one in cluster.servers[:3] if one is not home))
        rounds = load.rounds
        eventually(lambda: load.rounds > rounds + 5)

    check_states(other, received)
    assert other.get_queue() == {"pending": [], "processing": []}
    assert {row["id"] for row in other.get_tasks(limit=100)} == {f"t{task}" for task in range(TASKS)}
    assert memsync.get_metrics()["dropped"] == 0


def test_other_nodes_go_on_until_a_killed_master_is_replaced_if_not_all_slots_are_needed(cluster, make):
    for server in cluster.servers:
        execute(server, "CONFIG", "SET", "cluster-require-full-coverage", "no")
    memsync, killed = make(cluster, "w1", timeout=2.0), cluster.servers[1]
    (name,) = cluster.names_on(cluster.servers[2], "task-sentinel/%s", 1)
    (lost,) = cluster.names_on(killed, "task-sentinel/%s", 1)
    slot = cluster.slot_of(f"task-sentinel/{lost}")
    version = memsync.write(name, 0, expected_version=0).version

    killed.kill()
    memsync.write(lost, 1)
    end = time.monotonic() + 60
    while cluster.owner(slot) is killed and time.monotonic() < end:
        version = memsync.write(name, version, expected_version=version).version
        with memsync.lock(cluster.names_on(cluster.servers[2], "task-sentinel/locks/{%s}", 1)[0]):
            time.sleep(0.05)

    assert version > 2
    eventually(lambda: succeeds(memsync.force_sync), timeout=20)
    assert memsync.read(lost) == 1


def test_slots_may_move_while_they_are_in_use(steady, make):
    memsync, other, received = make(steady, "w1", batch_interval=0.01), make(steady, "w2"), {}
    other.subscribe("tasks/*/state", lambda key, value: received.__setitem__(key, value))
    keys = memsync.runtime.store.keys

    with Load(memsync) as load:
        eventually(lambda: load.rounds > 5)
        for key in (keys.task("t1"), keys.about, keys.task("t2")):
            slot = steady.slot_of(key)
            target = next(one for one in steady.servers[:3] if one is not steady.owner(slot))
            rounds = load.rounds
            steady.move(slot, target, pause=lambda: threading.Event().wait(0.05))
            eventually(lambda: load.rounds > rounds + 5)
            assert steady.owner(slot) is target

    check_states(other, received)
    counters = other.get_coordination_metrics()
    assert (counters["total"], counters["succeeded"]) == (TASKS, TASKS)
    assert {row["id"] for row in other.get_tasks(limit=100)} == {f"t{task}" for task in range(TASKS)}


def test_a_single_key_can_be_read_and_written_while_its_slot_is_half_moved(steady, make):
    memsync, other = make(steady, "w1"), make(steady, "w2")
    memsync.write("a", 1)
    memsync.force_sync()
    slot = steady.slot_of("task-sentinel/a")
    target = next(one for one in steady.servers[:3] if one is not steady.owner(slot))
    found = []

    def use():
        found.append((other.read("a"), succeeds(lambda: (memsync.write("a", len(found) + 2), memsync.force_sync()))))

    steady.move(slot, target, pause=use)
    use()

    assert [done for _, done in found] == [True] * len(found)
    assert [value for value, _ in found] == list(range(1, len(found) + 1))
    assert len(found) >= 3


def test_waiter_gets_a_lock_whose_slot_has_moved(steady, make):
    memsync, other = make(steady, "w1"), make(steady, "w2")
    theirs = other.lock("l", wait=20.0, thread_local=False)
    slot = steady.slot_of(memsync.runtime.store.keys.lock_location("l").key)
    target = next(one for one in steady.servers[:3] if one is not steady.owner(slot))
    with memsync.lock("l") as lock:
        waiting = in_background(theirs.acquire)
        eventually(lambda: [one.waiters for one in memsync.locks()] == [1])
        steady.move(slot, target)
        lock.check()

    assert waiting()
    assert [one.worker_id for one in memsync.locks()] == ["w2"]
    assert memsync.locks()[0].fence > lock.fence


def test_a_lock_is_held_over_the_end_of_its_master(cluster, make):
    memsync, other = make(cluster, "w1", lock_ttl=10.0), make(cluster, "w2")
    key = memsync.runtime.store.keys.lock_location("l").key
    with memsync.lock("l") as lock:
        master = cluster.owner_of(key)
        with master.client() as client:
            client.set(f"{key}/later", 1)  # WAIT waits for what was written over the same connection
            assert client.execute_command("WAIT", 1, 5000) == 1
        cluster.fail_over(master)

        eventually(lambda: succeeds(other.locks))
        assert [one.worker_id for one in other.locks()] == ["w1"]
        assert not other.lock("l").acquire()
        lock.check()
    with other.lock("l", wait=5.0) as later:
        assert later.fence > lock.fence


def test_writes_wait_while_no_node_owns_their_slot(cluster, make):
    memsync = make(cluster, "w1", batch_interval=0.01)
    memsync.write("a", 1)
    memsync.force_sync()
    for server in cluster.servers:
        server.pause()

    memsync.sync_task_state("t1", {"x": 1})
    with pytest.raises(StoreError):
        memsync.force_sync(timeout=1.0)
    for server in cluster.servers:
        server.resume()
    eventually(lambda: succeeds(memsync.force_sync), timeout=30)

    assert memsync.get_task_state("t1") == {"x": 1}


def test_entries_of_other_nodes_are_read_while_the_index_node_hangs(steady, make):
    memsync = make(steady, "w1", batch_interval=0.01, timeout=2.0)
    home = steady.owner_of(memsync.runtime.store.keys.about)
    key = next(f"k{number}" for number in range(100) if steady.owner_of(f"task-sentinel/k{number}") is not home)
    memsync.write(key, 1)
    memsync.force_sync()
    time.sleep(1.2)
    home.pause()

    value = memsync.read(key)

    home.resume()
    assert value == 1
