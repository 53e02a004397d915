"""Watching: changes as an iterator."""
from __future__ import annotations

import gc
import threading

import pytest

from celery_memsync import InvalidKey, InvalidValue, MemorySyncManager
from tests.support.publishing import publish
from tests.support.subscriber import Subscriber, cut_off, short
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")


class Consumer(threading.Thread):
    """Goes through a watch in a thread of its own, and notes what it gets."""

    def __init__(self, watch):
        super().__init__(daemon=True)
        self.watch = watch
        self.got = []
        self.start()

    def run(self):
        for change in self.watch:
            self.got.append((short(change.key), change.value))

    def ended(self):
        return not self.is_alive()


def test_a_watch_is_an_iterator_over_changes_as_they_come(memsync, other):
    watch = memsync.watch("a/*")

    for value in (1, 2, 3):
        publish(other, {"b": 0, f"a/{value}": value})

    changes = [next(watch) for _ in range(3)]
    assert [(short(change.key), change.value) for change in changes] == [("a/1", 1), ("a/2", 2), ("a/3", 3)]
    assert iter(watch) is watch


def test_a_change_is_key_value_and_entry(memsync, other):
    with memsync.watch("tasks/*/state") as changes:
        other.sync_task_state("t1", {"x": 1})
        other.force_sync()

        key, value, entry = next(changes)

    assert (key, value) == ("task-sentinel/tasks/t1/state", {"x": 1})
    assert entry == other.read_entry("tasks/t1/state", consistent=True)


def test_watch_yields_own_writes_and_no_values_from_before_it(memsync, other):
    publish(other, {"a": 1})
    watch = memsync.watch("*")

    publish(memsync, {"b": 2})

    assert short(watch.get(timeout=10).key) == "b"
    assert watch.get(timeout=0.1) is None


def test_only_the_newest_of_each_key_waits(memsync, other):
    watch, subscriber = memsync.watch("*"), Subscriber(memsync)
    for value in range(10):
        publish(other, {"a": value, "b": value})
    subscriber.wait_for("b", 9)

    changes = [watch.get(timeout=5), watch.get(timeout=5), watch.get(timeout=0)]

    assert sorted((change.key, change.value, change.entry.version) for change in changes[:2]) == [
        ("task-sentinel/a", 9, 10), ("task-sentinel/b", 9, 10)]
    assert changes[2] is None


@pytest.mark.parametrize("end", [
    lambda other: other.delete("a"),
    lambda other: other.write("a", 2, ttl=0.3),
])
def test_the_end_of_a_key_is_a_change_without_a_value(memsync, other, end):
    watch = memsync.watch("a")
    publish(other, {"a": 1})
    first = watch.get(timeout=10)

    end(other)
    other.force_sync()

    assert (first.value, first.entry.version) == (1, 1)
    assert eventually(lambda: (change := watch.get(timeout=10)) and change.entry is None and change) == (
        "task-sentinel/a", None, None)


def test_recreated_key_is_yielded_as_deleted_and_then_as_new(memsync, other, redis):
    watch, subscriber = memsync.watch("a"), Subscriber(memsync)
    for value in range(3):
        publish(other, {"a": value})
        assert watch.get(timeout=10).value == value

    redis.delete("task-sentinel/a")
    publish(other, {"a": "new"})
    subscriber.wait_for("a", "new")

    changes = [watch.get(timeout=5), watch.get(timeout=5)]
    assert [change and change.value for change in changes] == [None, "new"]
    assert changes[0].entry is None


# -- time

@pytest.mark.slow
def test_a_loop_ends_when_nothing_changes_for_its_timeout(memsync, other):
    publish(other, {"before": 0})
    watch = memsync.watch("*", timeout=1.5)
    publish(other, {"a": 1, "b": 2})

    got = [change.value for change in watch]

    assert got == [1, 2]


def test_a_loop_that_has_ended_can_go_on(memsync, other):
    watch = memsync.watch("*", timeout=0.1)
    first = list(watch)
    subscriber = Subscriber(memsync)

    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    assert first == []
    assert [change.value for change in watch] == [1]


@pytest.mark.parametrize("timeout", [0, 0.01, 0.2])
def test_get_answers_none_when_its_time_is_over(memsync, timeout):
    watch = memsync.watch("*")

    assert watch.get(timeout=timeout) is None
    assert watch.get(timeout) is None


@pytest.mark.parametrize("timeout", [None, 1e9, 9.9e9])
def test_a_watch_waits_for_a_change_however_long_that_may_take(memsync, other, timeout):
    watch, got = memsync.watch("*", timeout=timeout), []
    getting = threading.Thread(
        target=lambda: (got.append(watch.get(timeout).value), got.append(next(watch).value)), daemon=True)
    getting.start()

    for value in (1, 2):
        publish(other, {"a": value})
        eventually(lambda: len(got) == value)

    assert got == [1, 2]


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan"), float("inf")])
def test_a_bad_timeout_is_refused_at_once(memsync, timeout):
    with pytest.raises(InvalidValue):
        memsync.watch("*", timeout=timeout)

    assert memsync.get_metrics()["subscriptions"] == 0


def test_a_bad_pattern_is_refused_at_once(memsync):
    with pytest.raises(InvalidKey):
        memsync.watch("[a")

    assert memsync.get_metrics()["subscriptions"] == 0


# -- the end of it

@pytest.mark.parametrize("end", [
    lambda memsync, watch: watch.close(),
    lambda memsync, watch: memsync.unsubscribe(watch.id),
    lambda memsync, watch: memsync.shutdown(),
], ids=["close", "unsubscribe", "shutdown"])
@pytest.mark.parametrize("consumers", [1, 3])
def test_a_loop_ends_when_another_thread_ends_the_watch(memsync, other, end, consumers):
    watch = memsync.watch("*")
    waiting = [Consumer(watch) for _ in range(consumers)]
    for number in range(10):
        publish(other, {f"a/{number}": number})
    eventually(lambda: sum(len(one.got) for one in waiting) == 10)

    end(memsync, watch)

    eventually(lambda: all(one.ended() for one in waiting))
    assert watch.get() is None
    assert list(watch) == []


def test_every_change_goes_to_one_of_those_that_share_a_watch(memsync, other):
    watch = memsync.watch("*")
    sharing = [Consumer(watch) for _ in range(4)]

    publish(other, {f"a/{number}": number for number in range(200)})

    eventually(lambda: sum(len(one.got) for one in sharing) == 200)
    assert sorted(value for one in sharing for _, value in one.got) == list(range(200))


def test_consumer_of_a_shared_watch_does_not_wait_for_a_slow_one(memsync, other):
    watch, got, slow = memsync.watch("*"), [], threading.Event()

    def consume():
        for change in watch:
            got.append(change.value)
            slow.wait(60)

    threads = [threading.Thread(target=consume, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    publish(other, {"a": 1, "b": 2, "c": 3})

    eventually(lambda: sorted(got) == [1, 2, 3])
    slow.set()
    watch.close()


def test_a_watch_ends_with_its_block(memsync, other):
    with pytest.raises(KeyError):
        with memsync.watch("*") as watch:
            counts = [memsync.get_metrics()["subscriptions"]]
            raise KeyError

    counts.append(memsync.get_metrics()["subscriptions"])
    assert counts == [1, 0]
    assert watch.get() is None


def test_closed_watch_drops_its_pending_changes(memsync, other):
    watch, subscriber = memsync.watch("*"), Subscriber(memsync)
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    watch.close()
    watch.close()

    assert watch.get(timeout=0) is None


def test_events_show_watches(memsync):
    emitted = []
    for name in ("subscribed", "unsubscribed"):
        memsync.on(name, lambda name=name, **details: emitted.append((name, details)))

    with memsync.watch("a") as watch:
        pass
    assert memsync.events.wait_idle(5)

    about = {"id": watch.id, "pattern": "task-sentinel/a"}
    assert emitted == [("subscribed", about), ("unsubscribed", about)]


# -- trouble

@pytest.mark.slow
def test_watch_yields_the_changes_missed_by_a_broken_connection(memsync, other, redis):
    watch = memsync.watch("*")
    publish(other, {"a": 1, "unmoved": 1, "deleted": 1})
    before = [watch.get(timeout=10).value for _ in range(3)]

    def move_on():
        other.delete("deleted")
        publish(other, {"a": 2})

    cut_off(memsync, redis, meanwhile=move_on)

    after = [watch.get(timeout=10), watch.get(timeout=10), watch.get(timeout=0.5)]
    assert before == [1, 1, 1]
    changes = sorted((short(change.key), change.value) for change in after[:2])
    assert changes == [("a", 2), ("deleted", None)]
    assert after[2] is None


def test_a_watch_that_is_waited_for_outlives_a_restart_of_redis(make_memsync, own_server):
    memsync, other = make_memsync(url=own_server.url), make_memsync(url=own_server.url, batch_interval=60.0)
    consumer = Consumer(memsync.watch("a"))

    own_server.stop()
    own_server.start()
    publish(other, {"a": 1})

    eventually(lambda: consumer.got == [("a", 1)])
    consumer.watch.close()


@pytest.mark.slow
def test_get_keeps_to_its_timeout_while_what_has_changed_can_not_be_read(make_memsync, own_server):
    memsync, other = make_memsync(url=own_server.url), make_memsync(url=own_server.url, batch_interval=60.0)
    watch, got = memsync.watch("coordination/queue"), []
    subscriber = Subscriber(memsync, "coordination/queue")
    other.enqueue("t1")
    eventually(lambda: subscriber.received)
    getting = threading.Thread(target=lambda: got.append(watch.get(timeout=0.1)), daemon=True)

    own_server.pause()
    getting.start()
    eventually(lambda: got, timeout=20)
    own_server.resume()

    assert got == [None]
    assert watch.get(timeout=10).value["pending"] == ["t1"]


def test_a_watch_keeps_the_manager_alive_that_made_it(redis_url, other):
    watch = MemorySyncManager("not-referenced", url=redis_url).watch("a", timeout=10)
    gc.collect()

    publish(other, {"a": 1})

    assert next(watch).value == 1
    watch.close()
