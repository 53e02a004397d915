"""Changes of the progress of a task."""
from __future__ import annotations

import os
import threading
import time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Mapping, Optional, Tuple

from ..exceptions import InvalidValue, ValueTooLarge
from ..keys import Location
from ..models.entry import StoredEntry
from ..models.progress import PROGRESS_FIELDS, encode_progress
from ..models.task import TOO_LATE
from ..settings import short
from ..store.clock import Clock
from ..user_code import ends_here
from .changes import Change, Content, preview_of_run

#: Figures of progress stay below: a rank holds sixteen digits.
TOO_LARGE = 10 ** 16

#: Classes of numbers; a Decimal is no Real.
NUMBERS: tuple[type, ...] = (Real, Decimal)

#: Seconds that a run may wait for its next try, and its progress is still shown.
LONGEST_WAIT = 366 * 86400.0

#: Percent if it was reported and not to be computed, current, total.
Figures = Tuple[Optional[float], Optional[float], Optional[float]]

#: This process: a forked child has a queue, and threads, of its own.
_process = object()


def _renew_process() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_renew_process)


class ProgressChange(Change):
    """How far a task is, at one moment."""

    __slots__ = ("row", "run_key", "rank", "started")

    expendable = True

    def __init__(
        self, location: Location, row: tuple[Any, ...], run_key: str, rank: str, started: float, ttl: float,
    ) -> None:
        super().__init__(location, ttl)
        self.row = row
        self.run_key = run_key
        self.rank = rank
        self.started = started

    @classmethod
    def from_row(cls, location: Location, row: Any, run_key: str, ttl: float, clock: Clock) -> ProgressChange | None:
        """Return what another process told of an earlier run, from the body that it wrote.

        It comes with a message, which anybody may write: None for what is no such body.
        """
        if not isinstance(row, list) or len(row) > len(PROGRESS_FIELDS):
            return None
        padded = [*row, *[None] * (len(PROGRESS_FIELDS) - len(row))]
        percent, current, total, message, status, started_at, updated_at, run, fields = padded
        figures = ((percent, 100), (current, TOO_LARGE), (total, TOO_LARGE))
        sound = (
            all(figure is None or _is_between(figure, 0, most) for figure, most in figures)
            and all(_is_between(moment, 1, TOO_LATE) for moment in (started_at, updated_at))
            and (fields is None or isinstance(fields, dict)))
        if not sound:
            return None
        rank = progress_rank(percent, current)
        change = cls(location, (percent, current, total, message, status, run, fields), run_key, rank,
                     clock.monotonic(started_at), ttl)
        change.at = clock.monotonic(updated_at)
        age = time.monotonic() - change.at
        if 0 < age < LONGEST_WAIT:
            # The next run may have waited for longer than the ttl, which counts from that time.
            change.ttl += age
        return change

    def coalesce(self, newer: Change) -> Change | None:
        """The newer progress of the same run: its writer saw to it that it does not go back."""
        return newer if isinstance(newer, (ProgressChange, Progress)) and newer.run_key == self.run_key else None

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """The figures, unless those of a later run are stored."""
        return preview_of_run(self, self.run_key, stored, clock, worker_id)

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """The figures, with times on Redis's clock."""
        percent, current, total, message, status, run, fields = self.row
        times = round(clock.at(self.started), 3), round(clock.at(self.at), 3)
        body = encode_progress((percent, current, total, message, status, *times, run, fields))
        return Content("run", self.run_key, self.rank, body)


class Progress(Change):
    """How far one run of a task is; it is reported again and again.

    :meth:`count` and :meth:`report` are called by the task's threads,
    :meth:`snapshot` by the writer's.  Neither waits for the other: the task
    sets the figures before it looks whether they are queued, the writer marks
    them unqueued before it reads them.

    Args:
        run: Id of the run, as shown.
        run_key: Which run; "" for the one that is stored.
        started: Monotonic time when the run began.
        limit: Longest message, in characters.
    """

    __slots__ = ("run", "run_key", "started", "figures", "message", "status", "fields", "limit",
                 "reports", "_mutex", "_mutex_of", "_put", "_taken")

    expendable = True

    def __init__(
        self, location: Location, ttl: float, run: str | None = None, run_key: str = "", started: float | None = None,
        limit: int = 1024 * 1024,
    ) -> None:
        super().__init__(location, ttl)
        self.limit = limit
        self.run = run
        self.run_key = run_key
        self.started = self.at if started is None else started
        #: Percent if it was reported and not to be computed, current, total.
        self.figures: Figures = (None, None, None)
        self.message: str | None = None
        self.status: str | None = None
        self.fields: dict[str, Any] | None = None
        #: Held while it takes figures: several threads may report one task.
        self._mutex = threading.RLock()
        self._mutex_of = _process
        #: How many reports there were; how many when it was put into the queue of a process, and taken out of it, last.
        self.reports = 0
        self._put: tuple[object, int] = (None, 0)
        self._taken = 0

    def count(self, current: float, total: float | None, message: str | None) -> bool:
        """Take a new count, as :meth:`report` does, but fast in the plain case: one more of the same."""
        mutex = self._mutex if self._mutex_of is _process else self._renew_mutex()
        # An exception of a signal's handler may strike after any call.  There is none between the end of the block and the
        # release, and of a lock that this thread does not have the release fails.
        try:
            mutex.acquire()
            percent, old, old_total = self.figures
            if (
                type(current) is int and old is not None and percent is None and old <= current < TOO_LARGE
                and (total is None or total is old_total or type(total) is int and total == old_total)
                and (message is None or type(message) is str and len(message) <= self.limit)
            ):
                self.figures = (None, current, old_total)
                if message is not None:
                    self.message = message
                return self._reported()
        finally:
            try:
                mutex.release()
            except RuntimeError:
                pass
        return self.report(current, total, message)

    def report(
        self, current: float | None, total: float | None, message: str | None,
        status: str | None = None, percent: float | None = None, fields: dict[str, Any] | None = None,
    ) -> bool:
        """Take new figures, unless they are behind the old ones; texts are taken anyway.

        Returns:
            Whether it has to be queued.

        Raises:
            InvalidValue: For a figure that is none, or out of its range.
        """
        for text, what in ((message, "message"), (status, "status")):
            self._check_text(text, what)
        percent = None if percent is None else percentage(percent, "progress")
        current = None if current is None else figure(current, "current")
        total = None if total is None else figure(total, "total")
        mutex = self._mutex if self._mutex_of is _process else self._renew_mutex()
        try:
            mutex.acquire()
            self.figures = self._after(self.figures, current, total, percent)
            self.message = self.message if message is None else message
            self.status = self.status if status is None else status
            self.fields = {**(self.fields or {}), **fields} if fields else self.fields
            return self._reported()
        finally:
            try:
                mutex.release()
            except RuntimeError:
                pass

    def _after(self, figures: Figures, current: float | None, total: float | None, percent: float | None) -> Figures:
        """Return the figures after a report: the same if that is behind them."""
        _, old_current, old_total = figures
        new = percent, old_current if current is None else current, old_total if total is None else total
        return new if _further(new, figures) else figures

    def _renew_mutex(self) -> threading.RLock:
        """Another thread of the parent process may have held it when this one was forked."""
        self._mutex = threading.RLock()
        self._mutex_of = _process
        return self._mutex

    def _check_text(self, text: Any, what: str) -> None:
        if text is not None and not isinstance(text, str):
            raise InvalidValue(f"the {what} of a progress is a text, not {type(text).__name__}")
        if text is not None and len(text) > self.limit:
            raise ValueTooLarge(f"{self.location.path} ({what})", len(text), self.limit)

    def _reported(self) -> bool:
        self.at = time.monotonic()
        self.reports += 1
        process, number = self._put
        return process is not _process or number <= self._taken

    def note_put(self, reports: int) -> None:
        """Note that it was put into the queue after so many reports: not earlier, for an exception may strike before."""
        self._put = _process, reports

    def coalesce(self, newer: Change) -> Change | None:
        """The newer progress of the same run."""
        return newer if isinstance(newer, (ProgressChange, Progress)) and newer.run_key == self.run_key else None

    def snapshot(self) -> Change:
        """Return the figures of this moment, and be ready to be queued again."""
        self._taken = self.reports
        return self._as_change()

    def preview(self, stored: StoredEntry | None, clock: Clock, worker_id: str) -> StoredEntry | None:
        """The figures of this moment, unless those of a later run are stored."""
        return preview_of_run(self, self.run_key, stored, clock, worker_id)

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """The figures of this moment."""
        return self._as_change().content(clock, base)

    def _as_change(self) -> ProgressChange:
        _, current, total = figures = self.figures
        percent = _percent(figures)
        shown = None if percent is None else round(percent, 3)
        row = (shown, current, total, self.message, self.status, self.run, self.fields)
        change = ProgressChange(self.location, row, self.run_key, progress_rank(percent, current), self.started, self.ttl)
        change.at, change.fence, change.authors = self.at, self.fence, self.authors
        return change


def _further(new: tuple[float | None, ...], old: tuple[float | None, ...]) -> bool:
    """Whether figures are not behind others; a known percentage is further than a mere count."""
    new_percent, old_percent = _percent(new), _percent(old)
    if new_percent is not None and old_percent is not None:
        return new_percent >= old_percent
    if new_percent is not None or old_percent is not None:
        return new_percent is not None
    return new[1] is None or old[1] is None or new[1] >= old[1]


def _percent(figures: tuple[float | None, ...]) -> float | None:
    percent, current, total = figures
    return percent_of(current, total) if percent is None else percent


def percent_of(current: float | None, total: float | None) -> float | None:
    """Return how many percent are done, None when the total is unknown."""
    if total is None or current is None:
        return None
    return 100.0 if current >= total else 100 * current / total


def progress_rank(percent: float | None, current: float | None) -> str:
    """Return a text that sorts progress; known percents come after mere counts, and 100 absorbs nothing."""
    if percent is None:
        return f"2:{current or 0:024.6f}"
    return f"3:{percent:010.6f}"


def _is_between(figure: Any, least: float, most: float) -> bool:
    return type(figure) in (int, float) and least <= figure <= most


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
        value: An int, float, Decimal or Fraction, or a number of a library that registers with :mod:`numbers`, as numpy does.
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
    except Exception as exc:  # it may be of a class of the user's
        if not ends_here(exc):
            raise
        return None
