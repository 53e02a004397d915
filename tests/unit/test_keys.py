"""Keys: how they are named, where Redis keeps them, and that two ids never meet."""
from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from celery_memsync import InvalidKey
from celery_memsync.keys import PROGRESS, STAGE, STATE, Keys, check_id

ODD_IDS = [
    "a b", " ", "a:b", "a%b", "%2F", "{a}", "}{", "}", "{}", "a}b", "{a}b", "\u00e9", "e\u0301", "\U0001f40d", "a" * 512,
    "A", "a", "..", ".", "state", "life", "progress", "tasks", "agents", "a@b", "@", "-", "'\"", "a|b", "$(a)", "\u202e",
]

keys = Keys("task-sentinel")


@pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: ascii(odd[:20]))
def test_an_odd_id_is_taken_as_it_is(odd):
    assert check_id(odd, "task") == odd


@pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: ascii(odd[:20]))
def test_an_odd_id_works(memsync, other, odd):
    memsync.sync_task_state(odd, {"id": odd})
    memsync.sync_task_progress(odd, 50, message=odd)
    memsync.sync_agent_coordination(odd, odd, {"agent": odd})
    memsync.sync_worker_status(odd, odd)
    memsync.write(odd, {"key": odd})
    memsync.force_sync()

    assert other.get_task_state(odd) == {"id": odd}
    assert other.get_task_progress(odd)["message"] == odd
    assert other.get_agent_coordination(odd, odd) == {"agent": odd}
    assert other.get_task_agents(odd) == [odd]
    assert other.get_worker_status(odd) == odd
    assert other.read(odd) == {"key": odd}
    assert [task["id"] for task in other.get_tasks()] == [odd]


def test_odd_ids_never_meet(memsync, other):
    for odd in ODD_IDS:
        memsync.sync_task_state(odd, {"id": odd})
        memsync.write(odd, odd)
        for agent in ODD_IDS:
            memsync.sync_agent_coordination(odd, agent, [odd, agent])
    memsync.force_sync()

    assert {odd: other.get_task_state(odd)["id"] for odd in ODD_IDS} == {odd: odd for odd in ODD_IDS}
    assert other.read_many(ODD_IDS) == {odd: odd for odd in ODD_IDS}
    assert all(other.get_task_agents(odd) == sorted(ODD_IDS) for odd in ODD_IDS)
    assert all(
        other.get_agent_coordination(odd, agent) == [odd, agent] for odd, agent in itertools.product(ODD_IDS[:9], ODD_IDS))


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_two_keys_never_share_a_place(one, two):
    assume(one != two)

    try:
        locations = [keys.location(one), keys.location(two)]
    except InvalidKey:
        return

    same = locations[0].path == locations[1].path
    assert same == (locations[0][:3] == locations[1][:3])
    assert not same or one.removeprefix("task-sentinel/") == two.removeprefix("task-sentinel/")


@pytest.mark.parametrize("key, full", [
    ("tasks/t1/state", "task-sentinel/tasks/t1/state"),
    ("task-sentinel/tasks/t1/state", "task-sentinel/tasks/t1/state"),
    ("a", "task-sentinel/a"),
    ("task-sentinel", "task-sentinel/task-sentinel"),
    ("task-sentinel2/a", "task-sentinel/task-sentinel2/a"),
    ("Tasks/t1", "task-sentinel/Tasks/t1"),
])
def test_the_namespace_is_put_before_a_key_unless_it_is_there(key, full):
    assert keys.full(key) == full


@pytest.mark.parametrize("key, expected", [
    ("tasks/t1/state", ("task-sentinel/tasks/{t1}/", STATE, "", "t1")),
    ("tasks/t1/progress", ("task-sentinel/tasks/{t1}/", PROGRESS, "", "t1")),
    ("tasks/t1/agents/coder", ("task-sentinel/tasks/{t1}/agents/", 0, "coder", "t1")),
    ("tasks/t1/my/own/thing", ("task-sentinel/tasks/{t1}/my/own/thing", 1, "", "")),
    ("workers/w1/status", ("task-sentinel//{workers}", 0, "w1/status", "")),
    ("tasks/t1", ("task-sentinel/tasks/t1", 1, "", "")),
    ("workers", ("task-sentinel/workers", 1, "", "")),
    ("my/own", ("task-sentinel/my/own", 1, "", "")),
])
def test_path_determines_where_an_entry_is_stored(key, expected):
    location = keys.location(key)

    assert (location.key, location.slot, location.field, location.task_id) == expected
    assert location.path == f"task-sentinel/{key}"


def test_a_path_and_a_call_by_name_mean_the_same_place():
    assert keys.location("tasks/t1/state") == keys.task_location("t1", STATE)
    assert keys.location("tasks/t1/progress") == keys.task_location("t1", PROGRESS)
    assert keys.location("tasks/t1/agents/coder") == keys.agent_location("t1", "coder")
    assert keys.location("workers/w1/heartbeat") == keys.worker_location("w1", "heartbeat")


def test_parts_of_a_state_are_published_on_one_channel():
    life, state = keys.task_location("t1", STAGE), keys.task_location("t1", STATE)

    assert life.path == state.path == "task-sentinel/tasks/t1/state"
    assert life.slot != state.slot


def test_two_namespaces_do_not_see_each_other(make_memsync):
    one = make_memsync(batch_interval=60.0, namespace="one")
    two = make_memsync(batch_interval=60.0, namespace="one/two")

    one.write("two/a", 1)
    one.sync_task_state("t1", {"x": 1})
    one.update_heartbeat()
    one.force_sync()

    assert two.get_task_state("t1") is None
    assert two.get_tasks() == []
    assert two.get_workers() == []


@pytest.mark.parametrize("own", ["tasks/t1/life", "tasks/t1/state@1", "tasks/t1/progress@0010000000000001", "tasks/{t1}"])
def test_a_key_of_the_users_own_can_not_break_what_the_signals_keep(memsync, other, own):
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 50)
    try:
        memsync.write(own, "mine")
    except InvalidKey:
        pass
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 1}
    assert other.get_task_progress("t1")["progress"] == 50
    assert other.get_task("t1")["state"] == {"x": 1}
    assert [task["id"] for task in other.get_tasks()] == ["t1"]


@pytest.mark.parametrize("key, value", [
    ("tasks/t1/state", [1, 2]), ("tasks/t1/state", "text"), ("tasks/t1/progress", 5), ("tasks/t1/progress", {"x": 1}),
    ("tasks/t1/progress", [[], {}, "a", 4, 5, "b", "c", 8, "d"]), ("workers/w1/heartbeat", "hello"),
    ("workers/w1/heartbeat", {"status": "up"}), ("workers/w1/heartbeat", {"worker_id": "w1", "queues": 5}),
    ("workers/w1/status", None), ("workers/w1/extra", 1), ("workers/w1/extra/heartbeat", 1),
])
def test_a_value_of_another_shape_does_not_make_readers_crash(memsync, other, key, value):
    memsync.sync_task_state("t2", {"x": 2})
    memsync.sync_worker_status("w2", "up")
    memsync.write(key, value)
    memsync.force_sync()

    other.get_task_state("t1")
    other.get_task_progress("t1")
    other.get_task("t1")
    other.read_entry(key)
    other.get_worker_status("w1")
    other.get_worker_capacity("w1")
    assert {"id": "t2", "state": {"x": 2}, "progress": None} in other.get_tasks()
    assert "w2" in other.get_active_workers()
