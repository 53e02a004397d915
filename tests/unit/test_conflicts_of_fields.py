"""Conflicts of fields: writers of one task's state, what each has read, and the task's runs."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync import Resolution
from celery_memsync.conflicts import last_write_wins
from celery_memsync.encoding import dumps
from celery_memsync.keys import STATE
from celery_memsync.models.task import TaskRun
from celery_memsync.writing.changes import MergeFields
from tests.support.publishing import flush_until_stored
from tests.support.runs import run_key
from tests.support.waiting import eventually

STATES = "tasks/t1/state"
RUN_1, RUN_2 = run_key(0, 1.0), run_key(1, 2.0)


def state(memsync, task_id="t1"):
    return memsync.read(f"tasks/{task_id}/state", consistent=True)


def conflicts(*managers):
    return sum(memsync.get_metrics()["conflicts"] for memsync in managers)


def write_in_turn(*states):
    """Write one state after the other, each by its manager, without a flush."""
    for memsync, fields in states:
        memsync.sync_task_state("t1", fields)
        time.sleep(0.015)


def longest(entries):
    return Resolution(max((entry.value for entry in entries), key=lambda value: len(value["x"])), "longest")


def at_once(act, managers):
    """Let each manager act, in threads of their own from one barrier."""
    barrier = threading.Barrier(len(managers))
    failures = []

    def go(number, memsync):
        barrier.wait(30)
        try:
            act(number, memsync)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=go, args=pair) for pair in enumerate(managers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def script_calls(redis):
    return int(redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


# -- fields of their own

def test_different_fields_of_concurrent_writers_are_no_conflict(make_memsync):
    managers = [make_memsync(batch_interval=60.0) for _ in range(5)]

    def act(number, memsync):
        for turn in range(20):
            memsync.sync_task_state("t1", {f"{number}-{turn}": turn, f"count-{number}": turn, "all": "the same"})
            flush_until_stored(memsync)

    at_once(act, managers)

    assert state(managers[0]) == {
        **{f"{number}-{turn}": turn for number in range(5) for turn in range(20)},
        **{f"count-{number}": 19 for number in range(5)},
        "all": "the same",
    }
    assert conflicts(*managers) == 0


def test_fields_of_their_own_stay_while_all_dispute_another(make_memsync):
    managers = [make_memsync(batch_interval=60.0) for _ in range(5)]

    def act(number, memsync):
        for turn in range(20):
            memsync.sync_task_state("t1", {f"{number}-{turn}": turn, f"count-{number}": turn, "disputed": number})
            flush_until_stored(memsync)

    at_once(act, managers)

    found = state(managers[0])
    assert found.pop("disputed") in range(5)
    assert found == {
        **{f"{number}-{turn}": turn for number in range(5) for turn in range(20)},
        **{f"count-{number}": 19 for number in range(5)},
    }


@pytest.mark.parametrize("answer", [last_write_wins, lambda entries: Resolution(entries[-1].value)])
def test_a_field_that_moves_on_while_another_is_settled_is_not_put_back(memsync, other, make_memsync, answer):
    def meddle(entries):
        other.force_sync()
        return answer(entries)

    memsync.sync_task_state("t1", {"x": 1, "y": 1})
    memsync.force_sync()
    other.get_task_state("t1")
    slow = make_memsync(batch_interval=60.0, conflict_resolver=meddle)
    write_in_turn((other, {"y": 2}), (slow, {"x": 2}))

    slow.force_sync()

    assert state(memsync) == {"x": 2, "y": 2}
    assert conflicts(memsync, other, slow) == 1


# -- one field of two

@pytest.mark.parametrize("resolver, first, second, resolved", [
    ("merge_objects", {"x": {"a": {"b": 1}}}, {"x": {"a": {"c": 2}}}, {"x": {"a": {"b": 1, "c": 2}}}),
    (longest, {"x": "longest", "y": 1}, {"x": "long", "z": 3}, {"x": "longest", "y": 1, "z": 3}),
    (longest, {"x": "long"}, {"x": "longest"}, {"x": "longest"}),
    ({STATES: longest}, {"x": "longest"}, {"x": "long"}, {"x": "longest"}),
])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_field_of_two_writers_ends_the_same_in_any_order_of_flushes(
    make_memsync, resolver, first, second, resolved, order,
):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver=resolver) for _ in range(2)]
    write_in_turn(*zip(managers, (first, second)))

    for number in order:
        managers[number].force_sync()

    assert [state(memsync) for memsync in managers] == [resolved] * 2
    assert conflicts(*managers) == 1


@pytest.mark.parametrize("resolver, states, resolved", [
    ("last_write_wins", [{"x": "a"}, {"x": "b"}], [{"x": "a"}, {"x": "b"}]),
    ("last_write_wins", [{"x": "a", "mine": 1}, {"x": "b", "theirs": 2}],
     [{"x": "a", "mine": 1, "theirs": 2}, {"x": "b", "mine": 1, "theirs": 2}]),
    ("merge_objects", [{"x": {"a": 1}, "y": 1}, {"x": {"a": 2}, "z": 3}],
     [{"x": {"a": 1}, "y": 1, "z": 3}, {"x": {"a": 2}, "y": 1, "z": 3}]),
    ({"tasks/*/progress": longest}, [{"x": "longest"}, {"x": "long"}], [{"x": "longest"}, {"x": "long"}]),
    ("max_value", [{"x": 9}, {"x": 1}], [{"x": 9}, {"x": 1}]),
])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("ids", ["ab", "ba"])
def test_last_write_of_a_field_to_arrive_wins(make_memsync, resolver, states, resolved, order, ids):
    managers = [make_memsync(worker_id, batch_interval=60.0, conflict_resolver=resolver) for worker_id in ids]
    write_in_turn(*zip(managers, states))

    for number in order:
        managers[number].force_sync()

    assert [state(memsync) for memsync in managers] == [resolved[order[1]]] * 2
    assert conflicts(*managers) == 1


@pytest.mark.parametrize("states, order, x", [
    ([(0, {"x": "old"}), (1, {"x": "new"}), (0, {"y": 1})], (1, 0), "old"),
    ([(0, {"y": 1}), (1, {"x": "old"}), (2, {"x": "new"})], (2, 0, 1), "old"),
    ([(0, {"y": 1}), (1, {"x": "old"}), (2, {"x": "new"})], (0, 2, 1), "old"),
    ([(1, {"x": "old"}), (2, {"x": "new"}), (0, {"y": 1})], (1, 0, 2), "new"),
])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_field_is_not_lost_because_another_one_was_written_later(
    make_memsync, states, order, x, reverse,
):
    ids = [f"w{number}" for number in order]
    managers = [make_memsync(ids[-1 - n if reverse else n], batch_interval=60.0) for n in range(len(order))]
    write_in_turn(*((managers[number], fields) for number, fields in states))

    for number in order:
        managers[number].force_sync()

    assert state(managers[0]) == {"x": x, "y": 1}
    assert conflicts(*managers) == 1


def test_a_resolver_gets_both_states_as_a_whole(memsync, make_memsync):
    given = []
    other = make_memsync(batch_interval=60.0, conflict_resolver=lambda entries: (
        given.extend(entries) or Resolution({"x": "settled"}, "settled", ["a", "b"])))
    resolved = []
    other.on("conflict-resolved", lambda **details: resolved.append(details))
    write_in_turn((memsync, {"x": [1], "y": {"deep": 1}}), (other, {"x": [2], "z": 3}))

    memsync.force_sync()
    other.force_sync()
    assert other.events.wait_idle(5)

    assert [entry.value for entry in given] == [
        {"x": [1], "y": {"deep": 1}}, {"x": [2], "y": {"deep": 1}, "z": 3}]
    assert [entry.worker_id for entry in given] == ["worker-1", other.worker_id]
    assert given[0].timestamp < given[1].timestamp
    assert resolved == [dict(
        key=f"task-sentinel/{STATES}", strategy="settled", entries=given, discarded=["a", "b"])]
    assert state(memsync) == {"x": "settled", "y": {"deep": 1}, "z": 3}


# -- what each writer has read

@pytest.mark.parametrize("read", [
    lambda memsync: memsync.get_task_state("t1"),
    lambda memsync: [memsync.get_task_state("t1") for _ in range(3)],
    lambda memsync: memsync.get_task("t1"),
    lambda memsync: memsync.get_tasks(),
    lambda memsync: memsync.read(STATES),
    lambda memsync: memsync.read(STATES, consistent=True),
    lambda memsync: memsync.read_entry(STATES),
    lambda memsync: memsync.read_many(["a", STATES]),
    lambda memsync: (memsync.sync_task_progress("t1", 5), memsync.get_task_state("t1")),
    lambda memsync: (memsync.sync_agent_coordination("t1", "coder", 5), memsync.get_task("t1")),
    lambda memsync: eventually(lambda: memsync.get_task_state("t1") and memsync.get_metrics()["cache_hits"]),
])
def test_writer_that_has_read_a_state_has_no_conflict_until_it_changes(memsync, other, read):
    counts = []
    other.sync_task_progress("t1", 1)
    other.force_sync()

    for turn in range(3):
        memsync.sync_task_state("t1", {"x": f"memsync {turn}", "more": turn})
        memsync.force_sync()
        if turn != 1:
            read(other)
        other.sync_task_state("t1", {"x": f"other {turn}"})
        other.force_sync()
        counts.append(conflicts(other))
        memsync.get_task_state("t1")

    assert counts == [0, 1, 1]
    assert state(memsync) == {"x": "other 2", "more": 2}
    assert conflicts(memsync) == 0


@pytest.mark.parametrize("read, write", [
    (lambda memsync: memsync.get_assignments(), lambda memsync, n: memsync.sync_assignments({"w1": [f"t{n}"]})),
    (lambda memsync: memsync.read(STATES), lambda memsync, n: memsync.write(STATES, {"x": n})),
    (lambda memsync: memsync.get_task_state("t1"), lambda memsync, n: memsync.write(STATES, {"x": n})),
    (lambda memsync: None, lambda memsync, n: memsync.write("a", n, expected_version=n)),
])
def test_writers_that_read_first_have_no_conflict(memsync, other, read, write):
    for turn in range(4):
        writer = (memsync, other)[turn % 2]
        read(writer)
        write(writer, turn)
        writer.force_sync()

    assert conflicts(memsync, other) == 0


@pytest.mark.parametrize("leave", [
    lambda other: other.delete(STATES),
    lambda other: (other.sync_task_state("t1", {"x": "short"}, ttl=0.05), other.force_sync(), time.sleep(0.1)),
])
def test_deleted_state_is_no_conflict_and_its_fields_do_not_come_back(memsync, other, leave):
    memsync.sync_task_state("t1", {"x": 1, "old": 1})
    memsync.sync_task_progress("t1", 50)
    memsync.force_sync()
    other.get_task_state("t1")
    leave(other)
    other.force_sync()

    memsync.sync_task_state("t1", {"x": 2})
    memsync.force_sync()

    assert state(other) == {"x": 2}
    assert conflicts(memsync, other) == 0


# -- what plainly follows

@pytest.mark.parametrize("earlier, later", [
    ("PENDING", "RECEIVED"), ("RECEIVED", "STARTED"), ("STARTED", "RETRY"), ("STARTED", "FAILURE"),
    ("RETRY", "REVOKED"), ("STARTED", "SUCCESS"), ("FAILURE", "SUCCESS"), ("RECEIVED", "compiling"),
    ("compiling", "SUCCESS"),
])
@pytest.mark.parametrize("written_first", ["earlier", "later"])
@pytest.mark.parametrize("flushed_first", ["earlier", "later"])
def test_later_stage_wins_in_any_order_and_is_no_conflict(
    make_memsync, earlier, later, written_first, flushed_first,
):
    writers = {name: make_memsync(batch_interval=60.0) for name in ("earlier", "later")}
    stages = {"earlier": earlier, "later": later}
    for name in (written_first, *({*writers} - {written_first})):
        write_in_turn((writers[name], {"status": stages[name], name: 1}))

    writers[flushed_first].force_sync()
    for memsync in writers.values():
        memsync.force_sync()

    assert state(writers["earlier"]) == {"status": later, "earlier": 1, "later": 1}
    assert conflicts(*writers.values()) == 0


@pytest.mark.parametrize("runs, resolved, count", [
    ((RUN_1, RUN_2), "a", 0), ((RUN_1, RUN_1), "xyz", 1), ((RUN_2, RUN_1), "xyz", 1), (("", RUN_1), "a", 0),
    ((RUN_1, ""), "xyz", 1),
])
def test_field_written_by_a_later_run_wins(make_memsync, runs, resolved, count):
    managers = [make_memsync(batch_interval=60.0, conflict_resolver=longest) for _ in range(2)]
    for memsync, key, value in zip(managers, runs, ("xyz", "a")):
        location = memsync.runtime.keys.task_location("t1", STATE)
        memsync.runtime.writer.put(MergeFields(location, {"x": dumps(value), f"{value} too": b"1"}, 60.0, run_key=key))

    for memsync in managers:
        memsync.force_sync()

    assert state(managers[0]) == {"x": resolved, "xyz too": 1, "a too": 1}
    assert conflicts(*managers) == count


def test_the_life_of_a_task_is_no_conflict_and_costs_one_call_a_batch(memsync, other, redis):
    memsync.sync_task_state("t1", {"mine": 1})
    memsync.force_sync()
    other.get_task_state("t1")
    before = script_calls(redis)

    for number, status in enumerate(["PENDING", "RECEIVED", "STARTED", "RETRY", "RECEIVED", "STARTED", "SUCCESS"]):
        writer = (memsync, other)[number % 2]
        key = "" if number == 0 else (RUN_1 if number < 4 else RUN_2)
        writer.sync_task_run("t1", TaskRun(status=status, name="proj.add", run=key), key)
        writer.sync_task_progress("t1", 10 * number)
        writer.force_sync()

    assert script_calls(redis) - before == 7
    assert conflicts(memsync, other) == 0
    assert state(memsync)["status"] == "SUCCESS"
    assert state(memsync)["mine"] == 1


def test_undisputed_fields_cost_one_call_for_each_batch(memsync, other, redis):
    memsync.sync_task_state("t1", {"x": 1})
    memsync.force_sync()
    other.get_task_state("t1")
    before = script_calls(redis)

    for turn in range(5):
        other.sync_task_state("t1", {"x": turn, f"more-{turn}": 1})
        other.force_sync()

    assert script_calls(redis) - before == 5
    assert conflicts(memsync, other) == 0
