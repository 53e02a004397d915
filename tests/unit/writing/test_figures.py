"""The figures of a progress: numbers of any kind, phases, and what is behind what."""
from __future__ import annotations

import numbers
from decimal import Decimal
from fractions import Fraction

import pytest

from celery_memsync import InvalidValue
from celery_memsync.models.progress import percent_of
from celery_memsync.writing.figures import MAX_PHASES, NO_FIGURES, Phase, figure, figures_after, progress_rank, shown_percent


def shown(*reports):
    """Return percent, current and total after reports, and the phases before the present one."""
    figures = NO_FIGURES
    for report in reports:
        figures = figures_after(figures, **{"current": None, "total": None, **report})
    percent = shown_percent(figures)
    return None if percent is None else round(percent, 2), *figures[1:3], figures[3].number


def count(current, total=None, name=None, **more):
    return {"current": current, "total": total, "name": name, **more}


# -- one report

@pytest.mark.parametrize("current, total, percent", [
    (0, 10, 0), (5, 10, 50), (10, 10, 100), (11, 10, 100), (0, 0, 100), (-1, 0, 0), (5, None, None), (None, 10, None),
    (0.5, 2, 25),
])
def test_percent_is_reckoned_from_current_and_total(current, total, percent):
    assert percent_of(current, total) == percent


@pytest.mark.parametrize("lower, higher", [
    ((None, 1), (None, 2)), ((None, 9), (None, 10)), ((None, 10 ** 15), (0, 1)), ((9, 1), (10, 1)), ((99.9, 1), (100, 1)),
    ((0.001, 1), (0.002, 1)),
])
def test_ranks_of_progress_sort_as_text(lower, higher):
    assert progress_rank(*lower) < progress_rank(*higher)


# -- a report after others

@pytest.mark.parametrize("reports, expected", [
    ([count(4, 4), count(1, 10)], (10, 1, 10, 1)),
    ([count(4, 4), count(0, 4)], (0, 0, 4, 1)),
    ([count(0, 0), count(1, 10)], (10, 1, 10, 1)),
    ([count(4, 4), count(1, 10), count(10, 10), count(1, 2)], (50, 1, 2, 2)),
])
def test_figures_after_100_percent_begin_a_phase_with_another_total_or_at_0(reports, expected):
    assert shown(*reports) == expected


@pytest.mark.parametrize("reports, expected", [
    ([count(4, 4), count(3, 4)], (100, 4, 4, 0)),
    ([count(4, 4), count(3)], (100, 4, 4, 0)),
    ([count(4, 4), count(0)], (100, 4, 4, 0)),
    ([count(4, 4), count(20, 10)], (100, 20, 10, 0)),
    ([count(5, 10), count(3, 10)], (50, 5, 10, 0)),
])
def test_figures_that_are_behind_begin_no_phase(reports, expected):
    assert shown(*reports) == expected


@pytest.mark.parametrize("reports, expected", [
    ([count(5, 10), count(5, 20)], (50, 5, 20, 0)),
    ([count(5, 10), count(6, 100), count(70)], (70, 70, 100, 0)),
    ([count(5, 10), count(6, 100), count(7)], (50, 7, 100, 0)),
    ([count(3, 4), count(1, 10)], (75, 1, 10, 0)),
    ([count(5, 10), count(5, 8)], (62.5, 5, 8, 0)),
    ([count(5), count(None, 10)], (50, 5, 10, 0)),
])
def test_a_new_total_is_a_correction_that_takes_no_percent_back(reports, expected):
    assert shown(*reports) == expected


def test_a_percent_is_never_shown_with_the_count_of_another_report():
    assert shown(count(5, 10), count(None, percent=80)) == (80, None, 10, 0)
    assert shown(count(5, 10), count(9, 10, percent=80)) == (80, 9, 10, 0)


# -- phases

@pytest.mark.parametrize("reports, expected", [
    ([count(9, 10), count(0, 3, "b")], (0, 0, 3, 1)),
    ([count(9, 10, "a"), count(9, 10, "a"), count(1, None, "b")], (None, 1, None, 1)),
    ([count(9, 10, "a"), count(10)], (100, 10, 10, 0)),
    ([count(9, 10, "a"), count(1, 2, "b"), count(1, 4, "a")], (25, 1, 4, 2)),
    ([count(9, 10), count(0, 10, begin=True)], (0, 0, 10, 1)),
    ([count(0, 10, begin=True)], (0, 0, 10, 0)),
    ([count(6, 10), count(6, 20), count(1, 4, "b")], (25, 1, 4, 1)),
])
def test_a_phase_begins_at_0_with_a_total_of_its_own(reports, expected):
    assert shown(*reports) == expected


def test_ranks_sort_phases_before_percents():
    ranks = [progress_rank(percent, current, phase) for phase in (0, 1, 2, 10, 999_999)
             for percent, current in ((None, 5), (None, 10 ** 15), (0, 1), (100, 1))]

    assert ranks == sorted(ranks)
    assert all("2" <= rank[0] < "9" for rank in ranks)


def test_phases_are_counted_to_a_limit():
    last = (None, 1, 10, Phase(MAX_PHASES))

    assert figures_after(last, 0, 5, begin=True)[3].number == MAX_PHASES


# -- numbers of any kind

class Count(int):
    """An int of a user's class."""


class Scalar:
    """A number of a library that registers its classes, as numpy does."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return int(self.value)

    def __float__(self):
        return float(self.value)


class Whole(Scalar):
    """Like numpy.int64."""


class Broken(Scalar):
    """A number whose class fails."""

    def __float__(self):
        raise ValueError("no number after all")


numbers.Integral.register(Whole)
numbers.Real.register(Scalar)


@pytest.mark.parametrize("given, taken", [
    (Decimal(3), 3), (Decimal("3.5"), 3.5), (Fraction(3), 3), (Fraction(7, 2), 3.5), (Count(3), 3), (Whole(3), 3),
    (Scalar(2.5), 2.5), (3.0, 3.0), (Decimal("0E-9"), 0),
])
def test_a_number_of_any_kind_is_taken_as_int_or_float(given, taken):
    number = figure(given, "current")

    assert (number, type(number)) == (taken, type(taken))


@pytest.mark.parametrize("bad", [
    True, "3", b"3", 3j, None.__class__, Decimal("NaN"), Decimal("sNaN"), Decimal("-1"), Decimal("Infinity"),
    Decimal("1e999999"), Fraction(-1, 2), Fraction(10 ** 400), Count(-1), float("nan"), Whole(-1), Broken(1), 10 ** 5000,
    [1], {}, object(),
], ids=lambda bad: type(bad).__name__)
def test_what_is_no_number_is_refused_by_name(bad):
    with pytest.raises(InvalidValue, match="^total is .* must be a number"):
        figure(bad, "total")
