"""Iterating over entries: every key once, as `read_entry` returns it, read in bulk."""
from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest

from celery_memsync import InvalidKey, StoreError
from tests.support.redis_calls import round_trips
from tests.support.redis_server import free_port
from tests.support.samples import populate


def test_iter_entries_yields_what_read_entry_returns(memsync, other):
    populate(memsync)
    memsync.force_sync()

    found = {entry.key: entry for entry in other.iter_entries()}

    assert found == {key: other.read_entry(key, consistent=True) for key in other.search("*")}
    assert len(found) > 20


@pytest.mark.parametrize("pattern", ["tasks/*", "tasks/t1/*", "coordination/q*", "a", "x*"])
def test_iter_entries_yields_what_matches_a_pattern(memsync, pattern):
    populate(memsync)

    found = [entry.key for entry in memsync.iter_entries(pattern)]

    assert sorted(found) == memsync.search(pattern)


def test_iter_entries_yields_writes_that_were_pending(memsync):
    memsync.write("a", 1)

    found = [(entry.key, entry.version) for entry in memsync.iter_entries()]

    assert found == [("task-sentinel/a", 1)]


def test_iter_entries_yields_once_what_outlives_the_index_of_tasks(memsync, redis):
    memsync.sync_task_state("t1", {"x": 1}, ttl=7200.0)
    memsync.write("tasks/t1/agents/coder", 1, ttl=7200.0)
    memsync.force_sync()

    with_index = Counter(entry.key.partition("/")[2] for entry in memsync.iter_entries())
    redis.delete(memsync.runtime.store.keys.task_index)
    without_index = Counter(entry.key.partition("/")[2] for entry in memsync.iter_entries())

    assert with_index == without_index == {"tasks/t1/state": 1, "tasks/t1/agents/coder": 1}


def test_iter_entries_yields_users_keys_beside_a_foreign_index(memsync, redis):
    memsync.write("a", 1)
    memsync.force_sync()
    redis.xadd(memsync.runtime.store.keys.task_index, {"x": 1})

    found = [entry.key for entry in memsync.iter_entries()]

    assert found == ["task-sentinel/a"]


def test_iter_entries_makes_few_round_trips_for_many_keys(memsync, other):
    for number in range(1000):
        memsync.write(f"k{number}", number)
        memsync.sync_task_state(f"t{number}", {"x": number})
    memsync.force_sync()
    keys = []

    trips = round_trips(other, lambda: keys.extend(entry.key for entry in other.iter_entries()))

    assert len(keys) == len(set(keys)) == 2000
    assert trips <= 30


@pytest.mark.slow
def test_iter_entries_holds_only_some_values_in_memory(memsync, other):
    for number in range(3000):
        memsync.write(f"k{number}", f"{number:010000}")
    memsync.force_sync()

    tracemalloc.start()
    count = sum(1 for _ in other.iter_entries())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 3000
    assert peak < 12_000_000


def test_iter_entries_raises_at_once_for_a_bad_pattern(memsync):
    with pytest.raises(InvalidKey):
        memsync.iter_entries("[")


def test_iter_entries_raises_store_error_without_redis(make_memsync):
    memsync = make_memsync(url=f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(StoreError):
        next(memsync.iter_entries())
