"""Pending changes: nothing is lost, wherever a thread is interrupted."""
from __future__ import annotations

import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_memsync.keys import PROGRESS, STATE, Keys
from celery_memsync.writing import pending as pending_module
from celery_memsync.writing import progress as progress_module
from celery_memsync.writing.changes import DeferredChange, MergeFields, SetValue
from celery_memsync.writing.pending import REFUSED_PAUSE, PendingChanges
from celery_memsync.writing.progress import Progress
from tests.support.strikes import strike

KEYS = Keys("ns")
FAR = 1e12


def fields(name, **values):
    bodies = {field: str(value).encode() for field, value in values.items()}
    return MergeFields(KEYS.task_location(name, STATE), bodies, 60.0)


def value(name, number):
    return SetValue(KEYS.location(name), str(number).encode(), 60.0)


class DeferredField(DeferredChange):
    """A deferred change of one field of a state."""

    __slots__ = ("change", "done_by_now")

    def __init__(self, change, at=0.0, done=False):
        super().__init__(at)
        self.change, self.done_by_now = change, done

    @property
    def key(self):
        return self.change.location.key

    @property
    def done(self):
        return self.done_by_now

    def changes(self):
        return [self.change]


class Stored(dict):
    """What Redis would have: by key the fields, and each value that a field had, in order."""

    def take(self, change):
        history = self.setdefault(change.location.key, {})
        for field, body in change.fields.items():
            history.setdefault(field, []).append(int(body))


# -- in one thread

#: What is done, with an entry or a choice.
STEPS = st.tuples(
    st.sampled_from(["put", "put", "put", "defer", "drain", "count", "send", "refuse", "hold", "fail", "release"]),
    st.integers(0, 2))


@settings(deadline=None, max_examples=300)
@given(st.lists(STEPS, max_size=40), st.integers(1, 6))
def test_no_order_of_steps_loses_or_swaps_anything(steps, inbox_size):
    pending, stored, written, held = PendingChanges(100, inbox_size), Stored(), {}, []
    for number, (step, entry) in enumerate(steps):
        if step in ("put", "defer"):
            change = fields(f"t{entry}", **{f"f{number % 2}": number})
            if step == "defer":
                pending.defer(DeferredField(change))
                pending.drain(FAR)  # between a deferred change and one that is not there is no order
            else:
                pending.put(change.location.key, change)
            written.setdefault(change.location.key, {})[f"f{number % 2}"] = number
        elif step == "drain":
            pending.drain(FAR)
        elif step == "count":
            assert (len(pending) == 0) is (not unstored(stored, written))
        elif step == "release" and held:
            change = held.pop()
            pending.settle(change, change)
        else:
            send(pending, stored, held, step, entry)
        assert all(pending.has(key) for key in unstored(stored, written))

    for change in held:
        pending.settle(change, change)
    send(pending, stored, held, "send", 0)

    last = {key: {field: row[-1] for field, row in rows.items()} for key, rows in stored.items()}
    assert last == written
    assert all(row == sorted(row) for history in stored.values() for row in history.values())
    assert len(pending) == 0
    pending.end_batch()
    assert not pending.has(*written)


def unstored(stored, written):
    """Return the keys of which something that was written is not stored."""
    return [
        key for key, row in written.items()
        if any(stored.get(key, {}).get(field, [None])[-1] != number for field, number in row.items())]


def send(pending, stored, held, step, entry):
    """Send what is due, as the writer does; one of the entries does not get through."""
    pending.drain(FAR)
    stuck = KEYS.task_location(f"t{entry}", STATE)
    for change in pending.due(time.monotonic(), everything=True):
        if step == "send" or change.location != stuck:
            stored.take(change)
            pending.settle(change)
        elif step == "refuse":
            pending.refuse(change)
        elif step == "hold" and all(one.location != stuck for one in held):
            pending.hold(change)
            held.append(change)
    pending.end_batch()


def test_a_change_that_is_under_way_is_not_joined_with_a_newer_one():
    pending = PendingChanges(100)
    pending.put("k", fields("t", x=1))
    pending.drain(FAR)
    (sent,) = pending.due(FAR)
    newer = fields("t", y=1)

    pending.put("k", newer)
    pending.put("k", fields("t", z=1))
    pending.empty_inbox()
    pending.settle(sent)

    assert [change.fields for change in pending.due(FAR)] == [{"y": b"1", "z": b"1"}]


def test_what_did_not_get_through_is_joined_with_what_came_meanwhile():
    pending = PendingChanges(100)
    for number in range(10):
        pending.put("k", value("a", number))
        pending.drain(FAR)
        pending.due(FAR)
        pending.put("k", value("a", number + 0.5))
        pending.empty_inbox()
        assert len(pending) == 2
        pending.end_batch()

    assert len(pending) == 1
    assert [change.body for change in pending.due(FAR)] == [b"9.5"]


def test_what_is_refused_is_tried_after_a_pause_that_grows_but_by_force_at_once():
    pending, pauses = PendingChanges(100), []
    pending.put("k", value("a", 1))
    pending.put("l", value("b", 1))
    pending.drain(FAR)

    for _ in range(7):
        refused = min(pending.due(FAR), key=lambda change: change.location.path)
        now = time.monotonic()
        pending.refuse(refused)
        assert [change.location.path for change in pending.due(now + REFUSED_PAUSE / 2)] == ["ns/b"]
        assert len(pending.due(now, everything=True)) == 2
        pauses.append(round(pending._row_of(refused).retry_at - now))

    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert [location.path for location in pending.end_batch()] == ["ns/a"]


def test_young_deferred_changes_are_left_unless_they_are_done():
    pending = PendingChanges(100)
    for name, at, done in (("old", 1.0, False), ("young", 3.0, False), ("done", 3.0, True)):
        change = fields(name, x=1)
        pending.defer(DeferredField(change, at, done))

    pending.drain(2.0)

    assert {change.location.task_id for change in pending.due(FAR)} == {"old", "done"}
    assert pending.deferred
    assert pending.has(KEYS.task("young"))


def test_the_oldest_deferred_changes_are_dropped():
    pending = PendingChanges(3)
    for number in range(5):
        pending.defer(DeferredField(fields(f"t{number}", x=1)))

    for _ in range(2):
        pending.drop_deferred()
    pending.drain(FAR)

    assert [change.location.task_id for change in pending.due(FAR)] == ["t2", "t3", "t4"]
    assert pending.dropped == 2
    assert not pending.has(KEYS.task("t1"))


# -- in several threads

@settings(deadline=None, max_examples=15)
@given(st.integers(1, 50), st.integers(1, 4), st.booleans(), st.booleans())
def test_whatever_threads_do_at_once_no_change_is_lost(inbox_size, entries, counting, deferring):
    pending, stored, written, unseen = PendingChanges(1000, inbox_size), Stored(), {}, []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def write(name):
        for number in range(150):
            change = fields(f"t{number % entries}", **{name: number})
            key = change.location.key
            if deferring:
                pending.defer(DeferredField(change))
            else:
                pending.put(key, change)
            written.setdefault(key, {})[name] = number
            # What is stored is noted before it is settled.
            if not pending.has(key) and number not in stored.get(key, {}).get(name, []):
                unseen.append((key, name, number))
            if counting:
                len(pending)

    threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            send(pending, stored, [], "send", 0)
        send(pending, stored, [], "send", 0)
    finally:
        sys.setswitchinterval(before)

    assert unseen == []
    last = {key: {field: row[-1] for field, row in rows.items()} for key, rows in stored.items()}
    assert last == written
    assert all(row == sorted(set(row)) for history in stored.values() for row in history.values())


# -- interrupted at any bytecode

def is_free(mutex):
    """Whether another thread gets a mutex."""
    got = []

    def take():
        if mutex.acquire(timeout=0.05):
            got.append(1)
            mutex.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(got)


ACTS = {
    "put": lambda pending: pending.put(KEYS.task("t3"), fields("t3", x=3)),
    "put into a full inbox": lambda pending: (
        setattr(pending, "inbox_size", 1), pending.put(KEYS.task("t3"), fields("t3", x=3))),
    "defer": lambda pending: pending.defer(DeferredField(fields("t3", x=3))),
    "count": len,
}


def filled():
    pending = PendingChanges(100)
    for number in range(2):
        pending.put(KEYS.task("t1"), fields("t1", x=number))
    pending.defer(DeferredField(fields("t2", x=1)))
    pending.empty_inbox()
    for number in range(2, 4):
        pending.put(KEYS.task("t1"), fields("t1", x=number))
    pending.put(KEYS.task("t2"), fields("t2", y=1))
    pending.defer(DeferredField(fields("t4", x=1)))
    return pending


@pytest.mark.skipif(sys.version_info < (3, 11), reason="where signals are handled differs")
@pytest.mark.parametrize("name", ACTS)
def test_an_exception_at_any_bytecode_loses_nothing_and_leaves_nothing_locked(name):
    act = ACTS[name]
    number = strike(lambda: act(filled()), None, pending_module)
    wrong = []

    for at in range(1, number + 1):
        pending = filled()
        strike(lambda: act(pending), at, pending_module)
        if not is_free(pending._mutex):
            wrong.append((at, "locked"))
            continue
        keys = [KEYS.task(name) for name in ("t1", "t2", "t4") if not pending.has(KEYS.task(name))]
        stored = Stored()
        send(pending, stored, [], "send", 0)
        last = {key: {field: row[-1] for field, row in history.items()} for key, history in stored.items()}
        last.pop(KEYS.task("t3"), None)
        if keys or last != {KEYS.task("t1"): {"x": 3}, KEYS.task("t2"): {"x": 1, "y": 1}, KEYS.task("t4"): {"x": 1}}:
            wrong.append((at, keys, last))

    assert number > 10
    assert wrong == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="where signals are handled differs")
@pytest.mark.parametrize("report", [
    lambda cell: cell.report(5, 10, "five", "at it", fields={"rows": 5}), lambda cell: cell.count(5, None, "five"),
], ids=["report", "count"])
def test_a_report_that_is_interrupted_leaves_its_mutex_open_and_takes_back_nothing(report):
    def cell():
        one = Progress(KEYS.task_location("t", PROGRESS), 60.0)
        one.report(1, 10, "one")
        return one

    number = strike(lambda: report(cell()), None, progress_module)
    wrong = []
    for at in range(1, number + 1):
        one = cell()
        strike(lambda: report(one), at, progress_module)
        if not is_free(one._mutex) or one.figures[:3] not in ((None, 1, 10), (None, 5, 10)):
            wrong.append((at, one.figures))
        one.snapshot()
        if not one.report(6, 10, None) or one.figures[:3] != (None, 6, 10):
            wrong.append((at, "not reported again"))

    assert number > 10
    assert wrong == []


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_can_not_be_described_is_dropped_and_holds_up_nothing(error):
    class Spoiled(DeferredField):
        def changes(self):
            raise error

    pending = PendingChanges(100)
    pending.defer(Spoiled(fields("s", x=1)))
    pending.defer(DeferredField(fields("t", x=1)))

    pending.drain(FAR)

    assert [change.location.path for change in pending.due(FAR)] == [fields("t", x=1).location.path]
    assert (pending.dropped, pending.spoiled, pending.has(KEYS.task("s"))) == (1, 1, False)
