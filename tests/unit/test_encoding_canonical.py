"""The canonical JSON of a value: the same for equal ones, by which locks are named."""
from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from celery_memsync.encoding import canonical

NOON = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize("values", [
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
    [[{"x": {"a": 1, "b": [{"c": 1, "d": 2}]}}], ({"x": {"b": ({"d": 2, "c": 1},), "a": 1.0}},)],
    [1, 1.0, Decimal(1), Decimal("1.00")],
    [0, 0.0, -0.0, Decimal("-0.00"), Decimal("0E+9")],
    [0.5, Decimal("0.5"), Decimal("0.50")],
    [10 ** 30, Decimal("1E+30"), Decimal("1000E+27")],
    [2 ** 53 + 1, Decimal(2 ** 53 + 1)],
    [Decimal("0.1"), Decimal("0.100")],
    [Decimal("1E+5000"), Decimal("10E+4999")],
    [NOON, NOON.astimezone(timezone(timedelta(hours=2)))],
    [{1: "a"}, {1.0: "a"}, {"1": "a"}],
], ids=repr)
def test_values_that_are_equal_have_one_text(values):
    texts = {canonical(value) for value in values}

    assert len(texts) == 1


@pytest.mark.parametrize("values", [
    [1, True, "1", [1], {"1": 1}, None, "", [], {}, 0, False, "true", "null", "None"],
    [2 ** 53, 2 ** 53 + 1, Decimal("0.1"), 0.1, "0.1", b"0.1"],
    [{"a": True}, {"a": 1}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 1}],
    [["a", "b"], ["b", "a"], ["ab"], [["a"], "b"]],
    [NOON, NOON + timedelta(seconds=1), NOON.replace(tzinfo=None), NOON.isoformat()],
], ids=repr)
def test_values_that_differ_have_texts_that_differ(values):
    texts = {canonical(value) for value in values}

    assert len(texts) == len(values)


@pytest.mark.parametrize("value, error", [
    (float("nan"), ValueError), ([float("inf")], ValueError), ({1, 2}, TypeError), (object(), TypeError),
])
def test_what_json_can_not_hold_is_refused(value, error):
    with pytest.raises(error):
        canonical(value)


def test_the_text_does_not_change_with_versions():
    text = canonical({"b": [1.0, True, None], "a": "ä"})

    assert text == b'{"a":"\\u00e4","b":[1,true,null]}'
