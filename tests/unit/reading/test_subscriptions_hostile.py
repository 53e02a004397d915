"""Foreign messages on our channels and foreign data in our indexes never stop a subscriber."""
from __future__ import annotations

import time

import pytest

from celery_memsync.keys import Keys
from tests.support.publishing import publish
from tests.support.subscriber import Subscriber, cut_off
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

keys = Keys("task-sentinel")

HUGE = b"9" * 400
#: Stands for the header of an entry, each time a later one.
HEADER = b"<header>"

CHANNELS = (
    b"evil", b"tasks/t1/state", b"tasks/t1/progress", b"tasks/t1/agents/x", b"tasks/t1/x", b"workers/w1/heartbeat",
    b"coordination/queue", b"coordination/metrics", b"coordination/assignments", b"a//b", b"", b"/", b"tasks//state",
    b"tasks/t1/agents/", b"a*b", b"a[b", b"\xff\xfe", b"x" * 3000, b"a\nb",
)
SLOTS = (b"1\n", b"2\n", b"3\n", b":x\n", b":queue\n", b":w1/heartbeat\n")
BODIES = (
    b"no json", b"\xff\xfe", b"[" * 100_000, b"5", b"[[1],2,{}]", b'{"status":[]}', b"NaN", b"null", HUGE * 20,
    b'{"__type__":"x","__value__":1}', b'{"__type__":"datetime","__value__":"x"}', b'{"__type__":[]}',
    b"[5,null,null,null,null,1," + HUGE + b"]", b'[5,1,2,3,4,5,6,7,{"progress":[]}]', b'["SUCCESS",5,[],{},"x"]',
)
MESSAGES = {
    "empty": [b""], "nothing": [slot.strip() for slot in SLOTS], "garbage": [b"garbage"], "binary": [bytes(range(256)) * 4],
    "large": [b"x" * 1_000_000],
    "lines": [b"\n" * 10_000], "no-header": [slot for slot in SLOTS], "no-slot": [HEADER + b"1"],
    "wrong-slot": [slot + HEADER + b"1" for slot in (b"9\n", b"0\n", b"-1\n", b"x\n", b":\n", HUGE + b"\n")],
    "short-header": [slot + b"1 2 3\n4" for slot in SLOTS],
    "no-numbers": [slot + b"a - - b c d e x.1 w\n1" for slot in SLOTS],
    "negative": [slot + b"-1 - - -1 -1 -1 -1 x.1 w\n1" for slot in SLOTS],
    "huge-time": [slot + b"1 - - 0 " + HUGE + b" 5 0 x.1 w\n1" for slot in SLOTS],
    "huge-ttl": [slot + b"1 - - 0 5 " + HUGE + b" 0 x.1 w\n1" for slot in SLOTS],
    "huge-version": [slot + HUGE + b" - - 0 5 60000 0 x.1 w\n1" for slot in SLOTS],
    "body": [slot + HEADER + body for slot in SLOTS for body in BODIES],
    "second-part": [slot + HEADER + b"{}\n" + rest for slot in SLOTS for rest in (b"x", b"\n", HEADER, HEADER + b"x")],
}


def header(number):
    """Return the first line of an entry as it is kept in Redis."""
    return b"%d - - 0 %d 60000 0 x.1 w\n" % (number, time.time() * 1000)


@pytest.mark.parametrize("kind", MESSAGES)
def test_foreign_message_stops_no_subscriber(memsync, other, redis, kind):
    subscriber, watch = Subscriber(memsync, "end"), memsync.watch("*")
    memsync.subscribe("*", lambda key, value, entry: None, lambda key: None)
    everything, line = Subscriber(memsync), memsync.runtime.link._line

    for number, message in enumerate(MESSAGES[kind], 1):
        for channel in CHANNELS:
            redis.publish(b"0:task-sentinel/" + channel, message.replace(HEADER, header(number)))
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    everything.wait_for("end", 1)
    eventually(lambda: watch.get(timeout=5).key == "task-sentinel/end", timeout=60)
    assert memsync.runtime.link._line is line


@pytest.mark.parametrize("body", [
    b"", b"garbage", b"\xff", b"[" * 100_000, HUGE, b'{"__type__":[],"__value__":1}',
    b'{"__type__":"decimal","__value__":"x"}', b'{"__type__":"datetime","__value__":5}'], ids=lambda body: body[:30])
def test_unreadable_counter_stops_no_subscriber(memsync, other, redis, body):
    subscriber = Subscriber(memsync, "coordination/metrics")
    redis.hset(keys.metrics, "odd", body)

    other.increment_metrics(done=1)
    other.force_sync()

    received = subscriber.of
    eventually(lambda: (rows := received("coordination/metrics")) and rows[-1]["done"] == 1)
    assert memsync.get_coordination_metrics()["odd"] in (None, int(HUGE))


def test_a_message_that_claims_to_be_of_the_future_does_not_hide_what_is_true(memsync, other, redis):
    subscriber = Subscriber(memsync)
    future = b"1\n99 - - 0 4102444800000 60000 0 x.1 w\n\"forged\""

    redis.publish("0:task-sentinel/a", future)
    publish(other, {"a": 1})
    publish(other, {"end": 1})

    subscriber.wait_for("end", 1)
    subscriber.wait_for("a", 1)


@pytest.mark.parametrize("spoil", [
    lambda redis: redis.zadd(keys.names, {"task-sentinel/a//b": 9e15}),
    lambda redis: redis.zadd(keys.names, {"task-sentinel/a*b": 9e15, "task-sentinel/" + "x" * 600: 9e15}),
    lambda redis: redis.zadd(keys.names, {b"task-sentinel/\xff\xfe": 9e15, "garbage": 9e15}),
    lambda redis: [redis.xadd(keys.task_index, {"ids": task_id}) for task_id in ("a/b", "a*b", b"\xff", "x" * 600)],
    lambda redis: redis.hset(keys.workers, mapping=dict.fromkeys(["", "/", b"\xff/*"], header(1) + b"1")),
    lambda redis: redis.hset(keys.agents("t1"), mapping=dict.fromkeys(["", "a//b", b"\xff"], header(1) + b"1")),
    lambda redis: redis.set(keys.task("t1"), b"\xff\n" * 50),
    lambda redis: [redis.set(key, "x") for key in (keys.agents("t1"), keys.pending, keys.about)],
])
def test_subscriber_catches_up_despite_garbage_in_the_indexes(memsync, other, redis, spoil):
    other.sync_task_state("t1", {"x": 1})
    other.sync_worker_status("w1", "up")
    publish(other, {"a": 1})
    spoil(redis)
    subscriber = Subscriber(memsync)

    cut_off(memsync, redis, meanwhile=lambda: publish(other, {"a": 2}))

    subscriber.wait_for("a", 2)
    assert "task-sentinel/a" in memsync.search("*")
