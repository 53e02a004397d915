"""One subscription: what is known of its keys, and which changes are pending."""
from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple

from ..background_loop import Wakeup
from ..globs import matcher
from ..models.entry import Entry
from .reader import Parts

#: Most bytes of values that are pending for the handlers of a process.  Beyond, only the names of keys are kept, and each
#: value is read when it is its key's turn.
MAX_PENDING_BYTES = 32 * 1024 * 1024

#: Bytes that each subscription may have pending whatever the others have, so that one that blocks takes nothing from them;
#: and the most that one reads in advance.
MIN_PENDING_BYTES = 64 * 1024

#: Bytes of memory that a pending change takes beside its value (measured: 951 with a key of 64 letters), and without one.
CHANGE_SIZE, NAME_SIZE = 1000, 250


class KeyChange(NamedTuple):
    """A change of a key, as :meth:`Watch.get` returns it.

    Attributes:
        key: Its full path.
        value: What it holds now; None if it was deleted, is over, or can't be trusted any more.
        entry: The whole entry; None as above.
    """

    key: str
    value: Any
    entry: Entry | None


class KnownVersion(NamedTuple):
    """What a subscription knows of a key.

    Attributes:
        stored_at: When Redis took it, in milliseconds.
        version: Number of accepted writes.
        expires_at: When it expires, in milliseconds.
        delivered: Whether that state was received, and not merely found.
        alive: Whether there is anything, and it was not deleted.
        writes: Stands for the writes that made it.
    """

    stored_at: int
    version: int
    expires_at: int
    delivered: bool
    alive: bool
    writes: int

    @classmethod
    def of(cls, parts: Parts) -> KnownVersion:
        """Return what is known of a key whose parts were received."""
        stored_at = version = expires_at = writes = 0
        alive = False
        for stored in parts.values():
            if stored is not None:
                header = stored.header
                stored_at = max(stored_at, header.time + header.lag)
                version += header.version
                expires_at = max(expires_at, header.time + header.ttl_ms)
                alive = alive or stored.body != b""
                writes += hash(header.writes)
        return cls(stored_at, version, expires_at, True, alive, writes)

    def is_same(self, other: KnownVersion) -> bool:
        """Return whether both are one state of a key.

        After a failover another write may have time and version of one that was lost with the former master.
        """
        return self[:2] == other[:2] and self.writes == other.writes


class PendingChange(NamedTuple):
    """What is pending delivery of a key.

    Attributes:
        parts: Its parts by slot; None: only that it can't be trusted any more.
        recreated: Whether it was deleted in between, so that its versions begin anew.
        unread: Whether its value has to be read when its turn comes.
        alive: Whether there is anything to deliver but that it is deleted.
        size: About how many bytes of memory it takes, or would take with its value.
    """

    parts: Parts | None
    recreated: bool = False
    unread: bool = False
    alive: bool = False
    size: int = NAME_SIZE

    def is_new_life_after(self, before: PendingChange) -> bool:
        """Return whether the key was deleted between another change and this one."""
        if before.alive:
            return False
        if before.parts is None or self.parts is None:
            return before.parts is None
        return KnownVersion.of(self.parts).version <= KnownVersion.of(before.parts).version

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return NAME_SIZE if self.unread else self.size

    @classmethod
    def of(cls, parts: Parts, recreated: bool) -> PendingChange:
        """Return the change to what a key holds now."""
        size = 0
        for stored in parts.values():
            size += 0 if stored is None else len(stored.body)
        return cls(parts, recreated, False, size > 0, CHANGE_SIZE + size)

    def without_value(self) -> PendingChange:
        """Return what is kept of it when there is no room for its value."""
        return self if self.parts is None else self._replace(parts=None, unread=True, alive=True)


class PendingBytes:
    """Bytes that are pending for all subscriptions of a process together."""

    def __init__(self) -> None:
        self.used = 0
        self.mutex = threading.Lock()


class Subscription:
    """The state of the keys that match a pattern, as far as it was received, and the changes that are pending.

    A message is newer than what is known if its version is higher and its time not lower.  Any other may be older than what
    was read before, or the key was lost, or Redis's clock was set back: then the key is read.  What was read replaces what
    was known when the read began, unless something was received since.  So no clock decides what is newer.

    Args:
        on_news: Called when something is pending.
        with_invalidations: Whether it wants to know that what was delivered may be outdated.
        pending_bytes: Of all subscriptions together.
    """

    def __init__(
        self, number: str, pattern: str, on_news: Callable[[], None], with_invalidations: bool,
        pending_bytes: PendingBytes,
    ) -> None:
        self.id = number
        self.pattern = pattern
        self.with_invalidations = with_invalidations
        self.matches = matcher(pattern)
        self.answered = Wakeup()
        self.found = Wakeup()
        #: What has to be read from Redis: "" for nothing, "find" (present states are known then, and not delivered),
        #: "deliver" (those that are not known are delivered), or "again" (the same, for what came late into the indexes).
        self.look: Literal["", "find", "deliver", "again"] = "find"
        #: Monotonic time when present states were found last.
        self.found_at = float("inf")
        #: Monotonic time when all is to be read again although the connection was not lost since.
        self.read_again_at = float("inf")
        #: Changes that were never delivered, for newer ones came before the handler was ready.
        self.skipped = 0
        self.closed = False
        #: Wakes who takes the news.
        self.wake = on_news
        self._known: dict[str, KnownVersion] = {}
        #: When to look whether a key is over: a heap, and the time in it by path.
        self._expiry_queue: list[tuple[int, str]] = []
        self._expires_by_path: dict[str, int] = {}
        #: Keys that have to be read: their ttl may be over, or a message may be older than what is known.
        self.unsure: dict[str, KnownVersion] = {}
        #: Keys that are delivered after a doubt even if they have not changed.
        self._doubted: set[str] = set()
        self._news: OrderedDict[str, PendingChange] = OrderedDict()
        self._held = 0
        self._pending_bytes = pending_bytes
        #: Keys that are there as far as was delivered, or could have been read when it began.
        self._believed: set[str] = set()
        self._mutex = threading.RLock()

    # -- put in

    def note_change(self, path: str, parts: Parts, new: KnownVersion) -> None:
        """Take what Redis has published of a key; :meth:`wake` has to follow.

        Args:
            new: What is known when that is.
        """
        with self._mutex:
            known = self._known.get(path)
            if known is None or new.version > known.version and new.stored_at >= known.stored_at:
                self._take(path, parts, new, known)
            elif not known.is_same(new):
                self.unsure[path] = known
            elif not known.delivered:
                self._take(path, parts, new, known)

    def _take(self, path: str, parts: Parts, new: KnownVersion, known: KnownVersion | None) -> None:
        self._know(path, new)
        self._put(path, PendingChange.of(parts, known is not None and new.version < known.version))

    def find(self, path: str, parts: Parts, before: KnownVersion | None, deliver: bool) -> None:
        """Take what was read of a key, unless something was received since.

        Args:
            before: What was known of it when the read began.
            deliver: Whether to deliver it if it is not known.
        """
        new = KnownVersion.of(parts)
        with self._mutex:
            known = self._known.get(path)
            if known != before or known is not None and known.is_same(new) and path not in self._doubted:
                return
            if known is None and not deliver:
                if not self.look:  # else the connection was lost, and a later change with it
                    self._know(path, new._replace(delivered=False))
                    self._believed.add(path)
                return
            self._take(path, parts, new, known)
        self.wake()

    def lose(self, path: str, parts: Parts, before: KnownVersion | None) -> None:
        """Take note that a key is not there any more."""
        with self._mutex:
            if self._known.get(path) != before:
                return
            self._note_deleted(path, parts)
            if path not in self._doubted and (before is None or not before.alive):
                return
            self._put(path, PendingChange(None))
        self.wake()

    def invalidate(self, paths: Iterable[str]) -> None:
        """Take note that copies of keys, and what was delivered of others, may be outdated."""
        with self._mutex:
            delivered = [path for path, known in self._known.items() if known.delivered and known.alive]
            for path in {*delivered, *filter(self.matches, paths)} - set(self._news):
                self._put(path, PendingChange(None))
                self._doubted.add(path)
        self.wake()

    def find_expired(self, now_ms: float) -> bool:
        """Take note of the keys whose ttl is over, as far as is known; return whether there are any to look at."""
        with self._mutex:
            while self._expiry_queue and self._expiry_queue[0][0] <= now_ms:
                at, path = heapq.heappop(self._expiry_queue)
                known = self._known.get(path)
                if at != self._expires_by_path.get(path):
                    continue
                del self._expires_by_path[path]
                if known is None:
                    continue
                if known.expires_at > now_ms:
                    self._schedule(path, known.expires_at)
                elif known.alive:
                    self.unsure[path] = known
                else:
                    del self._known[path]
            return bool(self.unsure)

    def take_unsure(self) -> dict[str, KnownVersion | None]:
        """Return the keys that have to be read, and what is known of them."""
        with self._mutex:
            paths, self.unsure = self.unsure, {}
            return {path: self._known.get(path) for path in paths}

    def is_alive_in(self, path: str, parts: Parts) -> None:
        """Take note that the ttl of a key is longer than it was."""
        with self._mutex:
            known, new = self._known.get(path), KnownVersion.of(parts)
            if known is not None and known.is_same(new):
                self._know(path, new._replace(delivered=known.delivered))

    def link_lost(self, confirmed_at: float) -> None:
        """Take note that changes are not received any more; all is read again when they are.

        Args:
            confirmed_at: Monotonic time up to which all was received.
        """
        with self._mutex:
            self.look = "deliver"
            if self.found_at > confirmed_at:
                # The message of what was found may have been lost on the way.
                self._doubted |= {path for path, known in self._known.items() if known.alive and not known.delivered}
                self.found_at = float("-inf")

    @property
    def known(self) -> dict[str, KnownVersion]:
        """What is known of the keys that match."""
        with self._mutex:
            return dict(self._known)

    @property
    def doubted(self) -> set[str]:
        """Keys that are delivered after a doubt even if they have not changed."""
        with self._mutex:
            return set(self._doubted)

    def _know(self, path: str, known: KnownVersion) -> None:
        if known.expires_at < self._expires_by_path.get(path, known.expires_at + 1):
            self._schedule(path, known.expires_at)
        self._known[path] = known

    def _note_deleted(self, path: str, parts: Parts) -> None:
        if is_alive(parts) or all(stored is None for stored in parts.values()):
            self._known.pop(path, None)
        else:  # it was deleted, and the message that says so may be on its way
            self._know(path, KnownVersion.of(parts))

    def _schedule(self, path: str, expires_at: int) -> None:
        self._expires_by_path[path] = expires_at
        heapq.heappush(self._expiry_queue, (expires_at, path))

    def _put(self, path: str, news: PendingChange) -> None:
        self._doubted.discard(path)
        if self.closed:
            return
        waiting = self._news.get(path)
        if waiting is not None:
            self.skipped += 1
            self._count(-waiting.held)
            news = news._replace(recreated=news.recreated or waiting.recreated or news.is_new_life_after(waiting))
        elif self._held + news.size <= MIN_PENDING_BYTES:
            self._news[path] = news
            self._count(news.size)
            return
        if waiting is not None and waiting.unread or not self._has_room(news.size):
            if not news.alive and path not in self._believed:
                # It came and went while all this is pending.
                self.skipped += waiting is None
                self._news.pop(path, None)
                return
            news = news.without_value()
        self._news[path] = news
        self._count(news.held)

    def _has_room(self, size: int) -> bool:
        return self._held + size <= MIN_PENDING_BYTES or self._pending_bytes.used + size <= MAX_PENDING_BYTES

    def _count(self, size: int) -> None:
        self._held += size
        with self._pending_bytes.mutex:
            self._pending_bytes.used += size

    def close(self) -> None:
        """Deliver nothing any more."""
        with self._mutex:
            self.closed = True
            self._news.clear()
            self._count(-self._held)

    # -- take out

    def take(self) -> tuple[str, PendingChange] | None:
        """Return the oldest news, None if there are none; those that are unread stay and have to be read first."""
        with self._mutex:
            if self.closed or not self._news:
                return None
            path, news = next(iter(self._news.items()))
            if news.unread:
                return path, news
            del self._news[path]
            self._count(-news.size)
            if news.recreated and news.parts is not None:
                self.put_back(path, news._replace(recreated=False))
                news = PendingChange(None)
            (self._believed.add if news.alive else self._believed.discard)(path)
            return path, news

    def put_back(self, path: str, news: PendingChange) -> None:
        """Take back changes that could not be delivered, unless there are newer ones."""
        with self._mutex:
            if path not in self._news and not self.closed:
                self._news[path] = news
                self._news.move_to_end(path, last=False)
                self._count(news.held)

    def unread(self, limit: int) -> dict[str, KnownVersion | None]:
        """Return the oldest keys that have to be read, and what is known of them.

        They are at most ``limit``, and not more than may be pending in any case.
        """
        with self._mutex:
            unread = islice(((path, news.size) for path, news in self._news.items() if news.unread), limit)
            sizes = accumulate(unread, lambda total, item: (item[0], total[1] + item[1]))
            paths = [path for at, (path, size) in enumerate(sizes) if not at or size <= MIN_PENDING_BYTES]
            return {path: self._known.get(path) for path in paths}

    def fill(self, path: str, parts: Parts, before: KnownVersion | None, there: bool) -> None:
        """Take what was read of an unread key, unless something newer was received meanwhile.

        Args:
            before: What was known of it when the read began.
            there: Whether it holds anything now.
        """
        with self._mutex:
            news = self._news.get(path)
            if news is None or not news.unread or self._known.get(path) != before:
                return
            if there:
                new = KnownVersion.of(parts)
                recreated = before is not None and new.version < before.version
                self._know(path, new)
                filled = PendingChange.of(parts, news.recreated or recreated)
            else:
                self._note_deleted(path, parts)
                filled = PendingChange(None)
            self._news[path] = filled
            self._count(filled.held - news.held)

    @property
    def waiting(self) -> int:
        """Number of keys that are pending delivery."""
        return len(self._news)


def is_alive(parts: Parts) -> bool:
    """Whether any part of an entry is there and was not deleted."""
    return any(stored is not None and not stored.deleted for stored in parts.values())
