"""Any client may write anything under our keys: whatever it is, all others go on, and it is removed."""
from __future__ import annotations

import contextlib
import time

import pytest
import redis as redis_py

from celery_memsync import LockLost, encoding
from celery_memsync.keys import Keys, is_id
from celery_memsync.models.task import TaskRun
from celery_memsync.store import FIRST_HEARTBEAT
from tests.support.junk import JUNK, NOW, SCORES, add_members, scatter_scores
from tests.support.runs import run_key
from tests.support.stress import stressed

KEYS = Keys("task-sentinel")

#: Kinds of junk that change keys of one type only, which are few.
CHOOSY = ("members", "scores", "the last item", "items", "rows")


def fill(memsync):
    """Write something of every kind; return a held lock, and the keys by name without a token."""
    store = memsync.runtime.store
    memsync.sync_task_run("t1", TaskRun("FAILURE", name="proj.add", runtime=1.0), run_key(0, 1))
    memsync.force_sync()
    memsync.sync_task_run("t1", TaskRun("STARTED", name="proj.add"), run_key(1, 2))
    memsync.sync_task_run("t2", TaskRun("PENDING", name="proj.add"), run_key(0, 1))
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 50)
    memsync.sync_agent_coordination("t1", "a1", {"x": 1})
    memsync.sync_worker_status("w1", "up")
    memsync.sync_worker_capacity("w1", {"free": 1})
    memsync.sync_assignments({"w1": ["t1"]})
    memsync.increment_metrics(x=1)
    memsync.write("own/1", 1)
    memsync.write("tasks/t1/own", 1)
    memsync.force_sync()
    memsync.enqueue("q1")
    memsync.enqueue("q2")
    memsync.dequeue()
    send_heartbeat(store, "w1")
    send_heartbeat(store, "ended", timeout=0.01)
    store.keep_messages(store.token, {f"{store.token}-1": b"message"}, 60.0)
    lock = memsync.lock("l1")
    lock.acquire()
    memsync.acquire_task_lock("t1")
    store.redis.zadd(KEYS.lost, {f"token123 {NOW} w9": -NOW})
    store.redis.rpush(KEYS.lock_location("l1").key + "/queue/", "tok.9 30000 0:task-sentinel//{locks}/turns/tok/9 - w\n{}")
    return lock, {key.decode().replace(store.token, "TOKEN"): key for key in store.redis.keys("task-sentinel*")}


def send_heartbeat(store, worker_id, timeout=5.0, since=0.0):
    return store.write_heartbeat(
        worker_id, encoding.dumps({"worker_id": worker_id, "status": "active"}), 60.0, timeout=timeout,
        last=FIRST_HEARTBEAT._replace(since=since), until=1e10, pulse="active:1")


def assert_others_go_on(memsync, other, number, held):
    """Use everything, with names that the junk does not have."""
    task, name = f"new-{number}", f"new-{number}"
    run = TaskRun("STARTED", name="proj.add", run=f"{memsync.runtime.token}-1")
    memsync.sync_task_run(task, run, run_key(0, NOW / 1000))
    for each in (task, "t1"):
        memsync.sync_task_state(each, {"y": number})
        memsync.sync_task_progress(each, 70)
        memsync.sync_agent_coordination(each, "a1", {"y": number})
    memsync.sync_worker_status(name, "up")
    memsync.write(f"own/{name}", number)
    memsync.write("own/1", number)
    memsync.increment_metrics(**{f"count-{number}": 2})
    memsync.force_sync()
    assert other.get_task_state(task)["status"] == "STARTED"
    assert other.get_task_state(task)["y"] == other.get_task_state("t1")["y"] == number
    assert other.get_task_progress(task)["progress"] == 70
    assert other.get_agent_coordination(task, "a1") == {"y": number}
    assert other.get_agent_coordination("t1", "a1") == {"y": number}
    assert other.get_worker_status(name) == "up"
    assert other.read("own/1", consistent=True) == other.read(f"own/{name}", consistent=True) == number
    assert other.get_coordination_metrics()[f"count-{number}"] == 2
    assert task in [one["id"] for one in other.get_tasks()]
    assert task in other.get_queue()["processing"]
    assert f"task-sentinel/own/{name}" in other.search("own/*")
    assert other.search("*")

    assert_coordination_goes_on(memsync, other, name)
    assert_locks_go_on(memsync, other, name, held)
    memsync.runtime.store.keep_messages(memsync.runtime.store.token, {f"{memsync.runtime.store.token}-2": b"new"}, 60.0)
    assert b"new" in memsync.runtime.store.read_messages(memsync.runtime.store.token)[1].values()


def assert_coordination_goes_on(memsync, other, name):
    assert memsync.enqueue(f"queued-{name}")
    taken = []
    while (given := memsync.dequeue()) is not None:
        taken.append(given)
    assert f"queued-{name}" in taken
    assert all(map(is_id, taken))
    assert other.complete(f"queued-{name}")

    statuses = [send_heartbeat(memsync.runtime.store, name).status for _ in range(2)]
    assert statuses == ["online", "ok"]
    assert name in other.get_active_workers()
    send_heartbeat(memsync.runtime.store, f"stopped-{name}", timeout=0.001)
    time.sleep(0.005)
    found = [
        loss.worker_id for _ in range(4)
        for loss in send_heartbeat(other.runtime.store, name, timeout=0.001, since=1.0).losses]
    assert f"stopped-{name}" in found


def assert_locks_go_on(memsync, other, name, held):
    lock, same = memsync.lock(name, ttl=5.0), other.lock(name, ttl=5.0, wait=2.0)
    assert lock.acquire() and not other.lock(name).acquire()
    assert name in [record.name for record in other.locks()]
    lock.release()
    assert same.acquire() and same.check() is None
    same.release()

    with contextlib.suppress(LockLost):
        held.release()
    memsync.release_task_lock("t1")
    for record in other.locks():
        other.free_lock(record.name, record.fence)
    assert other.lock("l1", wait=1.0).acquire()
    assert other.acquire_task_lock("t1", wait=1.0)


@pytest.fixture
def clean(redis_url):
    """Empties Redis, and makes what the test uses anew for each key."""
    def empty():
        with redis_py.Redis.from_url(redis_url) as client:
            client.flushall()
    return empty


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUNK)
def test_others_go_on_with_junk_under_any_key(make_memsync, redis, clean, kind):
    (_, names), wrong = fill(make_memsync(batch_interval=60.0)), {}
    for name in keys_for(kind, sorted(names)):
        clean()
        memsync, other = make_memsync(batch_interval=60.0), make_memsync(batch_interval=60.0, cache_size=0)
        held, keys = fill(memsync)
        before = redis.dump(keys[name])
        JUNK[kind](redis, keys[name])

        try:
            for number in range(2 if redis.dump(keys[name]) != before else 0):
                assert_others_go_on(memsync, other, number, held)
        except Exception as exc:
            wrong[name] = f"{type(exc).__name__}: {exc}"
        for manager in (memsync, other):
            manager.shutdown(timeout=0)

    assert wrong == {}


def keys_for(kind, names):
    """Return every key, or every fourth: each kind meets others then, and each key another quarter of the kinds."""
    if kind in CHOOSY:
        return names
    return names[list(JUNK).index(kind) % (stride := stressed(1, 4))::stride]


@pytest.mark.parametrize("key", [KEYS.heartbeats, KEYS.lost, KEYS.pending, KEYS.processing, KEYS.locks, KEYS.names])
@pytest.mark.parametrize("change", [add_members, scatter_scores])
def test_junk_members_of_a_sorted_set_are_removed(make_memsync, redis, key, change):
    memsync, other = make_memsync(batch_interval=60.0), make_memsync(batch_interval=60.0)
    _held, _ = fill(memsync)
    locks = [memsync.lock(f"n{number}") for number in range(60)]
    change(redis, key.encode())

    for number in range(60):
        memsync.sync_task_run(f"n{number}", TaskRun("STARTED"), run_key(0, NOW / 1000))
        memsync.sync_task_run(f"p{number}", TaskRun("PENDING"), run_key(0, NOW / 1000))
        memsync.write(f"own/n{number}", 1)
        memsync.force_sync()
        locks[number].acquire()
        send_heartbeat(memsync.runtime.store, "w1")
    memsync.dequeue()
    other.search("own/*")
    other.locks()

    left = {member: score for member, score in redis.zrange(key, 0, -1, withscores=True) if score in SCORES}
    assert {score for score in left.values() if score not in (NOW, NOW * 2560.0)} == set()


@pytest.mark.parametrize("message", ["", "text", b"\xff", "task-sentinel/own/1"])
def test_forged_invalidation_does_not_end_the_connection(make_memsync, redis, message):
    memsync, other = make_memsync(), make_memsync()
    memsync.write("own/1", 1)
    memsync.force_sync()
    assert other.read("own/1") == 1
    up_since = other.runtime.link._line

    for _ in range(5):
        redis.publish("__redis__:invalidate", message)
    memsync.write("own/1", 2)
    memsync.force_sync()

    assert other.read("own/1") == 2
    assert other.runtime.link._line is up_since
