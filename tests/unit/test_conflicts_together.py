"""Conflicts of whole values: what counts as one, and that many writers at once end the same and lose nothing."""
from __future__ import annotations

import itertools
import threading
import time

import pytest

from celery_memsync import Resolution
from celery_memsync.encoding import dumps
from celery_memsync.writing.changes import SetValue
from tests.support.publishing import flush_until_stored
from tests.support.runs import run_key
from tests.support.waiting import eventually

TEAM = 5
KEYS = ("a", "b", "tasks/t1/agents/coder")
RUN_1, RUN_2 = run_key(0, 1.0), run_key(1, 2.0)


def at_once(*acts):
    """Do all from one barrier, each in a thread of its own."""
    barrier = threading.Barrier(len(acts))
    failures = []

    def go(act):
        barrier.wait(30)
        try:
            act()
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=go, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


def write_in_turn(memsync, name, turns):
    for turn in range(turns):
        memsync.write("a", [name, turn])
        if turn % 7 == 0:
            flush_until_stored(memsync)


def conflicts(*managers):
    return sum(memsync.get_metrics()["conflicts"] for memsync in managers)


def stored(memsync, key="a"):
    return memsync.read(key, consistent=True)


def longest(entries):
    winner = max(entries, key=lambda one: len(one.value))
    return Resolution(winner.value, "longest", [one.value for one in entries if one is not winner])


# -- many writers

@pytest.mark.parametrize("resolver, value, expected", [
    ("last_write_wins", lambda n: n * 7 % TEAM, lambda found: found == (TEAM - 1) * 7 % TEAM),
    ("merge_arrays", lambda n: [n, "all", [n]], lambda found: (
        len(found) == 2 * TEAM + 1 and all(n in found and [n] in found for n in range(TEAM)))),
    ("merge_objects", lambda n: {f"{n}": n, "deep": {f"{n}": n}}, lambda found: (
        found == {**{f"{n}": n for n in range(TEAM)}, "deep": {f"{n}": n for n in range(TEAM)}})),
    ("max_value", lambda n: n * 7 % TEAM, lambda found: found == TEAM - 1),
    (longest, lambda n: "x" * (n * 7 % TEAM), lambda found: found == "x" * (TEAM - 1)),
])
@pytest.mark.parametrize("turn", range(3))
def test_many_first_writes_at_once_end_the_same_and_all_but_one_are_conflicts(
    make_memsync, resolver, value, expected, turn,
):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver=resolver) for _ in range(TEAM)]
    for key in KEYS:
        for n, memsync in enumerate(managers):
            if n == TEAM - 1:
                time.sleep(0.05)  # they know Redis's time to some milliseconds only
            memsync.write(key, value(n))

    at_once(*(lambda memsync=memsync: flush_until_stored(memsync) for memsync in managers))

    found = {key: stored(managers[0], key) for key in KEYS}
    assert {key: True for key in KEYS} == {key: expected(found[key]) for key in KEYS}, found
    assert conflicts(*managers) == len(KEYS) * (TEAM - 1)


def test_what_many_threads_write_at_once_in_the_background_is_all_there(make_memsync):
    managers = [make_memsync(batch_interval=0.0, conflict_resolver="merge_arrays") for _ in range(TEAM)]

    at_once(*(lambda memsync=memsync, n=n: memsync.write("a", [n]) for n, memsync in enumerate(managers)))

    eventually(lambda: not any(memsync.runtime.writer.pending for memsync in managers), timeout=30)
    assert sorted(stored(managers[0])) == list(range(TEAM))


@pytest.mark.parametrize("moments", [(0.0, 0.0), (0.0004, 0.0001), (0.0001, 0.0004), (0.0, -0.0003)])
def test_two_writes_in_one_millisecond_end_the_same_in_any_order(
    make_memsync, monkeypatch, moments,
):
    managers = [make_memsync(batch_interval=60.0) for _ in range(2)]
    clocks = [memsync.runtime.store.clock for memsync in managers]
    for memsync, clock in zip(managers, clocks):
        memsync.read("a")
        monkeypatch.setattr(clock, "learn", lambda *answer: None)
        clock.offset = clocks[0].offset
    noon = float(round(clocks[0].now()))

    for key, order in (("a", (0, 1)), ("b", (1, 0))):
        for memsync, moment in zip(managers, moments):
            change = SetValue(memsync.runtime.keys.location(key), dumps(memsync.worker_id), 60.0)
            change.at = memsync.runtime.store.clock.monotonic(noon + moment)
            memsync.runtime.writer.put(change)
        for number in order:
            managers[number].force_sync()

    assert stored(managers[0], "a") == stored(managers[0], "b")
    assert stored(managers[0], "a") == "worker-2" or moments[0] > moments[1]


@pytest.mark.slow
def test_the_writes_of_each_process_keep_their_order_among_those_of_others(make_memsync, redis):
    managers = [make_memsync(batch_interval=0.0) for _ in range(3)]
    listener = redis.pubsub()
    listener.psubscribe("*task-sentinel/a")
    eventually(lambda: listener.get_message(timeout=1))

    at_once(*(
        lambda memsync=memsync, n=n: write_in_turn(memsync, n, 150)
        for n, memsync in enumerate(managers)))
    at_once(*(lambda memsync=memsync: flush_until_stored(memsync) for memsync in managers))

    messages = iter(lambda: listener.get_message(timeout=1), None)
    bodies = [message["data"].split(b"\n")[2] for message in messages]
    turns = {
        n: [int(body[1:-1].split(b",")[1]) for body in bodies if body.startswith(b"[%d," % n)]
        for n in range(3)}
    assert {n: sorted(row) for n, row in turns.items()} == turns
    assert len(bodies) >= 10


# -- what is none

@pytest.mark.parametrize("key", ["a", "tasks/t1/agents/coder", "tasks/t1/note"])
def test_one_process_has_no_conflict_with_itself_however_many_threads_it_has(make_memsync, key):
    memsync = make_memsync(batch_interval=0.0)

    def hammer():
        for number in range(200):
            memsync.write(key, number)
            if number % 9 == 0:
                memsync.delete(key)
            if number % 20 == 0:
                memsync.force_sync()

    at_once(*[hammer] * 4)
    memsync.force_sync()

    assert conflicts(memsync) == 0
    assert stored(memsync, key) == 199


READS = {
    "read": lambda memsync, key: memsync.read(key),
    "consistent": lambda memsync, key: memsync.read(key, consistent=True),
    "read_entry": lambda memsync, key: memsync.read_entry(key),
    "read_many": lambda memsync, key: memsync.read_many(["x", key, "y"]),
    "cached": lambda memsync, key: eventually(lambda: memsync.read(key) and memsync.get_metrics()["cache_hits"]),
    "its own name": lambda memsync, key: memsync.get_agent_coordination("t1", "coder"),
    "the task": lambda memsync, key: memsync.get_task("t1"),
}


@pytest.mark.parametrize("read, key", [
    *itertools.product(list(READS)[:5], ["a", "tasks/t1/agents/coder"]),
    ("its own name", "tasks/t1/agents/coder"), ("the task", "tasks/t1/agents/coder"),
])
def test_writer_that_read_the_last_write_has_no_conflict_until_it_changes(
    memsync, other, read, key,
):
    counts = []

    for turn in range(3):
        memsync.write(key, f"memsync {turn}")
        memsync.force_sync()
        if turn != 1:
            READS[read](other, key)
        other.write(key, f"other {turn}")
        other.force_sync()
        counts.append(conflicts(other))
        memsync.read(key, consistent=True)

    assert counts == [0, 1, 1]
    assert stored(memsync, key) == "other 2"
    assert conflicts(memsync) == 0


def test_alternating_writers_that_read_first_have_no_conflicts(memsync, other):
    for turn in range(60):
        one = (memsync, other)[turn % 2]
        one.write("a", (stored(one) or 0) + 1)
        one.force_sync()

    assert stored(memsync) == 60
    assert conflicts(memsync, other) == 0


@pytest.mark.parametrize("leave", [
    lambda other: other.delete("a"),
    lambda other: (other.write("a", "short", ttl=0.05), other.force_sync(), time.sleep(0.1)),
    lambda other: (other.write("a", 5), other.force_sync(), other.delete("a")),
])
def test_deleted_value_is_no_conflict(memsync, other, leave):
    memsync.write("a", 1)
    memsync.force_sync()
    other.read("a")
    leave(other)
    other.force_sync()

    memsync.write("a", 2)
    memsync.force_sync()

    assert stored(other) == 2
    assert conflicts(memsync, other) == 0


def test_a_key_that_ran_out_and_was_written_anew_by_another_has_moved_on(make_memsync):
    memsync, other = [make_memsync(batch_interval=60.0, conflict_resolver="merge_arrays") for _ in range(2)]
    memsync.write("a", [1], ttl=0.05)
    memsync.force_sync()
    eventually(lambda: stored(other) is None)
    other.write("a", [2])
    other.force_sync()
    time.sleep(0.1)  # the two do not know Redis's time any better

    memsync.write("a", [3])
    memsync.force_sync()

    assert stored(other) == [2, 3]
    assert conflicts(memsync) == 1


@pytest.mark.parametrize("runs, resolved, count", [
    ((RUN_1, RUN_2), "second", 0), ((RUN_2, RUN_1), "first", 1), (("", RUN_1), "second", 0), ((RUN_1, ""), "first", 1),
])
def test_value_written_by_a_later_run_wins(make_memsync, runs, resolved, count):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver="max_value") for _ in range(2)]
    for memsync, key, value in zip(managers, runs, (["x", "first"], ["a", "second"])):
        location = memsync.runtime.keys.agent_location("t1", "coder")
        memsync.runtime.writer.put(SetValue(location, dumps(value), 60.0, run_key=key))

    for memsync in managers:
        memsync.force_sync()

    assert managers[0].get_agent_coordination("t1", "coder")[1] == resolved
    assert conflicts(*managers) == count
