"""Two writers of one key: which resolver is called, what it returns; their order is irrelevant."""
from __future__ import annotations

import itertools
import threading
import time

import pytest

from celery_memsync import ConflictError, Entry, Resolution
from celery_memsync.conflicts import RESOLVERS, Resolvers, last_write_wins, max_value, merge_arrays, resolver_of
from tests.support.unlucky import write_unlucky

MIXED = [1, "a", [1], {"a": 1}, None, 2.5]


def entry(value, timestamp=1.0, worker_id="w1"):
    return Entry("task-sentinel/a", value, 1, timestamp, worker_id, 60.0)


def longest(entries):
    winner = max(entries, key=lambda one: len(one.value))
    return Resolution(winner.value, "longest", [one.value for one in entries if one is not winner])


def spiteful(entries):
    raise RuntimeError("no idea")


def reckless(entries):
    return Resolution({1, 2, 3})


def forgetful(entries):
    return None


def written_in_turn(writers, key="a"):
    """Write one value after the other, each by its manager; nothing is flushed."""
    for manager, value in writers:
        manager.write(key, value)
        time.sleep(0.015)


@pytest.fixture
def emitted(memsync, other):
    emitted = []
    for manager in (memsync, other):
        manager.on("conflict-resolved", lambda **details: emitted.append(details))
    return emitted


# -- resolvers by themselves

@pytest.mark.parametrize("entries, resolved", [
    ([entry("old", 1.0), entry("new", 2.0)], "new"),
    ([entry("new", 2.0), entry("old", 1.0)], "new"),
    ([entry("a", 1.0, "w1"), entry("b", 1.0, "w2")], "b"),
    ([entry("b", 1.0, "w2"), entry("a", 1.0, "w1")], "b"),
    ([entry("only")], "only"),
])
def test_last_write_wins_takes_the_later_and_then_the_greater_worker_id(entries, resolved):
    assert last_write_wins(entries).resolved == resolved


@pytest.mark.parametrize("name, values, resolved", [
    ("max_value", [3, 1], 3),
    ("max_value", [1, 3], 3),
    ("max_value", ["b", "a"], "b"),
    ("max_value", [1, "a"], "a"),
    ("merge_arrays", [[1, 2], [2, 3]], [1, 2, 3]),
    ("merge_arrays", [[{"a": 1}, [1]], [[1], {"b": 2}]], [{"a": 1}, [1], {"b": 2}]),
    ("merge_arrays", [[1], [True, 1.0]], [1, True, 1.0]),
    ("merge_arrays", [[], []], []),
    ("merge_arrays", [[1], "no list"], "no list"),
    ("merge_objects", [{"a": {"x": 1}, "b": 1}, {"a": {"y": 2}, "b": 2}], {"a": {"x": 1, "y": 2}, "b": 2}),
    ("merge_objects", [{"a": {"x": 1}}, {"a": 5}], {"a": 5}),
    ("merge_objects", [{"a": 1}, [1]], [1]),
    ("last_write_wins", [1, 2], 2),
])
def test_a_built_in_resolver_resolves(name, values, resolved):
    entries = [entry(value, float(number)) for number, value in enumerate(values)]

    answer = RESOLVERS[name](entries)

    assert answer.resolved == resolved
    assert repr(answer.resolved) == repr(resolved)


@pytest.mark.parametrize("name", sorted(RESOLVERS))
@pytest.mark.parametrize("values", list(itertools.combinations(MIXED, 2)))
def test_no_order_of_the_entries_changes_the_answer(name, values):
    entries = [entry(value, 1.0, f"w{number}") for number, value in enumerate(values)]

    answers = [RESOLVERS[name](list(order)).resolved for order in itertools.permutations(entries)]

    assert answers[0] == answers[1]


def test_what_a_resolver_was_given_stays_as_it_was():
    entries = [entry({"a": {"x": [1]}}, 1.0), entry({"a": {"y": 2}}, 2.0)]

    RESOLVERS["merge_objects"](entries).resolved["a"]["x"] = "changed"

    assert entries[0].value == {"a": {"x": [1]}}


def test_the_first_pattern_that_matches_counts():
    resolvers = Resolvers({"a": "max_value", "task-sentinel/b": "max_value", "a*": longest}, "task-sentinel")
    entries = [entry("aaaa", 1.0), entry("b", 2.0)]

    answers = {key: resolvers.settle(f"task-sentinel/{key}", entries).resolved for key in ("a", "b", "ab", "c")}

    assert answers == {"a": "b", "b": "b", "ab": "aaaa", "c": "b"}


@pytest.mark.parametrize("choice, resolver", [
    ("max_value", max_value),
    ("celery_memsync.conflicts.merge_arrays", merge_arrays),
    ("celery_memsync.conflicts:merge_arrays", merge_arrays),
    (longest, longest),
])
def test_a_resolver_is_a_name_a_path_or_a_callable(choice, resolver):
    assert resolver_of(choice) is resolver


# -- two writers

@pytest.mark.parametrize("resolver, first, second, resolved", [
    ("last_write_wins", "first", "second", "second"),
    ("max_value", 7, 3, 7),
    ("merge_arrays", ["a", "b"], ["b", "c"], ["a", "b", "c"]),
    ("merge_objects", {"x": {"a": 1}, "y": 1}, {"x": {"b": 2}, "y": 2}, {"x": {"a": 1, "b": 2}, "y": 2}),
    (longest, "longer", "long", "longer"),
    ("celery_memsync.conflicts.max_value", 7, 3, 7),
    ({"elsewhere": longest, "a": "max_value"}, 7, 3, 7),
    ({"elsewhere": "max_value"}, 7, 3, 3),
])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_conflict_ends_the_same_in_any_order_of_flushes(
    make_memsync, resolver, first, second, resolved, order,
):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver=resolver) for _ in range(2)]
    written_in_turn(zip(managers, (first, second)))

    for number in order:
        managers[number].force_sync()

    assert [manager.read("a") for manager in managers] == [resolved, resolved]
    assert sum(manager.get_metrics()["conflicts"] for manager in managers) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_of_three_writes_wins_in_every_order_of_arrival(make_memsync, order):
    managers = [make_memsync(batch_interval=60.0) for _ in range(3)]
    written_in_turn([(manager, number) for number, manager in enumerate(managers)])

    for number in order:
        managers[number].force_sync()

    assert managers[0].read("a") == 2


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_arrays_are_merged_in_every_order_of_arrival(make_memsync, order):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver="merge_arrays") for _ in range(3)]
    written_in_turn([(manager, [number]) for number, manager in enumerate(managers)])

    for number in order:
        managers[number].force_sync()

    assert sorted(managers[0].read("a")) == [0, 1, 2]


def test_conflict_event_has_the_entries(memsync, other, emitted):
    written_in_turn([(memsync, "old"), (other, "new")])

    memsync.force_sync()
    other.force_sync()
    assert memsync.events.wait_idle(5) and other.events.wait_idle(5)

    (details,) = emitted
    assert (details["key"], details["strategy"], details["discarded"]) == (
        "task-sentinel/a", "last_write_wins", ["old"])
    assert [(one.value, one.worker_id) for one in details["entries"]] == [("old", "worker-1"), ("new", "worker-2")]


def test_a_single_writer_has_no_conflicts(memsync):
    for number in range(5):
        memsync.write("a", number)
        memsync.sync_task_state("t1", {"number": number})
        memsync.force_sync()

    assert memsync.get_metrics()["conflicts"] == 0


def test_a_writer_that_has_seen_the_last_write_has_no_conflict(memsync, other):
    memsync.write("a", 1)
    memsync.force_sync()

    entry_read = other.read_entry("a")
    other.write("a", 2, expected_version=entry_read.version)
    memsync.write("a", 3, expected_version=2)

    assert memsync.get_metrics()["conflicts"] + other.get_metrics()["conflicts"] == 0


@pytest.mark.parametrize("resolver", [spiteful, reckless, forgetful])
def test_a_resolver_that_fails_loses_nothing(make_memsync, resolver):
    first = make_memsync(batch_interval=60.0)
    second = make_memsync(batch_interval=60.0, conflict_resolver={"a": resolver, "b": "max_value"})
    resolved = []
    second.on(
        "conflict-resolved",
        lambda key, strategy, **details: resolved.append((key, strategy[:7])))
    written_in_turn([(first, "stored"), (second, "incoming")])
    written_in_turn([(first, 9), (second, 1)], key="b")

    first.force_sync()
    second.force_sync()
    assert second.events.wait_idle(5)

    assert first.read_many(["a", "b"]) == {"a": "incoming", "b": 9}
    assert sorted(resolved) == [("task-sentinel/a", "failed:"), ("task-sentinel/b", "max_val")]


def test_a_handler_that_raises_does_not_harm_the_write(memsync, other):
    other.on("conflict-resolved", spiteful)
    written_in_turn([(memsync, "old"), (other, "new")])

    memsync.force_sync()
    other.force_sync()
    assert other.events.wait_idle(5)

    assert memsync.read("a") == "new"


def test_conflict_in_every_round_is_raised_and_loses_nothing(memsync, make_memsync):
    unlucky = write_unlucky(memsync, make_memsync)

    with pytest.raises(ConflictError, match="task-sentinel/a"):
        unlucky.force_sync()

    assert unlucky.runtime.writer.pending == 1
    assert unlucky.read("a") == "mine"


def test_a_newer_write_wins_over_one_that_lost_every_round(memsync, make_memsync):
    meddling = True

    def meddle(entries):
        if meddling:  # or it would open what is shut down at the end of the test, and meddle with other tests
            memsync.write("a", entries[0].value + "x")
            memsync.force_sync()
            unlucky.write("a", "newer")  # while the older one is under way
        return Resolution(entries[1].value, "meddle")

    unlucky = make_memsync(batch_interval=60.0, conflict_resolver=meddle)
    memsync.write("a", "x")
    memsync.force_sync()
    unlucky.write("a", "mine")

    with pytest.raises(ConflictError):
        unlucky.force_sync()
    meddling = False

    assert unlucky.runtime.writer.pending == 1
    assert unlucky.read("a") == "newer"
    assert unlucky.runtime.writer.pending == 0


# -- fields

def test_fields_of_different_writers_both_stay(memsync, other):
    memsync.sync_task_state("t1", {"mine": 1, "both": "memsync"})
    time.sleep(0.015)
    other.sync_task_state("t1", {"theirs": 2, "both": "other"})

    memsync.force_sync()
    other.force_sync()
    memsync.sync_task_state("t1", {"more": 3})
    memsync.force_sync()

    assert other.get_task_state("t1") == {"mine": 1, "theirs": 2, "both": "other", "more": 3}


def test_many_writers_of_one_state_lose_no_field(make_memsync):
    managers = [make_memsync(batch_interval=60.0) for _ in range(6)]

    for turn in range(3):
        for number, manager in enumerate(managers):
            manager.sync_task_state("t1", {f"field-{number}-{turn}": turn})
        for manager in managers:
            manager.force_sync()

    assert len(managers[0].get_task_state("t1")) == 18


@pytest.mark.parametrize("early, late", [
    ("SUCCESS", "STARTED"), ("SUCCESS", "PENDING"), ("FAILURE", "STARTED"), ("REVOKED", "RECEIVED"), ("RETRY", "STARTED"),
])
def test_late_write_of_another_process_does_not_undo_a_later_stage(memsync, other, early, late):
    memsync.sync_task_state("t1", {"status": early, "by": "memsync"})
    other.sync_task_state("t1", {"status": late, "note": "late"})

    memsync.force_sync()
    other.force_sync()

    assert memsync.get_task_state("t1") == {"status": early, "by": "memsync", "note": "late"}


def test_a_later_stage_of_another_follows(memsync, other):
    memsync.sync_task_state("t1", {"status": "STARTED"})
    other.sync_task_state("t1", {"status": "SUCCESS"})

    other.force_sync()
    memsync.force_sync()

    assert memsync.get_task_state("t1")["status"] == "SUCCESS"


def test_four_writers_of_one_state_do_not_lose_every_round(make_memsync):
    managers = [make_memsync(batch_interval=60.0) for _ in range(4)]
    failures = []

    def hammer(memsync):
        for number in range(20):
            memsync.sync_task_state("t1", {f"{memsync.worker_id}-{number}": number})
            try:
                memsync.force_sync()
            except ConflictError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=hammer, args=(memsync,)) for memsync in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for memsync in managers:
        memsync.force_sync()

    assert failures == []
    assert len(managers[0].get_task_state("t1")) == 80
