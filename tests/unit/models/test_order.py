"""Run keys: what they name, what of them may come with a message, and how stored ones are sorted."""
from __future__ import annotations

import itertools

import pytest

from celery_memsync.models.order import (
    FIRST_STEP,
    MAX_STEPS,
    delivered_key,
    is_delivered,
    is_earlier_step,
    is_run_key,
    published_key,
    run_key_of,
    run_order,
)

HOSTILE = [
    None, True, 0, 1.5, b"chain.0", [], {}, "", "chain", "chain.", ".0", "chain.-1", "chain.01", "chain.1e3", "chain.0.",
    "c h.0", "chain.0.a.b", "chain.0\n", "\nchain.0", "chain.0 x", "1.1:chain.0.a", "\u0661.\u0661", "c" * 25 + ".0",
    "chain.0." + "a" * 25, "chain.1000000", "0001795366095325", "chain.0.\u202e",
]


def test_a_published_task_begins_a_chain_and_its_delivery_names_the_run():
    published = published_key("chain")

    received = delivered_key(published, "token-1")

    assert (published, received) == ("chain.0", "chain.0.token-1")
    assert (is_run_key(published), is_delivered(published)) == (True, False)
    assert (is_run_key(received), is_delivered(received)) == (True, True)


def test_what_comes_from_a_run_is_the_next_step_of_its_chain():
    before = delivered_key(published_key("chain"), "token-1")

    published = published_key("another", before)

    assert published == "chain.1"
    assert FIRST_STEP not in delivered_key(published, "token-2") and FIRST_STEP in before
    assert is_earlier_step(before, published)
    assert not is_earlier_step(published, before)


def test_a_run_that_comes_from_no_known_chain_has_one_of_its_own():
    assert [delivered_key(junk, "token-1") for junk in HOSTILE] == ["token-1.0.token-1"] * len(HOSTILE)


@pytest.mark.parametrize("junk", HOSTILE, ids=repr)
def test_what_names_no_run_is_none(junk):
    assert not is_run_key(junk)
    assert not is_delivered(junk)
    assert published_key("chain", junk) == "chain.0"


@pytest.mark.parametrize("one, other", [
    ("chain.0", "another.1"), ("chain.1.a", "chain.1.b"), ("chain.1", "chain.1.a"), ("junk", "chain.1"), ("chain.0", "junk"),
])
def test_only_steps_of_one_chain_are_known_to_be_earlier(one, other):
    assert not is_earlier_step(one, other)
    assert not is_earlier_step(other, one)


def test_steps_are_counted_up_to_a_bound():
    last = published_key("", before=f"chain.{MAX_STEPS}.run")

    assert last == f"chain.{MAX_STEPS}"
    assert is_run_key(last)


def test_stored_runs_are_sorted_by_chain_then_step_then_delivery():
    ordered = ["-", "1.0:a.0", "1.1:a.0.x", "1.2:a.0.b", "1.1:a.1.z", "1.1:a.10.c", "2.0:a2.0", "10.1:b.0.a"]

    found = [sorted(row, key=run_order) for row in itertools.islice(itertools.permutations(ordered), 0, None, 97)]

    assert all(row == ordered for row in found)
    assert [run_key_of(stored) for stored in ordered[:3]] == ["-", "a.0", "a.0.x"]


@pytest.mark.parametrize("junk", [
    "-", "", "0001795366095325", "chain.0", "1:chain.0", "999999999.1:chain.0", "1.1:chain", "x.1:c.0",
])
def test_a_stored_run_without_numbers_is_before_all_others(junk):
    assert run_order(junk) < run_order("1.0:chain.0")
