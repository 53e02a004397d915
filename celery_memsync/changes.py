"""What waits in memory to be written: one class for each way to change an entry."""
from __future__ import annotations

import os
import threading
import time
from typing import Any, Iterable, Mapping, NamedTuple

from . import values
from .clock import Clock
from .exceptions import InvalidValue, ValueTooLarge
from .keys import Place
from .records import (NEVER, PROGRESS_FIELDS, TOO_LATE, WAITING, Header, Stored, TaskRun, encode_progress,
                      later_status, rank_of)
from .seen import Base

#: Figures of progress stay below: a rank holds sixteen digits.
TOO_LARGE = 10 ** 16

#: Values that were sent of a field without an answer and are remembered.
MAX_SENT = 4

#: Statuses that do not follow a success; one of the user's own does.
_BEFORE_SUCCESS = frozenset({"PENDING", "RECEIVED", "STARTED", "LOST", "RETRY", "FAILURE", "REVOKED"})


#: Held while a progress takes figures: several threads may tell of one task.
_telling = threading.RLock()


def _renew_telling() -> None:
    """Another thread of the parent process may have held it when this one was forked."""
    global _telling
    _telling = threading.RLock()


os.register_at_fork(after_in_child=_renew_telling)


class Content(NamedTuple):
    """What a change comes to when it is written.

    Attributes:
        ruled_by: What decides if it is stored: ``version`` (the one its writer
            saw), ``run`` (run and rank) or ``*`` (nothing).
        run: See ``lua/entry_write.lua``.
        rank: See there.
        body: JSON, empty to delete.
        figure: See there.
    """

    ruled_by: str
    run: str
    rank: str
    body: bytes
    figure: int = 0


class Change:
    """A change of one entry.

    Arguments:
        place: Where the entry is kept.
        ttl: Seconds that it is valid.
        fence: Of the lock under which it is made; 0 for none.
    """

    __slots__ = ("place", "ttl", "at", "fence", "serial", "conflict")

    #: Whether it is the first to go when memory gets short.
    expendable = False

    def __init__(self, place: Place, ttl: float, fence: int = 0) -> None:
        self.place = place
        self.ttl = ttl
        self.at = time.monotonic()
        self.fence = fence
        #: Number of the write in its process, given when it is first sent: a second try has the same.
        self.serial: int | None = None
        #: The conflict that it settles, as the event tells it.
        self.conflict: dict[str, Any] | None = None

    def followed_by(self, newer: Change) -> Change | None:
        """Return one change that does what both do, or None if there is none."""
        raise NotImplementedError

    def was_queued(self) -> None:
        """Take note that it waits in a queue now."""

    def snapshot(self) -> Change:
        """Return the change as it is now, to be sent; it waits no more."""
        return self

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """Return what is to be written.

        Arguments:
            base: The fields of what is stored, for changes that merge.
        """
        raise NotImplementedError

    def over(self, stored: Stored | None, clock: Clock, worker_id: str) -> Stored | None:
        """Return what will be stored when this has been written over something."""
        base = values.split_fields(stored.body) if stored is not None and isinstance(self, MergeFields) else {}
        ruled_by, run, rank, body, _ = self.content(clock, base)
        if stored is None:
            header = Header(0, "-", "-", 0, 0, 0, 0, "-", worker_id)
        elif ruled_by == "run" and not follows(run or stored.header.run, rank, stored.header):
            return stored
        else:
            header = stored.header
        return Stored(header._replace(
            version=header.version + 1, run=run or header.run, rank=rank,
            time=round(clock.at(self.at) * 1000), ttl_ms=round(self.ttl * 1000), worker_id=worker_id,
        ), body)


def follows(run: str, rank: str, stored: Header) -> bool:
    """Whether a stage comes after the one that is stored; the script decides by the same rule."""
    if stored.rank.startswith("9"):
        return False
    return rank.startswith("9") or run > stored.run or (run == stored.run and rank > stored.rank)


class Draft:
    """Something of which it is found out late what there is to tell: when a batch is made.

    Until then a short task has ended, and of all its stages only the last need be told.  Who hands it in does so in the
    middle of a task or of a worker's loop, and pays for little more than a line in a list.

    Attributes:
        at: Monotonic time when there was something to tell first.
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    @property
    def key(self) -> str:
        """The Redis key of what it will change."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether nothing more will be told."""
        raise NotImplementedError

    def changes(self) -> Iterable[Change]:
        """Return what there is to tell by now."""
        raise NotImplementedError


class SetValue(Change):
    """Replace the value of an entry; an empty body deletes it.

    Arguments:
        owned: Whether nobody else has a say in it, so that there are no conflicts.
        run_key: The run of a task that says so; "" for none.

    Attributes:
        seen: What its writer had seen there.
    """

    __slots__ = ("body", "owned", "run_key", "seen")

    def __init__(
        self, place: Place, body: bytes, ttl: float, fence: int = 0, owned: bool = False, run_key: str = "",
    ) -> None:
        super().__init__(place, ttl, fence)
        self.body = body
        self.owned = owned
        self.run_key = run_key
        self.seen = NEVER

    def followed_by(self, newer: Change) -> Change | None:
        """The newer value, whatever was here."""
        if isinstance(newer, MergeFields) and self.body:
            merged = newer.merged(values.split_fields(self.body))
            joined = SetValue(newer.place, values.join_fields(merged), newer.ttl, newer.fence, run_key=newer.run_key)
            joined.seen = self.seen
            return joined
        return newer if isinstance(newer, SetValue) else None

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """The value."""
        return Content("*" if self.owned else "version", self.run_key, "-", self.body)


class MergeFields(Change):
    """Merge top-level fields into an entry; other fields stay, whoever wrote them.

    Arguments:
        run_key: The run of a task that says so; "" for none.

    Attributes:
        told_at: Monotonic time when each field was told.
        sent: What was sent of each field without an answer: it may have arrived.
        base: What is stored, if Redis has answered with it; None: whatever this process has seen last.
    """

    __slots__ = ("base", "fields", "late", "run_key", "sent", "told_at")

    def __init__(
        self, place: Place, fields: dict[str, bytes], ttl: float, fence: int = 0, run_key: str = "",
    ) -> None:
        super().__init__(place, ttl, fence)
        self.fields = fields
        self.run_key = run_key
        self.told_at = dict.fromkeys(fields, self.at)
        self.sent: dict[str, tuple[bytes, ...]] = {}
        self.base: Base | None = None
        #: Whether somebody else has written meanwhile: then an earlier stage does not undo a later one.
        self.late = False

    def followed_by(self, newer: Change) -> Change | None:
        """The fields of both, the newer ones winning."""
        if isinstance(newer, MergeFields):
            fence, run_key = max(self.fence, newer.fence), newer.run_key or self.run_key
            joined = MergeFields(newer.place, newer.merged(self.fields), newer.ttl, fence, run_key)
            joined.at, joined.late = newer.at, self.late or newer.late
            joined.told_at = {**self.told_at, **newer.told_at}
            joined.sent = dict(self.sent)
            joined.conflict = self.conflict or newer.conflict
            return joined
        return newer if isinstance(newer, SetValue) else None

    def note_sent(self) -> None:
        """Take note that it is being sent."""
        for name, body in self.fields.items():
            before = self.sent.get(name, ())
            self.sent[name] = before if body in before else (*before, body)[-MAX_SENT:]

    def merged(self, base: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the fields of a base with these over them."""
        fields = {**base, **self.fields}
        if "status" in base and "status" in self.fields:
            old, new = values.decode(base["status"]), values.decode(self.fields["status"])
            if self.late and rank_of(old) > rank_of(new) or old == "SUCCESS" and new in _BEFORE_SUCCESS:
                fields["status"] = base["status"]
        return fields

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """All fields there are."""
        return Content("version", self.run_key, "-", values.join_fields(self.merged(base)))


class Coordinated(Change):
    """A change of what has no value in one piece: the queue, the metrics."""

    def what(self) -> list[Any]:
        """Return what to do, as ``lua/coordination_write.lua`` takes it."""
        raise NotImplementedError

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """Nothing: it is no entry."""
        raise TypeError(f"{type(self).__name__} is not written as an entry")


class SyncQueue(Coordinated):
    """Make lists of the queue what is given.

    Arguments:
        lists: Task ids by name of the list: ``pending``, ``processing``.
    """

    __slots__ = ("lists",)

    def __init__(self, place: Place, lists: dict[str, list[str]], ttl: float) -> None:
        super().__init__(place, ttl)
        self.lists = lists

    def followed_by(self, newer: Change) -> Change | None:
        """The newer lists, and those of here that it does not name."""
        if not isinstance(newer, SyncQueue) or self.serial is not None:
            return None
        return SyncQueue(newer.place, {**self.lists, **newer.lists}, newer.ttl)

    def what(self) -> list[Any]:
        """The lists with their lengths."""
        return ["queue", *(part for name, ids in self.lists.items() for part in (name, len(ids), *ids))]


class SyncMetrics(Coordinated):
    """Set counters, and add to counters.

    Arguments:
        steps: By counter: what it is set to, as JSON (None: it is not set), and what is added to that.
    """

    __slots__ = ("steps",)

    def __init__(self, place: Place, steps: dict[str, tuple[bytes | None, float]], ttl: float) -> None:
        super().__init__(place, ttl)
        self.steps = steps

    def followed_by(self, newer: Change) -> Change | None:
        """Both; what was sent already is not added to, for it may have arrived."""
        if not isinstance(newer, SyncMetrics) or self.serial is not None:
            return None
        steps = dict(self.steps)
        for name, (body, more) in newer.steps.items():
            before, some = steps.get(name, (None, 0))
            steps[name] = (before, some + more) if body is None else (body, more)
        return SyncMetrics(newer.place, steps, newer.ttl)

    def what(self) -> list[Any]:
        """The steps, one after the other."""
        steps: list[Any] = ["metrics"]
        for name, (body, more) in self.steps.items():
            steps += [] if body is None else ["=", name, body]
            steps += ["+", name, repr(more)] if more or body is None else []
        return steps

    def applied(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return counters as they will be."""
        after = dict(metrics)
        for name, (body, more) in self.steps.items():
            before = after.get(name, 0) if body is None else values.decode(body)
            is_number = isinstance(before, (int, float)) and not isinstance(before, bool)
            after[name] = before + more if is_number else before
        return after


class TellRun(Change):
    """Tell a stage in the life of a task.

    Arguments:
        task_run: All that is known of the run.
        run_key: Which run; "" for the one that is stored.
    """

    __slots__ = ("task_run", "run_key")

    def __init__(self, place: Place, task_run: TaskRun, run_key: str, ttl: float, fence: int = 0) -> None:
        super().__init__(place, ttl, fence)
        self.task_run = task_run
        self.run_key = run_key

    def followed_by(self, newer: Change) -> Change | None:
        """The later stage, if both are of one run."""
        if not isinstance(newer, TellRun) or newer.run_key != self.run_key:
            return None
        status = newer.task_run.status
        return newer if later_status(self.task_run.status, status) == status else self

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """What is known of the run."""
        run = self.task_run
        rank = rank_of(run.status)
        if rank in WAITING:
            published = run.published_at
            if not isinstance(published, (int, float)) or not 0 < published < TOO_LATE:  # it has come with the message
                published = clock.at(self.at)
            figure = round(published * 1e4)
        else:
            figure = round((run.runtime or 0.0) * 1e6)
        return Content("run", self.run_key, rank, run.encode(self.place.task_id), figure)


class TellProgress(Change):
    """Tell how far a task is, at one moment."""

    __slots__ = ("row", "run_key", "rank", "started")

    expendable = True

    def __init__(self, place: Place, row: tuple[Any, ...], run_key: str, rank: str, started: float, ttl: float) -> None:
        super().__init__(place, ttl)
        self.row = row
        self.run_key = run_key
        self.rank = rank
        self.started = started

    @classmethod
    def from_row(cls, place: Place, row: Any, run_key: str, ttl: float, clock: Clock) -> TellProgress | None:
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
        told = cls(place, (percent, current, total, message, status, run, fields), run_key, rank,
                   clock.monotonic(started_at), ttl)
        told.at = clock.monotonic(updated_at)
        return told

    def followed_by(self, newer: Change) -> Change | None:
        """The newer progress of the same run: its writer saw to it that it does not go back."""
        return newer if isinstance(newer, (TellProgress, Progress)) and newer.run_key == self.run_key else None

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """The figures, with times on Redis's clock."""
        percent, current, total, message, status, run, fields = self.row
        times = round(clock.at(self.started), 3), round(clock.at(self.at), 3)
        body = encode_progress((percent, current, total, message, status, *times, run, fields))
        # Of two words at the same figure the later one counts.
        return Content("run", self.run_key, f"{self.rank}:{round(clock.at(self.at) * 1000)}", body)


class Progress(Change):
    """How far one run of a task is; it is told again and again.

    :meth:`count` and :meth:`report` are called by the task's threads,
    :meth:`snapshot` by the writer's.  Neither waits for the other: the task
    sets the figures before it looks whether they are queued, the writer marks
    them unqueued before it reads them.

    Arguments:
        run: Id of the run, as shown.
        run_key: Which run; "" for the one that is stored.
        started: Monotonic time when the run began.
        limit: Longest message, in characters.
    """

    __slots__ = ("run", "run_key", "started", "figures", "message", "status", "fields", "limit", "queued")

    expendable = True

    def __init__(
        self, place: Place, ttl: float, run: str | None = None, run_key: str = "", started: float | None = None,
        limit: int = 1024 * 1024,
    ) -> None:
        super().__init__(place, ttl)
        self.limit = limit
        self.run = run
        self.run_key = run_key
        self.started = self.at if started is None else started
        #: Percent if it was told and not to be reckoned, current, total.
        self.figures: tuple[float | None, float | None, float | None] = (None, None, None)
        self.message: str | None = None
        self.status: str | None = None
        self.fields: dict[str, Any] | None = None
        self.queued = False

    def count(self, current: float, total: float | None, message: str | None) -> bool:
        """Take a new count, as :meth:`report` does, but fast in the plain case: one more of the same."""
        with _telling:
            percent, old, old_total = self.figures
            if (
                type(current) is int and old is not None and percent is None and old <= current < TOO_LARGE
                and (total is None or total == old_total)
                and (message is None or type(message) is str and len(message) <= self.limit)
            ):
                self.figures = (None, current, old_total)
                if message is not None:
                    self.message = message
                return self._reported()
        return self.report(current, total, message)

    def report(
        self, current: float | None, total: float | None, message: str | None,
        status: str | None = None, percent: float | None = None, fields: dict[str, Any] | None = None,
    ) -> bool:
        """Take new figures, unless they are behind the old ones; words are taken anyway.

        Returns:
            Whether it has to be queued.

        Raises:
            InvalidValue: For a figure that is none, or out of its range.
        """
        for text, what in ((message, "message"), (status, "status")):
            self._check_text(text, what)
        if percent is not None:
            _check(percent, "progress")
            if percent > 100:
                raise InvalidValue(f"progress is {percent}; it goes from 0 to 100")
        for figure, what in ((current, "current"), (total, "total")):
            if figure is not None:
                _check(figure, what)
        with _telling:
            _, old_current, old_total = self.figures
            new = percent, old_current if current is None else current, old_total if total is None else total
            if _further(new, self.figures):
                self.figures = new
            self.message = self.message if message is None else message
            self.status = self.status if status is None else status
            self.fields = {**(self.fields or {}), **fields} if fields else self.fields
            return self._reported()

    def _check_text(self, text: Any, what: str) -> None:
        if text is not None and not isinstance(text, str):
            raise InvalidValue(f"the {what} of a progress is a text, not {type(text).__name__}")
        if text is not None and len(text) > self.limit:
            raise ValueTooLarge(f"{self.place.path} ({what})", len(text), self.limit)

    def _reported(self) -> bool:
        self.at = time.monotonic()
        return not self.queued

    def followed_by(self, newer: Change) -> Change | None:
        """The newer progress of the same run."""
        return newer if isinstance(newer, (TellProgress, Progress)) and newer.run_key == self.run_key else None

    def was_queued(self) -> None:
        """Remember that there is no need to queue it again."""
        self.queued = True

    def snapshot(self) -> Change:
        """Return the figures of this moment, and be ready to be queued again."""
        self.queued = False
        return self._told()

    def content(self, clock: Clock, base: Mapping[str, bytes]) -> Content:
        """The figures of this moment."""
        return self._told().content(clock, base)

    def _told(self) -> TellProgress:
        _, current, total = figures = self.figures
        percent = _percent(figures)
        shown = None if percent is None else round(percent, 3)
        row = (shown, current, total, self.message, self.status, self.run, self.fields)
        told = TellProgress(self.place, row, self.run_key, progress_rank(percent, current), self.started, self.ttl)
        told.at, told.fence = self.at, self.fence
        return told


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


def _check(figure: Any, what: str) -> None:
    if isinstance(figure, bool) or not isinstance(figure, (int, float)):
        raise InvalidValue(f"{what} is a number, not {type(figure).__name__}")
    if not 0 <= figure < TOO_LARGE:
        raise InvalidValue(f"{what} must be 0 or more, and below {TOO_LARGE:.0e}")
