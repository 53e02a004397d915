"""The tree of a workflow: its shape is the same before and after its tasks are sent."""
from __future__ import annotations

import pytest
from celery import chain, chord, group

from tests.support.fleet import TASKS
from tests.support.flows import FLOWS, sig
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(flow_fleet):
    return flow_fleet


def shape(node):
    """Return the shape of a tree: the short name of a task, or the kind of a node with its parts."""
    if node.kind == "task" and not node.children:
        return node.name.rpartition(".")[2]
    parts = [shape(child) for child in node.children]
    return {node.kind: sorted(parts, key=str) if node.kind == "group" else parts}


#: Workflows: how each is made, and its shape.
SHAPES = {
    "chain": (lambda s: chain(s("ok"), s("retried"), s("ok")), {"chain": ["ok", "retried", "ok"]}),
    "group": (lambda s: group(s("ok"), s("retried")), {"group": ["ok", "retried"]}),
    "chord": (lambda s: chord([s("ok"), s("retried")], s("ok")), {"chord": [{"group": ["ok", "retried"]}, "ok"]}),
    "chain with a chord": (
        lambda s: chain(s("ok"), group(s("ok"), s("retried")), s("ok"), s("ok")),
        {"chain": ["ok", {"chord": [{"group": ["ok", "retried"]}, "ok"]}, "ok"]}),
    "chain that ends in a group": (
        lambda s: chain(s("ok"), group(s("ok"), s("retried"))), {"chain": ["ok", {"group": ["ok", "retried"]}]}),
    "group of chains": (
        lambda s: group(chain(s("ok"), s("retried")), chain(s("bad"), s("ok"))),
        {"group": [{"chain": ["bad", "ok"]}, {"chain": ["ok", "retried"]}]}),
    "group of chords": (
        lambda s: group(chord([s("ok"), s("retried")], s("ok")), s("ok")),
        {"group": ["ok", {"chord": [{"group": ["ok", "retried"]}, "ok"]}]}),
    "chord of chains": (
        lambda s: chord([chain(s("retried"), s("ok")), s("ok")], chain(s("ok"), s("ok"))),
        {"chain": [{"chord": [{"group": ["ok", {"chain": ["retried", "ok"]}]}, "ok"]}, "ok"]}),
    "chord with a group": (
        lambda s: chord([s("ok"), s("retried")], group(s("ok"), s("ok"))),
        {"chain": [{"group": ["ok", "retried"]}, {"group": ["ok", "ok"]}]}),
    "chains in a chord in a chain": (
        lambda s: chain(s("ok"), group(chain(s("ok"), s("retried")), chain(s("ok"), s("ok"))), s("ok")),
        {"chain": ["ok", {"chord": [{"group": [{"chain": ["ok", "ok"]}, {"chain": ["ok", "retried"]}]}, "ok"]}]}),
}


@pytest.mark.parametrize("make, expected", SHAPES.values(), ids=list(SHAPES))
def test_tree_has_the_same_shape_from_the_first_message_to_the_end(fleet, make, expected):
    result = make(lambda *args: sig(fleet, *args)).apply_async()
    fleet.app.memsync.force_sync()

    begun = fleet.reader.get_workflow(result.id)
    ended = eventually(lambda: (one := fleet.reader.get_workflow(result.id)).progress == 100 and one, 20)

    assert shape(begun.root) == expected
    assert shape(ended.root) == expected
    assert ended.eta == 0
    assert ended.status == ("FAILURE" if "bad" in str(expected) else "SUCCESS")


def test_tree_is_found_by_any_of_its_ids(fleet):
    result = chain(sig(fleet, "ok"), group(sig(fleet, "ok"), sig(fleet, "ok")), sig(fleet, "ok")).apply_async()
    fleet.wait(result, "SUCCESS")
    tree = fleet.reader.get_workflow(result.id)
    ids = [node.id for node in tree.root.walk()]

    found = {fleet.reader.get_workflow(node_id).id for node_id in ids}

    assert found == {result.parent.parent.id}
    assert tree.id == result.parent.parent.id


def test_tree_shows_progress_of_what_runs(fleet):
    result = chain(sig(fleet, "ok"), sig(fleet, "wait"), sig(fleet, "ok")).apply_async()
    fleet.app.memsync.force_sync()
    running = result.parent
    eventually(lambda: (fleet.reader.get_task_progress(running.id) or {}).get("progress"))

    found = eventually(lambda: (one := fleet.reader.get_workflow(result.id)).find(running.id).progress and one)
    running.revoke(terminate=True)
    ended = eventually(lambda: (one := fleet.reader.get_workflow(result.id)).progress == 100 and one)

    assert 0 < found.progress < 100
    assert found.eta > 0
    assert found.status == "STARTED"
    assert [node.status for node in ended.root.children] == ["SUCCESS", "REVOKED", "CANCELLED"]
    assert ended.status == "REVOKED"


def test_tree_shows_what_a_task_has_sent_while_it_ran(fleet):
    result = chain(sig(fleet, "spawning"), sig(fleet, "ok")).apply_async()

    fleet.wait(result, "SUCCESS")
    tree = eventually(lambda: (one := fleet.reader.get_workflow(result.id)).progress == 100
                      and len(list(one.root.walk())) == 7 and one)

    first, last = tree.root.children
    assert shape(last) == "ok"
    assert sorted(map(shape, first.children), key=str) == ["ok", {"group": ["ok", "ok"]}]


def test_tree_shows_callbacks(fleet):
    links = {"link": sig(fleet, "ok"), "link_error": sig(fleet, "note_failure")}
    good, bad = (sig(fleet, name).apply_async(**links) for name in ("ok", "bad"))

    eventually(lambda: (one := fleet.reader.get_workflow(good.id)) and shape(one.root) == {"task": ["ok"]})
    eventually(lambda: (one := fleet.reader.get_workflow(bad.id)) and
               shape(one.root) == {"task": [{"group": ["note_failure"]}]})


def test_single_task_is_a_workflow_of_its_own(fleet):
    result = sig(fleet, "ok").apply_async()
    fleet.wait(result, "SUCCESS")

    found = fleet.reader.get_workflow(result.id)

    assert (found.id, found.root.kind, found.progress) == (result.id, "task", 100)


def test_workflow_of_an_unknown_id_is_none(fleet):
    assert fleet.reader.get_workflow("nothing") is None


#: Workflows whose groups Celery names only when it sends them, or counts elsewhere, and their shape at the end.
NESTED = {
    "group with a chord behind a task": (
        lambda s: chain(s("ok"), group(s("ok"), chord([s("ok"), s("ok")], s("ok")))),
        {"chain": ["ok", {"group": ["ok", {"chord": [{"group": ["ok", "ok"]}, "ok"]}]}]}),
    "group with a chain and a chord of one behind a task": (
        lambda s: chain(s("ok"), group(s("retried"), chain(s("ok"), s("ok")), chord([s("ok")], s("ok")))),
        {"chain": ["ok", {"group": ["retried", {"chain": ["ok", "ok"]}, {"chord": [{"group": ["ok"]}, "ok"]}]}]}),
    "chord with a group in a chord": (
        lambda s: chord([chord([s("ok"), s("ok")], group(s("ok"), s("retried"))), s("ok")], s("ok")),
        {"chord": [{"group": ["ok", {"chain": [{"group": ["ok", "ok"]}, {"group": ["ok", "retried"]}]}]}, "ok"]}),
    "chord as the body of a chord in a chain": (
        lambda s: chain(s("ok"), chord([s("ok"), s("ok")], chord([s("ok"), s("retried")], s("ok"))), s("ok")),
        {"chain": ["ok", {"group": ["ok", "ok"]}, {"chord": [{"group": ["ok", "retried"]}, "ok"]}, "ok"]}),
    "chords in a chord with a group": (
        lambda s: chord([chain(s("ok"), chord([s("ok"), s("ok")], group(s("ok"), s("ok")))), s("ok"),
                         chord([s("ok"), s("ok")], s("ok"))], group(s("ok"), s("ok"))),
        {"chain": [
            {"group": ["ok", {"chain": ["ok", {"group": ["ok", "ok"]}, {"group": ["ok", "ok"]}]},
                       {"chord": [{"group": ["ok", "ok"]}, "ok"]}]},
            {"group": ["ok", "ok"]}]}),
}


def assert_ends_as(fleet, make, expected):
    """Fail unless the tree of a workflow gets this shape, and the counts of all its groups are complete."""
    result = make(lambda *args: sig(fleet, *args)).apply_async()
    fleet.app.memsync.force_sync()

    def ended():
        tree = fleet.reader.get_workflow(result.id)
        groups = [node.group for node in tree.root.walk() if node.group is not None]
        return (tree.status == "SUCCESS" and shape(tree.root) == expected
                and all(one.total == one.done == one.succeeded > 0 for one in groups))

    assert eventually(ended, 20)


@pytest.mark.parametrize("make, expected", NESTED.values(), ids=list(NESTED))
def test_groups_in_groups_are_counted_to_their_end_and_leave_nothing_behind(fleet, make, expected):
    assert_ends_as(fleet, make, expected)


@pytest.mark.acceptance
def test_chords_are_the_same_with_a_result_backend_that_does_not_count(make_fleet, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    fleet = make_fleet(include=[TASKS, FLOWS], result_backend=f"file://{results}")
    fleet.start_worker("-c", "2")
    flows = {**SHAPES, **NESTED}

    for name in [name for name in flows if "chord" in name]:
        assert_ends_as(fleet, *flows[name])
