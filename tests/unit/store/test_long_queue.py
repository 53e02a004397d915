"""Lists of the queue of many ids: replaced and read in pieces, and whole for all who read them."""
from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from celery_memsync.store import QueueReplacement, scripts
from tests.support.redis_calls import calls_of, round_trips
from tests.support.stress import stressed
from tests.support.waiting import eventually


def ids_of(name, number):
    return [f"{name}-{n}" for n in range(number)]


LISTS = {"pending": ids_of("a", 2500), "processing": ids_of("b", 1001)}


@pytest.fixture
def store(memsync, redis):
    memsync.get_queue()
    return memsync.runtime.store


def new_lists(redis, store):
    return [key.decode() for key in redis.keys(f"{store.keys.about}/new/*")]


def calls(store, serial, lists, ttl=60.0):
    return list(store._calls(QueueReplacement(serial, ttl, lists)))


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 2000, 12_345])
def test_a_list_is_read_as_it_was_replaced(store, redis, size):
    store.change_coordination([QueueReplacement(1, 60.0, {"pending": ids_of("old", 1500), "processing": ["p"]})])

    (result,) = store.change_coordination([QueueReplacement(2, 60.0, {"pending": ids_of("a", size)})])

    assert result.status == "ok"
    assert store.read_queue(20_000) == {"pending": ids_of("a", size), "processing": ["p"]}
    assert new_lists(redis, store) == []
    assert 0 < redis.pttl(store.keys.processing) <= 60_000


def test_no_call_takes_more_than_a_thousand_ids(store, redis):
    redis.config_resetstat()

    lengths = [len(args) for _, _, args in calls(store, 1, LISTS)]
    store.change_coordination([QueueReplacement(1, 60.0, LISTS)])

    assert len(lengths) == calls_of(redis)["evalsha"] == 6
    assert max(lengths) < 1020


def test_an_id_that_is_given_twice_keeps_its_first_place(store):
    ids = ids_of("a", 1500)

    store.change_coordination([QueueReplacement(1, 60.0, {"pending": [*ids, *ids[:700], "z", ids[0]]})])

    assert store.read_queue(5000)["pending"] == [*ids, "z"]


def test_what_is_put_after_a_long_list_comes_behind_it(memsync, store):
    memsync.sync_queue({"pending": ids_of("a", 1500)})

    memsync.enqueue("z")

    assert memsync.get_queue(limit=5000)["pending"] == [*ids_of("a", 1500), "z"]
    assert memsync.dequeue() == "a-0"


@pytest.mark.parametrize("sent", [1, 3, 5])
def test_a_replacement_that_was_interrupted_changes_nothing_and_leaves_nothing_for_long(store, redis, sent):
    store.change_coordination([QueueReplacement(1, 60.0, {"pending": ["old"]})])

    store._run(calls(store, 2, LISTS)[:sent])

    assert store.read_queue(10) == {"pending": ["old"], "processing": []}
    assert new_lists(redis, store)
    assert all(0 < redis.pttl(key) <= 60_000 for key in new_lists(redis, store))


@pytest.mark.parametrize("sent", [1, 3, 5, 6])
def test_a_second_try_does_no_harm_and_neither_does_a_first_one_that_is_late(store, redis, sent):
    late = calls(store, 2, LISTS)
    store._run(late[:sent])

    (result,) = store.change_coordination([QueueReplacement(2, 60.0, LISTS)])
    store._run(late)

    assert result.status == ("ok" if sent < 6 else "again")
    assert store.read_queue(5000) == LISTS
    assert new_lists(redis, store) == []


def test_two_tries_at_the_same_time_make_one_list(store):
    rows = [calls(store, 1, LISTS), calls(store, 1, LISTS)]

    for call in [call for pair in zip(*rows) for call in pair][:-2]:
        store._run([call])
    store._run([rows[0][-1]])

    assert store.read_queue(5000) == LISTS


def test_incomplete_new_list_that_was_lost_replaces_nothing(store, redis):
    store.change_coordination([QueueReplacement(1, 60.0, {"pending": ["old"]})])
    row = calls(store, 2, LISTS)
    store._run(row[:-1])
    redis.delete(*new_lists(redis, store))

    (answer,) = store._try(row[-1:])
    before = store.read_queue(10)
    (result,) = store.change_coordination([QueueReplacement(2, 60.0, LISTS)])

    assert "was lost" in str(answer)
    assert before == {"pending": ["old"], "processing": []}
    assert result.status == "ok" and store.read_queue(5000) == LISTS


@pytest.mark.slow
def test_reads_return_the_old_or_the_new_lists(make_memsync):
    memsync, writer = make_memsync(timeout=30.0), make_memsync(batch_interval=0.001, timeout=30.0)
    seen, stop = set(), threading.Event()
    states = [{name: ids_of(f"{name}-{state}", 2500) for name in LISTS} for state in "xyz"]
    known = {(tuple(state["pending"]), tuple(state["processing"])): number for number, state in enumerate(states)}
    writer.sync_queue(states[0])
    writer.force_sync()

    was_read = threading.Event()

    def replace():
        number = 0
        while not stop.is_set():
            number += 1
            writer.sync_queue(states[number % 3])
            writer.force_sync()
            was_read.wait(20)  # a read starts over when the lists are replaced meanwhile
            was_read.clear()

    def has_seen_two():
        queue = memsync.get_queue(limit=5000)
        was_read.set()
        seen.add(known.get((tuple(queue["pending"]), tuple(queue["processing"])), "half"))
        return len(seen) > 1

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for _ in range(stressed(60, 20)):
            has_seen_two()
        eventually(has_seen_two)
    finally:
        stop.set()
        was_read.set()
        replacing.join(20)

    assert "half" not in seen


def test_tasks_that_came_at_the_same_moment_are_all_read(store, redis):
    store.change_coordination([QueueReplacement(1, 60.0, {"pending": ["a"]})])
    (_, score), = redis.zrange(store.keys.pending, 0, -1, withscores=True)

    redis.zadd(store.keys.pending, dict.fromkeys(ids_of("b", 2500), score))

    assert sorted(store.read_queue(5000)["pending"]) == sorted(["a", *ids_of("b", 2500)])


@pytest.mark.parametrize("limit, trips", [(10, 1), (1000, 1), (1001, 2), (2500, 3), (10_000, 3)])
def test_reading_costs_a_round_trip_for_each_thousand_ids(memsync, store, limit, trips):
    store.change_coordination([QueueReplacement(1, 60.0, LISTS)])

    taken = round_trips(memsync, lambda: memsync.get_queue(limit=limit))

    assert taken == trips
    assert memsync.get_queue(limit=limit) == {name: ids[:limit] for name, ids in LISTS.items()}


def test_expired_tasks_are_passed_over(store, redis):
    store.change_coordination([QueueReplacement(1, 60.0, {"pending": ["fresh"]})])

    redis.zadd(store.keys.pending, {f"old-{number}": (number + 1) * 256 for number in range(2500)})

    assert store.read_queue(10)["pending"] == ["fresh"]


def test_no_script_walks_over_a_part_of_a_list():
    texts = [path.read_text() for path in Path(scripts.__file__).with_name("lua").glob("*.lua")]
    offsets = [offset for text in texts for offset in re.findall(r'"LIMIT", ([^,)]+)', text)]

    assert offsets
    assert set(offsets) == {"0"}
