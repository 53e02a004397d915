"""Index updates that follow the entries of a cluster."""
from __future__ import annotations

import pytest

from celery_memsync import StoreUnavailable
from celery_memsync.deadline import within
from celery_memsync.store import index_queue
from celery_memsync.store.index_queue import IndexQueue
from tests.support.waiting import eventually


class Node:
    """What takes index updates, unless it is away."""

    def __init__(self):
        self.is_away = False
        self.calls = []

    def send(self, serial, updates):
        self.calls.append((serial, list(updates)))
        if self.is_away:
            raise StoreUnavailable("the node is away")


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def queue(node):
    queue = IndexQueue(node.send)
    yield queue
    queue.close()


def test_updates_are_sent_in_their_order_and_waited_for(node, queue):
    for number in range(5):
        queue.add(b"%d" % number)
    queue.add(("lock", 1))
    queue.wait()

    assert [update for _, updates in node.calls for update in updates] == [b"0", b"1", b"2", b"3", b"4", ("lock", 1)]
    assert [serial for serial, _ in node.calls] == list(range(1, len(node.calls) + 1))


def test_what_got_no_answer_is_sent_again_under_its_number(node, queue):
    node.is_away = True
    queue.add(b"a")
    with pytest.raises(StoreUnavailable, match="the node is away") as caught:
        queue.wait()
    queue.add(b"b")
    node.is_away = False
    queue.wait()

    assert caught.value.maybe_done
    assert node.calls[-2:] == [(1, [b"a"]), (2, [b"b"])]
    assert all(call == (1, [b"a"]) for call in node.calls[:-1])


def test_a_caller_waits_until_its_deadline_only(queue, node):
    began, done = [], []

    def send(serial, updates):
        began.append(serial)
        eventually(lambda: done)

    queue._send = send
    queue.add(b"a")
    eventually(lambda: began)

    with pytest.raises(StoreUnavailable, match="did not answer in time"):
        within(0.1, queue.wait)
    done.append(True)


def test_the_oldest_are_dropped_and_logged_when_there_are_too_many(node, queue, monkeypatch, caplog):
    monkeypatch.setattr(index_queue, "MAX_BYTES", 10)
    node.is_away = True
    queue.add(b"first")
    eventually(lambda: node.calls)
    for number in range(4):
        queue.add(b"upd%02d" % number)
    node.is_away = False
    queue.wait()

    assert [update for _, updates in node.calls for update in updates][-2:] == [b"upd02", b"upd03"]
    assert "Dropped 2 index updates" in caplog.text


def test_updates_of_a_busy_process_are_gathered(node, queue, monkeypatch):
    monkeypatch.setattr(index_queue, "CALL_INTERVAL", 0.3)
    queue.add(b"first")
    eventually(lambda: node.calls)
    for number in range(100):
        queue.add(b"%d" % number)
    eventually(lambda: len(node.calls) == 2)

    assert node.calls == [(1, [b"first"]), (2, [b"%d" % number for number in range(100)])]


def test_an_urgent_update_is_sent_at_once_with_those_before(node, queue, monkeypatch):
    monkeypatch.setattr(index_queue, "CALL_INTERVAL", 3600.0)
    queue.add(b"first")
    eventually(lambda: node.calls)
    queue.add(b"second")
    queue.add(("lock", 1), urgent=True)
    eventually(lambda: len(node.calls) > 1)

    assert [update for _, updates in node.calls for update in updates] == [b"first", b"second", ("lock", 1)]


def test_after_closing_a_caller_sends_what_is_left(node, queue):
    queue.close()
    queue.add(b"a")
    queue.wait()

    assert node.calls == [(1, [b"a"])]
