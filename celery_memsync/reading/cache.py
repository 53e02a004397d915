"""What was read lately, for as long as it may be believed."""
from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

#: Seconds between two looks, by those who read, whether something has arrived that was not received yet: a look takes a
#: microsecond or two, a copy less than one.
CHECK_PAUSE = 0.00005

_CHANGEABLE = frozenset({dict, list})

#: What makes an entry of a value, None for what is no entry, or of none.
MakeEntry = Callable[[Any], Any] | None


class Vouching(Protocol):
    """What vouches for what was read with it.

    Attributes:
        until: Monotonic time until which it does.
    """

    until: float


class CacheEntry:
    """Something that was read.

    Attributes:
        take: Returns it; what the caller does to it does not change the copy.
        at: Monotonic time when it was asked for.
        until: Monotonic time when it is too old, whatever happens.
        reading: How it was read.
        source: What it was read with.
        keys: Redis keys from which it was read.
        make_entry: Returns its entry with a value, or None if it is of none.
    """

    __slots__ = ("take", "at", "until", "reading", "source", "keys", "make_entry")

    def __init__(
        self, value: Any, at: float, until: float, reading: PendingRead, keys: tuple[str, ...], make_entry: MakeEntry,
    ) -> None:
        self.take = copier(value)
        self.at = at
        self.until = until
        self.reading = reading
        self.source = reading.source
        self.keys = keys
        self.make_entry = make_entry


class PendingRead:
    """A read that is under way.

    Attributes:
        stale: Whether something it reads was changed meanwhile, so that its answer is not to be kept.
    """

    __slots__ = ("keys", "source", "at", "stale")

    def __init__(self, keys: Iterable[str], source: Vouching) -> None:
        self.keys = tuple(keys)
        self.source = source
        self.at = monotonic()
        self.stale = False


class EntryCache:
    """Copies of what was read, by name; those that were not asked for the longest go first.

    A copy is valid as long as all of this holds: no message has said that one
    of its keys was changed, what it was read with vouches for it, and it is
    younger than ``max_age``.

    Args:
        size: Most copies; 0 keeps none.
        max_age: Seconds after which no copy is believed.
        is_stale: Whether something has arrived that was not processed yet: perhaps that a copy is old.
    """

    def __init__(self, size: int, max_age: float, is_stale: Callable[[], bool]) -> None:
        self.size = size
        self.max_age = max_age
        self.is_stale = is_stale
        #: Whether it keeps anything at all.
        self.enabled = size > 0 and max_age > 0
        self.hits = 0
        self.misses = 0
        #: Copies that were dropped because what they are of was changed.
        self.invalidated = 0
        self._copies: OrderedDict[Hashable, CacheEntry] = OrderedDict()
        #: Names of the copies that were read from a Redis key.
        self._names: dict[str, set[Hashable]] = {}
        self._readings: dict[str, set[PendingRead]] = {}
        #: All of them are empty if there is no copy and no read under way.
        self.parts = self._copies, self._readings
        #: What was dropped without the mutex.
        self._dropped: deque[tuple[Hashable, CacheEntry]] = deque()
        self._mutex = threading.RLock()
        self._looked_at = 0.0

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, name: Hashable, max_age: float | None = None) -> CacheEntry | None:
        """Return a copy that may be believed, or None.

        Args:
            max_age: Seconds that it may be old.
        """
        # No lock: each step is one of C's, and a copy is never changed.
        now = monotonic()
        try:
            copy: CacheEntry | None = self._copies[name]  # which takes half the time of get()
        except KeyError:
            copy = None
        except TypeError:  # a name that can't be one
            return None
        if copy is not None and now - self._looked_at > CHECK_PAUSE:
            if self.is_stale():
                copy = None
            else:
                self._looked_at = now
                copy = self._copies.get(name)  # a message meanwhile has dropped it
        if copy is not None and now < copy.until and now < copy.source.until and not copy.reading.stale and (
                max_age is None or now - copy.at < max_age):
            try:
                self._copies.move_to_end(name)
            except KeyError:  # dropped just now by another thread, and good until then
                pass
            self.hits += 1
            return copy
        self.misses += 1
        return None

    def peek(self, name: Hashable, max_age: float | None = None) -> CacheEntry | None:
        """Return what :meth:`get` does; that there is none is not counted, because it will be before Redis is read."""
        copy = self.get(name, max_age)
        self.misses -= copy is None
        return copy

    def begin(self, keys: Iterable[str], source: Vouching) -> PendingRead:
        """Take note that Redis keys are about to be read; :meth:`finish` has to follow."""
        reading = PendingRead(keys, source)
        with self._mutex:
            self._unlink_dropped()
            for key in reading.keys:
                self._readings.setdefault(key, set()).add(reading)
        return reading

    def finish(self, reading: PendingRead) -> None:
        """Take note that a read is over."""
        with self._mutex:
            for key in reading.keys:
                readings = self._readings.get(key)
                if readings is not None:
                    readings.discard(reading)
                    if not readings:
                        del self._readings[key]

    def keep(
        self, reading: PendingRead, name: Hashable, value: Any, keys: tuple[str, ...], until: float,
        make_entry: MakeEntry = None,
    ) -> None:
        """Keep what was read, unless it was overtaken.

        Args:
            keys: Redis keys that it was read from, of those of the reading.
            until: Monotonic time when it is over.
        """
        with self._mutex:
            if reading.stale:
                return self.compare(name, value)
            if name in self._copies:
                self._forget(name)
            for key in keys:
                for other in self._readings.get(key, ()):
                    # Who asked at the same time may have an older answer.
                    other.stale = other.stale or other is not reading
            self._unlink_dropped()
            self._copies[name] = CacheEntry(
                value, reading.at, min(until, reading.at + self.max_age), reading, keys, make_entry)
            for key in keys:
                self._names.setdefault(key, set()).add(name)
            if len(self._copies) > self.size:
                # In one step: who recalls a copy moves it to the end without the mutex.
                self._unlink(*self._copies.popitem(last=False))

    def compare(self, name: Hashable, value: Any) -> None:
        """Drop a copy that is not what was answered just now, so that it does not follow on that."""
        with self._mutex:
            copy = self._copies.get(name)
            if copy is not None and copy.take() != value:
                self._forget(name)

    def drop_for(self, key: str) -> None:
        """Drop what was read from a Redis key, and what is being read, for this process is changing it.

        No lock: a task calls this, where a soft time limit may strike.  A copy that is being kept at the same time is not
        valid, because its reading is stale.
        """
        if key not in self._readings and key not in self._names:
            return
        for reading in tuple(self._readings.get(key, ())):
            reading.stale = True
        for name in tuple(self._names.get(key, ())):
            copy = self._copies.pop(name, None)
            if copy is not None:
                self._dropped.append((name, copy))

    def drop(self, key: str) -> int:
        """Drop what was read from a Redis key, and what is being read; return how many copies."""
        if key not in self._names and key not in self._readings:
            return 0
        with self._mutex:
            for reading in self._readings.get(key, ()):
                reading.stale = True
            names = list(self._names.get(key, ()))
            for name in names:
                self._forget(name)
            return len(names)

    def invalidate(self, key: str) -> None:
        """Drop what was read from a Redis key that was changed."""
        self.invalidated += self.drop(key)

    def clear(self) -> list[Hashable]:
        """Drop everything; return the names of what was there."""
        with self._mutex:
            for readings in self._readings.values():
                for reading in readings:
                    reading.stale = True
            names = list(self._copies)
            self._copies.clear()
            self._names.clear()
            return names

    def _unlink_dropped(self) -> None:
        """Forget the keys of what was dropped without the mutex, but for those of what was kept under its name since."""
        while self._dropped:
            name, copy = self._dropped.popleft()
            kept = self._copies.get(name)
            self._unlink(name, copy, () if kept is None else kept.keys)

    def _forget(self, name: Hashable) -> None:
        copy = self._copies.pop(name, None)
        if copy is not None:
            self._unlink(name, copy)

    def _unlink(self, name: Hashable, copy: CacheEntry, but: Sequence[str] = ()) -> None:
        for key in copy.keys:
            names = self._names.get(key)
            if names is not None and key not in but:
                names.discard(name)
                if not names:
                    del self._names[key]


def copier(value: Any) -> Callable[[], Any]:
    """Return a function that returns a value of JSON's kind, each time one that may be changed.

    It knows what in there is to be copied, which takes a third of the time of finding that out, or of `marshal.loads`.
    """
    if not isinstance(value, (dict, list)):
        return lambda: value
    kept: Any = value.copy()
    copy: Callable[[], Any] = kept.copy
    parts = [(at, copier(part)) for at, part in (value.items() if isinstance(value, dict) else enumerate(value))
             if type(part) in _CHANGEABLE]
    if not parts:
        return copy
    for at, _ in parts:
        kept[at] = None  # not the caller's, which would stay alive

    def take() -> Any:
        made = copy()
        for at, take_part in parts:
            made[at] = take_part()
        return made

    return take
