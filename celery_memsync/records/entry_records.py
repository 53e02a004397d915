"""Entries: what users store under keys of their own, and the general form of reading what is shared."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from .. import encoding
from ..deadline import bounded, within
from ..exceptions import ConflictError, InvalidKey, InvalidValue
from ..keys import Location
from ..locking.lock import Lock
from ..models.entry import Entry
from ..reading.reader import Reader, parts_of
from ..reading.search import Search
from ..settings import Settings, short
from ..writing.changes import SetValue
from ..writing.unanswered import digest_of, maybe_done_is
from .checks import check_count, check_fence, check_keys, check_seconds, check_timeout, check_ttl


class EntryRecords:
    """Writes, reads and finds entries by key."""

    def __init__(self, settings: Settings, reader: Reader, search: Search) -> None:
        self.settings = settings
        self.timeout = settings.timeout
        self.keys = reader.keys
        self.writer = reader.writer
        self.reader = reader
        self.cache = reader.cache
        self._search = search

    # -- write

    def write(
        self, key: str, value: Any, ttl: float | None, expected_version: int | None, fence: Lock | int | None,
    ) -> Entry | None:
        """Store a value; at once, and return its entry, if it is to replace a known version."""
        location = self._location_to_write(key)
        number = 0 if fence is None else check_fence(fence)
        if expected_version is None:
            self.set(location, value, ttl, number)
            return None
        return self._compare_and_set(location, value, check_ttl(ttl, self.settings.default_ttl), expected_version, number)

    def delete(self, key: str) -> None:
        """Remove what is stored under a key."""
        self.writer.put(SetValue(self._location_to_write(key), b"", self.settings.default_ttl))

    def set(
        self, location: Location, value: Any, ttl: float | None = None, fence: int = 0, owned: bool = False,
        run_key: str = "",
    ) -> None:
        """Have a whole value written at a location that its caller has checked.

        Args:
            owned: Whether no other process writes it.
            run_key: The run of a task that writes it, or "".
        """
        settings = self.settings
        body = encoding.encode(value, location.path, settings.max_value_size)
        self.writer.put(SetValue(location, body, check_ttl(ttl, settings.default_ttl), fence, owned, run_key))

    def _location_to_write(self, key: str) -> Location:
        keys, location = self.keys, self.keys.location(key)
        if location.key == location.path:  # a key of the user's own
            return location
        if keys.lock_name(location.path) is not None:
            raise InvalidKey(f"{location.path} is a lock; take it with lock(), or acquire_task_lock()")
        if location.key == keys.about:
            raise InvalidKey(f"{location.path} has no value in one piece; change it by sync_{location.field}() and its like")
        return location

    @bounded
    def _compare_and_set(self, location: Location, value: Any, ttl: float, expected: int, fence: int) -> Entry:
        if isinstance(expected, bool) or not isinstance(expected, int) or expected < 0:
            raise InvalidValue(f"expected_version is a whole number, 0 or more, not {short(expected)}")
        body = encoding.encode(value, location.path, self.settings.max_value_size)
        change = SetValue(location, body, ttl, fence)
        with self.writer.unanswered.attempt(location, digest_of(body), expected) as attempt:
            with maybe_done_is(False):
                beside = self._version_beside(location)
            if expected < beside:
                raise attempt.conflict(location.path, beside, False)
            try:
                entry = self.writer.compare_and_set(change, expected - beside, attempt).entry(location.path, value)
            except ConflictError as exc:
                raise ConflictError(location.path, exc.version + beside) from None
        return replace(entry, version=entry.version + beside)

    def _version_beside(self, location: Location) -> int:
        """Return how much of an entry's version is of its other part: a state has one that Celery's signals write."""
        if parts_of(location) == [location]:
            return 0
        self.writer.flush()
        stored = self.reader.stored_parts([location])[location]
        return sum(one.header.version for slot, one in stored.items() if one is not None and slot != location.slot)

    def force(self, timeout: float | None) -> dict[str, float]:
        """Return when every write made before this call is in Redis: how many there were, and how many seconds it took."""
        check_timeout(timeout)
        started = time.monotonic()
        count = within(self.timeout + (timeout or 0), self.writer.force, timeout)
        return {"count": count, "seconds": time.monotonic() - started}

    # -- read

    def read(self, key: str, max_age: float | None = None, consistent: bool = False) -> Any:
        """Return the value of an entry, or None if there is none."""
        if max_age is not None:
            check_seconds(max_age, "max_age")
        if consistent:
            self.reader.uncached += 1
        elif (copy := self.cache.get(key, max_age)) is not None:
            return copy.take()
        return within(self.timeout, self.reader.read_value, key, self.keys.location(key))

    @bounded
    def entry(self, key: str, max_age: float | None, consistent: bool) -> Entry | None:
        """Return an entry, or None if there is none."""
        if max_age is not None:
            check_seconds(max_age, "max_age")
        return self.reader.entries([key], max_age, consistent)[key]

    @bounded
    def many(self, keys: Iterable[str], max_age: float | None, consistent: bool) -> dict[str, Any]:
        """Return the values of entries, by key as given."""
        if max_age is not None:
            check_seconds(max_age, "max_age")
        entries = self.reader.entries(check_keys(keys), max_age, consistent)
        return {key: None if entry is None else entry.value for key, entry in entries.items()}

    @bounded
    def search(self, pattern: str, limit: int) -> list[str]:
        """Return the keys that match a pattern, sorted."""
        return self._search.search(self.keys.pattern(pattern), check_count(limit, "limit"))

    def iterate(self, pattern: str) -> Iterator[Entry]:
        """Return an iterator over the entries whose keys match a pattern."""
        full = self.keys.pattern(pattern)
        within(self.timeout, self.writer.flush)
        return self._search.iter_entries(full)
