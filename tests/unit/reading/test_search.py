"""Searching: which keys a pattern finds, how long they are found, and what it costs Redis."""
from __future__ import annotations

import random
import threading
import time

import pytest

from celery_memsync import InvalidKey, InvalidValue
from celery_memsync.models.task import TaskRun
from tests.support.redis_server import free_port
from tests.support.samples import populate
from tests.support.stress import stressed
from tests.support.waiting import eventually

NAMES = "task-sentinel//{keys}"


FOUND = {
    "tasks/*/state": ["tasks/t1/state", "tasks/t2/state"],
    "tasks/*/progress": ["tasks/t1/progress", "tasks/t4/progress"],
    "tasks/*/agents/*": ["tasks/t1/agents/coder", "tasks/t1/agents/tester", "tasks/t3/agents/coder"],
    "tasks/*/agents/coder": ["tasks/t1/agents/coder", "tasks/t3/agents/coder"],
    "*coder": ["tasks/t1/agents/coder", "tasks/t3/agents/coder"],
    "tasks/t1/*": [
        "tasks/t1/agents/coder", "tasks/t1/agents/tester", "tasks/t1/note", "tasks/t1/notes/1", "tasks/t1/progress",
        "tasks/t1/state"],
    "tasks/t1/agents/c*": ["tasks/t1/agents/coder"],
    "tasks/t1/[np]*": ["tasks/t1/note", "tasks/t1/notes/1", "tasks/t1/progress"],
    "tasks/t?/state": ["tasks/t1/state", "tasks/t2/state"],
    "tasks/t[^1]/*": ["tasks/t2/state", "tasks/t3/agents/coder", "tasks/t4/progress"],
    "tasks/t\\1/state": ["tasks/t1/state"],
    "tasks/[a-s]*": ["tasks/alone"],
    "task-sentinel/tasks/t1/n*": ["tasks/t1/note", "tasks/t1/notes/1"],
    "workers*": ["workers", "workers/w1/capacity", "workers/w1/heartbeat", "workers/w1/status"],
    "workers/*/heartbeat": ["workers/w1/heartbeat"],
    "workers/w1/[cs]*": ["workers/w1/capacity", "workers/w1/status"],
    "coordination/*": ["coordination/assignments", "coordination/metrics", "coordination/plan", "coordination/queue"],
    "coordination/[mq]*": ["coordination/metrics", "coordination/queue"],
    "a": ["a"],
    "a*": ["a", "a/b"],
    "?": ["a"],
    "é*": ["é"],
    "task-sentinel/a/b": ["a/b"],
    "tasks/t1/state": ["tasks/t1/state"],
    "tasks/t2/state": ["tasks/t2/state"],
    "tasks/t3/agents/coder": ["tasks/t3/agents/coder"],
    "workers/w1/heartbeat": ["workers/w1/heartbeat"],
    "coordination/queue": ["coordination/queue"],
    "tasks/t3/state": [],
    "tasks/unknown/*": [],
    "A*": [],
    "**/*e": ["tasks/alone", "tasks/t1/note", "tasks/t1/state", "tasks/t2/state", "coordination/queue"],
}


@pytest.fixture
def writer(make_memsync):
    return make_memsync("w1", batch_interval=60.0)


def full(keys):
    return sorted(f"task-sentinel/{key}" for key in keys)


@pytest.mark.parametrize("pattern", FOUND)
def test_a_pattern_finds_what_is_stored(writer, other, pattern):
    populate(writer)
    writer.force_sync()

    found = other.search(pattern)

    assert found == full(FOUND[pattern])


@pytest.mark.parametrize("pattern", FOUND)
def test_a_pattern_finds_what_this_process_has_not_written_yet(writer, pattern):
    populate(writer)

    found = writer.search(pattern)

    assert found == full(FOUND[pattern])


def test_a_star_finds_everything_of_this_namespace_only(writer, make_memsync):
    stranger = make_memsync("w9", namespace="task-sentinel-2", batch_interval=60.0)
    populate(writer)
    populate(stranger)
    stranger.write("stranger", 1)
    writer.force_sync()
    stranger.force_sync()

    found = writer.search("*")

    every = {key for keys in FOUND.values() for key in keys}
    assert found == full(every)
    assert len(stranger.search("*")) == len(every) + 1
    assert stranger.search("task-sentinel/*") == []


def test_what_is_found_can_be_read(writer, other):
    populate(writer)
    writer.force_sync()

    found = other.search("*")

    assert [key for key in found if other.read_entry(key) is None] == []


# -- deleted and expired keys

@pytest.mark.parametrize("key", ["a", "tasks/t1/state", "tasks/t1/progress", "tasks/t1/agents/coder", "tasks/t1/note"])
@pytest.mark.parametrize("leave", [
    lambda memsync, key: memsync.delete(key),
    lambda memsync, key: memsync.delete(key) or memsync.force_sync(),
    lambda memsync, key: (memsync.write(key, 2, ttl=0.05), memsync.force_sync(), time.sleep(0.1)),
    lambda memsync, key: (memsync.write(key, 2, ttl=0.05), time.sleep(0.1)),
])
@pytest.mark.parametrize("pattern", ["*", "{}"])
def test_search_does_not_find_deleted_or_expired_keys(writer, key, leave, pattern):
    populate(writer)
    writer.force_sync()
    before = writer.search(pattern.format(key))

    leave(writer, key)

    assert set(before) - set(writer.search(pattern.format(key))) == set(full([key]))


@pytest.mark.parametrize("ttl", [None, 60.0])
def test_what_others_deleted_and_wrote_again_is_found_again(memsync, other, redis, ttl):
    acts = [lambda: memsync.write("a", 1), lambda: memsync.delete("a"), lambda: memsync.write("a", 2, ttl=ttl)] * 2
    counts = []

    for act in acts:
        act()
        memsync.force_sync()
        counts.append((len(other.search("*")), redis.zcard(NAMES)))

    assert counts == [(1, 1), (0, 0), (1, 1)] * 2


# -- limits

@pytest.mark.parametrize("limit", [0, 1, 7, 29, 30, 31, 1000])
def test_a_limit_is_kept_and_used_up_also_when_some_are_deleted_here(memsync, limit):
    for number in range(60):
        memsync.write(f"k{number:02}", number)
    memsync.force_sync()
    for number in range(0, 60, 2):
        memsync.delete(f"k{number:02}")

    found = memsync.search("k*", limit=limit)

    assert len(found) == min(limit, 30)
    assert found == sorted(set(found) & set(full(f"k{number:02}" for number in range(1, 60, 2))))


@pytest.mark.slow
def test_thousands_of_keys_and_tasks_are_found_once_each(make_memsync):
    memsync, other = [make_memsync(batch_interval=60.0, timeout=30.0) for _ in range(2)]
    for number in range(5000):
        memsync.write(f"k/{number}", number)
        memsync.sync_task_state(f"t{number}", {})
    memsync.force_sync()

    patterns = ("k/*", "tasks/*/state", "*", "k/*7", "*7/state")
    found = {pattern: other.search(pattern, limit=20_000) for pattern in patterns}

    assert found["k/*"] == full(f"k/{number}" for number in range(5000))
    assert found["tasks/*/state"] == full(f"tasks/t{number}/state" for number in range(5000))
    assert found["*"] == sorted(found["k/*"] + found["tasks/*/state"])
    assert (len(found["k/*7"]), len(found["*7/state"])) == (500, 500)
    assert len(other.search("*")) == 1000


def test_what_stays_is_found_while_others_come_and_go(make_memsync, memsync):
    busy = make_memsync(batch_interval=60.0)
    for number in range(300):
        memsync.write(f"stays/{number}", number)
    memsync.force_sync()
    counts = set()

    def come_and_go():
        for number in range(2000):
            busy.write(f"goes/{number}", number, ttl=0.05 + number % 3)
            if number % 10 == 0:
                busy.delete(f"goes/{number - 400}") if number > 400 else None
                busy.force_sync()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    while thread.is_alive():
        counts.add(len([key for key in memsync.search("*", limit=10 ** 6) if "/stays/" in key]))

    assert counts == {300}


# -- the index of users' keys

@pytest.mark.slow
@pytest.mark.parametrize("seed", range(stressed(6, 2)))
def test_a_key_is_found_as_long_as_it_lives_whatever_its_ttl_was(memsync, other, redis, seed):
    chance = random.Random(seed)
    lost, alive = [], 0

    for turn in range(30):
        ttl = chance.choice([0.1, 0.15, 0.2, 0.3, 0.3, 30.0 if seed % 2 else 0.3])
        memsync.write("a", turn, ttl=ttl)
        if turn == 20:
            memsync.write("b", turn, ttl=60.0)
        memsync.force_sync()
        time.sleep(chance.choice([0.0, 0.01, 0.05, 0.09, 0.14]))
        found = other.search("*")
        living = full(key for key in ("a", "b") if other.read(key, consistent=True) is not None)
        alive += len(living)
        lost += [(turn, ttl, key) for key in living if key not in found]

    assert lost == []
    assert alive >= 20
    assert 0 < redis.pttl(NAMES) <= 120_000


def test_deleted_keys_leave_the_index_and_the_last_one_removes_it(memsync, other, redis):
    for number in range(200):
        memsync.write(f"k{number}", number, ttl=0.1)
    memsync.force_sync()
    full_size = redis.zcard(NAMES)

    time.sleep(0.3)
    for number in range(15):
        memsync.write("new", number, ttl=0.1 + number / 1000)
        memsync.force_sync()
    size = redis.zcard(NAMES)

    assert (full_size, size) == (200, 1)
    assert eventually(lambda: redis.keys() == [b"task-sentinel//{clock}"])
    assert other.search("*") == []


def test_everything_has_a_ttl(writer, redis):
    populate(writer)
    writer.force_sync()
    writer.delete("a")
    writer.delete("tasks/t1/state")
    writer.force_sync()

    endless = [key for key in redis.keys("*") if redis.pttl(key) == -1]

    assert redis.dbsize() > 10
    assert endless == [b"task-sentinel//{clock}"]


@pytest.mark.parametrize("key", [
    "task-sentinel/a//b", "garbage", "", "task-sentinel/", b"\xff", b"task-sentinel/\xff", "task-sentinel/x*y",
    "other/a",
])
def test_foreign_names_in_the_index_are_passed_over(memsync, redis, key):
    memsync.write("a", 1)
    memsync.force_sync()
    redis.zadd(NAMES, {key: 9e15})

    found = memsync.search("*")

    assert found == ["task-sentinel/a"]


# -- tasks

WRITES = {
    "state": lambda memsync, number: memsync.sync_task_state("t1", {"x": number}),
    "long state": lambda memsync, number: number or memsync.sync_task_state("t1", {"x": number}, ttl=60.0),
    "progress": lambda memsync, number: memsync.sync_task_progress("t1", number),
    "agent": lambda memsync, number: memsync.sync_agent_coordination("t1", "coder", number),
    "long agent": lambda memsync, number: number or memsync.write("tasks/t1/agents/coder", number, ttl=60.0),
    "stage": lambda memsync, number: memsync.sync_task_run("t1", TaskRun(status="STARTED"), "chain.0.a"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", stressed([*WRITES], ["state", "long agent", "stage"]))
def test_task_is_found_as_long_as_one_of_its_entries_exists(make_memsync, other, redis, what):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.4)
    lost, alive = [], 0

    for number in range(20):
        WRITES[what](memsync, number)
        memsync.force_sync()
        time.sleep(0.07)
        found, listed = other.search("tasks/*"), [task["id"] for task in other.get_tasks()]
        task = other.get_task("t1")
        alive += task is not None
        lost += [number] if task is not None and (not found or what in ("state", "progress", "stage") and not listed) else []

    assert lost == []
    assert alive >= 10
    assert redis.pttl("task-sentinel//{tasks}") > 0 or what.startswith("long")


def test_task_with_only_an_agent_entry_is_found(memsync, other):
    memsync.sync_agent_coordination("t1", "coder", 1)
    memsync.force_sync()

    found = other.search("*")

    assert found == ["task-sentinel/tasks/t1/agents/coder"]


# -- cost, and bad questions

def test_no_search_goes_through_all_keys(writer, other, redis):
    populate(writer)
    writer.force_sync()
    redis.config_resetstat()

    for pattern in FOUND:
        other.search(pattern)
        writer.search(pattern, limit=1)

    called = {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}
    assert called & {"keys", "scan", "randomkey", "dbsize"} == set()
    assert called & {"get", "hgetall"} != set()


@pytest.mark.parametrize("pattern, limit, error", [
    ("", 1, InvalidKey), ("[", 1, InvalidKey), ("tasks/[a", 1, InvalidKey), (None, 1, InvalidKey),
    (b"*", 1, InvalidKey), (5, 1, InvalidKey), ("a\n*", 1, InvalidKey), ("*" * 3000, 1, InvalidKey),
    ("\ud800*", 1, InvalidKey), ("*", -1, InvalidValue), ("*", True, InvalidValue), ("*", 1.5, InvalidValue),
    ("*", "5", InvalidValue), ("*", None, InvalidValue),
])
def test_search_refuses_bad_arguments_without_a_call_to_redis(make_memsync, pattern, limit, error):
    memsync = make_memsync(url=f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(error):
        memsync.search(pattern, limit=limit)
