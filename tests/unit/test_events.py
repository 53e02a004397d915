"""Events: who listens, and that one handler does not harm another."""
from __future__ import annotations

import threading

import pytest

from celery_memsync.events import EVENTS, Events


@pytest.fixture
def events():
    return Events()


def test_handlers_are_called_in_the_order_in_which_they_came(events):
    told = []
    for number in range(3):
        events.on("shutdown", lambda number=number: told.append(number))

    events.emit("shutdown")

    assert told == [0, 1, 2]


def test_a_handler_gets_the_details_by_name(events):
    told = []
    events.on("writes-dropped", lambda **details: told.append(details))

    events.emit("writes-dropped", count=3)

    assert told == [{"count": 3}]


def test_a_handler_that_raises_is_logged_and_the_others_go_on(events, caplog):
    told = []
    events.on("shutdown", lambda: 1 / 0)
    events.on("shutdown", lambda: told.append(1))

    events.emit("shutdown")

    assert told == [1]
    assert "'shutdown' raised" in caplog.text


def test_a_handler_taken_away_is_called_no_more(events):
    told = []
    events.on("shutdown", told.append)
    events.off("shutdown", told.append)
    events.off("shutdown", told.append)
    events.off("write", told.append)

    events.emit("shutdown")

    assert told == []


def test_a_handler_may_take_itself_away_while_it_is_called(events):
    told = []

    def once():
        told.append(1)
        events.off("shutdown", once)

    events.on("shutdown", once)
    events.on("shutdown", lambda: told.append(2))

    events.emit("shutdown")
    events.emit("shutdown")

    assert told == [1, 2, 2]


def test_it_is_known_whether_anybody_listens(events):
    events.on("write", print)

    assert events.wanted("write")
    assert not events.wanted("delete")


def test_a_copy_has_the_handlers_and_a_mutex_of_its_own(events):
    told = []
    events.on("shutdown", lambda: told.append("first"))
    with events._mutex:

        twin = events.copy()
        twin.on("shutdown", lambda: told.append("second"))
        twin.emit("shutdown")

    events.emit("shutdown")
    assert told == ["first", "second", "first"]


def test_handlers_come_from_many_threads(events):
    threads = [threading.Thread(target=events.on, args=("write", lambda number=number: number)) for number in range(20)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(events._handlers["write"]) == 20


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_can_be_heard(events, name):
    told = []
    events.on(name, lambda **details: told.append(set(details)))

    events.emit(name, **dict.fromkeys(EVENTS[name]))

    assert told == [set(EVENTS[name])]


@pytest.mark.parametrize("act, name", [
    (lambda memsync: memsync.write("a", 1), "write"),
    (lambda memsync: memsync.delete("a"), "delete"),
    (lambda memsync: memsync.write("a", 1), "batch-flushed"),
    (lambda memsync: memsync.sync_task_state("t1", {"x": 1}), "force-sync"),
])
def test_an_event_has_the_details_that_are_promised(memsync, act, name):
    told = []
    memsync.on(name, lambda **details: told.append(details))

    act(memsync)
    memsync.force_sync()

    assert told[0].keys() == set(EVENTS[name])


def test_the_event_of_a_write_tells_key_and_value(memsync):
    told = []
    memsync.on("write", lambda key, value: told.append((key, value)))

    memsync.write("a", [1])
    memsync.force_sync()

    assert told == [("task-sentinel/a", [1])]


def test_a_handler_of_a_manager_can_be_taken_away(memsync):
    told = []

    def handler(**details):
        told.append(details)

    memsync.on("write", handler)
    memsync.off("write", handler)
    memsync.write("a", 1)
    memsync.force_sync()

    assert told == []


def test_shutdown_is_told_once(make_memsync):
    memsync = make_memsync()
    told = []
    memsync.on("shutdown", lambda: told.append(1))
    memsync.write("a", 1)

    memsync.shutdown()
    memsync.shutdown()

    assert told == [1]
