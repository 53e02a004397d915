"""The whole memory as lines of JSON, and back: what `celery memsync export` and `import` do.

The first line says what it is, the last one how many entries there are, so that a
part of a file is known for one.  Between them is a line for each entry.
"""
from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from typing import IO, Any, Callable, Iterable, Iterator, Mapping, Sequence

from . import values
from .exceptions import InvalidKey
from .keys import LIFE, METRICS, QUEUE, SLOTS, STATE, Place
from .records import Header, Stored, TaskRun
from .store import Saved, Store

#: What the first line of an archive says of its format.
FORMAT = "celery-memsync"
FORMAT_VERSION = 1

#: Tasks, or users' keys, that are read in one round trip, and lines that are written in one.
AT_ONCE = 50

#: Bytes of values that are written in one round trip, if one alone is not more.
BYTES_AT_ONCE = 2 ** 20

#: Counters, or places in the queue, of one line.
ROWS_OF_A_LINE = 500

#: Tasks and keys of which is remembered that they were shown; after so many one may be shown twice.
REMEMBERED = 100_000

#: Bytes of the first line.
LONGEST_HEAD = 32 * 1024

#: Whole numbers that Lua reckons with exactly.
EXACT = 2 ** 53

#: The latest time that is one, in seconds.
LATEST = 1e11

#: The longest that anything lives, in seconds, as for all ttls.
LONGEST = 1e10

_WORD = re.compile(r"[!-~]{1,60}").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f]").search
_WRITES = re.compile(r"[!-~]{1,600}").fullmatch


class BadLine(ValueError):
    """A line of an archive that is none.

    Attributes:
        number: Of the line, the first one is 1.
    """

    def __init__(self, number: int, why: str) -> None:
        self.number = number
        self.why = why
        super().__init__(f"line {number}: {why}")


# ------------------------------------------------------------------------ out

def lines_of(store: Store) -> Iterator[bytes]:
    """Yield an archive of all entries that are alive, line by line; what changes meanwhile may be in it or not.

    Raises:
        StoreError: If Redis is away.
    """
    store.connect()
    at = store.clock.now()
    yield _line({"format": FORMAT, "version": FORMAT_VERSION, "namespace": store.keys.namespace, "at": at})
    count = 0
    for line in _entry_lines(store, at):
        count += 1
        yield line
    yield _line({"end": True, "entries": count})


def _entry_lines(store: Store, at: float) -> Iterator[bytes]:
    # What all keep together is first: what is made of it by the tasks' stages comes after it when it is put back.
    yield from _queue_lines(store)
    yield from _metrics_lines(store)
    for field, stored in store.read_workers().items():
        worker_id, _, thing = field.rpartition("/")
        yield from _lines_of(store, store.keys.worker_place(worker_id, thing), stored)
    shown = _Shown()
    position = ""
    # What is written meanwhile has no end; a second more, for clocks may differ.
    while rows := store.first_tasks(AT_ONCE, position, at + 1):
        position = rows[-1][0]
        yield from _task_lines(store, [task_id for _, task_id in rows if shown.is_new(task_id)])
    yield from _named_lines(store, shown)


def _task_lines(store: Store, task_ids: Sequence[str]) -> Iterator[bytes]:
    for task_id, task in zip(task_ids, store.read_tasks(task_ids, agents=True)):
        for slot in range(1, SLOTS + 1):
            place = store.keys.task_place(task_id, slot)
            yield from _lines_of(store, place, task.slots.get(slot))
            for stored in task.former.get(slot, ()):
                yield from _lines_of(store, place, stored, former=True)
        for agent_id, shared in task.agents.items():
            with contextlib.suppress(InvalidKey):  # nobody of ours writes under a name like that
                yield from _lines_of(store, store.keys.agent_place(task_id, agent_id), shared)


def _named_lines(store: Store, shown: _Shown) -> Iterator[bytes]:
    cursor = 0
    while True:
        cursor, paths = store.find_names("*", cursor)
        for start in range(0, len(paths), AT_ONCE):
            places = [place for path in paths[start:start + AT_ONCE] for place in _places(store, path)]
            # Tasks whose entries outlive the index of tasks are found by these.
            yield from _task_lines(store, [one.task_id for one in places if one.task_id and shown.is_new(one.task_id)])
            own = [place for place in places if not place.task_id and shown.is_new(place.path)]
            now = store.clock.now()
            for place, stored in zip(own, store.read_entries(own)):
                if stored is not None and not stored.gone(now):
                    yield from _lines_of(store, place, stored)
        if not cursor:
            return


def _places(store: Store, path: str) -> Iterator[Place]:
    with contextlib.suppress(InvalidKey):  # whoever put it into the index
        place = store.keys.place(path)
        if store.keys.lock_name(path) is None and place.key != store.keys.about:
            yield place


def _metrics_lines(store: Store) -> Iterator[bytes]:
    place, stored = _about(store, METRICS)
    if stored is None:
        return
    counters = []
    for name, body in store.read_metrics()[0].items():
        with contextlib.suppress(ValueError, RecursionError):  # whoever put it there
            counters.append((name, json.loads(body, parse_constant=_refused)))
    for rows in _chunks(counters, ROWS_OF_A_LINE):
        yield _line({**_facts(store, place, stored), "value": dict(rows)})


def _queue_lines(store: Store) -> Iterator[bytes]:
    place, stored = _about(store, QUEUE)
    if stored is None:
        return
    facts = _facts(store, place, stored)
    yield _line({**facts, "places": {}})
    for name in ("pending", "processing"):
        cursor = 0
        while True:
            cursor, found = store.scan_list(name, cursor)
            now = store.clock.now()
            alive = [[task_id, came, round(over - now, 3)] for task_id, came, over in found
                     if over > now and 0 <= came <= LATEST]
            for rows in _chunks(alive, ROWS_OF_A_LINE):
                yield _line({**facts, "places": {name: rows}})
            if not cursor:
                break


def _about(store: Store, thing: str) -> tuple[Place, Stored | None]:
    place = store.keys.coordination_place(thing)
    (stored,) = store.read_entries([place])
    return place, None if stored is None or stored.gone(store.clock.now()) else stored


def _lines_of(store: Store, place: Place, stored: Stored | None, former: bool = False) -> Iterator[bytes]:
    """Yield the line of an entry; none if there is no entry, or one that nobody of ours has written."""
    if stored is None or not _is_ours(store, place, stored.header):
        return
    facts = _facts(store, place, stored)
    if place.task_id and place.slot == LIFE:
        facts["part"] = "life"
    if former:
        facts["former"] = True
    body = stored.body if b"\n" not in stored.body else values.dumps(json.loads(stored.body))
    yield _line(facts)[:-2] + b',"value":' + body + b"}\n"


def _is_ours(store: Store, place: Place, header: Header) -> bool:
    with contextlib.suppress(InvalidKey):
        store.keys.place(place.path)
        return bool(
            1 <= header.version <= EXACT and 0 <= header.fence <= EXACT and header.time <= LATEST * 1000
            and header.over_at / 1000 - store.clock.now() <= LONGEST and _WORD(header.run) and _WORD(header.rank)
            and _WRITES(header.writes) and _is_worker_id(header.worker_id))
    return False


def _facts(store: Store, place: Place, stored: Stored) -> dict[str, Any]:
    header = stored.header
    facts = {
        "key": place.path, "version": header.version, "timestamp": header.time / 1000, "ttl": header.ttl_ms / 1000,
        "left": max(0.001, round(header.over_at / 1000 - store.clock.now(), 3)), "worker_id": header.worker_id,
    }
    beside = {"run": header.run, "rank": header.rank, "fence": header.fence, "writes": header.writes}
    return {**facts, **{name: value for name, value in beside.items() if value not in ("-", 0)}}


class _Shown:
    """What was shown of late."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def is_new(self, name: str) -> bool:
        """Whether something was not shown yet; from now on it was."""
        if name in self._names:
            return False
        if len(self._names) >= REMEMBERED:
            self._names.clear()
        self._names.add(name)
        return True


def _line(data: dict[str, Any]) -> bytes:
    return values.dumps(data) + b"\n"


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start:start + size] for start in range(0, len(rows), size))


# ------------------------------------------------------------------------- in

class Together:
    """A part of the queue or of the metrics that is to be put back.

    Attributes:
        place: That of the queue or of the metrics.
        rest: What of it; see ``lua/coordination_restore.lua``.
    """

    def __init__(self, place: Place, header: Header, left: float, rest: Sequence[Any]) -> None:
        self.place = place
        self.header = header
        self.left = left
        self.rest = rest


class Archive:
    """An archive that can be read more than once.

    Arguments:
        file: What :func:`lines_of` gave, open for reading bytes, at its begin; it can seek.
        store: Where it is to go.
        longest: Most bytes of a line.
        worker_ttl: Seconds of silence after which a worker is lost.

    Raises:
        BadLine: If the first line is not that of an archive.
    """

    def __init__(self, file: IO[bytes], store: Store, longest: int, worker_ttl: float) -> None:
        self._file = file
        self._store = store
        self._longest = longest
        self._worker_ttl = worker_ttl
        head = self._row(file.readline(LONGEST_HEAD), 1)
        if head.get("format") != FORMAT:
            raise BadLine(1, "this is no archive of a memory: `celery memsync export` makes one")
        if head.get("version") != FORMAT_VERSION:
            raise BadLine(1, f"its format has the version {head.get('version')!r:.20}, and this package reads "
                             f"{FORMAT_VERSION}; it takes a newer one")
        #: The namespace that it was made of, and when, in seconds of that Redis's clock.
        self.namespace = _text(head, "namespace", 1)
        self.at = _number(head, "at", 1, 0, LATEST)
        self._begin = file.tell()

    def entries(self, on_bad: Callable[[BadLine], None] | None = None) -> Iterator[Saved | Together]:
        """Yield what it holds, from its begin.

        Arguments:
            on_bad: If given, it is called for a line that is none, which is passed over.

        Raises:
            BadLine: For a line that is none, or if the last one is missing.
        """
        self._file.seek(self._begin)
        number, count, ended = 1, 0, False
        while line := self._file.readline(self._longest):
            number += 1
            count += 1
            try:
                if ended:
                    raise BadLine(number, "something comes after the last line")
                if not line.endswith(b"\n") and len(line) == self._longest:
                    self._skip_rest()
                    raise BadLine(number, f"it is longer than {self._longest} bytes")
                row = self._row(line, number)
                if "end" in row:
                    ended = True
                    if row.get("entries") != count - 1:
                        told = row.get("entries")
                        raise BadLine(number, f"{count - 1} entries come before it; there were {told!r:.20}")
                    continue
                yield self._entry(row, number)
            except BadLine as exc:
                if on_bad is None:
                    raise
                on_bad(exc)
        if not ended:
            missing = BadLine(number + 1, "the file ends before its last line, which tells how many entries there are")
            if on_bad is None:
                raise missing
            on_bad(missing)

    def _skip_rest(self) -> None:
        while (more := self._file.readline(self._longest)) and not more.endswith(b"\n"):
            pass

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line, parse_constant=_refused)
        except (ValueError, RecursionError):
            raise BadLine(number, "it is no JSON") from None
        if not isinstance(row, dict):
            raise BadLine(number, "it is no JSON object")
        return row

    def _entry(self, row: dict[str, Any], number: int) -> Saved | Together:
        place = self._place(row, number)
        header = self._header(row, number)
        left = _number(row, "left", number, 0.001, LONGEST)
        if place.key == self._store.keys.about:
            read = _places_of if place.field == QUEUE else _counters_of
            return Together(place, header, left, read(row, number))
        if "value" not in row:
            raise BadLine(number, "it has no value")
        try:
            body = values.dumps(row["value"])
        except (ValueError, RecursionError):
            raise BadLine(number, "its value is none that can be stored") from None
        stored = Stored(header, body)
        former = row.get("former") is True
        if former and not (place.task_id and place.slot):
            raise BadLine(number, "only of a task's state and progress there are earlier runs")
        return Saved(place, stored, left, former, _published(place, stored), self._due(place, stored))

    def _place(self, row: dict[str, Any], number: int) -> Place:
        path = _text(row, "key", number)
        if not path.startswith(self.namespace + "/"):
            raise BadLine(number, "its key is not in the namespace that the first line names")
        keys = self._store.keys
        try:
            place = keys.place(f"{keys.namespace}/{path[len(self.namespace) + 1:]}")
        except InvalidKey as exc:
            raise BadLine(number, str(exc)) from None
        if keys.lock_name(place.path) is not None:
            raise BadLine(number, "it is a lock, and those are not moved")
        part = row.get("part")
        if part is None:
            return place
        if part != "life" or not place.task_id or place.slot != STATE:
            raise BadLine(number, "only a task's state has a part, called 'life'")
        return keys.task_place(place.task_id, LIFE)

    def _header(self, row: dict[str, Any], number: int) -> Header:
        run, rank, writes = (row.get(name, "-") for name in ("run", "rank", "writes"))
        for name, value, fits in (("run", run, _WORD), ("rank", rank, _WORD), ("writes", writes, _WRITES)):
            if not isinstance(value, str) or not fits(value):
                raise BadLine(number, f"its {name} is none")
        worker_id = row.get("worker_id")
        if not isinstance(worker_id, str) or not _is_worker_id(worker_id):
            raise BadLine(number, "its worker_id is none")
        return Header(
            _whole(row, "version", number, 1), run, rank, _whole({"fence": 0, **row}, "fence", number, 0),
            round(_number(row, "timestamp", number, 0, LATEST) * 1000), 0, 0, writes, worker_id)

    def _due(self, place: Place, stored: Stored) -> float | None:
        """Return when a worker is lost unless it beats, as :class:`Saved` has it."""
        if place.key != self._store.keys.workers or not place.field.endswith("/heartbeat"):
            return None
        known = stored.value if isinstance(stored.value, Mapping) else {}
        told_at = stored.header.time / 1000
        stretch = known.get("stretch")
        silence = self._worker_ttl * (stretch if isinstance(stretch, (int, float)) and 1 <= stretch < 1e6 else 1)
        if known.get("status") == "offline":
            return -told_at
        return silence if self.at - told_at < silence else -(told_at + silence)


def restore(store: Store, entries: Iterable[Saved | Together], report: Report) -> None:
    """Put what an archive holds into a memory, unless newer things are there, and tell what became of it.

    Raises:
        StoreError: If Redis is away; the report tells how far it came.
        BadLine: As :meth:`Archive.entries`.
    """
    waiting: list[Saved] = []
    size = 0
    for one in entries:
        if isinstance(one, Together):
            outcome = store.restore_together(one.place.field, one.header, one.left, one.rest)
            report.add(one.place, outcome.status, outcome.error)
            continue
        waiting.append(one)
        size += len(one.stored.body)
        if len(waiting) >= AT_ONCE or size >= BYTES_AT_ONCE:
            _restore(store, waiting, report)
            waiting, size = [], 0
    _restore(store, waiting, report)


def _restore(store: Store, entries: Sequence[Saved], report: Report) -> None:
    for saved, outcome in zip(entries, store.restore_entries(entries)):
        report.add(saved.place, outcome.status, outcome.error)


class Report:
    """What became of entries that were put back.

    Attributes:
        counts: How many are ``ok``, the ``same`` as before, kept for they are ``newer``, or an ``error``.
        newer: Keys of the first of those that are newer.
        errors: Keys of the first that Redis refused, and what it said.
    """

    #: Most keys that are named.
    NAMED = 20

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.newer: list[str] = []
        self.errors: list[tuple[str, str]] = []

    @property
    def total(self) -> int:
        """How many entries were looked at."""
        return self.counts.total()

    def add(self, place: Place, status: str, error: str = "") -> None:
        """Note what became of one."""
        self.counts[status] += 1
        if status == "newer" and len(self.newer) < self.NAMED and place.path not in self.newer:
            self.newer.append(place.path)
        if status == "error" and len(self.errors) < self.NAMED:
            self.errors.append((place.path, error))


def _is_worker_id(text: str) -> bool:
    return len(text) <= 2048 and not _CONTROL(text)


def _published(place: Place, stored: Stored) -> float:
    if not place.task_id or place.slot != LIFE:
        return 0.0
    run = TaskRun.from_row(stored.value, place.task_id)
    at = None if run is None else run.published_at
    return at if isinstance(at, (int, float)) and not isinstance(at, bool) and 0 < at < LATEST else 0.0


def _counters_of(row: dict[str, Any], number: int) -> list[Any]:
    counters = row.get("value")
    if not isinstance(counters, dict):
        raise BadLine(number, "counters are a JSON object")
    try:
        return [part for name, value in counters.items() for part in (name, values.dumps(value))]
    except (ValueError, RecursionError):
        raise BadLine(number, "a counter is none that can be stored") from None


def _places_of(row: dict[str, Any], number: int) -> list[Any]:
    lists = row.get("places")
    if not isinstance(lists, dict) or not set(lists) <= {"pending", "processing"}:
        raise BadLine(number, "places in the queue are a JSON object of the lists pending and processing")
    rest: list[Any] = []
    for name, rows in lists.items():
        for one in rows if isinstance(rows, list) else [None]:
            if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], str):
                raise BadLine(number, "a place in the queue is a task id, when it came, and how long it stays")
            came = _number({"time": one[1]}, "time", number, 0, LATEST)
            stays = _number({"time left": one[2]}, "time left", number, 0, LONGEST)
            rest += (name, one[0], round(came * 1e4), max(1, round(stays * 1000)))
    return rest


def _text(row: Mapping[str, Any], name: str, number: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise BadLine(number, f"its {name} is no text")
    return value


def _number(row: Mapping[str, Any], name: str, number: int, least: float, most: float) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise BadLine(number, f"its {name} is no number of seconds that can be")
    return float(value)


def _whole(row: Mapping[str, Any], name: str, number: int, least: int) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= EXACT:
        raise BadLine(number, f"its {name} is no whole number of {least} or more")
    return value


def _refused(word: str) -> Any:
    raise ValueError(word)
