"""Reads: from Redis once, then from copies for as long as they are valid."""
from __future__ import annotations

import time
from functools import partial

import pytest

from celery_memsync import InvalidKey
from celery_memsync.keys import STAGE
from celery_memsync.models.task import TaskRun
from tests.support.redis_calls import calls_of
from tests.support.runs import run_key
from tests.support.waiting import eventually
from tests.support.ways import entry_value, ways, write_now


def commands(redis, act):
    """Return what an act answers, and how many commands that read it costs."""
    redis.config_resetstat()
    answer = act()
    stats = redis.info("commandstats")
    return answer, sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "hget", "hgetall"))


def hits_of(memsync, act):
    """Return how many hits and misses an act is."""
    before = memsync.get_metrics()
    act()
    after = memsync.get_metrics()
    return after["cache_hits"] - before["cache_hits"], after["cache_misses"] - before["cache_misses"]


# -- hits

@ways
def test_second_read_sends_no_command(memsync, other, redis, write, read):
    write_now(other, write, 1)
    first, cost = commands(redis, lambda: read(memsync))

    second, nothing = eventually(
        lambda: (answer := commands(redis, lambda: read(memsync)))[1] == 0 and answer)

    assert (first, second) == (1, 1)
    assert cost in (1, 2)
    assert nothing == 0


@ways
def test_nearly_all_further_reads_are_hits(memsync, other, write, read):
    write_now(other, write, 1)
    read(memsync)

    hits, misses = hits_of(memsync, lambda: [read(memsync) for _ in range(300)])

    assert hits >= 290 or hits >= 2 * 290
    assert hits + misses in (300, 600)


@ways
def test_absence_is_cached_until_the_key_is_written(memsync, other, redis, write, read):
    first = read(memsync)

    _, nothing = eventually(
        lambda: (answer := commands(redis, lambda: read(memsync)))[1] == 0 and answer)
    write_now(other, write, 1)

    assert (first, nothing) == (None, 0)
    assert eventually(lambda: read(memsync), timeout=2) == 1


@ways
def test_write_of_another_process_is_read_soon(memsync, other, write, read):
    answers = []

    for number in (1, 2, 3, 4):
        write_now(other, write, number)
        answers.append(eventually(lambda: read(memsync) == number and read(memsync), timeout=2))

    assert answers == [1, 2, 3, 4]
    assert eventually(lambda: memsync.get_metrics()["cache"]["invalidated"])


@pytest.mark.parametrize("read, deleted", [
    (lambda one: one.read("a"), None), (lambda one: one.read_entry("a"), None),
    (lambda one: one.read_many(["a", "b"]), {"a": None, "b": None}),
    (lambda one: one.get_agent_coordination("t1", "a1"), None), (lambda one: one.get_task_agents("t1"), []),
    (lambda one: one.get_task_state("t1"), None),
])
def test_delete_of_another_process_is_read_soon(memsync, other, read, deleted):
    other.write("a", 1)
    other.sync_task_state("t1", {"x": 1})
    other.sync_agent_coordination("t1", "a1", 1)
    other.force_sync()
    before = read(memsync)

    for key in ("a", "tasks/t1/state", "tasks/t1/agents/a1"):
        other.delete(key)
    other.force_sync()

    assert before != deleted
    eventually(lambda: read(memsync) == deleted, timeout=2)


def test_reads_are_counted_as_hits_misses_and_consistent_reads(memsync, other):
    write_now(other, lambda one: one.write("a", 1))

    memsync.read("a")
    memsync.read("b")
    memsync.read("a", consistent=True)
    memsync.read_many(["a", "b", "c"])
    eventually(lambda: hits_of(memsync, lambda: memsync.read("a")) == (1, 0))
    metrics = memsync.get_metrics()

    assert metrics["reads"] == metrics["cache_hits"] + metrics["cache_misses"] + 1
    assert metrics["cache"] == {"size": 3, "max_size": 1000, "invalidated": 0}
    assert metrics["cache_misses"] >= 3


def test_read_many_reads_only_uncached_keys_in_one_call(memsync, other, redis):
    for number in range(10):
        other.write(f"key-{number}", number)
    other.force_sync()
    memsync.read_many([f"key-{number}" for number in range(5)])

    wanted = [*(f"key-{number}" for number in range(10)), "task-sentinel/key-1", "nothing"]
    answer, cost = commands(redis, lambda: memsync.read_many(wanted))

    assert answer == {**{f"key-{number}": number for number in range(10)}, "task-sentinel/key-1": 1, "nothing": None}
    assert cost in (7, 12)  # all, if an invalidation arrived at that very moment


@pytest.mark.parametrize("size", [0, 1, 7])
def test_there_are_never_more_copies_than_memsync_cache_size(make_memsync, redis, size):
    memsync = make_memsync(cache_size=size)

    for number in range(20):
        memsync.read(f"key-{number}")
        memsync.get_task_state(f"t{number}")
    metrics = memsync.get_metrics()

    assert metrics["cache"] == {"size": size, "max_size": size, "invalidated": 0}
    assert (hits_of(memsync, lambda: [memsync.get_task_state("t19") for _ in range(50)])[0] > 40) is (size > 0)


def test_without_a_cache_there_is_no_listening_connection(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, cache_size=0)

    memsync.read("a")
    memsync.get_task_state("t1")

    assert own_server.client().client_list(_type="pubsub") == []


# -- copies are one's own

VALUE = {"flat": 1, "list": [1, {"deep": [2]}], "dict": {"list": [3]}}


def spoil(value):
    """Change a value wherever it can be changed."""
    for child in list(value.values() if isinstance(value, dict) else value):
        if isinstance(child, (dict, list)):
            spoil(child)
    if isinstance(value, dict):
        value["spoilt"] = True
    else:
        value.append("spoilt")


@pytest.mark.parametrize("read", [
    lambda one: one.read("a"), lambda one: one.read("flat"), lambda one: one.read_entry("a").value,
    lambda one: one.read_many(["a", "flat"]), lambda one: one.read("a", consistent=True),
    lambda one: one.get_task_state("t1"), lambda one: one.get_task_progress("t1"), lambda one: one.get_task("t1"),
    lambda one: one.get_task_agents("t1"), lambda one: one.get_agent_coordination("t1", "a1"),
    lambda one: one.read("tasks/t1/state"), lambda one: one.read("tasks/t1/progress"),
], ids=["read", "flat", "entry", "many", "consistent", "state", "progress", "task", "agents", "agent", "path", "path2"])
@pytest.mark.parametrize("writer", ["other", "itself", "not yet"])
def test_change_of_a_returned_value_changes_no_copy(memsync, other, read, writer):
    source = other if writer == "other" else memsync
    source.write("a", VALUE)
    source.write("flat", [1])
    source.sync_task_state("t1", VALUE)
    source.sync_task_progress("t1", 10, message="here")
    source.sync_agent_coordination("t1", "a1", VALUE)
    if writer != "not yet":
        source.force_sync()

    texts = []
    for _ in range(4):
        value = read(memsync)
        texts.append(repr(value))
        spoil(value)

    assert set(texts) == {texts[0]}
    assert "spoilt" not in texts[0]


# -- for how long

@pytest.mark.slow
def test_copy_expires_with_the_ttl_of_its_entry(memsync, other):
    other.write("a", 1, ttl=1.5)
    other.force_sync()
    before = [memsync.read("a"), entry_value(memsync, "a"), memsync.read("a")]
    since = time.monotonic()

    eventually(lambda: memsync.read("a") is None, timeout=4)

    assert before == [1, 1, 1]
    assert time.monotonic() - since < 3
    assert memsync.read_entry("a") is None


@pytest.mark.slow
def test_of_a_state_each_part_goes_at_its_own_time(memsync, other):
    other.sync_task_run("t1", TaskRun("STARTED", name="n"), run_key(0, 1.0), ttl=60)
    other.sync_task_state("t1", {"x": 1}, ttl=1.5)
    other.force_sync()
    before = memsync.get_task_state("t1"), memsync.read("tasks/t1/state")

    eventually(lambda: "x" not in memsync.get_task_state("t1"), timeout=4)

    assert [(state["status"], state["x"]) for state in before] == [("STARTED", 1)] * 2
    assert memsync.get_task_state("t1")["status"] == memsync.read("tasks/t1/state")["status"] == "STARTED"
    assert "x" not in memsync.read("tasks/t1/state")


@pytest.mark.parametrize("read", [lambda memsync: memsync.read("a"), lambda memsync: memsync.get_task_state("t1")])
def test_a_read_keeps_its_copy_though_no_time_of_redis_has_come_for_long(memsync, other, redis, read):
    other.write("a", {"x": 1})
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    clock = memsync.runtime.store.clock
    memsync.read("other")
    clock._learned_at = float("-inf")

    before = read(memsync)
    redis.config_resetstat()
    after = read(memsync)

    assert before == after and before["x"] == 1
    assert "get" not in calls_of(redis)
    assert clock.age < 10


@pytest.mark.slow
def test_a_part_that_ends_while_an_answer_is_put_together_is_not_kept(memsync, other):
    other.sync_task_run("t1", TaskRun("STARTED"), run_key(0, 1.0), ttl=60)
    other.sync_task_state("t1", {"x": 1}, ttl=0.5)
    other.force_sync()
    reader = memsync.runtime.reader

    def slots_after(seconds, task):
        time.sleep(seconds)
        return sorted(task.slots)

    first = reader.of_task("slots", "t1", partial(slots_after, 0.8))

    assert len(first) == 2
    assert reader.of_task("slots", "t1", partial(slots_after, 0)) == [STAGE]


@pytest.mark.slow
@pytest.mark.parametrize("settings, options, cost", [
    ({}, {}, 0), ({}, {"max_age": 100}, 0), ({}, {"max_age": 0}, 1), ({}, {"max_age": 0.3}, 1),
    ({}, {"consistent": True}, 1), ({}, {"consistent": True, "max_age": 100}, 1), ({"cache_max_age": 0.3}, {}, 1),
    ({"cache_max_age": 0.3}, {"max_age": 100}, 1), ({"cache_max_age": 0.0}, {"max_age": 100}, 1),
])
@pytest.mark.parametrize("read", [
    lambda one, **how: one.read("a", **how), lambda one, **how: one.read_entry("a", **how).value,
    lambda one, **how: one.read_many(["a"], **how)["a"],
], ids=["read", "read_entry", "read_many"])
def test_max_age_of_call_and_setting_bounds_the_age_of_a_copy(
    make_memsync, other, redis, read, settings, options, cost,
):
    memsync = make_memsync(**settings)
    write_now(other, lambda one: one.write("a", 1))

    def age_and_read():
        first = read(memsync)
        time.sleep(0.35)
        return first, *commands(redis, lambda: read(memsync, **options))

    assert eventually(lambda: (answer := age_and_read())[2] == cost and answer) == (1, 1, cost)


@pytest.mark.parametrize("max_age", [-1, float("nan"), "1", True])
def test_an_age_that_is_none_is_refused(memsync, max_age):
    memsync.read("a")

    with pytest.raises(ValueError):
        memsync.read("a", max_age=max_age)
    with pytest.raises(ValueError):
        memsync.read_many(["a"], max_age=max_age)


@pytest.mark.parametrize("key", [None, 1, b"a", ["a"], {"a": 1}, ("state", "t1"), "a//b", "a*", ""])
def test_a_key_that_is_none_is_refused_also_if_copies_are_there(memsync, key):
    memsync.read("a")
    memsync.get_task_state("t1")

    for read in (memsync.read, memsync.read_entry, lambda key: memsync.read_many([key])):
        with pytest.raises(InvalidKey):
            read(key)


def test_clear_cache_drops_all_copies_and_reports_their_number(memsync, other):
    cleared = []
    memsync.on("cache-cleared", lambda **details: cleared.append(details))
    write_now(other, lambda one: one.write("a", 1))
    memsync.read_many(["a", "b"])
    memsync.get_task_state("t1")

    memsync.clear_cache()
    assert memsync.events.wait_idle(5)
    size = memsync.get_metrics()["cache"]["size"]

    assert (size, cleared) == (0, [{"count": 3}])
    assert hits_of(memsync, lambda: memsync.read("a")) == (0, 1)
