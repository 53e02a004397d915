"""The tree of a workflow from records that anybody may have written."""
from __future__ import annotations

import random
import time

import pytest

from celery_memsync.models.workflow import Group, eta_of
from celery_memsync.models.workflow_tree import KnownTask, workflow_of

NOW = 1_000_000.0


def task(status="SUCCESS", progress=None, **state):
    return KnownTask({"status": status, **state}, progress)


def group(group_id, total=2, done=0, succeeded=0, failed=0, running=0):
    return Group(group_id, total, done, succeeded, failed, running, 100 * done / total)


def tree(tasks, groups=(), members=None, whole="a"):
    return workflow_of(whole, tasks, {one.id: one for one in groups}, members or {}, NOW)


def ids(node):
    return [one.id for one in node.walk() if one.kind == "task"]


def test_steps_weigh_as_much_as_tasks_of_their_name_have_taken():
    tasks = {"a": task(name="quick", runtime=1.0), "b": task("STARTED", 50.0, name="slow", depends_on=["a"]),
             "c": task(name="slow", runtime=8.0, depends_on=["b"]), "d": task("PENDING", name="quick", depends_on=["c"])}

    assert tree(tasks).progress == pytest.approx(100 * (1 + 4 + 8) / 18, abs=0.01)


def test_steps_weigh_the_same_if_no_runtime_is_known():
    tasks = {"a": task("STARTED", 50.0), "b": task("PENDING", depends_on=["a"])}

    assert tree(tasks).progress == 25


def test_group_with_more_members_than_were_read_shows_its_counts():
    tasks = {str(number): task(group="g", workflow="g") for number in range(5)}
    found = tree(tasks, [group("g", 1000, 300, 290, 10)], {"g": list(tasks)}, "g").root

    assert (found.progress, found.status, found.omitted) == (30, "STARTED", 995)


@pytest.mark.parametrize("statuses, whole", [
    (["PENDING", "PENDING"], "PENDING"), (["SUCCESS", "PENDING"], "STARTED"), (["STARTED", "PENDING"], "STARTED"),
    (["RETRY", "PENDING"], "STARTED"), (["LOST", "CANCELLED"], "STARTED"), (["SUCCESS", "SUCCESS"], "SUCCESS"),
    (["SUCCESS", "FAILURE"], "FAILURE"), (["REVOKED", "CANCELLED"], "REVOKED"), (["IGNORED", "CANCELLED"], "IGNORED"),
])
def test_status_of_a_chain_follows_from_its_steps(statuses, whole):
    tasks = {str(number): task(status, depends_on=[str(number - 1)]) for number, status in enumerate(statuses)}

    assert tree(tasks, whole="0").status == whole


@pytest.mark.parametrize("percent, began, left", [
    (50.0, NOW - 10, 10.0), (100.0, None, 0.0), (0.0, NOW - 10, None), (50.0, None, None), (50.0, NOW + 5, None)])
def test_eta_is_known_if_something_has_ended(percent, began, left):
    assert eta_of(percent, began, NOW) == left


def test_tasks_that_depend_on_each_other_are_shown_once():
    tasks = {"a": task(depends_on=["c"]), "b": task(depends_on=["a"]), "c": task(depends_on=["b"]),
             "d": task(depends_on=["d"], parent_id="d"), "e": task(parent_id="f"), "f": task(parent_id="e")}

    assert sorted(ids(tree(tasks).root)) == ["a", "b", "c", "d", "e", "f"]


def test_groups_that_hold_each_other_are_shown_once():
    tasks = {"a": task(group="g", depends_on=["h"]), "b": task(group="h", depends_on=["g"])}

    assert sorted(ids(tree(tasks, [group("g"), group("h")], {"g": ["a"], "h": ["b"]}).root)) == ["a", "b"]


def test_long_chain_is_shown_in_a_moment():
    tasks = {str(number): task(depends_on=[str(number - 1)] if number else None) for number in range(500)}
    started = time.monotonic()

    found = tree(tasks, whole="0")

    assert sorted(ids(found.root)) == sorted(tasks)
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("odd", ["yesterday", [1], {"a": 1}, True, float("nan"), 10 ** 400, -1e300])
def test_odd_facts_of_a_task_that_runs_are_unknown(odd):
    facts = dict.fromkeys(("name", "started_at", "finished_at", "worker", "cause"), odd)

    found = tree({"a": task("STARTED", 50.0, **facts)})

    assert (found.eta, found.root.started_at, found.root.finished_at) == (None, None, None)
    assert found.root.name is None or isinstance(found.root.name, str)
    assert found.root.cause is None or isinstance(found.root.cause, dict)


def test_any_records_make_a_tree_in_which_each_task_is_once():
    order = random.Random(5)
    names = [f"t{number}" for number in range(12)]
    junk = [None, 5, 10 ** 400, [], [5], "t1", ["t1", "t2"], {"a": 1}, float("nan"), -1e300, "x"]
    fields = "depends_on parent_id group workflow runtime name started_at finished_at published_at cause".split()
    statuses = ["PENDING", "STARTED", "SUCCESS", "FAILURE", 5, None]
    started = time.monotonic()
    for _ in range(300):
        states = {name: {field: order.choice([*junk, [order.choice(names)], order.choice(names)]) for field in fields}
                  for name in names}
        tasks = {name: task(order.choice(statuses), order.choice([None, 50.0, -1.0, 1e9]), **state)
                 for name, state in states.items()}
        groups = [group(f"g{number}", 3) for number in range(3)]
        members = {one.id: order.sample(names, 4) for one in groups}

        found = tree(tasks, groups, members, order.choice([*names, "g1"]))

        assert sorted(set(ids(found.root))) == sorted(names)
        assert all(0 <= node.progress <= 100 for node in found.root.walk())
        found.as_dict()
    assert time.monotonic() - started < 30.0
