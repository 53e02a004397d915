"""Subscriptions: who is told of what, when, and how often."""
from __future__ import annotations

import functools
import threading

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.ear import Ear, short
from tests.support.publishing import publish
from tests.support.runs import run_key
from tests.support.waiting import eventually

RUN = run_key(0, 1_700_000_000.0)


TELLINGS = [
    ("a/b", lambda memsync: memsync.write("a/b", [1]), [1]),
    ("a/b", lambda memsync: memsync.write("a/b", [1], expected_version=0), [1]),
    ("tasks/t1/state", lambda memsync: memsync.sync_task_state("t1", {"x": 1}), {"x": 1}),
    ("tasks/t1/state", lambda memsync: memsync.sync_task_run("t1", TaskRun("STARTED"), RUN),
     {"status": "STARTED", "retries": 0}),
    ("tasks/t1/agents/coder", lambda memsync: memsync.sync_agent_coordination("t1", "coder", {"n": 1}), {"n": 1}),
    ("tasks/t1/notes", lambda memsync: memsync.write("tasks/t1/notes", "n"), "n"),
    ("workers/w1/status", lambda memsync: memsync.sync_worker_status("w1", "up"), "up"),
    ("workers/w1/capacity", lambda memsync: memsync.sync_worker_capacity("w1", 5), 5),
    ("workers/w1/heartbeat", lambda memsync: memsync.runtime.store.write_heartbeat("w1", b'{"pid":1}', 60.0), {"pid": 1}),
    ("coordination/assignments", lambda memsync: memsync.sync_assignments({"w1": ["t1"]}), {"w1": ["t1"]}),
    ("coordination/metrics", lambda memsync: memsync.increment_metrics(done=2), {"done": 2}),
    ("coordination/metrics", lambda memsync: memsync.sync_metrics({"mode": "fast"}), {"mode": "fast"}),
    ("coordination/queue", lambda memsync: memsync.enqueue("t1"), {"pending": ["t1"], "processing": []}),
    ("coordination/queue", lambda memsync: memsync.sync_queue({"processing": ["t1"]}),
     {"pending": [], "processing": ["t1"]}),
]


@pytest.mark.parametrize("whose", ["other", "own"])
@pytest.mark.parametrize("key, act, value", TELLINGS)
def test_a_change_is_told_to_who_subscribed_whoever_made_it(memsync, other, whose, key, act, value):
    ears = [Ear(memsync, pattern) for pattern in (key, "*", key.rpartition("/")[0] + "/*")]
    teller = memsync if whose == "own" else other

    act(teller)
    teller.force_sync()

    for ear in ears:
        ear.hears(key, value)
        assert ear.heard.count((key, value)) == 1


def test_progress_and_beats_are_told_as_they_are_read(memsync, other):
    ears = {key: Ear(memsync, key) for key in ("tasks/t1/progress", "workers/worker-2/heartbeat")}

    other.sync_task_progress("t1", 50, message="half")
    other.update_heartbeat()
    other.force_sync()

    for key, ear in ears.items():
        eventually(lambda: ear.of(key))
        assert ear.of(key) == [other.read(key, consistent=True)]
    assert ears["tasks/t1/progress"].of("tasks/t1/progress")[0]["message"] == "half"


@pytest.mark.parametrize("reverse", [False, True])
def test_what_celery_and_what_users_tell_of_a_task_is_told_in_one_value(memsync, other, reverse):
    ear = Ear(memsync, "tasks/*/state")
    acts = [lambda: other.sync_task_state("t1", {"x": 1}), lambda: other.sync_task_run("t1", TaskRun("STARTED"), RUN)]

    for number, act in enumerate(reversed(acts) if reverse else acts):
        act()
        other.force_sync()
        eventually(lambda: len(ear.heard) > number)

    ear.hears("tasks/t1/state", {"status": "STARTED", "retries": 0, "x": 1})
    assert ear.versions == [("tasks/t1/state", 1), ("tasks/t1/state", 2)]


def test_an_entry_says_who_wrote_what_and_when(memsync, other):
    entries = []
    memsync.subscribe("a", lambda key, value, entry: entries.append(entry))

    publish(other, {"a": {"x": 1}}, ttl=50)

    eventually(lambda: entries)
    assert entries == [other.read_entry("a", consistent=True)]
    assert (entries[0].version, entries[0].worker_id, entries[0].ttl) == (1, "worker-2", 50.0)


def test_what_was_there_before_is_not_told(memsync, other):
    publish(other, {"a": 1, "b": 1})
    ear = Ear(memsync)

    publish(other, {"b": 2, "c": 1})

    ear.hears("c", 1)
    assert ear.heard == [("b", 2), ("c", 1)]


def test_own_writes_are_told_when_they_are_in_redis_and_not_before(memsync, other):
    told = []
    memsync.subscribe("*", lambda key, value: told.append((short(key), value, other.read(key, consistent=True))))

    memsync.write("mine", 1)
    publish(other, {"theirs": 2})
    eventually(lambda: told)
    before = list(told)
    memsync.force_sync()

    eventually(lambda: len(told) > 1)
    assert before == [("theirs", 2, 2)]
    assert told[1:] == [("mine", 1, 1)]


@pytest.mark.parametrize("wait, act, value", [
    (lambda memsync: memsync.sync_queue({"pending": ["mine"]}), lambda other: other.enqueue("t1"),
     {"pending": ["t1"], "processing": []}),
    (lambda memsync: memsync.sync_metrics({"mine": 1}), lambda other: other.increment_metrics(theirs=1), {"theirs": 1}),
])
def test_what_waits_here_is_not_told_with_what_another_has_written(memsync, other, wait, act, value):
    ear = Ear(memsync, "coordination/*")
    wait(memsync)

    act(other)
    other.force_sync()

    eventually(lambda: ear.heard)
    assert [told for _, told in ear.heard] == [value]


class Handler:
    def __init__(self, calls):
        self.calls = calls

    def __call__(self, key, value, entry):
        self.calls.append(3)

    def two(self, key, value):
        self.calls.append(2)


@pytest.mark.parametrize("make, count", [
    (lambda calls: lambda key, value: calls.append(2), 2),
    (lambda calls: lambda key, value, third: calls.append(3), 3),
    (lambda calls: lambda key, value, entry=None: calls.append(2 if entry is None else 3), 3),
    (lambda calls: lambda key, value, other=None: calls.append(2 if other is None else 3), 2),
    (lambda calls: lambda key, value, *, entry=None: calls.append(2 if entry is None else 3), 2),
    (lambda calls: lambda *args: calls.append(len(args)), 2),
    (lambda calls: functools.partial(lambda first, key, value: calls.append(2), "first"), 2),
    (lambda calls: functools.partial(lambda first, key, value, entry: calls.append(3), "first"), 3),
    (lambda calls: Handler(calls), 3),
    (lambda calls: Handler(calls).two, 2),
])
def test_a_handler_gets_the_entry_if_it_takes_three_arguments(memsync, other, make, count):
    calls = []
    memsync.subscribe("a", make(calls))

    publish(other, {"a": 1})

    eventually(lambda: calls)
    assert calls == [count]


def test_every_subscription_is_told_once_however_they_overlap(memsync, other):
    ears = [Ear(memsync, pattern) for pattern in ("a", "a", "*", "[a]", "task-sentinel/*", "*")]

    publish(other, {"a": 1})
    publish(other, {"a": 2})

    for ear in ears:
        ear.hears("a", 2)
        assert ear.never_goes_back()


def test_what_a_handler_does_to_a_value_is_not_seen_by_others(memsync, other):
    spoilt, told = threading.Event(), []
    memsync.subscribe("a", lambda key, value: (value["list"].append(2), spoilt.set()))
    memsync.subscribe("a", lambda key, value, entry: spoilt.wait(10) and told.append((value, entry.value)))

    publish(other, {"a": {"list": [1]}})

    eventually(lambda: told)
    assert told == [({"list": [1]}, {"list": [1]})]


@pytest.mark.parametrize("handlers", [
    {"on_change": 5}, {"on_invalidate": "x"}, {"on_change": print, "on_invalidate": []}])
def test_a_handler_that_is_not_callable_is_refused_at_once(memsync, handlers):
    with pytest.raises(TypeError, match="callable"):
        memsync.subscribe("a", **handlers)

    assert memsync.get_metrics()["subscriptions"] == 0


# -- the end of it

def test_after_unsubscribe_nothing_is_told(memsync, other):
    ear, rest = Ear(memsync, "a"), Ear(memsync)
    publish(other, {"a": 1})
    ear.hears("a", 1)

    answers = [memsync.unsubscribe(ear.id), memsync.unsubscribe(ear.id), memsync.unsubscribe("nobody")]
    publish(other, {"a": 2})

    rest.hears("a", 2)
    assert answers == [True, False, False]
    assert ear.heard == [("a", 1)]
    assert memsync.get_metrics()["subscriptions"] == 1


def test_a_handler_may_unsubscribe_itself(memsync, other):
    told, ids = [], []
    ids.append(memsync.subscribe("*", lambda key, value: (told.append(value), memsync.unsubscribe(ids[0]))))
    rest = Ear(memsync)

    publish(other, {"a": 1, "b": 2, "c": 3})

    rest.hears("c", 3)
    eventually(lambda: memsync.get_metrics()["subscriptions"] == 1)
    assert told == [1]


def test_an_id_is_never_given_twice(memsync, other):
    old = Ear(memsync, "a")
    memsync.shutdown()
    new = Ear(memsync, "a")

    answer = memsync.unsubscribe(old.id)
    publish(other, {"a": 1})

    assert not answer
    new.hears("a", 1)


def test_events_and_metrics_tell_of_subscriptions(memsync, other):
    told = []
    for name in ("subscribed", "unsubscribed", "change"):
        memsync.on(name, lambda name=name, **details: told.append((name, details)))

    ear = Ear(memsync, "a")
    counts = [memsync.get_metrics()["subscriptions"]]
    publish(other, {"a": 1})
    ear.hears("a", 1)
    memsync.unsubscribe(ear.id)
    counts.append(memsync.get_metrics()["subscriptions"])
    assert memsync.events.wait_idle(5)

    about = {"id": ear.id, "pattern": "task-sentinel/a"}
    entry = other.read_entry("a", consistent=True)
    assert told == [("subscribed", about), ("change", {"key": "task-sentinel/a", "value": 1, "entry": entry}),
                    ("unsubscribed", about)]
    assert counts == [1, 0]
