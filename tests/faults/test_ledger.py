"""The judge of what callers were answered finds what is wrong, and nothing else."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.faults.callers import TIMEOUT
from tests.faults.checker import Kill, Wrong
from tests.faults.ledger import LATE, Ledger
from tests.faults.servers import Fault

KEY, LOCK, HOME = "ns/shared/1", "ns/locks/{l}", "{ns}"


def fault(excuses, begin, end):
    return Fault("a fault", begin, end, None, excuses)


def entry(version, value):
    return f"{version} - - 0 1 1 0 a.1 w\n{json.dumps(value)}".encode()


def call(what, called, result=None, how="done", key=KEY, took=0.1, **facts):
    row = {
        "what": what, "key": key, "called": called, "answered": called + took, "wait": 0.0,
        "how": how, "result": result}
    return {**row, **facts}


def change(called, version, value, **facts):
    return call("change", called, version, expected=version - 1, value=value, **facts)


def grant(called, fence, owned):
    return {"key": LOCK, "fence": fence, "called": called, "granted": called + 0.1, "owned": owned}


def claims(rows=(), faults=(), contents=None, **facts):
    """Return what a judge finds.

    Args:
        contents: What is in Redis by key.
        facts: Of the callers.
    """
    contents = contents or {}
    known = {"states": {}, "wrote": {}, "grants": [], "added": {}, "mirrors": [], "failed": []}
    callers = SimpleNamespace(rows=list(rows), namespace="ns", home=HOME, **{**known, **facts})
    memory = SimpleNamespace(
        faults=list(faults), lists="ns/lists", missed="missed", raw=lambda key,
        *_: contents.get(key, []))
    return [wrong.claim for wrong in Ledger(callers, memory).judge()]


def test_nothing_is_blamed_for_calls_that_are_done():
    rows = [call("read version", 1.0, 0), change(2.0, 1, "a"), call("read version", 3.0, 1), change(4.0, 2, "b")]

    assert claims(rows, contents={KEY: entry(2, "b")}) == []


def test_an_error_that_no_call_may_raise_is_found():
    assert claims(failed=["TypeError"]) == ["no call raises anything else"]


@pytest.mark.parametrize("row, faults, found", [
    (call("acquire", 5.0, took=TIMEOUT + LATE + 1), [], ["a call ends by its deadline"]),
    (call("acquire", 5.0, how="not"), [], ["a call on a node that is there is done"]),
    (call("acquire", 5.0, how="not"), [fault("away", 1.0, 4.0)], ["a call on a node that is there is done"]),
    (call("acquire", 5.0, how="not"), [fault("moved", 4.0, 6.0)], ["a call on a node that is there is done"]),
    (call("enqueue", 5.0, how="not"), [fault("moved", 4.0, 6.0)], []),
    (call("acquire", 5.0, how="maybe"), [fault("away", 4.0, 6.0)], []),
    (call("acquire", 5.0, how="not"), [fault("busy", 4.0, 6.0)], []),
])
def test_calls_fail_only_while_their_node_is_away(row, faults, found):
    assert claims([row], faults) == found


@pytest.mark.parametrize("error, away, found", [
    ("ns/own/1 waits", {7651, 14907, 1}, ["force_sync names what is missing"]),
    ("ns/own/1 waits", None, []),
])
def test_force_sync_has_to_name_what_is_missing(error, away, found):
    faults = [Fault("a fault", 4.0, 6.0, None if away is None else frozenset({1}), "away")]

    assert claims([call("sync", 5.0, how="not", error=error)], faults, wrote={"ns/own/1": 4.5}) == found


def test_force_sync_fails_only_while_something_is_away():
    assert claims([call("sync", 5.0, how="not", error="ns/own/1")]) == ["force_sync is done while all nodes are there"]


@pytest.mark.parametrize("value, faults, found", [
    (2, [], []),
    (1, [], ["a read finds what was written before"]),
    (1, [fault("loss", 1.5, 2.5)], []),
    (1, [fault("loss", 7.0, 8.0)], ["a read finds what was written before"]),
])
def test_a_read_finds_what_force_sync_has_confirmed(value, faults, found):
    states = [(1.0, 1), (2.0, 2)]
    rows = [call("sync", 3.0, states={KEY: 1}), call("read", 5.0, value)]

    assert claims(rows, faults, {KEY: entry(2, 2)}, states={KEY: states}) == found


@pytest.mark.parametrize("value, faults, found", [
    (None, [], ["what was written last is there"]),
    (None, [fault("loss", 0.5, 1.5)], []),
])
def test_what_is_lost_is_found(value, faults, found):
    assert claims([], faults, states={KEY: [(1.0, 1)]}) == found


@pytest.mark.parametrize("rows, final, found", [
    ([change(1.0, 2, "a"), change(2.0, 2, "b")], entry(2, "b"),
     ["versions do not go backward", "no two changes have one version"]),
    ([change(1.0, 2, "a", took=1.0), change(1.5, 2, "b")], entry(2, "a"), ["no two changes have one version"]),
    ([change(1.0, 2, "a"), call("read version", 2.0, 1)], entry(2, "a"), ["versions do not go backward"]),
    ([change(1.0, 2, "a")], entry(2, "b"), ["what was changed last is there"]),
    ([change(1.0, 2, "a")], entry(1, "b"), ["versions do not go backward"]),
])
def test_changes_that_are_lost_are_found_unless_a_failover_excuses_them(rows, final, found):
    assert claims(rows, contents={KEY: final}) == found
    assert claims(rows, [fault("loss", 0.5, 7.0)], {KEY: final}) == []


@pytest.mark.parametrize("grants, found", [
    ([grant(1.0, 1, 2.0), grant(2.0, 2, 3.0)], []),
    ([grant(1.0, 1, 2.5), grant(2.0, 2, 3.0)], ["no two callers own one lock"]),
    ([grant(1.0, 2, 1.5), grant(2.0, 1, 2.5)], ["fences grow"]),
])
def test_holders_of_a_lock_are_judged(grants, found):
    assert claims(grants=grants) == found
    assert claims(grants=grants, faults=[fault("loss", 0.5, 3.0)]) == []


def test_a_holder_that_does_not_learn_that_its_lock_is_lost_is_found():
    grants = [grant(1.0, 1, 9.0), grant(2.0, 2, 3.0)]

    found = claims(grants=grants, faults=[fault("loss", 0.5, 9.0)])

    assert found == ["no two callers own one lock"]


@pytest.mark.parametrize("count, faults, found", [
    (2, [], []),
    (3, [], ["a counter is exact"]),
    (1, [], ["a counter is exact"]),
    (1, [fault("loss", 1.5, 2.5)], []),
    (3, [fault("loss", 1.5, 2.5)], ["a counter is exact"]),
])
def test_counters_are_judged(count, faults, found):
    counted = {"ns/lists/metrics": [b"n", str(count).encode()]}

    assert claims(faults=faults, contents=counted, added={"n": [1.0, 5.0]} if not faults else {"n": [1.9, 9.0]}) == found


@pytest.mark.parametrize("rows, found", [
    ([call("enqueue", 1.0, True, id="q"), call("dequeue", 2.0, "q")], []),
    ([call("enqueue", 1.0, True, id="q")], ["what was put into the queue is there"]),
    ([call("dequeue", 2.0, "q"), call("dequeue", 3.0, "q")], ["what is taken from the queue is taken once"]),
])
def test_the_queue_is_judged(rows, found):
    assert claims(rows) == found
    assert claims(rows, [fault("loss", 0.5, 3.0)]) == []


def test_subscribers_are_judged():
    behind = SimpleNamespace(received=[(1.0, KEY, 2)], values={KEY: 1})
    backward = SimpleNamespace(received=[(1.0, KEY, 2), (2.0, KEY, 1)], values={KEY: 2})
    there = {"contents": {KEY: entry(2, 2)}, "wrote": {KEY: 1.0}}

    assert claims(mirrors=[behind], **there) == ["a subscriber ends at what is there"]
    assert claims(mirrors=[behind], faults=[fault("missed", 0.5, 1.5)], **there) == []
    assert claims(mirrors=[backward], **there) == ["a subscriber receives no earlier version"]


def begin(pid, at, **facts):
    return {"what": "begin", "name": "jobs.again", "id": "t", "pid": pid, "at": at, "redelivered": False, **facts}


@pytest.mark.parametrize("notes, killed, found", [
    ([begin(1, 1.0), begin(2, 9.0)], {1: Kill(5.0, with_main=True)}, []),
    ([begin(1, 1.0), begin(2, 9.0)], {}, ["no task of a living worker is run again"]),
    ([begin(1, 1.0), begin(2, 9.0, redelivered=True)], {}, []),
    ([begin(1, 1.0)], {1: Kill(5.0, with_main=True)}, ["a task of a lost worker is run again"]),
])
def test_tasks_that_are_sent_again_are_judged(notes, killed, found):
    ledger = Ledger(
        SimpleNamespace(namespace="ns"), SimpleNamespace(faults=[], lists="", missed="", raw=None))

    assert [wrong.claim for wrong in ledger.tasks([], notes, killed, "ns")] == found


def test_what_is_wrong_with_a_task_is_excused_by_a_fault_at_that_time_only():
    wrong = [Wrong("a task is recorded as it ran", "t", ())]
    for faults, left in (([], wrong), ([fault("loss", 1.0, 2.0)], []), ([fault("loss", 20.0, 21.0)], wrong)):
        ledger = Ledger(
            SimpleNamespace(namespace="ns"),
            SimpleNamespace(faults=faults, lists="", missed="", raw=None))

        assert ledger.tasks(wrong, [begin(1, 1.0)], {}, "ns") == left
