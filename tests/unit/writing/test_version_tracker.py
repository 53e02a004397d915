"""What a process has seen of entries is bounded, and what was forgotten costs a question and nothing else."""
from __future__ import annotations

import threading

import pytest

from celery_memsync.keys import STAGE, STATE, Location
from celery_memsync.models.entry import UNWRITTEN, EntryVersion
from celery_memsync.writing import version_tracker
from celery_memsync.writing.version_tracker import MergeBase, VersionTracker


def location(name):
    return Location(f"k/{name}", 1, "", f"p/{name}")


def base(size=10, until=1e12):
    return MergeBase(EntryVersion(5, 1), {"x": b"1" * size}, until, 0.0)


def test_the_last_that_was_seen_is_known():
    known = VersionTracker()
    known.note(location("a"), EntryVersion(1, 1))
    known.note(location("a"), EntryVersion(2, 2))

    assert known.stamp(location("a")) == EntryVersion(2, 2)
    assert known.stamp(location("b")) == UNWRITTEN


def test_what_was_not_seen_for_the_longest_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(version_tracker, "MAX_SEEN", 2)
    monkeypatch.setattr(version_tracker, "MAX_BASES", 2)
    known = VersionTracker()
    for name in "abac":
        known.note(location(name), EntryVersion(1, 1))
        known.note_base(location(name), base())

    assert [known.stamp(location(name)) for name in "abc"] == [EntryVersion(1, 1), UNWRITTEN, EntryVersion(1, 1)]
    assert [known.base(location(name)).stamp for name in "abc"] == [EntryVersion(5, 1), UNWRITTEN, EntryVersion(5, 1)]


def test_fields_have_a_bound_in_bytes(monkeypatch):
    monkeypatch.setattr(version_tracker, "MAX_BYTES", 100)
    known = VersionTracker()
    for number in range(10):
        known.note_base(location(number), base(40))

    assert [number for number in range(10) if known.base(location(number)).body] == [8, 9]
    known.note_base(location("too large"), base(101))
    assert not known._bases
    assert known._size == 0


def test_fields_whose_time_is_over_are_none():
    known = VersionTracker()
    known.note_base(location("a"), base(until=0.0))

    assert known.base(location("a")).fields == {}
    assert known.base(location("a")).stamp == EntryVersion(5, 1)


def test_what_is_forgotten_is_unknown():
    known = VersionTracker()
    known.note(location("a"), EntryVersion(1, 1))
    known.note_base(location("a"), base())
    known.forget_base(location("a"))
    assert (known.stamp(location("a")), known.base(location("a")).stamp) == (EntryVersion(1, 1), UNWRITTEN)

    known.forget(location("a"))

    assert known.stamp(location("a")) == UNWRITTEN
    assert known._size == 0


def test_stage_of_celery_is_not_taken_for_a_state_of_users():
    known, path = VersionTracker(), "ns/tasks/t1/state"
    location = Location("ns/tasks/{t1}/", STATE, "", path, "t1")
    known.note(location, EntryVersion(1, 1))

    known.note(location._replace(slot=STAGE), EntryVersion(2, 2))

    assert known.stamp(location) == EntryVersion(1, 1)


def test_threads_that_note_what_they_read_do_not_disturb_the_writer(monkeypatch):
    monkeypatch.setattr(version_tracker, "MAX_SEEN", 5)
    monkeypatch.setattr(version_tracker, "MAX_BASES", 5)
    known, errors = VersionTracker(), []

    def work(number, is_writer=False):
        try:
            for at in range(3000):
                name = location((number * at) % 7)
                known.note(name, EntryVersion(at, at))
                assert known.stamp(name) == UNWRITTEN or known.stamp(name).version <= 3000
                if is_writer:
                    known.note_base(name, base())
                    known.forget(location(at % 7))
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number, number == 1)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(known._stamps) <= 5 + 3
    assert known._size == sum(one.size for one in known._bases.values())


@pytest.mark.parametrize("bound", ["MAX_SEEN", "MAX_BASES", "MAX_BYTES"])
def test_states_of_which_nothing_is_remembered_are_merged_all_the_same(memsync, other, monkeypatch, bound):
    monkeypatch.setattr(version_tracker, bound, 0)
    for number in range(3):
        for name in ("t1", "t2", "t3"):
            memsync.sync_task_state(name, {f"x{number}": number})
        memsync.force_sync()

    assert [other.get_task_state(name) for name in ("t1", "t2", "t3")] == [{"x0": 0, "x1": 1, "x2": 2}] * 3
    assert memsync.get_metrics()["conflicts"] == 0
