"""The figures of a progress: which values are taken, and in which order they follow each other."""
from __future__ import annotations

import time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple

from ..exceptions import InvalidValue
from ..models.progress import percent_of
from ..settings import short

#: Figures of progress stay below: a rank holds sixteen digits.
TOO_LARGE = 10 ** 16

#: Phases that are numbered; those after them are in the order in which Redis accepts them.
MAX_PHASES = 999_999

#: Classes of numbers; a Decimal is no Real.
NUMBERS: Any = (Real, Decimal)


class Phase(NamedTuple):
    """A part of a run, which begins at 0 and has a total of its own.

    Attributes:
        number: Its place among the phases of the run; the first one is 0.
        name: As shown; None for one without a name.
        started: Monotonic time when it began, in seconds.  None: when the run did.
        floor: Percent below which it is not shown, because a correction of the total does not take back what was shown.
    """

    number: int = 0
    name: str | None = None
    started: float | None = None
    floor: float = 0.0


#: Percent if it was reported and not to be computed, current, total, phase.
Figures = tuple[float | None, float | None, float | None, Phase]

#: Before anything is reported.
NO_FIGURES: Figures = (None, None, None, Phase())


def figures_after(
    figures: Figures, current: float | None, total: float | None, percent: float | None = None,
    name: str | None = None, begin: bool = False,
) -> Figures:
    """Return the figures after a report: the same if that is behind them.

    A total is remembered within its phase.  A percentage is shown with the current that came with it, and no other.

    Args:
        name: Of the phase.  None: it goes on.
        begin: Whether a new phase begins in any case.
    """
    old_percent, old_current, old_total, phase = figures
    if figures[:3] == NO_FIGURES[:3]:
        return percent, current, total, phase if name is None else Phase(phase.number, name, time.monotonic())
    if begin or name not in (None, phase.name) or _is_next_loop(figures, current, total):
        return percent, current, total, Phase(min(phase.number + 1, MAX_PHASES), name, time.monotonic())
    if percent is None and current is None:
        percent, current = old_percent, old_current
    new = percent, current, old_total if total is None else total, phase
    if _is_further(new, figures):
        return new
    if total is not None and total != old_total:
        return *new[:3], phase._replace(floor=shown_percent(figures) or 0.0)
    return figures


def _is_next_loop(figures: Figures, current: float | None, total: float | None) -> bool:
    """Whether a count begins anew: 100 % was reached, and now there is another total to be reached, or 0 of the same."""
    if total is None or (percent_of(current, total) or 0.0) >= 100 or (plain_percent(figures) or 0.0) < 100:
        return False
    return total != figures[2] or current == 0


def _is_further(new: Figures, old: Figures) -> bool:
    """Whether figures are not behind others; a known percentage is further than a mere count."""
    new_percent, old_percent = plain_percent(new), plain_percent(old)
    if new_percent is not None and old_percent is not None:
        return new_percent >= old_percent
    if new_percent is not None or old_percent is not None:
        return new_percent is not None
    return new[1] is None or old[1] is None or new[1] >= old[1]


def plain_percent(figures: Figures) -> float | None:
    """Return the percentage of figures by themselves, or None if it is unknown."""
    percent, current, total, _ = figures
    return percent_of(current, total) if percent is None else percent


def shown_percent(figures: Figures) -> float | None:
    """Return the percentage that is shown, which does not go back within a phase, or None if it is unknown."""
    percent = plain_percent(figures)
    return None if percent is None else max(percent, figures[3].floor)


def progress_rank(percent: float | None, current: float | None, phase: int = 0) -> str:
    """Return a text that sorts the progress of a run: by phase, then by percent.

    Known percents come after mere counts, and 100 absorbs nothing.
    """
    rank = f"2:{current or 0:024.6f}" if percent is None else f"3:{percent:010.6f}"
    rank = rank.rstrip("0").rstrip(".")  # a shorter text sorts before a longer one that begins with it
    return f"4:{phase:06d}:{rank}" if phase else rank


def percentage(value: Any, what: str) -> float:
    """Return a percentage as JSON holds it, see :func:`figure`.

    Raises:
        InvalidValue: If it is no number from 0 to 100.
    """
    number = figure(value, what)
    if number > 100:
        raise InvalidValue(f"{what} is {short(number)}; it goes from 0 to 100")
    return number


def figure(value: Any, what: str) -> float:
    """Return a number of any kind as an int or a float, which JSON holds.

    Args:
        value: An int, float, Decimal or Fraction, or of a class that is registered in :mod:`numbers`, as those of numpy are.
        what: What it is, for the error.

    Raises:
        InvalidValue: If it is no number, NaN, infinite, negative, or 1e16 or more.
    """
    number = value if type(value) in (int, float) else _plain_number(value)
    if number is None or not 0 <= number < TOO_LARGE:
        raise InvalidValue(
            f"{what} is {short(value if number is None else number)}; it must be a number, 0 or more, below {TOO_LARGE:.0e}")
    return number


def _plain_number(value: Any) -> float | None:
    try:
        if isinstance(value, bool) or not isinstance(value, NUMBERS):
            return None
        if isinstance(value, Integral):
            return int(value)
        number = float(value)
        # Not of a float: 3.0 stays what it is.  Not first: the int of a Decimal may have a million digits.
        return int(value) if number.is_integer() and number < TOO_LARGE and not isinstance(value, float) else number
    except (TypeError, ValueError, ArithmeticError):
        return None
