"""How a change is settled that lost to another process; with real processes: test_conflicts*.py."""
from __future__ import annotations

import sys

import pytest

from celery_memsync import encoding
from celery_memsync.conflicts import Resolution, Resolvers
from celery_memsync.keys import STATE, Keys
from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.models.task import TaskRun
from celery_memsync.store.clock import Clock
from celery_memsync.writing.changes import MergeFields, SetValue, StageChange
from celery_memsync.writing.conflict_settler import ConflictSettler, Dispute
from celery_memsync.writing.version_tracker import MergeBase

KEYS = Keys("ns")
RUN = "chain.0.a"


@pytest.fixture
def settle():
    """Settles a change, and the dispute about it; the resolver of all keys joins texts, lists and dicts."""
    clock = Clock()

    def both(entries):
        old, new = (entry.value for entry in entries)
        if isinstance(old, dict):
            return Resolution({name: old.get(name, "") + new.get(name, "") for name in {**old, **new}})
        return Resolution(old + new)

    def act(change, stored, before=None, resolver=both):
        if isinstance(change, MergeFields):
            change.base = MergeBase.of(stored, clock)
        settled = ConflictSettler(clock, "me", Resolvers(resolver, "ns"), 1000).settle(change, stored, before or {})
        if isinstance(settled, Dispute):
            act.disputes.append(settled)
            return settled.resolve()
        return settled

    act.clock = clock
    act.disputes = []
    return act


def stored(settle, value, run="-", ago=1.0, worker_id="other"):
    """Return what another wrote a while ago; None: it deleted it."""
    time = round((settle.clock.now() - ago) * 1000)
    body = b"" if value is None else encoding.dumps(value)
    return StoredEntry(Header(3, run, "-", 0, time, 60_000, 0, "other.1", worker_id), body)


def value(text, **more):
    return SetValue(KEYS.location("a"), b"" if text is None else encoding.dumps(text), 60.0, **more)


def fields(values, **more):
    bodies = {name: encoding.dumps(one) for name, one in values.items()}
    return MergeFields(KEYS.task_location("t1", STATE), bodies, 60.0, **more)


def test_a_value_is_settled_by_the_resolver_and_follows_what_is_stored(settle):
    settled = settle(value("mine"), stored(settle, "theirs"))

    assert encoding.decode(settled.body) == "theirsmine"
    assert settled.seen.version == 3
    assert settled.conflict["key"] == "ns/a"
    assert [entry.worker_id for entry in settled.conflict["entries"]] == ["other", "me"]


@pytest.mark.parametrize("resolver, is_quick", [
    ("last_write_wins", True), ("max_value", True), ("merge_objects", True), (lambda entries: None, False),
    ({"a": "merge_arrays", "*": lambda entries: None}, True), ({"a": lambda entries: None}, False),
])
def test_dispute_knows_whether_a_user_function_settles_it(settle, resolver, is_quick):
    settle(value("mine"), stored(settle, "theirs"), resolver=resolver)

    assert [dispute.is_quick for dispute in settle.disputes] == [is_quick]


def test_resolver_is_not_called_before_the_dispute_is_resolved(settle):
    called = []
    settler = ConflictSettler(settle.clock, "me", Resolvers(called.append, "ns"), 1000)

    dispute = settler.settle(value("mine"), stored(settle, "theirs"), {})
    before = list(called)
    dispute.resolve()

    assert (before, len(called)) == ([], 1)


def test_what_comes_to_the_same_is_not_written(settle):
    conflict = settle(value("mine"), stored(settle, "theirs"), resolver=lambda entries: Resolution("theirs", "keep"))

    assert (conflict["key"], conflict["strategy"]) == ("ns/a", "keep")


@pytest.mark.parametrize("resolver", [
    lambda entries: 1 / 0, lambda: None, lambda entries: Resolution(object()), lambda entries: Resolution("x" * 2000),
    lambda entries: sys.exit(1), lambda entries: None,
])
def test_with_a_resolver_that_fails_the_incoming_value_is_kept(settle, resolver):
    settled = settle(value("mine"), stored(settle, "theirs"), resolver=resolver)

    assert encoding.decode(settled.body) == "mine"
    assert settled.conflict["strategy"].startswith("failed: ")
    assert settled.conflict["discarded"] == ["theirs"]


def test_of_a_deletion_and_a_value_the_later_one_wins(settle):
    deletion, late = value(None), value("mine")
    early = value("mine")
    early.at -= 5.0

    assert settle(deletion, stored(settle, "theirs")) is deletion
    assert settle(late, stored(settle, None)) is late
    assert settle(early, stored(settle, None))["discarded"] == ["mine"]
    assert deletion.conflict["discarded"] == ["theirs"]
    assert late.conflict is None


def test_fields_that_only_one_has_changed_are_no_conflict(settle):
    change = fields({"mine": "a", "same": "b"})

    assert settle(change, stored(settle, {"theirs": "c", "same": "b"})) is change


def test_fields_that_both_have_changed_are_settled_by_the_resolver(settle):
    settled = settle(fields({"x": "mine", "y": "only"}), stored(settle, {"x": "theirs"}))

    assert {name: encoding.decode(body) for name, body in settled.fields.items()} == {"x": "theirsmine", "y": "only"}
    assert settled.late


@pytest.mark.parametrize("worker_id", ["a", "z"])
def test_where_the_last_write_wins_a_field_that_arrives_later_does(settle, worker_id):
    theirs = stored(settle, {"x": "theirs"}, ago=-1.0, worker_id=worker_id)

    settled = settle(fields({"x": "mine"}), theirs, resolver="last_write_wins")

    assert settled.fields == {"x": b'"mine"'}
    assert settled.conflict["discarded"] == [{"x": "theirs"}]


def test_what_the_writer_had_seen_is_no_conflict(settle):
    change = fields({"x": "mine"})

    assert settle(change, stored(settle, {"x": "theirs"}), before={"x": b'"theirs"'}) is change


def test_fields_are_resolved_to_a_dict_or_not_at_all(settle):
    settled = settle(fields({"x": "mine"}), stored(settle, {"x": "theirs"}), resolver=lambda entries: Resolution(["x"]))

    assert settled.fields == {"x": b'"mine"'}
    assert settled.conflict["strategy"] == "failed: TypeError"


def test_a_status_of_another_rank_is_no_conflict(settle):
    change = fields({"status": "SUCCESS"})

    assert settle(change, stored(settle, {"status": "STARTED"})) is change


def test_the_stage_of_a_run_is_settled_by_no_resolver(settle):
    change = StageChange(KEYS.task_location("t1", 1), TaskRun("STARTED"), RUN, 60.0)

    assert settle(change, stored(settle, ["STARTED"], run=RUN)) is change
