"""The judge finds what is wrong, and nothing else."""
from __future__ import annotations

import pytest

from tests.faults.checker import Kill, judge

BEGIN, END = {"what": "begin", "id": "t", "at": 1.0, "pid": 7}, {"what": "end", "id": "t", "at": 2.0, "pid": 7, "steps": 3}


def recorded(status, current=3, **fields):
    return {"state": {"status": status, "steps": 3, **fields},
            "progress": {"current": current, "progress": 100 * current / 3}}


def wrongs(notes, record, killed=None, received=None):
    status = (record or {"state": {}})["state"].get("status")
    found = judge(
        ["t"], notes, killed or {}, {"t": record}, {"t": status if received is None else received})
    return [one.claim for one in found]


@pytest.mark.parametrize("notes, record, killed", [
    ([BEGIN, END], recorded("SUCCESS"), {}),
    ([BEGIN, END], recorded("SUCCESS"), {7: Kill(1.5)}),
    ([BEGIN, END], recorded("LOST"), {7: Kill(2.5)}),
    ([BEGIN, END], recorded("LOST"), {7: Kill(1.9, with_main=True)}),
    ([BEGIN], recorded("FAILURE"), {7: Kill(1.5)}),
    ([BEGIN, END], recorded("SUCCESS", steps=None), {7: Kill(2.1)}),
    ([BEGIN], recorded("LOST"), {7: Kill(1.5)}),
    ([BEGIN], recorded("RECEIVED"), {7: Kill(1.01, with_main=True)}),
    ([BEGIN], recorded("PENDING"), {7: Kill(1.01, with_main=True)}),
    ([], recorded("RECEIVED"), {7: Kill(1.0, with_main=True)}),
    ([], recorded("FAILURE"), {7: Kill(1.0)}),
    ([BEGIN, {**END, "at": 1.5}], recorded("RECEIVED"), {7: Kill(1.6, with_main=True)}),
    ([BEGIN, {**BEGIN, "pid": 8}, {**END, "pid": 8}], recorded("SUCCESS"), {7: Kill(1.5)}),
])
def test_what_is_right_is_not_blamed(notes, record, killed):
    assert wrongs(notes, record, killed) == []


@pytest.mark.parametrize("notes, record, killed, claim", [
    ([BEGIN, END], recorded("STARTED"), {}, "recorded as it ran"),
    ([BEGIN, END], None, {}, "recorded as it ran"),
    ([BEGIN, END], recorded("LOST"), {}, "recorded as it ran"),
    ([BEGIN, END], recorded("LOST"), {7: Kill(9.0)}, "recorded as it ran"),
    ([BEGIN], recorded("STARTED"), {7: Kill(1.5)}, "recorded as it ran"),
    ([BEGIN], recorded("RECEIVED"), {7: Kill(1.01)}, "recorded as it ran"),
    ([BEGIN], recorded("PENDING"), {7: Kill(1.01)}, "recorded as it ran"),
    ([BEGIN], recorded("RECEIVED"), {7: Kill(3.5, with_main=True)}, "recorded as it ran"),
    ([BEGIN, END], recorded("RECEIVED"), {7: Kill(2.1, with_main=True)}, "recorded as it ran"),
    ([BEGIN], recorded("SUCCESS"), {7: Kill(1.5)}, "recorded as it ran"),
    ([], recorded("RECEIVED"), {}, "recorded as it ran"),
    ([BEGIN, END], recorded("SUCCESS", current=2), {}, "its last"),
    ([BEGIN, END], recorded("SUCCESS", steps=None), {}, "about itself"),
])
def test_what_is_wrong_is_found(notes, record, killed, claim):
    assert any(claim in one for one in wrongs(notes, record, killed))


def test_subscriber_that_missed_the_end_is_found():
    assert wrongs(
        [BEGIN, END], recorded("SUCCESS"),
        received="STARTED") == ["a subscriber ends at what is there"]


def hold(at, fence, until=None, owned=True):
    rows = [{"what": "held", "id": "t", "pid": 7, "key": "k", "at": at, "fence": fence}]
    return rows if until is None else [*rows, {**rows[0], "what": "left", "at": until, "owned": owned}]


@pytest.mark.parametrize("rows, claims", [
    ([*hold(1, 1, 2), *hold(2, 2, 3)], []),
    ([*hold(1, 1, 4, owned=False), *hold(2, 2, 3)], []),
    ([*hold(1, 1), *hold(2, 2, 3)], []),
    ([*hold(1, 1, 3), *hold(2, 2, 4)], ["no two tasks hold one lock"]),
    ([*hold(2, 1), *hold(1, 2)], ["fences grow in the order of holders"]),
    ([*hold(1, 1), *hold(2, 1)], ["no two have one fence"]),
])
def test_holders_of_a_lock_are_judged(rows, claims):
    assert [one.claim for one in judge([], rows, {}, {}, {})] == claims
