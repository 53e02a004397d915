"""Changes of the progress of a task."""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import encoding
from ..exceptions import InvalidValue, ValueTooLarge
from ..keys import Location
from ..models.entry import StoredEntry
from ..models.progress import PROGRESS_FIELDS, decode_progress, encode_progress
from ..models.task import TOO_LATE
from ..store import EntryWrite
from ..store.clock import Clock
from .bad_values import SILENT, refuse
from .changes import Change, preview_of_run
from .figures import (
    MAX_PHASES,
    NO_FIGURES,
    TOO_LARGE,
    Phase,
    figure,
    figures_after,
    percentage,
    progress_rank,
    shown_percent,
)
from .version_tracker import EMPTY_BASE, MergeBase

#: Names that a task's own fields can't have.
RESERVED = frozenset(PROGRESS_FIELDS) - {"fields"} | {"eta", "previous"}

#: Seconds that a run may wait for its next try, and its progress is still shown.
LONGEST_WAIT = 366 * 86400.0

#: This process: a forked child has a queue, and threads, of its own.
_process = object()


def _renew_process() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_renew_process)


class ProgressChange(Change):
    """How far a task is, at one moment.

    Args:
        row: Percent, current, total, message, status, run, fields.
        started: Monotonic time when the run began, in seconds.
    """

    __slots__ = ("row", "run_key", "started", "phase")

    expendable = True

    def __init__(
        self, location: Location, row: tuple[Any, ...], run_key: str, started: float, ttl: float, phase: Phase,
    ) -> None:
        super().__init__(location, ttl)
        self.row = row
        self.run_key = run_key
        self.started = started
        self.phase = phase

    @property
    def rank(self) -> str:
        """Sorts it among those of its run."""
        percent, current, *_ = self.row
        return progress_rank(percent, current, self.phase.number)

    @classmethod
    def from_row(cls, location: Location, row: Any, run_key: str, ttl: float, clock: Clock) -> ProgressChange | None:
        """Return what another process reported of an earlier run, from the body that it wrote.

        It comes with a message, which anybody may write: None for what is no such body.  Newer fields are ignored.
        """
        if not isinstance(row, list):
            return None
        percent, current, total, message, status, started_at, updated_at, run, fields, name, number, begun_at, _ = (
            map(decode_progress(row).__getitem__, PROGRESS_FIELDS))
        figures = ((percent, 100), (current, TOO_LARGE), (total, TOO_LARGE), (number, MAX_PHASES))
        moments = (started_at, updated_at, started_at if begun_at is None else begun_at)
        sound = (
            all(one is None or _is_between(one, 0, most) for one, most in figures)
            and all(_is_between(moment, 1, TOO_LATE) for moment in moments)
            and (name is None or isinstance(name, str)) and (number is None or type(number) is int)
            and (fields is None or isinstance(fields, dict)))
        if not sound:
            return None
        phase = Phase((number or 1) - 1, name, None if begun_at is None else clock.monotonic(begun_at))
        change = cls(location, (percent, current, total, message, status, run, fields), run_key, clock.monotonic(started_at),
                     ttl, phase)
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

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """The figures, with times on Redis's clock."""
        percent, current, total, message, status, run, fields = self.row
        times = round(clock.at(self.started), 3), round(clock.at(self.at), 3)
        # The header names the run; so that none has reported it has to be said.
        run = None if run == self.run_key.rpartition(".")[2] else run or False
        row = [percent, current, total, message, status, *times, run, fields]
        number, name, begun, _ = self.phase
        if begun is not None:
            row += [name, number + 1, round(clock.at(begun), 3)]
        return self._entry_write("run", self.run_key, self.rank, encode_progress(row))


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
        limit: Longest message, in characters, and most bytes of fields.
        spared: Name of the task that a bad value must not fail.  None: it is raised.
        redact: Returns a message as it may be shown.
    """

    __slots__ = ("run", "run_key", "started", "figures", "message", "status", "fields", "limit", "spared", "redact",
                 "reports", "_mutex", "_mutex_of", "_put", "_taken")

    expendable = True

    def __init__(
        self, location: Location, ttl: float, run: str | None = None, run_key: str = "", started: float | None = None,
        limit: int = 1024 * 1024, spared: str | None = None, redact: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(location, ttl)
        self.limit = limit
        self.spared = spared
        self.redact = redact
        self.run = run
        self.run_key = run_key
        self.started = self.at if started is None else started
        self.figures = NO_FIGURES
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

    @property
    def phase_number(self) -> int:
        """The number of the present phase; 0 of the first one."""
        return self.figures[3].number

    def count(self, current: float, total: float | None, message: str | None) -> bool:
        """Take a new count, as :meth:`report` does, but fast in the plain case: one more of the same."""
        mutex = self._mutex if self._mutex_of is _process else self._renew_mutex()
        # An exception of a signal's handler may strike after any call.  There is none between the end of the block and the
        # release, and of a lock that this thread does not have the release fails.
        try:
            mutex.acquire()
            percent, old, old_total, phase = self.figures
            if (
                type(current) is int and old is not None and percent is None and old <= current < TOO_LARGE
                and (total is None or total is old_total or type(total) is int and total == old_total)
                and (message is None or self.redact is None and type(message) is str and len(message) <= self.limit)
            ):
                self.figures = (None, current, old_total, phase)
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
        phase: str | None = None, begin: bool = False, silent: bool = False,
    ) -> bool:
        """Take new figures, unless they are behind the old ones; texts are taken anyway.

        Args:
            phase: Name of the phase; another one than before begins a new phase.
            begin: Whether a new phase begins in any case.
            silent: Whether bad values are left out in any case.

        Returns:
            Whether it has to be queued.

        Raises:
            InvalidValue: For a figure that is none, or out of its range, a text or a field that can't be stored, unless the
                task is spared: then what is good is taken.
        """
        spared = SILENT if silent else self.spared
        message, status, phase = (_good(spared, self._text, text, what)
                                  for text, what in ((message, "message"), (status, "status"), (phase, "phase")))
        percent = _good(spared, percentage, percent, "progress")
        current, total = _good(spared, figure, current, "current"), _good(spared, figure, total, "total")
        fields = self._good_fields(spared, fields) if fields else None
        mutex = self._mutex if self._mutex_of is _process else self._renew_mutex()
        try:
            mutex.acquire()
            before = self.phase_number
            self.figures = figures_after(self.figures, current, total, percent, phase, begin)
            if message is not None or self.phase_number != before:
                self.message = message
            self.status = self.status if status is None else status
            self.fields = {**(self.fields or {}), **fields} if fields else self.fields
            return self._reported()
        finally:
            try:
                mutex.release()
            except RuntimeError:
                pass

    def _renew_mutex(self) -> threading.RLock:
        """Another thread of the parent process may have held it when this one was forked."""
        self._mutex = threading.RLock()
        self._mutex_of = _process
        return self._mutex

    def _text(self, text: Any, what: str) -> str:
        if not isinstance(text, str):
            raise InvalidValue(f"the {what} of a progress is a text, not {type(text).__name__}")
        checked = self.redact(text) if what == "message" and self.redact is not None else text
        if len(checked) > self.limit:
            raise ValueTooLarge(f"{self.location.path} ({what})", len(checked), self.limit)
        return checked

    def _good_fields(self, spared: str | None, fields: dict[str, Any]) -> Any:
        """Return the fields that can be stored."""
        good = _good(spared, self._copied, fields, "fields")
        if good is not None:
            return good
        good = {}
        for name, value in fields.items():
            good.update(_good(spared, self._copied, {name: value}, "fields") or {})
        return _good(spared, self._copied, good, "fields")

    def _copied(self, fields: dict[str, Any], what: str) -> Any:
        """Return fields as they come back from JSON: the task may go on to change what it gave."""
        taken = RESERVED.intersection(fields)
        if taken:
            raise InvalidValue(f"progress() has a field {min(taken)!r} of its own; choose another name")
        return encoding.decode(encoding.encode(fields, self.location.path, self.limit))

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

    def entry_write(self, clock: Clock, base: MergeBase = EMPTY_BASE) -> EntryWrite:
        """The figures of this moment."""
        return self._as_change().entry_write(clock, base)

    def _as_change(self) -> ProgressChange:
        _, current, total, phase = figures = self.figures
        percent = shown_percent(figures)
        shown = None if percent is None else round(percent, 3)
        row = (shown, current, total, self.message, self.status, self.run, self.fields)
        change = ProgressChange(self.location, row, self.run_key, self.started, self.ttl, phase)
        change.at, change.fence, change.authors = self.at, self.fence, self.authors
        return change


def _good(spared: str | None, check: Callable[[Any, str], Any], value: Any, what: str) -> Any:
    """Return a value as a check returns it; None if it is bad and must not fail a task."""
    if value is None:
        return None
    try:
        return check(value, what)
    except InvalidValue as exc:
        refuse(exc, spared)
        return None


def _is_between(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most
