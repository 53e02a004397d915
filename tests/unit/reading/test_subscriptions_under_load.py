"""Handlers that are slow or raise, many threads, forks and the end of a process."""
from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from tests.support.paths import ROOT
from tests.support.publishing import publish
from tests.support.redis_server import free_port
from tests.support.subscriber import Subscriber, short
from tests.support.waiting import eventually


def our_threads():
    """Return the threads of this package that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("memsync-")]


def run_all(acts):
    """Call everything in threads of its own; return when all have ended."""
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads)


def test_a_slow_handler_delays_only_itself_and_gets_the_newest(memsync, other):
    slow, quick = Subscriber(memsync), Subscriber(memsync)
    slow.keep_busy(other)

    for number in range(20):
        publish(other, {"a": number})
        quick.wait_for("a", number)
    slow.free.set()

    slow.wait_for("a", 19)
    assert slow.of("a") == [19]


def test_a_key_that_changes_all_the_time_has_its_turn_with_a_slow_handler(memsync, other):
    received, turn = [], threading.Semaphore(0)
    memsync.subscribe(
        "*", lambda key, value: (received.append(short(key)), turn.acquire(timeout=60)))
    quick = Subscriber(memsync)

    for number in range(10):
        publish(other, {"restless": number, f"calm-{number}": 1})
        publish(other, {"restless": f"{number} again"})
        quick.wait_for("restless", f"{number} again")
        eventually(lambda: len(received) > number)
        turn.release()
    turn.release(100)

    assert "restless" in received[1:10]


# -- handlers that raise

@pytest.mark.parametrize("error", [ValueError, RecursionError, SystemExit])
def test_a_handler_that_raises_is_logged_and_all_else_goes_on(memsync, other, caplog, error):
    calls = []

    def broken(*args):
        calls.append(args[0])
        raise error("of the handler")

    memsync.subscribe("*", broken, broken)
    subscriber = Subscriber(memsync)

    publish(other, {"a": 1, "b": 1})
    other.delete("a")
    publish(other, {"c": 1})

    subscriber.wait_for("c", 1)
    eventually(lambda: "task-sentinel/c" in calls)
    assert {short(key) for key in calls} == {"a", "b", "c"}
    assert "of the handler" in caplog.text


def test_event_handler_that_raises_does_not_stop_a_delivery(memsync, other):
    memsync.on("change", lambda **details: 1 / 0)
    subscriber = Subscriber(memsync)

    publish(other, {"a": 1, "b": 2})

    subscriber.wait_for("b", 2)
    assert subscriber.received == [("a", 1), ("b", 2)]


# -- many threads

@pytest.mark.slow
def test_repeated_subscriptions_miss_no_change(memsync, other):
    numbers, turn, missed = iter(range(1, 10_000)), threading.Lock(), []

    def again():
        for _ in range(40):
            received = []
            one = memsync.subscribe("a", lambda key, value: received.append(value))
            with turn:
                number = next(numbers)
                publish(other, {"a": number})
            try:
                eventually(lambda: received and received[-1] >= number)
            except AssertionError:
                missed.append((number, received))
            memsync.unsubscribe(one)

    run_all([again] * 4)

    assert missed == []
    assert memsync.get_metrics()["subscriptions"] == 0


def test_subscription_made_during_writes_ends_at_the_last_value(make_memsync):
    writer, readers = make_memsync(batch_interval=0.001), [make_memsync(), make_memsync()]
    subscribers, stop = [], threading.Event()
    keys = [f"a/{number}" for number in range(5)]

    def write():
        number = 0
        while not stop.wait(0.0005):
            number += 1
            writer.write(keys[number % 5], number)

    def subscribe(memsync, pattern):
        for _ in range(8):
            subscribers.append(Subscriber(memsync, pattern))

    moving = threading.Thread(target=write)
    moving.start()
    run_all([lambda one=one, pattern=pattern: subscribe(one, pattern) for one in readers for pattern in ("*", "a/*")])
    stop.set()
    moving.join()
    publish(writer, dict.fromkeys(keys, "last"))

    assert len(subscribers) == 32
    for subscriber in subscribers:
        for key in keys:
            subscriber.wait_for(key, "last")
        assert subscriber.never_goes_back()


def test_read_in_a_handler_is_never_older_than_its_change(memsync, other):
    older, received, stop = [], [], threading.Event()

    def compare(key, value):
        received.append(value)
        if memsync.read(key) < value:
            older.append(value)

    def read():
        while not stop.wait(0.0001):
            memsync.read("a")

    memsync.subscribe("a", compare)
    reading = threading.Thread(target=read)
    reading.start()
    for number in range(300):
        publish(other, {"a": number})
    eventually(lambda: received[-1:] == [299])
    stop.set()
    reading.join()

    assert older == []


# -- the end, and forks

def test_shutdown_ends_all_threads(make_memsync):
    before = our_threads()
    memsync = make_memsync()
    subscribers = [Subscriber(memsync, pattern) for pattern in ("*", "a", "b/*")]
    watch = memsync.watch("*")
    publish(memsync, {"a": 1})
    subscribers[0].wait_for("a", 1)
    running = our_threads()

    memsync.shutdown()

    eventually(lambda: sorted(our_threads()) == sorted(before))
    assert len(running) > len(before)
    assert watch.get() is None
    assert memsync.get_metrics()["subscriptions"] == 0


ENDING = """
import sys, threading, time
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager("ends", url=sys.argv[1])
received = threading.Event()
watch = memsync.watch("*")
threading.Thread(target=list, args=(watch,), daemon=True).start()
memsync.subscribe("*", lambda key, value: (received.set(), {handler}), print)
memsync.write("a", 1)
received.wait(float(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["None", "time.sleep(1000)", "sys.exit(5)"])
@pytest.mark.parametrize("away", [False, True])
def test_a_process_with_subscriptions_ends_by_itself(redis_url, handler, away):
    url = f"redis://127.0.0.1:{free_port()}/0" if away else redis_url
    code = ENDING.format(handler=handler)

    done = subprocess.run(
        [sys.executable, "-c", code, url, "0.5" if away else "20"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60)

    # What a handler raises is logged, and nothing else goes wrong.
    assert done.returncode == 0 and "Exception" not in done.stderr, done.stderr


def in_child(act):
    """Fork; return what ``act`` answers in the child, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = repr(act())
        except BaseException as exc:
            answer = repr(exc)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def test_a_forked_child_has_no_subscriptions_and_its_parents_go_on(memsync, other):
    subscriber, child = Subscriber(memsync), []
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    def of_child():
        before = memsync.get_metrics()["subscriptions"]
        known = memsync.unsubscribe(subscriber.id)
        own = Subscriber(memsync, "from-child")
        publish(memsync, {"from-child": 1})
        own.wait_for("from-child", 1)
        received = list(subscriber.received)
        memsync.shutdown()
        return before, known, own.received, received

    child.append(in_child(of_child))
    publish(other, {"b": 2})

    subscriber.wait_for("b", 2)
    assert child == [repr((0, False, [("from-child", 1)], [("a", 1)]))]
    assert subscriber.received == [("a", 1), ("from-child", 1), ("b", 2)]
