"""What a user gets for input that can't be used: an error at once, in the caller, and nothing is queued."""
from __future__ import annotations

import pytest

from celery_memsync import InvalidKey, InvalidValue, ValueTooLarge

SECRET = "hunter2-geheim"


def own_list():
    items = []
    items.append(items)
    return items


def own_dict():
    items = {}
    items["self"] = {"again": items}
    return items


def deep(levels=100_000):
    items = []
    for _ in range(levels):
        items = [items]
    return items


BAD_IDS = [
    ("", "empty"),
    (None, "NoneType"),
    (5, "int"),
    (b"t1", "bytes"),
    ("a/b", "'/'"),
    ("/", "'/'"),
    ("a*", "glob"),
    ("a?", "glob"),
    ("[a]", "glob"),
    ("a\\b", "glob"),
    ("a\nb", "control"),
    ("a\x00", "control"),
    ("a\x7f", "control"),
    ("a\x85b", "control"),
    ("a\u2028b", "control"),
    ("a" * 513, "513 bytes"),
    ("\u00e9" * 257, "514 bytes"),
    ("\ud800", "Unicode"),
]

CALLS_WITH_AN_ID = [
    lambda memsync, bad: memsync.sync_task_state(bad, {}),
    lambda memsync, bad: memsync.sync_task_progress(bad, 1),
    lambda memsync, bad: memsync.get_task_state(bad),
    lambda memsync, bad: memsync.get_task_progress(bad),
    lambda memsync, bad: memsync.get_task(bad),
    lambda memsync, bad: memsync.get_task_agents(bad),
    lambda memsync, bad: memsync.sync_agent_coordination(bad, "a", {}),
    lambda memsync, bad: memsync.sync_agent_coordination("t", bad, {}),
    lambda memsync, bad: memsync.get_agent_coordination("t", bad),
    lambda memsync, bad: memsync.sync_worker_status(bad, "up"),
    lambda memsync, bad: memsync.sync_worker_capacity(bad, 1),
    lambda memsync, bad: memsync.get_worker_status(bad),
    lambda memsync, bad: memsync.get_worker_capacity(bad),
]

BAD_KEYS = [
    ("", "empty"),
    ("task-sentinel/", "empty"),
    (None, "NoneType"),
    (("a", "b"), "tuple"),
    ("/a", "empty part"),
    ("a//b", "empty part"),
    ("a/", "empty part"),
    ("a*", "glob"),
    ("a/\t", "control"),
    ("a" * 513, "512"),
    ("/".join("a" * 500 for _ in range(5)), "bytes"),
    ("\udfff", "Unicode"),
]

CALLS_WITH_A_KEY = [
    lambda memsync, bad: memsync.write(bad, 1),
    lambda memsync, bad: memsync.write(bad, 1, expected_version=0),
    lambda memsync, bad: memsync.delete(bad),
    lambda memsync, bad: memsync.read(bad),
    lambda memsync, bad: memsync.read_entry(bad),
    lambda memsync, bad: memsync.read_many(["fine", bad]),
]

BAD_VALUES = [
    (set(), "set"),
    (object(), "object"),
    (float("nan"), "NaN"),
    (float("inf"), "infinit"),
    ([{"a": float("-inf")}], "infinit"),
    ({1: 2}, "key of type int"),
    ({None: 2}, "key of type NoneType"),
    ([{"a": {("x",): 1}}], "key of type tuple"),
    (own_list(), "contains itself"),
    (own_dict(), "contains itself"),
    (deep(), "deep"),
    ({"__type__": "datetime", "__value__": "x"}, "__type__"),
    ([{"__value__": 1, "__type__": 2}], "__type__"),
    (lambda: 1, "function"),
    (iter([1]), "iterator"),
    (1j, "complex"),
    (10 ** 5000, "JSON"),
    (ValueError(SECRET), "ValueError"),
]

CALLS_WITH_A_VALUE = [
    lambda memsync, bad: memsync.write("a", bad),
    lambda memsync, bad: memsync.write("a", bad, expected_version=0),
    lambda memsync, bad: memsync.sync_task_state("t1", {"fine": 1, "bad": bad}),
    lambda memsync, bad: memsync.sync_agent_coordination("t1", "a1", bad),
    lambda memsync, bad: memsync.sync_worker_status("w1", bad),
    lambda memsync, bad: memsync.sync_worker_capacity("w1", bad),
]

BAD_STATES = [None, [], "SUCCESS", 5, [("status", "SUCCESS")], {1: 2}, {None: 1}, {b"status": 1}, object()]

BAD_PROGRESS = [
    {"progress": -1}, {"progress": -0.001}, {"progress": 101}, {"progress": 100.001}, {"progress": "50"},
    {"progress": True}, {"progress": float("nan")}, {"progress": float("inf")}, {"progress": [1]}, {"progress": 1j},
    {"progress": None, "current": -1, "total": 5}, {"progress": None, "current": "3", "total": 5},
    {"progress": None, "current": 3, "total": "5"}, {"progress": None, "current": 3, "total": -5},
    {"progress": None, "current": float("nan"), "total": 5}, {"progress": None, "current": 10 ** 17},
    {"progress": None, "current": False}, {"progress": None, "total": -5}, {"progress": None, "total": "many"},
    {"progress": None, "total": float("nan")}, {"progress": 50, "current": "x"}, {"progress": 50, "current": -1},
    {"progress": 50, "total": set()}, {"progress": 50, "current": 1, "total": float("inf")},
    {"progress": 50, "message": 5}, {"progress": 50, "message": b"bytes"}, {"progress": 50, "status": 5},
    {"progress": 50, "message": "m" * 2_000_000}, {"progress": 50, "status": "s" * 2_000_000},
]

BAD_TTLS = [0, 10 ** 5000, -1, -0.5, "10", True, float("nan"), float("inf"), 1e11, [1], b"1"]

BAD_VERSIONS = [-1, -10 ** 5000, 1.0, "1", True, [0], float("nan")]

BAD_TIMEOUTS = [-1, 10 ** 5000, "5", True, float("nan"), float("inf"), [1]]


@pytest.mark.parametrize("bad, text", BAD_IDS)
@pytest.mark.parametrize("call", CALLS_WITH_AN_ID)
def test_a_bad_id_is_refused(memsync, call, bad, text):
    with pytest.raises(InvalidKey) as caught:
        call(memsync, bad)

    assert text in str(caught.value)
    assert len(str(caught.value)) < 300
    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("bad, text", BAD_KEYS)
@pytest.mark.parametrize("call", CALLS_WITH_A_KEY)
def test_a_bad_key_is_refused(memsync, call, bad, text):
    with pytest.raises(InvalidKey) as caught:
        call(memsync, bad)

    assert text in str(caught.value)
    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("bad, text", BAD_VALUES, ids=lambda bad: type(bad).__name__)
@pytest.mark.parametrize("call", CALLS_WITH_A_VALUE)
def test_a_value_that_would_not_come_back_is_refused(memsync, call, bad, text):
    with pytest.raises(InvalidValue) as caught:
        call(memsync, bad)

    assert text in str(caught.value)
    assert "task-sentinel/" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("call", CALLS_WITH_A_VALUE)
def test_an_oversized_value_is_refused_and_not_shown(make_memsync, call):
    memsync = make_memsync(batch_interval=60.0, max_value_size=1000)

    with pytest.raises(ValueTooLarge, match="memsync_max_value_size") as caught:
        call(memsync, SECRET * 100)

    assert "1000" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert memsync.runtime.writer.pending == 0


def test_the_fields_of_one_state_count_together(make_memsync):
    memsync = make_memsync(batch_interval=60.0, max_value_size=1000)

    with pytest.raises(ValueTooLarge):
        memsync.sync_task_state("t1", {f"field-{i}": "x" * 80 for i in range(20)})

    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("bad", BAD_STATES, ids=lambda bad: repr(bad)[:12])
def test_a_state_that_is_no_dict_of_fields_is_refused(memsync, bad):
    with pytest.raises(InvalidValue):
        memsync.sync_task_state("t1", bad)

    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("states", [
    [{"__type__": "datetime", "__value__": "x"}],
    [{"__type__": "datetime"}, {"__value__": "x"}],
])
def test_fields_that_the_encoder_reserves_never_make_a_state_unreadable(memsync, states):
    for state in states:
        try:
            memsync.sync_task_state("t1", state)
        except InvalidValue:
            assert memsync.runtime.writer.pending == 0
    memsync.force_sync()

    assert memsync.get_task_state("t1") in (None, {"__type__": "datetime"}, {"__type__": "datetime", "__value__": "x"})


@pytest.mark.parametrize("bad", BAD_PROGRESS, ids=lambda bad: repr(bad)[:60])
def test_a_progress_out_of_range_is_refused(memsync, bad):
    with pytest.raises(InvalidValue) as caught:
        memsync.sync_task_progress("t1", **bad)

    assert any(
        name in str(caught.value) for name in ("progress", "current", "total", "message", "status"))
    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("bad", BAD_PROGRESS, ids=lambda bad: repr(bad)[:60])
def test_a_refused_progress_does_not_harm_the_next_one(memsync, bad):
    with pytest.raises(InvalidValue):
        memsync.sync_task_progress("t1", **bad)
    memsync.sync_task_progress("t1", None, current=3, total=4)
    memsync.force_sync()

    assert memsync.get_task_progress("t1")["progress"] == 75


@pytest.mark.parametrize("bad", BAD_TTLS, ids=lambda bad: type(bad).__name__)
def test_a_bad_ttl_is_refused(memsync, bad):
    with pytest.raises(InvalidValue, match="ttl"):
        memsync.write("a", 1, ttl=bad)
    with pytest.raises(InvalidValue, match="ttl"):
        memsync.sync_task_state("t1", {"a": 1}, ttl=bad)

    assert memsync.runtime.writer.pending == 0


@pytest.mark.parametrize("bad", BAD_VERSIONS, ids=lambda bad: type(bad).__name__)
def test_a_bad_expected_version_is_refused(memsync, bad):
    with pytest.raises(InvalidValue, match="expected_version"):
        memsync.write("a", 1, expected_version=bad)

    assert memsync.read("a") is None


@pytest.mark.parametrize("bad", BAD_TIMEOUTS, ids=lambda bad: type(bad).__name__)
def test_a_bad_timeout_is_refused(memsync, bad):
    with pytest.raises(InvalidValue, match="timeout"):
        memsync.force_sync(timeout=bad)


@pytest.mark.parametrize("name", ["", "writes", "batch_flushed", None, 5])
def test_an_event_that_does_not_exist_is_refused_with_the_list(memsync, name):
    with pytest.raises(ValueError, match="batch-flushed"):
        memsync.on(name, print)


@pytest.mark.parametrize("handler", [None, "print", 5])
def test_a_handler_that_can_not_be_called_is_refused(memsync, handler):
    with pytest.raises(TypeError, match="callable"):
        memsync.on("write", handler)
