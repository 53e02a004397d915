"""Queue and metrics while they are used wrongly, Redis is away, or something else lies under their keys."""
from __future__ import annotations

import contextlib
from decimal import Decimal

import pytest

from celery_memsync import InvalidKey, InvalidValue, StoreError, ValueTooLarge
from celery_memsync.keys import Keys
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key

keys = Keys("task-sentinel")
WHERE = {"pending": keys.pending, "processing": keys.processing, "metrics": keys.metrics, "about": keys.about}


@pytest.fixture
def away(make_memsync, own_server):
    """A manager whose Redis is away since a moment ago."""
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.get_queue()
    own_server.stop()
    return memsync


# -- used wrongly

BAD_IDS = ("", "a/b", "/", "a*", "a?", "[a]", "a\\b", "a\nb", "a" * 513, "\ud800", None, 5, b"a")

BAD_QUEUES = (
    None, 5, "pending", [("pending", ["a"])], ["pending"], {"waiting": []}, {"pending": [], "done": []}, {1: []},
    {"pending": None}, {"pending": 5}, {"pending": "abc"}, {"processing": b"abc"}, {"pending": {"a": 1}},
)
BAD_ASSIGNMENTS = (None, 5, "w1", ["w1"], {"w1": None}, {"w1": "t1"}, {"w1": b"t1"}, {"w1": {"t1": 1}}, {"w1": 5})
BAD_METRICS = (
    None, 5, "n", [("n", 1)], {1: 2}, {None: 2}, {"n": float("nan")}, {"n": [float("inf")]}, {"n": object()},
    {"n": {1: 2}}, {"fine": 1, "n": set()},
)
BAD_AMOUNTS = (
    True, False, None, "1", b"1", 1j, [1], Decimal(1), float("nan"), float("inf"), float("-inf"), 2 ** 63, -2 ** 63,
    1e19, 10 ** 400,
)
BAD_LIMITS = (-1, 1.5, "1", None, True)

WRONG = [
    *((lambda memsync, bad=bad: memsync.sync_queue(bad), InvalidValue) for bad in BAD_QUEUES),
    *((lambda memsync, bad=bad: memsync.sync_queue({"pending": ["fine", bad]}), InvalidKey) for bad in BAD_IDS),
    *((lambda memsync, bad=bad: memsync.enqueue(bad), InvalidKey) for bad in BAD_IDS),
    *((lambda memsync, bad=bad: memsync.complete(bad), InvalidKey) for bad in BAD_IDS),
    *((lambda memsync, bad=bad: memsync.sync_assignments(bad), InvalidValue) for bad in BAD_ASSIGNMENTS),
    *((lambda memsync, bad=bad: memsync.sync_assignments({"w1": ["fine", bad]}), InvalidKey) for bad in BAD_IDS),
    *((lambda memsync, bad=bad: memsync.sync_assignments({"w1": [], bad: []}), InvalidKey) for bad in BAD_IDS),
    *((lambda memsync, bad=bad: memsync.sync_metrics(bad), InvalidValue) for bad in BAD_METRICS),
    *((lambda memsync, bad=bad: memsync.sync_metrics({"fine": 1, bad: 1}), InvalidKey) for bad in BAD_IDS[:-3]),
    *((lambda memsync, bad=bad: memsync.increment_metrics(fine=1, n=bad), InvalidValue) for bad in BAD_AMOUNTS),
    *((lambda memsync, bad=bad: memsync.increment_metrics(fine=1, **{bad: 1}), InvalidKey) for bad in BAD_IDS[:-3]),
    *((lambda memsync, bad=bad: memsync.get_queue(limit=bad), InvalidValue) for bad in BAD_LIMITS),
]


@pytest.mark.parametrize("act, error", WRONG)
def test_what_can_not_be_shared_is_refused_at_once_and_nothing_is_queued(memsync, act, error):
    with pytest.raises(error):
        act(memsync)

    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("act", [
    lambda memsync: memsync.sync_queue({"pending": [f"task-{number}" for number in range(100)]}),
    lambda memsync: memsync.sync_queue({"pending": ["a" * 500], "processing": ["\u00e9" * 250]}),
    lambda memsync: memsync.sync_assignments({"w1": [f"task-{number}" for number in range(100)]}),
    lambda memsync: memsync.sync_metrics({"n": "a" * 1000}),
])
def test_what_is_too_large_is_refused_at_once_and_nothing_is_queued(make_memsync, act):
    memsync = make_memsync(max_value_size=900)

    with pytest.raises(ValueTooLarge, match="memsync_max_value_size"):
        act(memsync)

    assert memsync.runtime.writer.pending == 0


# -- Redis is away

@pytest.mark.parametrize("act", [
    lambda memsync: memsync.enqueue("a"),
    lambda memsync: memsync.dequeue(),
    lambda memsync: memsync.complete("a"),
    lambda memsync: memsync.get_queue(),
    lambda memsync: memsync.get_assignments(),
    lambda memsync: memsync.get_coordination_metrics(),
    lambda memsync: memsync.read("coordination/queue"),
    lambda memsync: memsync.read_entry("coordination/metrics"),
])
def test_atomic_operations_and_reads_raise_while_redis_is_away(away, act):
    with pytest.raises(StoreError, match="it refused the connection") as caught:
        act(away)

    assert caught.value.__cause__ is not None


def test_buffered_changes_during_an_outage_arrive_once_and_added_up(away, own_server, make_memsync):
    for number in range(1000):
        away.increment_metrics(n=1, x=0.25)
        away.sync_queue({"pending": [f"{number}"]})
        away.sync_metrics({"last": number})
        away.sync_assignments({f"w{number % 2}": [f"{number}"]})
        if number % 300 == 0:
            with pytest.raises(StoreError):
                away.force_sync()
    own_server.start()

    away.force_sync(timeout=5)
    away.force_sync()

    other = make_memsync(url=own_server.url)
    assert other.get_coordination_metrics() == {"n": 1000, "x": 250, "last": 999}
    assert other.get_queue() == {"pending": ["999"], "processing": []}
    assert other.get_assignments() == {"w0": ["998"], "w1": ["999"]}


def test_failed_atomic_operations_succeed_after_an_outage(away, own_server):
    for act in (lambda: away.enqueue("a"), away.dequeue, lambda: away.complete("b")):
        with pytest.raises(StoreError):
            act()

    own_server.start()

    assert [away.enqueue("a"), away.dequeue(), away.complete("b"), away.complete("a")] == [True, "a", False, True]
    assert away.get_queue() == {"pending": [], "processing": []}


# -- something else lies there

FOREIGN = {
    "string": lambda redis, key: redis.set(key, "a string"),
    "list": lambda redis, key: redis.lpush(key, "a list"),
    "sorted-set": lambda redis, key: redis.zadd(key, {b"\xff": 4e15, "a*b": 5e15}),
    "hash": lambda redis, key: redis.hset(
        key, mapping={b"\xff": b"\xff", "queue": "5", "metrics": "x", "n": "text"}),
}

CALLS = [
    lambda memsync: memsync.enqueue("a"),
    lambda memsync: memsync.dequeue(),
    lambda memsync: memsync.dequeue(),
    lambda memsync: memsync.complete("a"),
    lambda memsync: memsync.get_queue(),
    lambda memsync: memsync.get_coordination_metrics(),
    lambda memsync: memsync.read_many(["coordination/queue", "coordination/metrics"]),
    lambda memsync: memsync.search("*"),
    lambda memsync: memsync.increment_metrics(n=1),
    lambda memsync: memsync.get_coordination_metrics(),
    lambda memsync: memsync.force_sync(),
    lambda memsync: memsync.sync_queue({"pending": ["b"]}),
    lambda memsync: memsync.get_queue(),
    lambda memsync: memsync.force_sync(),
]


def replace(redis, key, foreign="string"):
    redis.delete(key)
    FOREIGN[foreign](redis, key)


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("where", WHERE)
def test_data_of_others_make_no_call_crash(memsync, redis, where, foreign):
    replace(redis, WHERE[where], foreign)
    crashes = {}

    for number, act in enumerate(CALLS):
        try:
            act(memsync)
        except StoreError:
            pass
        except Exception as exc:
            crashes[number] = repr(exc)

    assert crashes == {}


@pytest.mark.parametrize("where", ["processing", "metrics", "about"])
def test_no_task_is_taken_that_is_not_handed_out(memsync, redis, where):
    taken = []
    for task_id in "abc":
        memsync.enqueue(task_id)
    replace(redis, WHERE[where])

    for _ in range(2):
        with contextlib.suppress(StoreError):
            taken.append(memsync.dequeue())
    redis.delete(WHERE[where])
    taken += iter(memsync.dequeue, None)

    assert taken == ["a", "b", "c"]


@pytest.mark.parametrize("where", WHERE)
def test_data_of_others_hold_up_no_other_write(memsync, other, redis, where):
    replace(redis, WHERE[where])
    memsync.increment_metrics(n=1)
    memsync.sync_queue({"processing": ["a"]})
    memsync.write("fine", 1)
    memsync.sync_task_state("t1", {"x": 1})

    with contextlib.suppress(StoreError):
        memsync.force_sync()

    assert other.read("fine") == 1
    assert other.get_task_state("t1") == {"x": 1}


@pytest.mark.parametrize("where", ["pending", "processing", "about"])
def test_what_was_counted_while_others_data_were_there_is_counted_once(memsync, other, redis, where):
    replace(redis, WHERE[where])
    memsync.increment_metrics(n=1)
    for _ in range(3):
        with contextlib.suppress(StoreError):
            memsync.force_sync()

    redis.delete(WHERE[where])
    memsync.force_sync()

    assert other.get_coordination_metrics() == {"n": 1}


@pytest.mark.parametrize("where", WHERE)
def test_the_stages_of_tasks_are_kept_whatever_lies_under_the_queue(memsync, other, redis, where):
    replace(redis, WHERE[where])

    for status in ("RECEIVED", "STARTED", "SUCCESS"):
        memsync.sync_task_run("t1", TaskRun(status), run_key(0, 1))
        memsync.force_sync()

    assert other.get_task_state("t1")["status"] == "SUCCESS"
    assert other.get_queue() == {"pending": [], "processing": []}
