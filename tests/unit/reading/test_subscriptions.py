"""Subscriptions: which changes are delivered, when, and how often."""
from __future__ import annotations

import functools
import threading

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.publishing import publish
from tests.support.runs import run_key
from tests.support.subscriber import Subscriber, short
from tests.support.waiting import eventually

RUN = run_key(0, 1_700_000_000.0)


CHANGES = [
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
@pytest.mark.parametrize("key, act, value", CHANGES)
def test_subscriptions_receive_changes_of_other_and_own_process(
    memsync, other, whose, key, act, value,
):
    subscribers = [
        Subscriber(memsync, pattern) for pattern in (key, "*", key.rpartition("/")[0] + "/*")]
    writer = memsync if whose == "own" else other

    act(writer)
    writer.force_sync()

    for subscriber in subscribers:
        subscriber.wait_for(key, value)
        assert subscriber.received.count((key, value)) == 1


def test_progress_and_heartbeats_are_delivered_as_they_are_read(memsync, other):
    subscribers = {
        key: Subscriber(memsync, key)
        for key in ("tasks/t1/progress", "workers/worker-2/heartbeat")}

    other.sync_task_progress("t1", 50, message="half")
    other.update_heartbeat()
    other.force_sync()

    for key, subscriber in subscribers.items():
        eventually(lambda: subscriber.of(key))
        assert subscriber.of(key) == [other.read(key, consistent=True)]
    assert subscribers["tasks/t1/progress"].of("tasks/t1/progress")[0]["message"] == "half"


@pytest.mark.parametrize("reverse", [False, True])
def test_state_of_celery_and_of_users_is_delivered_in_one_value(memsync, other, reverse):
    subscriber = Subscriber(memsync, "tasks/*/state")
    acts = [lambda: other.sync_task_state("t1", {"x": 1}), lambda: other.sync_task_run("t1", TaskRun("STARTED"), RUN)]

    for number, act in enumerate(reversed(acts) if reverse else acts):
        act()
        other.force_sync()
        eventually(lambda: len(subscriber.received) > number)

    subscriber.wait_for("tasks/t1/state", {"status": "STARTED", "retries": 0, "x": 1})
    assert subscriber.versions == [("tasks/t1/state", 1), ("tasks/t1/state", 2)]


def test_handler_receives_the_entry_with_writer_version_and_ttl(memsync, other):
    entries = []
    memsync.subscribe("a", lambda key, value, entry: entries.append(entry))

    publish(other, {"a": {"x": 1}}, ttl=50)

    eventually(lambda: entries)
    assert entries == [other.read_entry("a", consistent=True)]
    assert (entries[0].version, entries[0].worker_id, entries[0].ttl) == (1, "worker-2", 50.0)


def test_subscription_receives_no_values_from_before_it(memsync, other):
    publish(other, {"a": 1, "b": 1})
    subscriber = Subscriber(memsync)

    publish(other, {"b": 2, "c": 1})

    subscriber.wait_for("c", 1)
    assert subscriber.received == [("b", 2), ("c", 1)]


def test_own_writes_are_delivered_once_they_are_in_redis(memsync, other):
    received = []
    memsync.subscribe(
        "*", lambda key, value: received.append(
            (short(key), value, other.read(key, consistent=True))))

    memsync.write("mine", 1)
    publish(other, {"theirs": 2})
    eventually(lambda: received)
    before = list(received)
    memsync.force_sync()

    eventually(lambda: len(received) > 1)
    assert before == [("theirs", 2, 2)]
    assert received[1:] == [("mine", 1, 1)]


@pytest.mark.parametrize("wait, act, value", [
    (lambda memsync: memsync.sync_queue({"pending": ["mine"]}), lambda other: other.enqueue("t1"),
     {"pending": ["t1"], "processing": []}),
    (lambda memsync: memsync.sync_metrics({"mine": 1}), lambda other: other.increment_metrics(theirs=1), {"theirs": 1}),
])
def test_own_pending_write_is_not_delivered_with_a_foreign_change(memsync, other, wait, act, value):
    subscriber = Subscriber(memsync, "coordination/*")
    wait(memsync)

    act(other)
    other.force_sync()

    eventually(lambda: subscriber.received)
    assert [got for _, got in subscriber.received] == [value]


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


def test_overlapping_subscriptions_receive_each_change_once(memsync, other):
    subscribers = [
        Subscriber(memsync, pattern) for pattern in ("a", "a", "*", "[a]", "task-sentinel/*", "*")]

    publish(other, {"a": 1})
    publish(other, {"a": 2})

    for subscriber in subscribers:
        subscriber.wait_for("a", 2)
        assert subscriber.never_goes_back()


def test_what_a_handler_does_to_a_value_is_not_seen_by_others(memsync, other):
    spoilt, received = threading.Event(), []
    memsync.subscribe("a", lambda key, value: (value["list"].append(2), spoilt.set()))
    memsync.subscribe(
        "a",
        lambda key, value, entry: spoilt.wait(10) and received.append((value, entry.value)))

    publish(other, {"a": {"list": [1]}})

    eventually(lambda: received)
    assert received == [({"list": [1]}, {"list": [1]})]


@pytest.mark.parametrize("handlers", [
    {"on_change": 5}, {"on_invalidate": "x"}, {"on_change": print, "on_invalidate": []}])
def test_a_handler_that_is_not_callable_is_refused_at_once(memsync, handlers):
    with pytest.raises(TypeError, match="callable"):
        memsync.subscribe("a", **handlers)

    assert memsync.get_metrics()["subscriptions"] == 0


# -- the end of it

def test_unsubscribed_handler_receives_nothing(memsync, other):
    subscriber, rest = Subscriber(memsync, "a"), Subscriber(memsync)
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    answers = [
        memsync.unsubscribe(subscriber.id), memsync.unsubscribe(subscriber.id),
        memsync.unsubscribe("unknown")]
    publish(other, {"a": 2})

    rest.wait_for("a", 2)
    assert answers == [True, False, False]
    assert subscriber.received == [("a", 1)]
    assert memsync.get_metrics()["subscriptions"] == 1


def test_a_handler_may_unsubscribe_itself(memsync, other):
    received, ids = [], []
    ids.append(memsync.subscribe(
        "*", lambda key, value: (received.append(value), memsync.unsubscribe(ids[0]))))
    rest = Subscriber(memsync)

    publish(other, {"a": 1, "b": 2, "c": 3})

    rest.wait_for("c", 3)
    eventually(lambda: memsync.get_metrics()["subscriptions"] == 1)
    assert received == [1]


def test_an_id_is_never_given_twice(memsync, other):
    old = Subscriber(memsync, "a")
    memsync.shutdown()
    new = Subscriber(memsync, "a")

    answer = memsync.unsubscribe(old.id)
    publish(other, {"a": 1})

    assert not answer
    new.wait_for("a", 1)


def test_events_and_metrics_show_subscriptions(memsync, other):
    emitted = []
    for name in ("subscribed", "unsubscribed", "change"):
        memsync.on(name, lambda name=name, **details: emitted.append((name, details)))

    subscriber = Subscriber(memsync, "a")
    counts = [memsync.get_metrics()["subscriptions"]]
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)
    memsync.unsubscribe(subscriber.id)
    counts.append(memsync.get_metrics()["subscriptions"])
    assert memsync.events.wait_idle(5)

    about = {"id": subscriber.id, "pattern": "task-sentinel/a"}
    entry = other.read_entry("a", consistent=True)
    assert emitted == [
        ("subscribed", about),
        ("change", {"key": "task-sentinel/a", "value": 1, "entry": entry}),
        ("unsubscribed", about)]
    assert counts == [1, 0]
