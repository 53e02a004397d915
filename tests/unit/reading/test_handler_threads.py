"""The threads of handlers: few for any number of subscriptions, and a slow one costs no other."""
from __future__ import annotations

import os
import threading
import time

import pytest

from celery_memsync.reading import handler_pool
from tests.support.publishing import publish
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")


#: Threads that were there before the test.
_earlier = set()


def threads_of_subscriptions():
    """Return how many threads receive, and in how many handlers run; but for those of earlier tests."""
    names = [thread.name for thread in threading.enumerate() if thread not in _earlier]
    return names.count("memsync-link"), names.count("memsync-handler")


@pytest.fixture
def none_before():
    """Do not count the threads that earlier tests have left."""
    _earlier.update(threading.enumerate())
    yield
    _earlier.clear()


class Blocking:
    """A handler that blocks until it is let go, and counts its calls and those that are under way."""

    def __init__(self):
        self.free = threading.Event()
        self.calls = []
        self.running = 0

    def __call__(self, key, value):
        self.calls.append(value)
        self.running += 1
        self.free.wait(60)
        self.running -= 1


@pytest.fixture
def blocking():
    handler = Blocking()
    yield handler
    handler.free.set()


def block(memsync, other, handler, number):
    """Have so many handlers block, each of a subscription of its own."""
    for one in range(number):
        memsync.subscribe(f"blocked/{one}", handler)
    publish(other, {f"blocked/{one}": one for one in range(number)})


def test_200_subscriptions_have_one_listener_and_at_most_8_handler_threads(none_before, memsync, other):
    subscribers, most = [Subscriber(memsync, f"a/{number}") for number in range(100)], 0
    subscribers += [Subscriber(memsync, "a/*") for _ in range(100)]

    for value in range(3):
        publish(other, {f"a/{number}": value for number in range(100)})
        most = max(most, threads_of_subscriptions()[1])

    for number, subscriber in enumerate(subscribers):
        subscriber.wait_for(f"a/{number % 100}", 2)
    assert threads_of_subscriptions()[0] == 1
    assert most <= 8


@pytest.mark.parametrize("limit", [1, 3])
def test_the_setting_limits_the_handlers_that_run_at_a_time(none_before, make_memsync, other, blocking, limit):
    memsync = make_memsync(handler_threads=limit)
    block(memsync, other, blocking, 10)

    eventually(lambda: blocking.running == limit)
    at_once = threads_of_subscriptions()[1]
    blocking.free.set()

    eventually(lambda: sorted(blocking.calls) == list(range(10)))
    assert at_once == limit


def test_handler_threads_end_when_they_are_idle(none_before, memsync, other, monkeypatch):
    monkeypatch.setattr(handler_pool, "IDLE_TIMEOUT", 0.2)
    subscriber = Subscriber(memsync)
    publish(other, {"a": 1})
    subscriber.wait_for("a", 1)

    eventually(lambda: threads_of_subscriptions() == (1, 0))
    publish(other, {"a": 2})

    subscriber.wait_for("a", 2)


def test_a_watch_has_no_thread(none_before, memsync, other, monkeypatch):
    monkeypatch.setattr(handler_pool, "IDLE_TIMEOUT", 0.1)
    watches = [memsync.watch(f"a/{number}") for number in range(50)]

    eventually(lambda: threads_of_subscriptions() == (1, 0))
    publish(other, {f"a/{number}": number for number in range(50)})

    assert [watch.get(timeout=10).value for watch in watches] == list(range(50))
    assert threads_of_subscriptions() == (1, 0)


# -- slow handlers

def test_handlers_that_block_do_not_keep_others_from_being_called(make_memsync, other, blocking):
    memsync = make_memsync(handler_threads=2)
    block(memsync, other, blocking, 10)
    subscriber = Subscriber(memsync, "a")

    publish(other, {"a": 1})

    subscriber.wait_for("a", 1)
    eventually(lambda: blocking.running == 10, timeout=20)


def warnings_in(caplog):
    return [record.message for record in caplog.records if "are delayed" in record.message]


@pytest.mark.acceptance
def test_64_slow_handlers_do_not_count_and_beyond_that_one_warning_names_them(
    none_before, make_memsync, other, blocking, caplog, monkeypatch,
):
    caplog.set_level("INFO")
    monkeypatch.setattr(handler_pool, "SLOW_AFTER", 0.1)
    memsync = make_memsync(handler_threads=2)
    block(memsync, other, blocking, 66)
    eventually(lambda: blocking.running == 66, timeout=30)
    before = warnings_in(caplog)
    subscribers = [Subscriber(memsync, f"a/{number}") for number in range(3)]

    for value in (1, 2):
        publish(other, {f"a/{number}": value for number in range(3)})
        eventually(lambda: warnings_in(caplog))
    delivered = [subscriber.received.copy() for subscriber in subscribers]
    most = threads_of_subscriptions()[1]
    blocking.free.set()

    for number, subscriber in enumerate(subscribers):
        subscriber.wait_for(f"a/{number}", 2)
    eventually(lambda: "no longer delayed" in caplog.text)
    assert before == [] and delivered == [[], [], []] and most == 66
    assert len(warnings_in(caplog)) == 1
    assert "66 handlers" in warnings_in(caplog)[0] and "Blocking (66)" in warnings_in(caplog)[0]


def test_a_slow_subscription_gets_the_newest_value_of_each_key_in_order(memsync, other):
    subscriber = Subscriber(memsync, "k/*")
    subscriber.free.clear()
    publish(other, {"k/busy": True})
    subscriber.wait_for("k/busy", True)
    for value in range(5):
        publish(other, {f"k/{number}": value for number in range(3)})

    subscriber.free.set()

    for number in range(3):
        subscriber.wait_for(f"k/{number}", 4)
    assert subscriber.never_goes_back()


def test_calls_of_one_subscription_never_overlap(memsync, other):
    running, most, calls = [], [], []

    def handler(key, value):
        running.append(key)
        most.append(len(running))
        time.sleep(0.001)
        running.remove(key)
        calls.append(value)

    memsync.subscribe("*", handler)
    for value in range(20):
        publish(other, {f"a/{number}": value for number in range(10)})

    eventually(lambda: calls.count(19) == 10)
    assert max(most) == 1


# -- handlers that raise

@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_handler_raises_its_thread_and_its_subscription_go_on(make_memsync, other, caplog, error):
    memsync, calls = make_memsync(handler_threads=1), []

    def broken(key, value):
        calls.append(value)
        raise error("of the handler")

    memsync.subscribe("a", broken)
    for value in range(3):
        publish(other, {"a": value})
        eventually(lambda: calls[-1:] == [value])

    assert calls == [0, 1, 2]
    eventually(lambda: caplog.text.count("of the handler") >= 3)
    assert "broken" in caplog.text


def test_a_thread_that_can_not_be_started_is_started_later(memsync, other, monkeypatch):
    start, refusals = threading.Thread.start, iter(range(3))

    def refusing(thread):
        if thread.name == "memsync-handler" and next(refusals, None) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    subscriber = Subscriber(memsync)

    publish(other, {"a": 1})

    subscriber.wait_for("a", 1)
    assert next(refusals, None) is None


# -- handlers that call the manager

def calls_back(memsync):
    """Return what a handler may do, by name; each returns something true."""
    return {
        "read": lambda: memsync.read("a", consistent=True) == 1,
        "write": lambda: (memsync.write("answer", 1), memsync.force_sync())[1] is None,
        "subscribe": lambda: memsync.subscribe("a", print),
        "unsubscribe": lambda: memsync.unsubscribe(memsync.subscribe("b", print)),
        "watch": lambda: memsync.watch("c").get(timeout=0.01) is None,
        "lock": lambda: memsync.lock("l", wait=1).acquire(),
        "search": lambda: memsync.search("*"),
        "metrics": lambda: memsync.get_metrics()["subscriptions"],
        "shutdown": lambda: memsync.shutdown() is None,
        "shutdown and more": lambda: memsync.shutdown() is None and memsync.subscribe("a", print),
    }


@pytest.mark.parametrize("call", list(calls_back(None)))
def test_a_handler_may_call_the_manager(make_memsync, other, call):
    memsync, answers = make_memsync(handler_threads=1, timeout=3.0), []
    memsync.subscribe("a", lambda key, value: answers.append(calls_back(memsync)[call]()))

    publish(other, {"a": 1})

    assert eventually(lambda: answers)[0]


def test_a_handler_that_ends_its_subscription_is_called_no_more(make_memsync, other):
    memsync, calls, rest = make_memsync(handler_threads=1), [], []
    ids = [memsync.subscribe("*", lambda key, value: (calls.append(key), memsync.unsubscribe(ids[0])))]
    memsync.subscribe("*", lambda key, value: rest.append(key))

    publish(other, {"a": 1, "b": 1, "c": 1})

    eventually(lambda: len(rest) == 3)
    assert len(calls) == 1


def test_a_shutdown_does_not_wait_for_handlers_that_block(make_memsync, other, blocking):
    memsync = make_memsync(handler_threads=2)
    block(memsync, other, blocking, 5)
    eventually(lambda: blocking.running >= 2)
    started = time.monotonic()

    memsync.shutdown(timeout=20)

    assert time.monotonic() - started < 10
    publish(other, {"blocked/4": "later"})
    assert "later" not in blocking.calls


def test_a_child_that_a_handler_forks_delivers_nothing(memsync, other):
    parent, children, reading = os.getpid(), [], os.pipe()

    def handler(key, value):
        if value == 1:
            child = os.fork()
            if child:
                children.append(child)
        elif os.getpid() != parent:
            os.write(reading[1], b"delivered")

    memsync.subscribe("*", handler)
    publish(other, {"a": 1, "b": 2, "c": 3})
    eventually(lambda: children)

    os.waitpid(children[0], 0)
    os.close(reading[1])
    assert os.read(reading[0], 10) == b""
