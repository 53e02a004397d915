"""Counters that all processes share: what is set is set, what is added is added, once and exactly."""
from __future__ import annotations

import enum
import threading

import pytest

from celery_memsync import MemorySyncManager
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key
from tests.support.waiting import eventually

METRICS = "coordination/metrics"


#: Names that are fit for a key, if not for much else.
NAMES = {"a b": 1, "self": 2, "\u00e9t\u00e9": 3, "{x}": 4}


class Figure(enum.IntEnum):
    SEVEN = 7


class Share(float):
    def __repr__(self):
        return f"Share({float(self)})"


def add(**amounts):
    return lambda memsync: memsync.increment_metrics(**amounts)


def set_to(**metrics):
    return lambda memsync: memsync.sync_metrics(metrics)


def version(memsync):
    entry = memsync.read_entry(METRICS)
    return 0 if entry is None else entry.version


def evalshas(redis):
    return redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


STEPS = {
    "nothing": ([], {}),
    "added up": ([add(n=1), add(n=2, m=5), add(n=3)], {"n": 6, "m": 5}),
    "down": ([add(n=3), add(n=-5)], {"n": -2}),
    "by nothing": ([add(n=0)], {"n": 0}),
    "fractions": ([add(x=0.5), add(x=0.25), add(x=-1.5)], {"x": -0.75}),
    "small fractions": ([add(x=1e-7), add(x=1e-7)], {"x": 2e-7}),
    "fraction, then whole": ([add(x=0.5), add(x=1)], {"x": 1.5}),
    "whole, then fraction": ([add(x=1), add(x=0.5)], {"x": 1.5}),
    "large and exact": ([add(n=2 ** 53), add(n=1), add(n=2)], {"n": 2 ** 53 + 3}),
    "up to the limit": ([add(n=2 ** 62), add(n=2 ** 62 - 1)], {"n": 2 ** 63 - 1}),
    "down to the limit": ([add(n=-2 ** 62), add(n=-2 ** 62)], {"n": -2 ** 63}),
    "set, then added": ([set_to(n=10), add(n=1), add(n=1)], {"n": 12}),
    "added, then set": ([add(n=1), set_to(n=10)], {"n": 10}),
    "set, added, set": ([set_to(n=5), add(n=1), set_to(n=2)], {"n": 2}),
    "set, added, set, added": ([set_to(n=5), add(n=1), set_to(n=2), add(n=3)], {"n": 5}),
    "set twice": ([set_to(n=5, m=1), set_to(n=6)], {"n": 6, "m": 1}),
    "set large, then added": ([set_to(n=2 ** 53 + 1), add(n=2)], {"n": 2 ** 53 + 3}),
    "set to a fraction, then added": ([set_to(x=0.5), add(x=2)], {"x": 2.5}),
    "set to many digits": ([set_to(n=12345678901234567890123)], {"n": 12345678901234567890123}),
    "set to anything": (
        [set_to(a=[], b={"c": [None]}, d="\u00e9")], {"a": [], "b": {"c": [None]}, "d": "\u00e9"}),
    "a text, then added": ([set_to(n="text"), add(n=1, m=1)], {"n": "text", "m": 1}),
    "yes, then added": ([set_to(n=True), add(n=1, m=1)], {"n": True, "m": 1}),
    "nothing known, then added": ([set_to(n=None), add(n=1, m=1)], {"n": None, "m": 1}),
    "a text, then set, then added": ([set_to(n="text"), set_to(n=1), add(n=1)], {"n": 2}),
    "names": ([lambda memsync: memsync.increment_metrics(**NAMES)], NAMES),
    "names of what is set": ([set_to(**NAMES)], NAMES),
    "numbers of other kinds": ([add(n=Figure.SEVEN, x=Share(0.5))] * 2, {"n": 14, "x": 1}),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_wait_together_come_to_the_same_here_and_there(memsync, other, name):
    steps, metrics = STEPS[name]

    for step in steps:
        step(memsync)
    shown = memsync.get_coordination_metrics()
    memsync.force_sync()

    assert shown == metrics
    assert other.get_coordination_metrics() == metrics


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_several_processes_come_to_the_same_one_by_one(memsync, other, name):
    steps, metrics = STEPS[name]

    for number, step in enumerate(steps):
        writer = (memsync, other)[number % 2]
        step(writer)
        writer.force_sync()

    assert memsync.get_coordination_metrics() == other.get_coordination_metrics() == metrics


@pytest.mark.parametrize("name", STEPS)
def test_the_last_step_is_read_over_those_that_are_stored(memsync, other, name):
    steps, metrics = STEPS[name]
    for step in steps[:-1]:
        step(other)
    other.force_sync()

    for step in steps[-1:]:
        step(memsync)

    assert memsync.get_coordination_metrics() == metrics


def test_whole_numbers_stay_whole(memsync, other):
    memsync.increment_metrics(n=1)
    memsync.sync_metrics({"m": 2 ** 60})
    memsync.force_sync()

    assert {name: type(value) for name, value in other.get_coordination_metrics().items()} == {"n": int, "m": int}


def test_what_several_processes_add_is_added_up(make_memsync, other):
    everybody = [make_memsync(batch_interval=0.001) for _ in range(4)]

    for _ in range(500):
        for memsync in everybody:
            memsync.increment_metrics(n=1, x=0.5)
    for memsync in everybody:
        memsync.force_sync()

    assert other.get_coordination_metrics() == {"n": 2000, "x": 1000}


def test_what_threads_add_is_added_up(make_memsync, other):
    memsync = make_memsync(batch_interval=0.001)

    threads = [threading.Thread(target=lambda: [add(n=1)(memsync) for _ in range(2500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync()

    assert other.get_coordination_metrics() == {"n": 10_000}


def test_many_additions_are_one_write(memsync, other, redis):
    memsync.get_queue()
    redis.config_resetstat()

    for _ in range(10_000):
        memsync.increment_metrics(n=1)
        memsync.sync_metrics({"m": 5})
    pending = memsync.get_metrics()["pending_writes"]
    memsync.force_sync()

    assert pending == 1
    assert evalshas(redis) <= 2  # one more where the script had to be taught
    assert version(other) == 1
    assert other.get_coordination_metrics() == {"n": 10_000, "m": 5}


def test_adding_to_what_is_no_number_warns_and_holds_up_nothing(memsync, other, caplog):
    other.sync_metrics({"colour": "red", "tags": [1]})
    other.force_sync()

    memsync.increment_metrics(before=1, colour=1, tags=1, after=1)
    memsync.write("fine", 1)
    memsync.force_sync()
    memsync.increment_metrics(after=1)
    memsync.force_sync()

    assert other.get_coordination_metrics() == {"before": 1, "colour": "red", "tags": [1], "after": 2}
    assert other.read("fine") == 1
    (warning,) = [record for record in caplog.records if "can't be added to" in record.getMessage()]
    assert "colour" in warning.getMessage() and "tags" in warning.getMessage()
    assert "red" not in warning.getMessage()


# -- reading them

def test_the_metrics_are_an_entry_like_others(memsync, other):
    assert memsync.read(METRICS) is None
    memsync.increment_metrics(n=1)
    memsync.force_sync()

    entry = other.read_entry(f"task-sentinel/{METRICS}")

    assert (entry.key, entry.version, entry.worker_id) == (f"task-sentinel/{METRICS}", 1, memsync.worker_id)
    assert entry.value == other.read(METRICS) == other.read_many([METRICS])[METRICS] == {"n": 1}
    assert other.search("coordination/*") == [f"task-sentinel/{METRICS}"]


@pytest.mark.parametrize("act, step", [
    (add(n=1), 1),
    (set_to(n=1), 1),
    (lambda memsync: memsync.sync_task_run("t", TaskRun("SUCCESS"), run_key(0, 1)), 1),
    (lambda memsync: memsync.sync_queue({"pending": []}), 0),
])
def test_the_version_of_the_metrics_grows_with_each_change_of_them(memsync, other, act, step):
    add(n=1)(memsync)
    memsync.force_sync()
    before = version(other)

    act(memsync)
    memsync.force_sync()

    assert version(other) == version(memsync) == before + step


def test_write_event_of_metrics_is_emitted_after_they_are_stored(memsync, other):
    emitted = []
    memsync.on(
        "write",
        lambda key, value: emitted.append((key, value, other.get_coordination_metrics())))
    memsync.increment_metrics(n=1)
    memsync.sync_metrics({"m": [2]})
    before = list(emitted)

    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    metrics = {"n": 1, "m": [2]}
    assert before == []
    assert emitted == [(f"task-sentinel/{METRICS}", metrics, metrics)]


# -- their end

def test_counters_live_as_long_as_they_are_incremented(memsync, other, redis):
    memsync.increment_metrics(n=1)
    memsync.force_sync()
    key = Keys("task-sentinel").metrics
    redis.expire(key, 100)

    memsync.increment_metrics(n=1)
    memsync.force_sync()

    assert other.get_coordination_metrics() == {"n": 2}
    assert redis.ttl(key) > 3000


def test_counters_expire_when_they_are_no_longer_incremented(make_memsync, other):
    memsync = make_memsync(batch_interval=60.0, default_ttl=0.5)
    memsync.increment_metrics(n=1)
    memsync.force_sync()

    eventually(lambda: other.get_coordination_metrics() == {})

    eventually(lambda: other.read(METRICS) is None)


def test_the_end_of_a_process_loses_no_count(redis_url, other):
    with MemorySyncManager(url=redis_url, batch_interval=60.0) as memsync:
        memsync.increment_metrics(n=1)

    assert other.get_coordination_metrics() == {"n": 1}


@pytest.mark.parametrize(
    "counter, stored, read", [(0.5, 1.5, 0.5), (100, 101, 100), ("text", "text", "text")])
def test_what_is_counted_of_tasks_is_added_to_what_was_set_by_hand(
    memsync, other, counter, stored, read,
):
    memsync.sync_metrics({"succeeded": counter})
    memsync.force_sync()
    shown = other.get_coordination_metrics()

    memsync.sync_task_run("t", TaskRun("SUCCESS", runtime=0.25), run_key(0, 1))
    memsync.force_sync()

    assert shown == {"succeeded": read}
    assert other.get_coordination_metrics() == {"succeeded": stored, "total": 1, "runtime": 0.25}
