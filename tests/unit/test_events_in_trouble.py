"""Handlers of events that raise anything, block, call back or fork harm only themselves."""
from __future__ import annotations

import random
import threading
import time

import pytest

from celery_memsync import events as events_module
from celery_memsync.events import Events
from tests.support.raising import ENDS, raiser
from tests.support.waiting import eventually


@pytest.fixture
def events():
    events = Events()
    yield events
    events.close(0.5)


@pytest.fixture
def blocked(events):
    """Releases a running handler of "write"."""
    begun, release = threading.Event(), threading.Event()
    events.on("write", lambda **_: begun.set() or release.wait(20))
    events.emit("write")
    assert begun.wait(5)
    yield release
    release.set()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "memsync-events"]


# -- order

def test_handlers_run_one_at_a_time_in_the_order_in_which_threads_emit(events):
    received, at_once, others = [], [], []

    def handler(key, value):
        at_once.append(1)
        others.append(len(at_once))
        received.append((key, value))
        at_once.pop()

    def emit(name):
        for number in range(500):
            events.emit("write", key=name, value=number)

    events.on("write", handler)
    emitters = [threading.Thread(target=emit, args=(name,)) for name in "abcdef"]

    for thread in emitters:
        thread.start()
    for thread in emitters:
        thread.join(20)

    assert events.wait_idle(20)
    by_key = {name: [value for key, value in received if key == name] for name in "abcdef"}
    assert by_key == dict.fromkeys("abcdef", list(range(500)))
    assert set(others) == {1}
    assert len(threads()) == 1


@pytest.mark.parametrize("seed", range(20))
def test_events_are_received_as_if_handlers_ran_at_once(events, seed):
    chance, received, expected, present = random.Random(seed), [], [], []

    for number in range(200):
        name = chance.choice(["write", "delete"])
        act = chance.random()
        if act < 0.1:
            handler = lambda value, mark=number: received.append((mark, value))  # noqa: E731
            events.on(name, handler)
            present.append((name, handler, number))
        elif act < 0.2 and present:
            assert events.wait_idle(5)
            removed = present.pop(chance.randrange(len(present)))
            events.off(removed[0], removed[1])
        else:
            events.emit(name, value=number)
            expected += [(mark, number) for event, _, mark in present if event == name]

    assert events.wait_idle(5)
    assert received == expected


def test_handler_receives_only_events_emitted_while_registered(events, blocked):
    early, late = [], []
    events.on("delete", early.append)
    events.emit("delete", key="a")

    events.on("delete", lambda key: late.append(key))
    events.emit("delete", key="b")
    events.off("delete", early.append)
    blocked.set()

    assert events.wait_idle(5)
    assert (early, late) == ([], ["b"])


# -- what handlers raise

@pytest.mark.parametrize("error", ENDS)
def test_anything_a_handler_raises_is_logged_and_others_go_on(events, caplog, error):
    received = []
    events.on("write", raiser(error()))
    events.on("write", lambda **details: received.append(details))

    for number in range(2):
        events.emit("write", value=number)

    assert events.wait_idle(5)
    assert received == [{"value": 0}, {"value": 1}]
    assert "A handler of the event 'write' raised (tests.support.raising.raiser.<locals>.handler)" in caplog.text


@pytest.mark.parametrize("error", ENDS)
def test_whatever_a_handler_raises_writing_and_renewing_go_on(make_memsync, other, error):
    memsync = make_memsync(batch_interval=0.01)
    for name in ("write", "batch-flushed", "lock-acquired", "change"):
        memsync.on(name, raiser(error()))
    memsync.subscribe("*", raiser(error()), raiser(error()))

    lock = memsync.lock("a", ttl=0.3)
    lock.acquire()
    memsync.write("a", 1)
    eventually(lambda: other.read("a", consistent=True) == 1)
    memsync.write("a", 2)

    eventually(lambda: other.read("a", consistent=True) == 2)
    time.sleep(0.5)
    assert lock.owned


# -- handlers that block

def test_blocking_handler_delays_neither_emit_nor_registration(events, blocked):
    started, received = time.monotonic(), []
    events.on("delete", lambda key: received.append(key))

    for number in range(100):
        events.emit("delete", key=number)
    took = time.monotonic() - started
    idle = events.wait_idle(0.05)
    before = list(received)
    blocked.set()

    assert took < 1 and not idle and before == []
    assert events.wait_idle(5)
    assert received == list(range(100))


def test_too_many_events_drop_the_oldest_counted_and_logged_once(
    events, blocked, monkeypatch, caplog,
):
    monkeypatch.setattr(events_module, "MAX_WAITING", 10)
    received = []
    events.on("delete", lambda key: received.append(key))

    for number in range(30):
        events.emit("delete", key=number)
    blocked.set()

    eventually(lambda: received == list(range(20, 30)))
    assert (events.dropped, events.dropped) == (20, 20)
    (line,) = [line for line in caplog.messages if "dropped" in line]
    assert "More than 10 events wait" in line and "'write' is still running" in line


def test_what_many_threads_emit_is_delivered_or_counted_as_dropped(events, monkeypatch):
    monkeypatch.setattr(events_module, "MAX_WAITING", 5)
    received = []
    events.on("delete", lambda key: received.append(key))
    emitters = [
        threading.Thread(target=lambda: [events.emit("delete", key=number) for number in range(500)]) for _ in range(4)]

    for thread in emitters:
        thread.start()
    for thread in emitters:
        thread.join(20)

    eventually(lambda: len(received) + events.dropped == 2000)


# -- the end

def test_close_delivers_what_was_emitted_and_ends_the_thread(events):
    received = []
    events.on("delete", lambda key: received.append(time.sleep(0.005)))
    for number in range(20):
        events.emit("delete", key=number)

    events.close(5)

    assert len(received) == 20
    assert threads() == []


def test_the_end_does_not_wait_longer_for_a_handler_that_blocks_and_what_comes_later_is_delivered(
    events, blocked, caplog,
):
    received, started = [], time.monotonic()
    events.on("delete", lambda key: received.append(key))
    events.emit("delete", key="too late")

    events.close(0.2)
    took = time.monotonic() - started
    events.emit("delete", key="later")

    eventually(lambda: received == ["later"])
    blocked.set()
    eventually(lambda: len(threads()) == 1)
    assert 0.1 < took < 1 and received == ["later"]
    assert "1 events have not reached their handlers: a handler of the event 'write' is still running" in caplog.text


@pytest.mark.parametrize("name", ["batch-flushed", "write", "lock-released", "subscribed", "shutdown"])
def test_handler_may_shut_down_and_earlier_events_are_delivered(make_memsync, name):
    memsync = make_memsync(batch_interval=0.01)
    received = []
    memsync.on(name, lambda **_: received.append(name) or memsync.shutdown())
    memsync.on("shutdown", lambda: received.append("end"))

    with memsync.lock("a"):
        memsync.write("a", 1)
    memsync.subscribe("a", print)
    if name == "shutdown":
        memsync.shutdown()

    eventually(lambda: received[:1] == [name] and received[-1] == "end")
    eventually(lambda: memsync.shutdown(1) or threads() == [])


def test_a_handler_of_changes_may_shut_down(make_memsync, other):
    memsync, ended = make_memsync(), threading.Event()
    memsync.subscribe("a", lambda key, value: memsync.shutdown() or ended.set())

    other.write("a", 1)
    other.force_sync()

    assert ended.wait(5)


def test_last_events_are_delivered_before_shutdown_returns(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    received = []
    for name in ("write", "batch-flushed", "shutdown"):
        memsync.on(name, lambda event=name, **_: received.append(event))
    memsync.write("a", 1)

    memsync.shutdown()

    assert received == ["write", "batch-flushed", "shutdown"]
