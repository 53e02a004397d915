"""Redis's clock is set back, or ahead: nothing is missed, hidden or refused, and a lease ends one lease late at most."""
from __future__ import annotations

import random
import time

import pytest

from celery_memsync import LockLost
from celery_memsync.models.task import TaskRun
from tests.support.stepped_clock import SteppedServer
from tests.support.stress import stressed
from tests.support.threads import in_background
from tests.support.waiting import eventually

#: Seconds by which the clock is set back: what a virtual machine loses that was paused, a wrong time zone, a wrong year.
STEPS = stressed([1.5, 30, 3600, 40_000_000], [1.5, 40_000_000])


@pytest.fixture
def stepped(tmp_path):
    server = SteppedServer(tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.fixture
def memsync(stepped, make_memsync):
    return make_memsync(url=stepped.url, batch_interval=0.01)


@pytest.fixture
def other(stepped, make_memsync):
    return make_memsync(url=stepped.url, batch_interval=0.01)


# -- entries

@pytest.mark.parametrize("step", STEPS)
def test_subscriber_gets_the_final_value_after_the_clock_was_set_back(stepped, memsync, other, step):
    received = []
    other.subscribe("k", lambda key, value: received.append(value))
    memsync.write("k", "first")
    eventually(lambda: received == ["first"])

    stepped.set_clock(-step)
    for value in ("second", "final"):
        memsync.write("k", value)
        memsync.force_sync()

    assert eventually(lambda: received[-1] == "final")


@pytest.mark.parametrize("step", STEPS)
def test_recreated_key_is_newer_despite_a_clock_step(stepped, memsync, other, step):
    received = []
    other.subscribe("k", lambda key, value: received.append(value))
    memsync.write("k", "old", ttl=0.2)
    eventually(lambda: received == ["old"])
    eventually(lambda: memsync.read("k", consistent=True) is None)

    stepped.set_clock(-step)
    with stepped.client() as client:
        client.delete("task-sentinel/k")
    memsync.write("k", "new")
    memsync.force_sync()

    assert eventually(lambda: received[-1] == "new")


@pytest.mark.parametrize("step", STEPS)
def test_compare_and_set_goes_on_after_the_clock_was_set_back(stepped, memsync, other, step):
    for number in range(3):
        memsync.write("k", number, expected_version=number)

    stepped.set_clock(-step)
    versions = [writer.write("k", number, expected_version=number).version
                for number, writer in ((3, other), (4, memsync), (5, other))]

    assert versions == [4, 5, 6]
    assert memsync.read("k", consistent=True) == 5


@pytest.mark.parametrize("step", [-3600, -30, 30, 3600])
def test_times_of_entries_are_redis_s_at_once_after_a_step(stepped, memsync, step):
    memsync.write("a", 1)
    memsync.force_sync()

    stepped.set_clock(step)
    memsync.write("b", 1, ttl=20)
    memsync.force_sync()

    with stepped.client() as client:
        assert abs(memsync.read_entry("b", consistent=True).timestamp - client.time()[0]) < 5
        assert 10_000 < client.pttl("task-sentinel/b") <= 20_000


@pytest.mark.parametrize("step", STEPS)
def test_progress_and_its_message_go_on_after_the_clock_was_set_back(stepped, memsync, other, step):
    memsync.sync_task_progress("t", 10, "loading")
    memsync.force_sync()

    stepped.set_clock(-step)
    shown = []
    for status in ("parsing", "indexing"):
        memsync.sync_task_progress("t", 10, status)
        memsync.force_sync()
        shown.append(other.get_task_progress("t")["status"])

    assert shown == ["parsing", "indexing"]


@pytest.mark.parametrize("step", [5, 3600])
def test_what_is_written_after_the_clock_was_set_back_wins_over_what_was_there(stepped, memsync, other, step):
    for key in ("value", "deleted"):
        other.write(key, "old")
    other.force_sync()

    stepped.set_clock(-step)
    time.sleep(1.2)
    memsync.write("value", "new")
    memsync.delete("deleted")
    memsync.force_sync()

    assert other.read("value", consistent=True) == "new"
    assert other.read("deleted", consistent=True) is None


def test_locks_and_queue_are_listed_after_the_clock_was_set_back(stepped, memsync, other):
    memsync.enqueue("old")
    lists = other.get_queue(), other.locks()

    stepped.set_clock(-3600)
    lock = memsync.lock("a")
    lock.acquire()
    memsync.enqueue("new")
    time.sleep(1.2)

    assert lists == ({"pending": ["old"], "processing": []}, [])
    assert sorted(other.get_queue()["pending"]) == ["new", "old"]
    assert [record.name for record in other.locks()] == ["a"]


def test_subscriber_receives_an_expiry_when_the_clock_was_set_ahead(
    stepped, memsync, other, fast_polling,
):
    received, invalidated = [], []
    other.subscribe("k", lambda key, value: received.append(value), invalidated.append)
    memsync.write("k", 1, ttl=600)
    memsync.force_sync()
    eventually(lambda: received == [1])

    stepped.set_clock(3600)

    assert eventually(lambda: invalidated, timeout=5) == ["task-sentinel/k"]


@pytest.mark.parametrize("step", [3600, 200_000])
def test_tasks_are_listed_after_the_clock_was_set_back(stepped, memsync, other, step):
    def record(task_id):
        memsync.sync_task_run(task_id, TaskRun("PENDING"), f"c{task_id}.0")
        memsync.force_sync()

    record("old")
    record("older")

    stepped.set_clock(-step)
    record("new")
    record("newest")

    assert {row["id"] for row in other.get_tasks()} == {"old", "older", "new", "newest"}
    assert set(other.get_queue()["pending"]) == {"old", "older", "new", "newest"}


# -- fences

@pytest.mark.parametrize("step", STEPS)
def test_fences_grow_although_the_clock_was_set_back_and_nothing_is_left_of_the_lock(stepped, memsync, step):
    with memsync.lock("a") as lock:
        first = lock.fence
        memsync.write("balance", 1, fence=lock)
    memsync.force_sync()

    stepped.set_clock(-step)
    with stepped.client() as client:
        client.delete("task-sentinel/locks/{a}")
    with memsync.lock("a") as lock:
        memsync.write("balance", 2, fence=lock)
        memsync.force_sync()

        assert lock.fence > first
    assert memsync.read("balance", consistent=True) == 2


def test_the_mark_of_another_program_is_replaced(memsync, stepped):
    for foreign in ("garbage", "9" * 30, "-1", ""):
        with stepped.client() as client:
            client.set("task-sentinel//{clock}", foreign)

        with memsync.lock("a") as lock:
            assert 10 ** 15 < lock.fence < 2 ** 53


# -- leases

@pytest.mark.parametrize("step", STEPS)
def test_lease_of_a_dead_holder_ends_after_the_clock_was_set_back(stepped, memsync, other, step):
    other.lock("a", ttl=1.0).acquire()
    other.runtime.locks.close(free=False)

    stepped.set_clock(-step)
    began = time.monotonic()
    acquired = memsync.lock("a", wait=20).acquire()

    assert acquired
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("step", [-3600, -30, 30, 3600])
def test_a_living_holder_learns_at_its_next_renewal_whether_it_holds_the_lock(stepped, memsync, other, step):
    lock = memsync.lock("a", ttl=1.5)
    lock.acquire()

    stepped.set_clock(step)
    time.sleep(1.2)

    if step < 0:
        lock.check()
        assert not other.lock("a").acquire()
    else:
        with pytest.raises(LockLost):
            lock.check()
        assert other.lock("a", wait=2).acquire()


@pytest.mark.parametrize("step", [5, 25])
def test_no_passer_by_overtakes_waiters_after_the_clock_was_set_ahead(stepped, memsync, other, make_memsync, step):
    lock, passer_by = memsync.lock("a", ttl=60), make_memsync(url=stepped.url).lock("a")
    lock.acquire()
    waiter = other.lock("a", wait=20, thread_local=False)
    acquired = in_background(waiter.acquire)
    eventually(lambda: memsync.get_lock("a").waiters == 1)

    stepped.set_clock(step)
    lock.release()
    overtook = passer_by.acquire()

    assert acquired() and waiter.owned
    assert not overtook


@pytest.mark.parametrize("step", [3600, 200_000])
def test_a_dead_holder_is_listed_for_one_lease_after_the_clock_was_set_back(stepped, memsync, other, step):
    lock = memsync.lock("a", ttl=1.0)
    lock.acquire()
    memsync.runtime.locks.close(free=False)

    stepped.set_clock(-step)
    other.runtime.store.measure_clock()  # else what is known of it is valid for a second
    listed = [(record.name, record.ttl) for record in other.locks()]

    assert listed == [("a", 1.0)]
    assert eventually(lambda: not other.locks() and other.get_lock("a") is None, timeout=5)


# -- workers

@pytest.mark.slow
@pytest.mark.parametrize("seed", range(stressed(3, 1)))
def test_nothing_is_missed_or_refused_while_the_clock_goes_back_and_forth(stepped, memsync, other, seed):
    randomly, received, fences = random.Random(seed), {}, []
    other.subscribe("k/*", lambda key, value, entry: received.__setitem__(key, value))
    end, written, ahead = time.monotonic() + stressed(4.0), {}, 0
    while time.monotonic() < end:
        key = f"k/{randomly.randrange(5)}"
        written[f"task-sentinel/{key}"] = value = randomly.random()
        with randomly.choice((memsync, other)).lock(f"l{randomly.randrange(3)}", wait=5) as lock:
            fences.append(lock.fence)
            memsync.write(key, value, fence=lock)
        if randomly.random() < 0.2:
            memsync.force_sync()
            ahead -= randomly.choice((0.3, 5, 600))
            stepped.set_clock(ahead)
    memsync.force_sync()

    assert fences == sorted(set(fences))
    assert eventually(lambda: received == written, message=f"seed {seed}")
