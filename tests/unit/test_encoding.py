"""Values as JSON: what comes back equals what was written."""
from __future__ import annotations

import datetime
import json
import pickle
import uuid
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_memsync import InvalidValue, MemSyncError, ValueTooLarge, exceptions
from celery_memsync.encoding import decode, encode, encode_fields, join_fields, split_fields

LIMIT = 10_000_000

KEPT = [
    None, True, False, 0, -1, 1.5, -0.0, 1e308, 5e-324, "", "text", [], {}, [[]], [{}], {"": ""}, {"a": None},
    12345678901234567890, -98765432109876543210, 10 ** 400, 0.1 + 0.2, "\u0000\n\t\"\\", "\U0001f40d\u00e9\u4e2d",
    "\ud800", "</script>", {"__type__": "x"}, {"__type__": 1, "__value__": 2, "more": 3},
    datetime.datetime(2024, 2, 29, 12, 30, 45, 678901), datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    datetime.date(1999, 12, 31), datetime.time(23, 59, 59, 999999), Decimal("3.14000000000000000000000001"),
    Decimal("-0"), Decimal("1E+30"), uuid.UUID(int=0), uuid.UUID(int=2 ** 128 - 1), b"", b"\x00\xff\xfe text",
    {"when": [datetime.datetime(2024, 1, 1), {"id": uuid.UUID(int=5), "cost": Decimal("0.10")}]},
]

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(10 ** 19, 10 ** 20)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.datetimes() | st.datetimes(timezones=st.just(datetime.timezone.utc)) | st.dates()
    | st.decimals(allow_nan=False, allow_infinity=False) | st.uuids()
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=20,
).filter(lambda value: not (isinstance(value, dict) and value.keys() == {"__type__", "__value__"}))
fields = st.dictionaries(st.text().filter(lambda name: name not in ("status", "__type__", "__value__")), scalars, max_size=8)


@pytest.mark.parametrize("value", KEPT, ids=lambda value: repr(value)[:40])
def test_a_value_comes_back_equal_and_of_the_same_type(value):
    back = decode(encode(value, "a", LIMIT))

    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_tuples_become_lists():
    back = decode(encode({"a": (1, (2,))}, "a", LIMIT))

    assert back == {"a": [1, [2]]}


@settings(deadline=None)
@given(json_values)
def test_any_value_comes_back_equal(value):
    back = decode(encode(value, "a", LIMIT))

    assert back == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(value=json_values)
def test_any_value_comes_back_equal_through_redis(memsync, other, value):
    memsync.write("a", value)
    memsync.sync_task_state("t1", {"field": value})
    memsync.sync_agent_coordination("t1", "a1", value)
    memsync.force_sync()

    assert other.read("a") == value
    assert other.get_task_state("t1") == {"field": value}
    assert other.get_agent_coordination("t1", "a1") == value
    assert memsync.read("a") == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(names=fields, more=fields)
def test_any_fields_are_merged_by_name(memsync, other, names, more):
    memsync.delete("tasks/t1/state")
    memsync.force_sync()

    memsync.sync_task_state("t1", names)
    memsync.force_sync()
    memsync.sync_task_state("t1", more)
    pending = memsync.get_task_state("t1")
    memsync.force_sync()

    assert pending == other.get_task_state("t1") == {**names, **more}


@pytest.mark.parametrize("value", [{"a": 1, "b": [1, {"c": 2}]}, {}, {"\u00e9\"": "\u00e9"}])
def test_fields_are_split_and_joined_without_change(value):
    fields = split_fields(encode(value, "a", LIMIT))

    assert fields.keys() == value.keys()
    assert decode(join_fields(fields)) == value


@pytest.mark.parametrize("body", [b"[1]", b"5", b"null", b'"text"'])
def test_what_is_no_object_has_no_fields(body):
    assert split_fields(body) == {}


def test_the_limit_is_the_size_as_json():
    assert encode("x" * 98, "a", 100) == b'"' + b"x" * 98 + b'"'
    with pytest.raises(ValueTooLarge) as caught:
        encode("x" * 99, "a", 100)

    assert (caught.value.size, caught.value.limit) == (101, 100)


def test_a_value_of_a_megabyte_comes_back(memsync, other):
    value = {"text": "\u00e9" * 100_000, "more": "x" * 400_000}

    memsync.write("a", value)
    memsync.sync_task_state("t1", value)
    memsync.force_sync()

    assert other.read("a") == value
    assert other.get_task_state("t1") == value


@pytest.mark.parametrize("fields", [{"a": set()}, {"a": {1: 2}}, {"a": float("nan")}])
def test_the_field_that_can_not_be_stored_is_named(fields):
    with pytest.raises(InvalidValue, match="field 'a'"):
        encode_fields(fields, "task-sentinel/tasks/t1/state", LIMIT)


def test_what_is_given_is_not_changed_and_later_changes_of_it_do_not_count(memsync):
    value = {"items": [1]}
    memsync.write("a", value)
    memsync.sync_task_state("t1", value)
    memsync.sync_agent_coordination("t1", "a1", value)

    value["items"].append(2)

    assert memsync.read("a") == memsync.get_task_state("t1") == memsync.get_agent_coordination("t1", "a1") == {"items": [1]}


# -- errors

@pytest.mark.parametrize("name, bases", [
    ("StoreUnavailable", (exceptions.StoreError,)), ("StoreRefused", (exceptions.StoreError,)),
    ("StoreError", (MemSyncError,)), ("ConflictError", (MemSyncError,)), ("LockError", (MemSyncError,)),
    ("LockNotAcquired", (exceptions.LockError,)), ("LockLost", (exceptions.LockError,)), ("NotInTask", (MemSyncError,)),
    ("InvalidKey", (MemSyncError, ValueError)), ("InvalidValue", (MemSyncError, ValueError, TypeError)),
    ("ValueTooLarge", (exceptions.InvalidValue, ValueError)),
])
def test_an_error_can_be_caught_by_its_kind(name, bases):
    assert issubclass(getattr(exceptions, name), bases[0])
    assert all(issubclass(getattr(exceptions, name), base) for base in bases)


def test_errors_carry_what_a_caller_needs():
    conflict = exceptions.ConflictError("task-sentinel/a", 7)
    large = exceptions.ValueTooLarge("task-sentinel/a", 11, 10)

    assert (conflict.key, conflict.version) == ("task-sentinel/a", 7)
    assert (large.size, large.limit) == (11, 10)
    assert "progress()" in str(exceptions.NotInTask("progress()"))


@pytest.mark.parametrize("error", [
    exceptions.StoreUnavailable("full", True, "OOM"), exceptions.StoreUnavailable("away"),
    exceptions.StoreRefused("no", "ERR"),
], ids=str)
def test_an_error_of_the_store_is_made_anew_from_its_arguments_as_json(error):
    back = type(error)(*json.loads(json.dumps(error.args)))

    assert (str(back), back.__dict__) == (str(error), error.__dict__)


@pytest.mark.parametrize("error", [
    exceptions.ConflictError("task-sentinel/a", 7), exceptions.NotInTask("progress()"),
    exceptions.InvalidKey("bad"), exceptions.InvalidValue("bad"), exceptions.ValueTooLarge("task-sentinel/a", 11, 10),
    exceptions.LockNotAcquired("held"), exceptions.LockLost("lost"),
    exceptions.StoreRefused("refused", "WRONGTYPE"), exceptions.StoreUnavailable("away", True, "OOM"),
], ids=lambda error: type(error).__name__)
def test_an_error_crosses_the_border_of_a_process(error):
    back = pickle.loads(pickle.dumps(error))

    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__
