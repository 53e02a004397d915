"""What is shared, and how it looks in Redis: entries, runs of tasks, progress, locks, workers."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import encoding


class EntryVersion(NamedTuple):
    """Which state of an entry this is; a later one is greater.

    The version alone is not enough: when a key is deleted its versions begin anew.

    Attributes:
        stored_at: When Redis took it, in milliseconds; 0: never.
        version: Number of accepted writes.
    """

    stored_at: int
    version: int


#: The state of an entry that was not written.
UNWRITTEN = EntryVersion(0, 0)

#: Largest number that is taken for a figure, such as a progress.
MAX_FIGURE = 2 ** 62

#: Above any time in a header, and any ttl.
MAX_HEADER_FIGURE, MAX_TTL = 10 ** 15, 10 ** 14

#: The highest version, behind which they begin anew: it counts as 0 (``store/lua/entry_header.lua``).
MAX_VERSION = 10 ** 14 - 1

#: Above any fence: scripts count exactly up to there (``store/lua/entry_header.lua``).
MAX_FENCE = 2 ** 53


class Header(NamedTuple):
    """The first line of an entry as Redis keeps it; what the scripts look at.

    Attributes:
        version: Number of accepted writes.
        run: Which run of a task wrote it, see :func:`~celery_memsync.models.order.run_order`; "-" for none.
        rank: How far along within the run, sortable; "-" for none.
        fence: The highest fence that has written.
        time: Redis's time of the write, in milliseconds.
        ttl_ms: Milliseconds that it is valid from then on.
        lag: Milliseconds from ``time`` until Redis took it.
        writes: Ids of the last writes, one a writer.
        worker_id: Who wrote it.
    """

    version: int
    run: str
    rank: str
    fence: int
    time: int
    ttl_ms: int
    lag: int
    writes: str
    worker_id: str

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Read a header line.

        Raises:
            ValueError: If this is no header.
        """
        version, run, rank, fence, time, ttl_ms, lag, writes, worker_id = line.decode(errors="replace").split(" ", 8)
        number, at, length, late, most = int(version), int(time), int(ttl_ms), int(lag), MAX_HEADER_FIGURE
        if not (0 <= number <= MAX_VERSION and 0 <= at < most and 0 <= length < MAX_TTL and 0 <= int(fence) < MAX_FENCE
                and -most < late < most and 0 <= at + late < most):
            raise ValueError("a figure is too large for a header")
        return cls(number % MAX_VERSION, run, rank, int(fence), at, length, late, writes, worker_id)

    @property
    def stored_at(self) -> int:
        """When Redis took it, in milliseconds: in the order in which the entry was written."""
        return self.time + self.lag

    @property
    def stamp(self) -> EntryVersion:
        """Which state of the entry it is of."""
        return EntryVersion(self.time + self.lag, self.version)

    @property
    def expires_at(self) -> int:
        """When its ttl is over, in milliseconds."""
        return self.time + self.ttl_ms

    def entry(self, key: str, value: Any) -> Entry:
        """Return an entry with this header as the user sees it."""
        return Entry(key, value, self.version, self.time / 1000, self.worker_id, self.ttl_ms / 1000)


#: Stands for a body that can not be read.
_UNREADABLE: Any = object()


@dataclass(frozen=True)
class StoredEntry:
    """An entry as Redis keeps it: a header, and a body that no script looks into."""

    header: Header
    body: bytes

    @classmethod
    def parse(cls, text: bytes) -> StoredEntry:
        """Read an entry as Redis keeps it.

        Raises:
            ValueError: If something else than an entry is kept there.
        """
        line, _, body = text.partition(b"\n")
        return cls(Header.parse(line), body)

    @property
    def deleted(self) -> bool:
        """Whether only the version is left of it."""
        return not self.body

    @property
    def value(self) -> Any:
        """What the body holds; None if it is foreign data."""
        value = self._decoded()
        return None if value is _UNREADABLE else value

    @property
    def readable(self) -> bool:
        """Whether the body is empty, or JSON that this version can read."""
        return self.deleted or self._decoded() is not _UNREADABLE

    def _decoded(self) -> Any:
        known = self.__dict__
        if "decoded" not in known:
            try:
                known["decoded"] = encoding.decode(self.body)
            except encoding.UNREADABLE:
                known["decoded"] = _UNREADABLE
        return known["decoded"]

    def absent(self, now: float) -> bool:
        """Whether it is deleted, over, or nothing that can be read; only its version counts then."""
        header = self.header
        return not self.body or header.time + header.ttl_ms <= now * 1000 or self._decoded() is _UNREADABLE

    def ended(self, now: float) -> bool:
        """Whether it is deleted, or its ttl over."""
        return not self.body or self.expired(now)

    def expired(self, now: float) -> bool:
        """Whether its ttl is over.

        Args:
            now: Redis's time, in seconds.
        """
        return self.header.expires_at <= now * 1000

    def entry(self, key: str, value: Any = _UNREADABLE) -> Entry:
        """Return it as the user sees it, with another value if one is given."""
        return self.header.entry(key, self.value if value is _UNREADABLE else value)


@dataclass(frozen=True)
class Entry:
    """A thing that is shared.

    Attributes:
        key: Its full path.
        value: What it holds.
        version: Number of accepted writes of that key; 0: not in Redis yet.
        timestamp: When it was written, seconds since the epoch on Redis's clock.
        worker_id: Who wrote it.
        ttl: Seconds that it is valid from then on.
    """

    key: str
    value: Any
    version: int
    timestamp: float
    worker_id: str
    ttl: float

    def evolve(self, value: Any) -> Entry:
        """Return a copy with another value, at half of what :func:`dataclasses.replace` costs."""
        return Entry(self.key, value, self.version, self.timestamp, self.worker_id, self.ttl)
