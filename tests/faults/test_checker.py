"""The judge finds what is wrong, and nothing else."""
from __future__ import annotations

import pytest

from tests.faults.checker import Kill, judge

BEGIN, END = {"what": "begin", "id": "t", "at": 1.0, "pid": 7}, {"what": "end", "id": "t", "at": 2.0, "pid": 7, "steps": 3}


def told(status, current=3, **fields):
    return {"state": {"status": status, "steps": 3, **fields},
            "progress": {"current": current, "progress": 100 * current / 3}}


def wrongs(notes, memory, killed=None, heard=None):
    status = (memory or {"state": {}})["state"].get("status")
    found = judge(["t"], notes, killed or {}, {"t": memory}, {"t": status if heard is None else heard})
    return [one.claim for one in found]


@pytest.mark.parametrize("notes, memory, killed", [
    ([BEGIN, END], told("SUCCESS"), {}),
    ([BEGIN, END], told("SUCCESS"), {7: Kill(1.5)}),
    ([BEGIN, END], told("LOST"), {7: Kill(2.5)}),
    ([BEGIN, END], told("LOST"), {7: Kill(1.9, with_main=True)}),
    ([BEGIN], told("FAILURE"), {7: Kill(1.5)}),
    ([BEGIN, END], told("SUCCESS", steps=None), {7: Kill(2.1)}),
    ([BEGIN], told("LOST"), {7: Kill(1.5)}),
    ([BEGIN], told("RECEIVED"), {7: Kill(1.01, with_main=True)}),
    ([BEGIN], told("PENDING"), {7: Kill(1.01, with_main=True)}),
    ([], told("RECEIVED"), {7: Kill(1.0, with_main=True)}),
    ([], told("FAILURE"), {7: Kill(1.0)}),
    ([BEGIN, {**END, "at": 1.5}], told("RECEIVED"), {7: Kill(1.6, with_main=True)}),
    ([BEGIN, {**BEGIN, "pid": 8}, {**END, "pid": 8}], told("SUCCESS"), {7: Kill(1.5)}),
])
def test_what_is_right_is_not_blamed(notes, memory, killed):
    assert wrongs(notes, memory, killed) == []


@pytest.mark.parametrize("notes, memory, killed, claim", [
    ([BEGIN, END], told("STARTED"), {}, "told as it was"),
    ([BEGIN, END], None, {}, "told as it was"),
    ([BEGIN, END], told("LOST"), {}, "told as it was"),
    ([BEGIN, END], told("LOST"), {7: Kill(9.0)}, "told as it was"),
    ([BEGIN], told("STARTED"), {7: Kill(1.5)}, "told as it was"),
    ([BEGIN], told("RECEIVED"), {7: Kill(1.01)}, "told as it was"),
    ([BEGIN], told("PENDING"), {7: Kill(1.01)}, "told as it was"),
    ([BEGIN], told("RECEIVED"), {7: Kill(3.5, with_main=True)}, "told as it was"),
    ([BEGIN, END], told("RECEIVED"), {7: Kill(2.1, with_main=True)}, "told as it was"),
    ([BEGIN], told("SUCCESS"), {7: Kill(1.5)}, "told as it was"),
    ([], told("RECEIVED"), {}, "told as it was"),
    ([BEGIN, END], told("SUCCESS", current=2), {}, "its last"),
    ([BEGIN, END], told("SUCCESS", steps=None), {}, "of itself"),
])
def test_what_is_wrong_is_found(notes, memory, killed, claim):
    assert any(claim in one for one in wrongs(notes, memory, killed))


def test_a_subscriber_that_was_not_told_the_end_is_found():
    assert wrongs([BEGIN, END], told("SUCCESS"), heard="STARTED") == ["a subscriber ends at what is there"]


def hold(at, fence, until=None, owned=True):
    rows = [{"what": "held", "id": "t", "pid": 7, "key": "k", "at": at, "fence": fence}]
    return rows if until is None else [*rows, {**rows[0], "what": "left", "at": until, "owned": owned}]


@pytest.mark.parametrize("rows, claims", [
    ([*hold(1, 1, 2), *hold(2, 2, 3)], []),
    ([*hold(1, 1, 4, owned=False), *hold(2, 2, 3)], []),
    ([*hold(1, 1), *hold(2, 2, 3)], []),
    ([*hold(1, 1, 3), *hold(2, 2, 4)], ["nobody has a lock that somebody has"]),
    ([*hold(2, 1), *hold(1, 2)], ["fences grow in the order in which a lock is had"]),
    ([*hold(1, 1), *hold(2, 1)], ["no two have one fence"]),
])
def test_holders_of_a_lock_are_judged(rows, claims):
    assert [one.claim for one in judge([], rows, {}, {}, {})] == claims
