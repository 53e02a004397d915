"""Steps of a workflow, as messages and requests have them; anybody may have written these."""
from __future__ import annotations

import random
import time

import pytest

from celery_memsync.integration.steps import (
    MAX_BYTES,
    MAX_STEPS,
    Steps,
    embed_in,
    embed_of,
    has_steps,
    last_id,
    part_of,
)

#: What may stand in the place of anything else.
JUNK = (
    None, 5, True, float("nan"), "", "text", "x/y", "a\nb", b"\xff", [], [[]], [None], {}, {"a": 1}, {"options": 5},
    object())


def sig(task_id, name="proj.step", **options):
    return {"task": name, "args": [], "kwargs": {}, "options": {"task_id": task_id, **options}, "subtask_type": None}


def canvas(kind, task_id=None, **kwargs):
    return {"task": f"celery.{kind}", "kwargs": kwargs, "options": {"task_id": task_id}, "subtask_type": kind}


def steps(embed, group=None):
    """Return what each step depends on, and its group, by id."""
    return {one.task_id: (list(one.depends_on), one.group) for one in Steps("first", group, embed)}


def test_chain_is_read_from_its_end():
    assert steps({"chain": [sig("c"), sig("b")], "chord": None}) == {"b": (["first"], None), "c": (["b"], None)}


def test_body_of_a_chord_depends_on_the_group_of_its_header():
    assert steps({"chain": None, "chord": sig("body", group_id="g")}, "g") == {"body": (["g"], None)}


def test_chord_in_a_chain_has_members_and_a_body():
    header = canvas("group", "g", tasks=[sig("x", group_index=0), sig("y", group_index=1)])
    chord = canvas("chord", "g", header=header, body=sig("body"))

    assert steps({"chain": [sig("last"), chord]}) == {
        "x": (["first"], "g"), "y": (["first"], "g"), "body": (["g"], None), "last": (["body"], None)}


def test_group_of_chains_has_their_last_tasks_as_members():
    chains = canvas("group", "g", tasks=[canvas("chain", "b", tasks=[sig("a"), sig("b")]), sig("c")])

    assert steps({"chain": [chains]}) == {"a": (["first"], None), "b": (["a"], "g"), "c": (["first"], "g")}


def test_last_task_of_a_chain_in_a_header_leads_to_the_body():
    last = sig("b", group_id="g", group_index=0, chord=sig("body", group_id="g"))

    assert steps({"chain": [last]}) == {"b": (["first"], "g"), "body": (["g"], None)}


def test_name_that_is_none_is_left_out():
    found = Steps("first", None, {"chain": [sig("c", name=5), sig("b", name="x" * 600)]})

    assert [step.name for step in found] == [None, None]


def test_message_with_many_steps_is_cut():
    found = Steps("first", None, {"chain": [sig(str(number)) for number in range(10_000)]})

    assert len(found.by_id) == MAX_STEPS


def test_long_ids_and_names_are_cut():
    found = Steps("first", None, {"chain": [sig(f"{number:0500}", name="n" * 500) for number in range(40)]})
    wide = canvas("group", tasks=[sig(f"{number:0400}") for number in range(45)])
    many = Steps("first", None, {"chain": [sig("a" * 400), wide]})

    assert sum(len(step.task_id) + len(step.name) for step in found) <= MAX_BYTES
    assert sum(len(step.task_id) + sum(map(len, step.depends_on)) for step in many) <= MAX_BYTES


def test_message_that_contains_itself_is_read_in_a_moment():
    chain = canvas("chain", "a")
    chain["kwargs"]["tasks"] = [chain, chain, sig("b")]
    group = canvas("group", "g")
    group["kwargs"]["tasks"] = [group] * 1000
    deep = sig("end")
    for _ in range(5000):
        deep = canvas("chain", tasks=[deep])
    started = time.monotonic()

    for one in (chain, group, deep):
        Steps("first", None, {"chain": [one], "chord": one})

    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: type(junk).__name__)
def test_junk_in_the_place_of_anything_is_no_step(junk):
    for embed in ({"chain": junk, "chord": junk}, {"chain": [junk, sig("a")], "chord": sig("b", chain=junk, chord=junk)},
                  {"chain": [canvas("group", junk, tasks=junk), canvas("chord", junk, header=junk, body=junk)]},
                  {"chain": [{"task": junk, "options": junk, "kwargs": junk, "subtask_type": "chain"}]},
                  {"chain": [sig(junk, group_id=junk, group_index=junk)]}):
        found = Steps("first", junk, embed)
        last_id(embed)

        assert all(isinstance(step.task_id, str) for step in found)
    assert has_steps(junk) in (True, False)
    assert embed_of(junk) == embed_in(junk) == {}
    assert part_of({"workflow": junk, "depends_on": [junk], "group": junk})["workflow"] in (None, "text")


def test_random_nestings_are_read_in_a_moment():
    order = random.Random(3)

    def any_of(depth):
        kind = order.choice(["task", "chain", "group", "chord", "junk"]) if depth else "task"
        parts = [any_of(depth - 1) for _ in range(order.randrange(4))] if depth and kind != "task" else []
        own = order.choice(["a", "b", "c", None, 5, "x/y"])
        return {"task": sig(own, group_id="g", group_index=0, chord=parts[0] if parts else None), "junk": parts,
                "chain": canvas("chain", own, tasks=parts), "group": canvas("group", own, tasks=parts),
                "chord": canvas("chord", own, header=parts, body=parts[-1] if parts else 5)}[kind]

    for _ in range(500):
        found = Steps("first", "g", {"chain": [any_of(5) for _ in range(3)], "chord": any_of(5)})
        assert len(found.by_id) <= MAX_STEPS


@pytest.mark.parametrize("embed, last", [
    ({"chain": [sig(str(number)) for number in range(10_000)]}, "0"),
    ({"chain": [canvas("chord", "g", header=[sig(f"m{number}") for number in range(90)], body=sig("end"))]}, "end"),
    ({"chain": [sig("x", group_id="g", group_index=0)] * 90, "chord": sig("end")}, "end"),
    ({"chain": [canvas("chord", "g", header=[sig(f"m{number}") for number in range(90)], body=sig("end")),
                *(sig(str(number)) for number in range(90))]}, "end"),
], ids=["task", "chord", "body", "chord after many"])
def test_last_step_has_a_place_however_many_there_are(embed, last):
    found = Steps("first", "g", embed)

    assert last in found.by_id
    assert len(found.by_id) <= MAX_STEPS


def test_header_of_a_chord_in_a_group_that_is_not_sent_yet_has_no_name():
    chord = canvas("chord", "made-up", header=[sig("x"), sig("y")], body=sig("body"))
    found = Steps("first", None, {"chain": [canvas("group", "g", tasks=[sig("a"), chord])]})

    assert {one.task_id: one.group for one in found} == {"a": "g", "x": None, "y": None, "body": "g"}
    assert set(found.by_id["body"].depends_on) == {"x", "y"}
    assert found.sizes == {"g": 2}
