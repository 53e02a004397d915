"""The shared state is coherent under faults: random processes, judged by an independent checker."""
from __future__ import annotations

import os
import threading

import pytest

from celery_memsync import ConflictError, StoreError
from celery_memsync.reading.cache import EntryCache
from celery_memsync.store.clock import Clock
from tests.support.histories import CLOCKS, History
from tests.support.model import run, show
from tests.support.stress import stressed
from tests.support.waiting import eventually

SEED = os.environ.get("MEMSYNC_SEED", "1")

#: What the checker of the handmade histories takes as long.
BOUND = 5.0


def write(value, at=1.0, key="solo/p1.0/0", **more):
    """A write that took a moment, by the session that the value names."""
    session = next(iter(value.values())) if isinstance(value, dict) else value or "p1.0:"
    session = session.partition(":")[0]
    return {"op": "write", "p": session.partition(".")[0], "s": session, "key": key, "value": value,
            "how": "buffered",
            "begin": at, "end": at + 0.01, "error": None, "version": None, "ttl": None, **more}


def compare_and_set(value, version, at=1.0, key="cas/0", **more):
    expected = (version or 1) - 1
    about = {"how": "cas", "version": version, "expected": expected, "saw": None, **more}
    return write(value, at, key, **about)


def stored(value, at=1.1, key="solo/p1.0/0"):
    return {"op": "stored", "p": value.partition(".")[0], "key": key, "value": value, "at": at}


def read(value, at, version=None, key="solo/p1.0/0", by="p2.0", fresh=False):
    return {"op": "read", "p": by.partition(".")[0], "s": by, "key": key, "value": value, "version": version,
            "fresh": fresh, "begin": at, "end": at + 0.01}


def received(value, version, at, key="solo/p1.0/0"):
    return {
        "op": "received", "p": "p2", "sub": "1", "key": key, "value": value, "version": version,
        "at": at}


def final(value, version, key="solo/p1.0/0"):
    return {"op": "final", "key": key, "value": value, "version": version}


SUBSCRIBED = {"op": "subscribed", "p": "p2", "sub": "1", "pattern": "*", "begin": 0.0, "end": 0.1}
DOUBTED = {"op": "doubted", "p": "p2", "sub": "1", "key": "solo/p1.0/0", "at": 2.5}
SYNCED = {"op": "synced", "p": "p1", "begin": 3.0, "end": 3.1}
EMPTIED = {"op": "fault", "kind": "empty", "how": "flush_all", "begin": 10.0, "end": 10.1}
ONE, TWO = "p1.0:1", "p1.0:2"
OTHER = "p2.0:1"
IN_ORDER = [write(ONE), stored(ONE), write(TWO, 2.0), stored(TWO, 2.1)]
STATE = "tasks/t0/state"

GOOD = {
    "what is replaced may be read for a while": [*IN_ORDER, read(ONE, 2.05), read(ONE, 7.0), read(TWO, 7.2)],
    "what was deleted is not read": [
        *IN_ORDER, write(None, 2.5), SYNCED, read(None, 3.2, fresh=True)],
    "a write whose answer is missing may be there, or not": [
        *IN_ORDER,
        compare_and_set("p1.0:3", None, 3.0, "solo/p1.0/0", expected=2, error="StoreError"),
        read(TWO, 9.0, by="p1.0"), read("p1.0:3", 10.0, 3), final("p1.0:3", 3)],
    "every change is received": [
        SUBSCRIBED, *IN_ORDER, received(ONE, 1, 1.2), received(TWO, 2, 2.2), final(TWO, 2)],
    "versions begin anew when a key was deleted": [
        SUBSCRIBED, *IN_ORDER, received(TWO, 2, 2.2), EMPTIED, {**DOUBTED, "at": 10.2},
        write("p1.0:3", 11.0),
        received("p1.0:3", 1, 11.1), final("p1.0:3", 1)],
    "what was lost with all data is not read": [
        *IN_ORDER, EMPTIED, read(TWO, 12.0), read(None, 15.5), final(None, None)],
    "the later of two wins": [
        write(ONE, 1.0, "open/0"), write(OTHER, 1.5, "open/0"), read(OTHER, 2.0, 2, "open/0"),
        final(OTHER, 2, "open/0")],
    "fields of all": [
        write({"p1.0.a": ONE}, 1.0, STATE), write({"p2.0.a": OTHER}, 2.0, STATE),
        final({"p1.0.a": ONE, "p2.0.a": OTHER}, 2, STATE)],
}

BAD = {
    "a key is not read backward": [
        [*IN_ORDER, read(TWO, 2.2), read(ONE, 2.3)],
        [compare_and_set(ONE, 1), compare_and_set(OTHER, 2, 2.0),
         read(OTHER, 2.5, 2, "cas/0", "p3.0"),
         read(ONE, 2.6, 1, "cas/0", "p3.0")],
        [read({}, 1.0, 3, STATE), read({}, 1.1, 2, STATE), write({"p1.0.a": ONE}, 9.0, STATE)],
    ],
    "nothing is read that was replaced long before": [
        [*IN_ORDER, read(ONE, 7.2)],
        [*IN_ORDER, read(ONE, 2.2, fresh=True)],
        [*IN_ORDER, read(None, 9.0)],
        [*IN_ORDER, final(ONE, 1)],
        [write(None), SYNCED, write(TWO, 3.5), stored(TWO, 3.6), read(None, 9.0)],
        [write({"p1.0.a": ONE}, 1.0, STATE), SYNCED, final({"p2.0.a": OTHER}, 2, STATE)],
        [compare_and_set(ONE, 1), compare_and_set(OTHER, 2, 2.0), stored(OTHER, 2.1, "cas/0"),
         read(ONE, 7.2, 1, "cas/0", "p3.0")],
    ],
    "a process reads its own writes": [
        [*IN_ORDER, read(ONE, 2.2, by="p1.0")],
        [write(ONE), read(None, 1.02, by="p1.1")],
        [compare_and_set(ONE, 1), compare_and_set(TWO, 2, 2.0), stored(TWO, 2.02, "cas/0"),
         read(ONE, 2.03, 1, "cas/0", "p1.0")],
    ],
    "what is read was written": [[*IN_ORDER, read("p1.0:9", 2.2)], [*IN_ORDER, read(TWO, 1.5)]],
    "what is seen was written, and not refused": [
        [write(ONE, error="ConflictError", how="cas", expected=3, saw=None), received(ONE, 4, 1.2)],
    ],
    "what was read does not vanish": [
        [compare_and_set(ONE, 1), read(ONE, 1.1, 1, "cas/0"), read(None, 1.2, None, "cas/0")]],
    "a version is one write": [
        [compare_and_set(ONE, 2), compare_and_set(OTHER, 2, 1.5)],
        [*IN_ORDER, received(ONE, 1, 1.2), received(TWO, 1, 2.2)]],
    "a write is done once": [
        [write(ONE), received(ONE, 1, 1.2), received(ONE, 2, 1.3)],
        [compare_and_set(ONE, 1), final(ONE, 2, "cas/0")]],
    "a compare-and-set makes the next version": [[compare_and_set(ONE, 7, expected=5)]],
    "a compare-and-set replaces what it read": [[
        compare_and_set(ONE, 1), compare_and_set(OTHER, 2, 1.5),
        compare_and_set(TWO, 3, 2.0, saw=ONE)]],
    "a version counts the writes that were accepted": [
        [*IN_ORDER, final(TWO, 3)], [*IN_ORDER, final(TWO, 1)],
        [*IN_ORDER, {"op": "failed", "p": "p1", "at": 2.0}, final(TWO, 4)],
    ],
    "the last of several writes wins": [
        [write(ONE, 1.0, "open/0"), write(OTHER, 1.5, "open/0"), final(ONE, 2, "open/0")],
        [write(OTHER, 1.0, "open/0"), write(ONE, 1.5, "open/0"), read(OTHER, 2.0, 1, "open/0", "p1.0")],
    ],
    "of each key newer and newer versions are received": [
        [*IN_ORDER, received(TWO, 2, 2.2), received(ONE, 1, 2.3)],
        [*IN_ORDER, received(TWO, 2, 2.2), received(TWO, 2, 2.3)],
    ],
    "a subscriber ends with what is there": [
        [SUBSCRIBED, *IN_ORDER, received(ONE, 1, 1.2), final(TWO, 2)],
        [SUBSCRIBED, *IN_ORDER, final(TWO, 2)],
        [SUBSCRIBED, *IN_ORDER, received(TWO, 2, 2.2), write(None, 3.0), final(None, None)],
    ],
    "what was lost with all data is not read any more": [[*IN_ORDER, EMPTIED, read(TWO, 15.5)]],
    "nothing is read after its time": [[write(ONE, 1.0, "brief/0", ttl=0.1), read(ONE, 1.5, 1, "brief/0")]],
}


@pytest.mark.parametrize("rows", GOOD.values(), ids=GOOD)
def test_a_coherent_history_is_found_coherent(rows):
    violations = History(rows, BOUND).violations()

    assert violations == []


@pytest.mark.parametrize("claim, rows", [(claim, rows) for claim, cases in BAD.items() for rows in cases])
def test_a_history_that_contradicts_a_claim_is_found_out(claim, rows):
    violations = History(rows, BOUND).violations()

    assert claim in {violation.claim for violation in violations}


@pytest.mark.parametrize("faults, processes, sessions, seconds", [
    ("", 2, 2, 1.5), ("kill,pause,restart", 3, 1, 3.0), *stressed([("empty,kill", 2, 1, 2.5)], []),
])
def test_random_processes_see_coherent_shared_state(tmp_path, faults, processes, sessions, seconds):
    kinds = [kind for kind in faults.split(",") if kind]

    report = run(tmp_path, seconds, processes, SEED, kinds, sessions, peace=0.5)

    assert report.violations == [], show(report, SEED)
    assert report.figures["reads judged"] > 100
    assert report.figures["hits"] > 10
    assert bool(report.figures["faults"]) == bool(kinds)


def test_process_reads_what_its_compare_and_set_wrote(memsync, redis):
    memsync.write("key", "old", expected_version=0)
    eventually(lambda: memsync.read("key") == "old" and memsync.get_metrics()["cache_hits"])
    redis.client_kill_filter(_type="normal", skipme=True)

    memsync.write("key", "new", expected_version=1)

    assert memsync.read("key") == "new"


def test_compare_and_set_returns_its_version_after_a_lost_answer(make_memsync, own_server):
    first, second = (make_memsync(url=own_server.url) for _ in range(2))
    first.write("key", 0, expected_version=0)
    second.read("key")

    entries = call_without_answers(
        own_server, lambda: first.write("key", 1, expected_version=1),
        lambda: second.write("key", 2, expected_version=2))

    assert [(entry.value, entry.version) for entry in entries] == [(1, 2), (2, 3)]


def test_version_of_a_pending_write_does_not_replace_an_unseen_write(memsync, other):
    memsync.write("key", "old", expected_version=0)
    other.read("key")
    memsync.write("key", "mine")
    expected = memsync.read_entry("key").version

    other.write("key", "theirs")
    other.force_sync()

    with pytest.raises(ConflictError):
        memsync.write("key", "next", expected_version=expected)


@pytest.mark.parametrize("how", ["it was emptied", "its ttl was over"])
def test_fields_of_others_stay_when_versions_begin_anew(memsync, other, make_memsync, redis, how):
    memsync.sync_task_state("task", {"mine": 1}, ttl=0.3 if how == "its ttl was over" else None)
    memsync.force_sync()
    if how == "it was emptied":
        redis.flushall()
    eventually(lambda: other.read("tasks/task/state", consistent=True) is None)

    other.sync_task_state("task", {"theirs": 1})
    other.force_sync()
    memsync.sync_task_state("task", {"mine": 2})
    memsync.force_sync()

    assert make_memsync().get_task_state("task").items() >= {"mine": 2, "theirs": 1}.items()


def test_a_field_is_not_taken_back_by_what_was_sent_before_without_an_answer(make_memsync, own_server):
    mine, other, reader = (make_memsync(url=own_server.url, batch_interval=60.0) for _ in range(3))
    mine.sync_task_state("task", {"field": 1})
    mine.force_sync()
    mine.sync_task_state("task", {"field": 2})
    send_without_answer(own_server, mine)
    eventually(lambda: reader.get_task_state("task") == {"field": 2})

    mine.sync_task_state("task", {"field": 3})
    other.sync_task_state("task", {"other field": 1})
    other.force_sync()
    mine.force_sync(timeout=10)

    assert make_memsync(url=own_server.url).get_task_state("task") == {"field": 3, "other field": 1}


def test_what_was_sent_without_an_answer_does_not_hide_what_replaced_it(make_memsync, own_server):
    mine, other = (make_memsync(url=own_server.url, batch_interval=60.0) for _ in range(2))
    for process in (mine, other):
        write_now(process, f"key of {process.worker_id}")
    mine.write("key", "mine")
    send_without_answer(own_server, mine)
    eventually(lambda: other.read("key", consistent=True) == "mine")

    other.write("key", "theirs", expected_version=1)

    assert mine.read("key", consistent=True) == "theirs"


@pytest.mark.parametrize("before", [2, 1], ids=["it has received it", "it has not received it"])
def test_slow_handler_is_notified_of_a_deletion_before_a_key_is_recreated(memsync, other, before):
    received, invalidated, at_gate, gate = [], [], threading.Event(), threading.Event()
    memsync.subscribe("key", on_invalidate=invalidated.append)
    memsync.subscribe("*", slow_handler(received, at_gate, gate), lambda key: received.append(None))
    for version in range(1, before + 1):
        write_now(other, "key", ttl=0.5)
        eventually(lambda: version in received)
    write_now(other, "gate")
    at_gate.wait(10)
    if before == 1:
        write_now(other, "key", ttl=0.5)
    eventually(lambda: invalidated)

    write_now(other, "key")
    eventually(lambda: other.read_entry("key").version == 1)
    gate.set()

    eventually(lambda: received[-1] == 1 and len(received) > before)
    assert received[-2:] == [None, 1]


def test_no_copy_is_valid_while_a_message_is_unpublished():
    cache = EntryCache(10, 60.0, is_stale=lambda: True)
    reading = cache.begin(["key"], source=type("Source", (), {"until": float("inf")}))
    cache.keep(reading, "name", "value", ("key",), until=float("inf"))

    copies = [cache.get("name") for _ in range(1000)]

    assert set(copies) == {None}


def test_a_slow_answer_does_not_put_wrong_by_which_time_the_last_write_wins():
    clock = Clock()
    clock.learn(1000.0, asked=0.0, answered=0.001)

    clock.learn(1063.9, asked=62.0, answered=64.0)

    assert abs(clock.at(64.0) - 1064.0) < CLOCKS


def write_now(process, key, ttl=None):
    """Write, and return when it is in Redis."""
    process.write(key, "value", ttl=ttl)
    process.force_sync()


def slow_handler(received, at_gate, gate):
    """Return a handler that notes versions, and waits at the key "gate"."""

    def on_change(key, value, entry):
        if key.endswith("/gate"):
            at_gate.set()
            gate.wait(10)
        else:
            received.append(entry.version)

    return on_change


def send_without_answer(server, process):
    """Let a process write to a Redis that takes it, and does not answer in time."""
    server.pause()
    with pytest.raises(StoreError):
        process.force_sync()
    server.resume()


def call_without_answers(server, *calls):
    """Let calls reach a Redis in their order and be done, but kill their connections before they are answered."""
    answers = {}
    with server.client(single_connection_client=True) as client:
        client.ping()
        server.pause()
        threads = [threading.Thread(target=lambda call=call: answers.update({call: call()})) for call in calls]
        for thread in threads:
            thread.start()
            thread.join(0.3)
        client.connection.send_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        threads[0].join(0.1)
        server.resume()
        assert client.connection.read_response() >= len(calls)
    for thread in threads:
        thread.join(10)
    return [answers[call] for call in calls]
