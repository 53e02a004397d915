"""Track the last version of each entry that this process has read or written."""
from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from .. import encoding
from ..keys import STAGE, Location
from ..models.entry import UNWRITTEN, EntryVersion, StoredEntry
from ..store.clock import Clock

#: Most entries of which the state is remembered.  A write of one that was forgotten costs a round more: a conflict with
#: no other writer.
MAX_SEEN = 10_000

#: Most entries of which the fields are, and their bytes of JSON.
MAX_BASES = 2000

MAX_BYTES = 4 * 1024 * 1024


class MergeBase(NamedTuple):
    """What fields are merged into.

    Attributes:
        stamp: Which state of the entry it is.
        body: Its fields, as one JSON object or each by itself.
        until: Monotonic time when it is over.
        recorded_at: Monotonic time when it was recorded.
    """

    stamp: EntryVersion
    body: dict[str, bytes] | bytes
    until: float
    recorded_at: float

    @classmethod
    def of(cls, stored: StoredEntry | None, clock: Clock) -> MergeBase:
        """Return what is stored, as something to merge into."""
        if stored is None:
            return EMPTY_BASE
        header = stored.header
        return cls(header.stamp, stored.body, clock.monotonic(header.expires_at / 1000), clock.monotonic(header.time / 1000))

    @property
    def fields(self) -> dict[str, bytes]:
        """Its fields, each as JSON."""
        return self.body if isinstance(self.body, dict) else encoding.split_fields(self.body) if self.body else {}

    @property
    def present(self) -> MergeBase:
        """It without fields if their time is over."""
        return self if time.monotonic() < self.until else self._replace(body={})

    @property
    def size(self) -> int:
        """How long it is, in bytes."""
        return sum(map(len, self.body.values())) if isinstance(self.body, dict) else len(self.body)


#: What fields of an entry that was never written are merged into.
EMPTY_BASE = MergeBase(UNWRITTEN, {}, 0.0, float("-inf"))


class VersionTracker:
    """Which version of each entry this process has written or read last, and which fields it had.

    Versions are noted by any thread, bases by the writer's only.
    """

    def __init__(self) -> None:
        #: By path, and plain tuples: what holds texts and numbers only is nothing to Python's collector.
        self._stamps: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._bases: OrderedDict[Location, MergeBase] = OrderedDict()
        self._size = 0

    def stamp(self, location: Location) -> EntryVersion:
        """Return which state of an entry was seen; `UNWRITTEN` if none was, or that is forgotten."""
        known = self._stamps.get(location.path)
        return UNWRITTEN if known is None else EntryVersion(*known)

    def note(self, location: Location, stamp: EntryVersion) -> None:
        """Take note that a state of an entry was seen."""
        if location.slot == STAGE and location.task_id:
            return  # it has the path of what users write, and is ruled by run and rank
        # No lock: each step is one of C's, and it does not matter who is the last.
        stamps, path = self._stamps, location.path
        stamps.pop(path, None)
        stamps[path] = tuple(stamp)
        if len(stamps) > MAX_SEEN:
            stamps.popitem(last=False)

    def base(self, location: Location) -> MergeBase:
        """Return what fields of an entry are to be merged into, without fields if they have expired."""
        return self._bases.get(location, EMPTY_BASE).present

    def note_base(self, location: Location, base: MergeBase) -> None:
        """Take note of what fields are to be merged into."""
        self.forget_base(location)
        self._bases[location] = base
        self._size += base.size
        while self._size > MAX_BYTES or len(self._bases) > MAX_BASES:
            self.forget_base(next(iter(self._bases)))

    def forget_base(self, location: Location) -> None:
        """Forget the fields of an entry."""
        base = self._bases.pop(location, None) if self._bases else None
        if base is not None:
            self._size -= base.size

    def forget(self, location: Location) -> None:
        """Forget all that was seen of an entry."""
        self._stamps.pop(location.path, None)
        self.forget_base(location)
