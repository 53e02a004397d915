"""Events: which handlers are called, and that one does not harm another."""
from __future__ import annotations

import threading

import pytest

from celery_memsync.events import EVENTS, Events


@pytest.fixture
def events():
    events = Events()
    yield events
    events.close(0.5)


def test_handlers_are_called_in_the_order_in_which_they_came(events):
    received = []
    for number in range(3):
        events.on("shutdown", lambda number=number: received.append(number))

    events.emit("shutdown")
    assert events.wait_idle(5)

    assert received == [0, 1, 2]


def test_a_handler_gets_the_details_by_name(events):
    received = []
    events.on("writes-dropped", lambda **details: received.append(details))

    events.emit("writes-dropped", count=3)
    assert events.wait_idle(5)

    assert received == [{"count": 3}]


def test_a_handler_that_raises_is_logged_and_the_others_go_on(events, caplog):
    received = []
    events.on("shutdown", lambda: 1 / 0)
    events.on("shutdown", lambda: received.append(1))

    events.emit("shutdown")
    assert events.wait_idle(5)

    assert received == [1]
    assert "'shutdown' raised" in caplog.text


def test_a_handler_taken_away_is_called_no_more(events):
    received = []
    events.on("shutdown", received.append)
    events.off("shutdown", received.append)
    events.off("shutdown", received.append)
    events.off("write", received.append)

    events.emit("shutdown")
    assert events.wait_idle(5)

    assert received == []


def test_a_handler_may_take_itself_away_while_it_is_called(events):
    received = []

    def once():
        received.append(1)
        events.off("shutdown", once)

    events.on("shutdown", once)
    events.on("shutdown", lambda: received.append(2))

    events.emit("shutdown")
    events.emit("shutdown")
    assert events.wait_idle(5)

    assert received == [1, 2, 2]


def test_events_know_whether_a_handler_is_registered(events):
    events.on("write", print)

    assert events.wanted("write")
    assert not events.wanted("delete")


def test_a_copy_has_the_handlers_and_nothing_else_in_common(events):
    received = []
    events.on("shutdown", lambda: received.append("first"))
    twin = events.copy()

    twin.on("shutdown", lambda: received.append("second"))
    for one in (twin, events):
        one.emit("shutdown")
        assert one.wait_idle(5)

    assert received == ["first", "second", "first"]
    twin.close(1)


def test_handlers_come_from_many_threads(events):
    threads = [threading.Thread(target=events.on, args=("write", lambda number=number: number)) for number in range(20)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(events._handlers["write"]) == 20


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_can_be_received(events, name):
    received = []
    events.on(name, lambda **details: received.append(set(details)))

    events.emit(name, **dict.fromkeys(EVENTS[name]))
    assert events.wait_idle(5)

    assert received == [set(EVENTS[name])]


@pytest.mark.parametrize("act, name", [
    (lambda memsync: memsync.write("a", 1), "write"),
    (lambda memsync: memsync.delete("a"), "delete"),
    (lambda memsync: memsync.write("a", 1), "batch-flushed"),
    (lambda memsync: memsync.sync_task_state("t1", {"x": 1}), "force-sync"),
])
def test_an_event_has_the_details_that_are_promised(memsync, act, name):
    received = []
    memsync.on(name, lambda **details: received.append(details))

    act(memsync)
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert received[0].keys() == set(EVENTS[name])


def test_write_event_has_key_and_value(memsync):
    received = []
    memsync.on("write", lambda key, value: received.append((key, value)))

    memsync.write("a", [1])
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert received == [("task-sentinel/a", [1])]


def test_a_handler_of_a_manager_can_be_taken_away(memsync):
    received = []

    def handler(**details):
        received.append(details)

    memsync.on("write", handler)
    memsync.off("write", handler)
    memsync.write("a", 1)
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert received == []


def test_shutdown_event_is_emitted_once(make_memsync):
    memsync = make_memsync()
    received = []
    memsync.on("shutdown", lambda: received.append(1))
    memsync.write("a", 1)

    memsync.shutdown()
    memsync.shutdown()

    assert received == [1]
