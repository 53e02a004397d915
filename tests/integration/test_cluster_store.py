"""A cluster: where things are, and that all is as with one server."""
from __future__ import annotations

import random

import pytest
import redis as redis_py

from celery_memsync import ConflictError, LockLost, StoreError
from celery_memsync.keys import Keys
from celery_memsync.store.acl import rules
from celery_memsync.store.errors import note_lost
from celery_memsync.store.scripts import ENTRY_WRITE
from tests.support.publishing import sync_stage
from tests.support.redis_server import free_port
from tests.support.samples import use_everything
from tests.support.threads import in_background
from tests.support.topologies import execute
from tests.support.waiting import eventually

#: Ids that braces make odd: they choose the slot of a key.
ODD = ["}", "}x", "{", "{}", "}{", "a{b}c", "{a}{b}", "}}", "x}"]


def test_everything_works_as_with_one_server(make_on_cluster):
    use_everything(make_on_cluster(batch_interval=60.0), make_on_cluster())


def test_tasks_spread_over_the_nodes_and_all_of_one_is_in_one_slot(cluster, make_on_cluster):
    memsync = make_on_cluster()
    tasks = [f"t{number}" for number in range(60)]
    for task in tasks:
        sync_stage(memsync, task, "STARTED")
        memsync.sync_task_progress(task, 50)
        memsync.sync_agent_coordination(task, "a", 1)
        memsync.write(f"tasks/{task}/mine", 1)
        memsync.acquire_task_lock(task)
    memsync.force_sync()

    rows = {
        server.port: [key.decode() for key in server.client().keys("task-sentinel/tasks/*")] for server in cluster.servers}

    assert all(len(rows[server.port]) > len(tasks) for server in cluster.servers)
    for task in tasks:
        keys = [key for row in rows.values() for key in row if f"/{{{task}}}/" in key]
        assert len(keys) == 4 and len(set(map(cluster.slot_of, keys))) == 1


@pytest.mark.parametrize("odd", ODD)
def test_ids_with_braces_are_as_good_as_others(make_on_cluster, odd):
    memsync, other = make_on_cluster(), make_on_cluster()
    sync_stage(memsync, odd, "STARTED")
    memsync.sync_agent_coordination(odd, odd, 1)
    memsync.write(f"mine/{odd}", 2)
    memsync.enqueue(f"q{odd}")
    memsync.force_sync()

    with memsync.lock(odd) as lock, memsync.lock(f"x{odd}"):
        assert lock.extend(5.0) is None
        assert not other.lock(odd, wait=0.05).acquire()
        assert other.acquire_task_lock(odd)
        assert other.release_task_lock(odd)
        assert {one.name for one in other.locks()} == {odd, f"x{odd}"}
    assert other.get_task_state(odd)["status"] == "STARTED"
    assert other.get_task_agents(odd) == [odd]
    assert other.read(f"mine/{odd}") == 2


def test_cancelled_ids_are_followed(make_on_cluster):
    memsync, other, seen = make_on_cluster(), make_on_cluster(), []
    other.cancel("t1", "before")
    memsync.runtime.cancelled.follow(lambda new: seen.extend((one.id, one.reason) for one in new))

    other.cancel("t2", "after")

    eventually(lambda: seen == [("t1", "before"), ("t2", "after")])


def test_no_two_ids_meet_in_one_key():
    keys = Keys("task-sentinel", together=True)
    names = [*ODD, *("".join(random.choices("{}ab", k=4)) for _ in range(500))]

    assert len({keys.task(name) for name in names}) == len(set(names))


def test_a_long_list_is_replaced_and_changes_of_the_queue_are_made_once(make_on_cluster):
    memsync, other = make_on_cluster(), make_on_cluster()
    ids = [f"q{number}" for number in range(2500)]

    memsync.sync_queue({"pending": ids, "processing": ["p"]})
    memsync.force_sync()
    tries = [memsync.runtime.store.enqueue_task(7, 60.0, "z") for _ in range(2)]
    taken = [memsync.runtime.store.dequeue_task(serial, 60.0) for serial in (9, 8, 9, 8)]

    assert tries == [True, True]
    assert taken == ["q0", "q1", "q0", "q1"]
    assert other.get_queue(limit=5000) == {"pending": [*ids[2:], "z"], "processing": ["p", "q0", "q1"]}


def test_a_change_that_a_node_did_not_answer_is_in_doubt(make_on_cluster, monkeypatch):
    memsync, answered = make_on_cluster(), []
    memsync.increment_metrics(n=1)

    def lose_answer(commands, skip_away=False):
        answered.append(execute_all(commands))
        lost = redis_py.ConnectionError("lost")
        note_lost(lost)
        return [lost] * len(commands)

    execute_all = memsync.runtime.store.redis.execute_all
    with monkeypatch.context() as patch:
        patch.setattr(memsync.runtime.store.redis, "execute_all", lose_answer)
        with pytest.raises(StoreError):
            memsync.force_sync()
    memsync.increment_metrics(n=1)
    memsync.force_sync()

    assert answered
    assert memsync.get_coordination_metrics() == {"n": 2}


def test_the_queue_and_the_counters_follow_from_the_stages_of_tasks_on_all_nodes(make_on_cluster):
    memsync, other = make_on_cluster(), make_on_cluster()
    now = memsync.runtime.store.clock.now()
    for number in range(30):
        sync_stage(memsync, f"t{number}", "PENDING", at=now + number / 1000)
    memsync.force_sync()
    assert other.get_queue()["pending"] == [f"t{number}" for number in range(30)]

    for number in range(30):
        sync_stage(memsync, f"t{number}", "SUCCESS" if number < 20 else "STARTED")
    memsync.force_sync()

    queue, counters = other.get_queue(), other.get_coordination_metrics()
    assert (queue["pending"], sorted(queue["processing"])) == ([], sorted(f"t{number}" for number in range(20, 30)))
    assert (counters["total"], counters["succeeded"]) == (30, 20)
    assert {row["id"] for row in other.get_tasks(limit=100)} == {f"t{number}" for number in range(30)}


def test_what_follows_is_noted_once_though_its_node_was_away(cluster, make_on_cluster):
    memsync = make_on_cluster(batch_interval=60.0, backend_options={"socket_timeout": 0.2, "socket_connect_timeout": 0.2})
    other = make_on_cluster()
    other.increment_metrics(probe=1)
    other.force_sync()
    home = cluster.owner_of(memsync.runtime.store.keys.about)
    tasks = [f"t{number}" for number in range(60)]
    elsewhere = [task for task in tasks if cluster.owner_of(memsync.runtime.store.keys.task(task)) is not home]
    for task in elsewhere:
        sync_stage(memsync, task, "SUCCESS")

    home.pause()
    try:
        for _ in range(2):
            with pytest.raises(StoreError):
                memsync.force_sync(timeout=1.0)
    finally:
        home.resume()
    memsync.force_sync(timeout=10.0)

    counters = other.get_coordination_metrics()
    assert len(elsewhere) > 10
    assert (counters["total"], counters["succeeded"]) == (len(elsewhere), len(elsewhere))
    assert {row["id"] for row in other.get_tasks(limit=100)} == set(elsewhere)


def test_tasks_written_without_an_answer_are_listed(cluster, make_on_cluster):
    memsync, other = make_on_cluster(batch_interval=60.0, backend_options={"socket_timeout": 0.2}), make_on_cluster()
    assert memsync.read("nothing") is None
    home, keys = cluster.owner_of(memsync.runtime.store.keys.about), memsync.runtime.store.keys
    task = next(f"t{n}" for n in range(99) if cluster.owner_of(keys.task(f"t{n}")) is not home)
    mine = next(f"k{n}" for n in range(99) if cluster.owner_of(f"task-sentinel/k{n}") is cluster.owner_of(keys.task(task)))
    node = cluster.owner_of(keys.task(task))
    node.client().script_load(ENTRY_WRITE.text)
    sync_stage(memsync, task, "STARTED")
    memsync.write(mine, 1)

    node.pause()
    try:
        with pytest.raises(StoreError, match="gave no answer"):
            memsync.force_sync()
    finally:
        node.resume()
    eventually(lambda: node.client().exists(keys.task(task)))
    assert other.get_queue()["processing"] == []
    memsync.force_sync(timeout=10.0)

    assert other.get_queue()["processing"] == [task]
    assert [row["id"] for row in other.get_tasks(limit=5)] == [task]
    assert other.search("k*") == [f"task-sentinel/{mine}"]


def test_late_index_update_does_not_restore_a_removed_task(cluster, make_on_cluster):
    keys, home = Keys("task-sentinel", together=True), cluster.owner_of("{task-sentinel}")
    task = next(f"t{n}" for n in range(99) if cluster.owner_of(keys.task(f"t{n}")) is not home)
    mine = next(f"k{n}" for n in range(99) if cluster.owner_of(f"task-sentinel/k{n}") is not home)
    for server in cluster.servers:
        execute(
            server, "ACL", "SETUSER", "late", "reset", "on", ">secret", "allkeys", "allchannels",
            "+@all")
    late = make_on_cluster(url=cluster.url.replace("://", "://late:secret@", 1), batch_interval=60.0)
    other = make_on_cluster()
    late.force_sync()
    other.write(mine, 1)
    other.force_sync()
    execute(home, "ACL", "SETUSER", "late", "-evalsha")
    sync_stage(late, task, "PENDING")
    late.delete(mine)
    with pytest.raises(StoreError, match="may not"):
        late.force_sync()

    sync_stage(other, task, "SUCCESS")
    other.write(mine, 2)
    other.force_sync()
    execute(home, "ACL", "SETUSER", "late", "+evalsha")
    late.force_sync()

    assert other.get_task_state(task)["status"] == "SUCCESS"
    assert other.get_queue() == {"pending": [], "processing": []}
    assert (other.read(mine), other.search(mine)) == (2, [f"task-sentinel/{mine}"])
    assert other.get_coordination_metrics()["succeeded"] == 1


def test_versions_and_fences_are_checked_as_on_one_server(make_on_cluster):
    memsync, other = make_on_cluster(), make_on_cluster()
    entry = memsync.write("a", 1, expected_version=0)
    with memsync.lock("l") as lock:
        memsync.write("b", 1, fence=lock.fence + 1)
        memsync.force_sync()
        memsync.write("b", 2, fence=lock)
        with pytest.raises(LockLost):
            memsync.force_sync()

    with pytest.raises(ConflictError):
        other.write("a", 2, expected_version=0)
    assert other.write("a", 2, expected_version=entry.version).version == entry.version + 1
    assert other.read("b") == 1


def test_changes_on_all_nodes_are_received_by_one_subscription(make_on_cluster):
    memsync, other, received = make_on_cluster(), make_on_cluster(), {}
    other.subscribe("tasks/*/state", lambda key, value: received.__setitem__(key, value["x"]))
    for number in range(60):
        memsync.sync_task_state(f"t{number}", {"x": number})
    memsync.force_sync()

    expected = {f"task-sentinel/tasks/t{number}/state": number for number in range(60)}
    eventually(lambda: received == expected)


def test_waiters_have_the_lock_in_their_turn(make_on_cluster):
    memsync, others = make_on_cluster(), [make_on_cluster() for _ in range(3)]
    with memsync.lock("l"):
        waits, locks = [], [other.lock("l", wait=20.0, thread_local=False) for other in others]
        for number, lock in enumerate(locks):
            waits.append(in_background(lock.acquire))
            eventually(lambda n=number: next(one.waiters for one in memsync.locks()) == n + 1)
    fences = []
    for other, wait in zip(others, waits):
        assert wait()
        assert [lock.worker_id for lock in memsync.locks()] == [other.runtime.store.worker_id]
        fences.append(memsync.locks()[0].fence)
        other.shutdown()

    assert fences == sorted(set(fences))


def test_missing_nodes_are_skipped(cluster, make_on_cluster):
    memsync = make_on_cluster(url=f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster.servers[1].port}")
    memsync.write("a", 1)
    memsync.force_sync(timeout=5)

    assert memsync.read("a") == 1


def test_documented_rights_are_enough_in_a_cluster(cluster, make_on_cluster):
    for server in cluster.servers:
        execute(server, "ACL", "SETUSER", "app", "reset", "on", ">secret", "-@all",
            "+cluster|slots", "+asking",
            *rules("task-sentinel"))
    url = cluster.url.replace("://", "://app:secret@", 1)
    memsync = make_on_cluster(url=url, batch_interval=60.0)

    use_everything(memsync, make_on_cluster(url=url))

    assert memsync.runtime.store.check_rights() == ([], [])


@pytest.mark.parametrize("rights, text", [
    ([">secret", "+@all", "-cluster"], "security.md"), ([">geheim", "+@all"], "user or password"),
])
def test_user_without_the_right_to_read_slots_gets_a_clear_error(
    cluster, make_on_cluster, rights, text,
):
    for server in cluster.servers:
        execute(server, "ACL", "SETUSER", "app", "reset", "on", "allkeys", "allchannels", *rights)

    with pytest.raises(StoreError, match=text):
        make_on_cluster(url=cluster.url.replace("://", "://app:secret@", 1)).read("a")
