"""Stamps of tasks, as they are recorded of what may be anything."""
from __future__ import annotations

from uuid import UUID

import pytest

from celery_memsync.models.stamps import MAX_NAME, MAX_SIZE, MAX_STAMPS, MAX_TEXT, MAX_VALUES, size_of, stamps_of, texts_of


@pytest.mark.parametrize("value, recorded", [
    ("acme", "acme"), (42, 42), (1.5, 1.5), (True, True), (["a", 2], ["a", 2]), (("a",), ["a"]), ({"a"}, ["a"]),
    (UUID(int=7), str(UUID(int=7))), ("x" * 1000, "x" * MAX_TEXT), (["a"] * 1000, ["a"] * MAX_VALUES),
    (["a", {}, None, ["b"]], ["a"]),
])
def test_stamp_is_recorded_as_it_was_given(value, recorded):
    assert stamps_of(["one"], {"one": value, "other": 1}) == {"one": recorded}


@pytest.mark.parametrize("value", [None, {}, [], object(), float("nan"), float("inf"), 10 ** 400, b"x", [None], {"a": 1}])
def test_what_is_no_stamp_is_left_out(value):
    assert stamps_of(["one", "two"], {"one": value, "two": 2}) == {"two": 2}


@pytest.mark.parametrize("names, values", [
    (None, {}), ([], {"a": 1}), ("a", {"a": 1}), (["a"], None), (["a"], [1]), (["a"], {}), ({"a": 1}, {"a": 1}),
    ([None, 5, [], ""], {"": 1, 5: 2}), (["x" * (MAX_NAME + 1)], {"x" * (MAX_NAME + 1): 1}),
])
def test_task_without_stamps_has_none(names, values):
    assert stamps_of(names, values) is None


def test_number_and_size_of_stamps_are_bounded():
    many = {f"s{number}": 1 for number in range(1000)}
    large = {f"s{number}": ["x" * MAX_TEXT] * MAX_VALUES for number in range(10)}

    assert len(stamps_of(list(many), many)) == MAX_STAMPS
    assert 0 < size_of(stamps_of(list(large), large)) <= MAX_SIZE


@pytest.mark.parametrize("value, texts", [
    ("acme", ["acme"]), (42, ["42"]), (True, ["true"]), (["a", 1.5], ["a", "1.5"]), ({"b": 1}, ['{"b": 1}'])])
def test_values_are_compared_as_texts(value, texts):
    assert texts_of(value) == texts
