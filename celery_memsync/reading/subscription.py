"""One subscription: what is known of its keys, and which changes are pending."""
from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from itertools import islice
from typing import Any, Callable, Iterable, NamedTuple

from ..background_loop import Wakeup
from ..globs import matcher
from ..models.entry import Entry, EntryVersion
from .projections import stamp_of
from .reader import Parts

#: Most keys that wait for a slow handler with what they hold; of more only the names wait, and are read in their turn.
MAX_WAITING = 100_000


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
        stamp: Which state of it.
        expires_at: When it expires, in milliseconds.
        delivered: Whether that state was received, and not merely found.
        alive: Whether there is anything, and it was not deleted.
    """

    stamp: EntryVersion
    expires_at: int
    delivered: bool
    alive: bool


class PendingChange(NamedTuple):
    """What waits to be told of a key.

    Attributes:
        parts: Its parts by slot; None: only that it can't be trusted any more.
        recreated: Whether it was gone in between, so that its versions begin anew.
        unread: Whether it has to be read, when its turn comes, what is to be told.
    """

    parts: Parts | None
    recreated: bool = False
    unread: bool = False

    @property
    def alive(self) -> bool:
        """Whether there is anything to tell but that it is gone."""
        return self.unread or self.parts is not None and _alive(self.parts)


class Subscription:
    """One who wants to hear of the keys that match a pattern.

    The link's thread puts in what it hears, in the order in which Redis took
    it; what is found by reading is sorted in by its stamp.
    """

    def __init__(self, number: str, pattern: str, on_news: Callable[[], None], with_invalidations: bool) -> None:
        self.id = number
        self.pattern = pattern
        #: Whether it wants to hear that copies can't be trusted any more.
        self.with_invalidations = with_invalidations
        self.matches = matcher(pattern)
        self.answered = Wakeup()
        self.found = Wakeup()
        #: What has to be read from Redis: "" for nothing, "find" (present states are known then, and not told),
        #: "tell" (those that are not known are told).
        self.look = "find"
        #: Monotonic time when present states were found last.
        self.found_at = float("inf")
        #: News that were never told, for newer ones came before the handler was ready.
        self.skipped = 0
        self.closed = False
        #: Wakes who takes the news.
        self.wake = on_news
        self._known: dict[str, KnownVersion] = {}
        #: When to look whether a key is over: a heap, and the time in it by path.
        self._expiry_queue: list[tuple[int, str]] = []
        self._expires_by_path: dict[str, int] = {}
        self._perhaps_over: dict[str, KnownVersion] = {}
        self._news: OrderedDict[str, PendingChange] = OrderedDict()
        #: Keys that are there as far as it was told, or could have read when it began.
        self._believed: set[str] = set()
        self._mutex = threading.RLock()

    # -- put in

    def note_change(self, path: str, parts: Parts, stamp: EntryVersion) -> None:
        """Take what Redis told of a key; :meth:`wake` has to follow."""
        with self._mutex:
            known = self._known.get(path)
            if known is not None and (stamp < known.stamp or stamp == known.stamp and known.delivered):
                return
            recreated = known is not None and stamp.version < known.stamp.version
            self._know(path, stamp, parts, delivered=True)
            self._put(path, PendingChange(parts, recreated))

    def find(self, path: str, parts: Parts, before: KnownVersion | None, deliver: bool) -> None:
        """Take what was read of a key.

        Args:
            before: What was known of it when the read began.
            deliver: Whether to deliver it if it is not known.
        """
        stamp = stamp_of(parts)
        with self._mutex:
            known = self._known.get(path)
            # Redis may have lost what it had; but what was heard since the read began is newer.
            older = before is not None and stamp < before.stamp and known == before
            if known is not None and not older and stamp <= known.stamp:
                return
            if known is None and not deliver:
                if self.look:  # the connection is lost: what is found now may have changed without a word
                    return
                self._know(path, stamp, parts, delivered=False)
                self._believed.add(path)
                return
            self._know(path, stamp, parts, delivered=True)
            self._put(path, PendingChange(parts, known is not None and stamp.version < known.stamp.version))
        self.wake()

    def lose(self, path: str, parts: Parts, before: KnownVersion) -> None:
        """Take note that a key is not there any more."""
        with self._mutex:
            if self._known.get(path) == before:
                self._know_gone(path, parts)
                if before.alive:
                    self._put(path, PendingChange(None))
        self.wake()

    def invalidate(self, paths: Iterable[str]) -> None:
        """Take note that copies of keys can't be trusted any more, nor what was told of others."""
        with self._mutex:
            delivered = [path for path, known in self._known.items() if known.delivered and known.alive]
            for path in {*delivered, *filter(self.matches, paths)} - set(self._news):
                self._put(path, PendingChange(None))
        self.wake()

    def find_expired(self, now_ms: float) -> bool:
        """Take note of the keys whose ttl is over, as far as is known; tell whether there are any to look at."""
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
                    self._perhaps_over[path] = known
                else:
                    del self._known[path]
            return bool(self._perhaps_over)

    def take_maybe_expired(self) -> dict[str, KnownVersion]:
        """Return what was known of keys whose ttl is over, unless somebody has made it longer without a word."""
        with self._mutex:
            paths, self._perhaps_over = self._perhaps_over, {}
            return paths

    def is_alive_in(self, path: str, parts: Parts) -> None:
        """Take note that the ttl of a key is longer than it was."""
        with self._mutex:
            known = self._known.get(path)
            if known is not None:
                self._know(path, known.stamp, parts, known.delivered)

    def link_lost(self, confirmed_at: float) -> None:
        """Take note that changes are not heard any more; all is looked at again when they are.

        Args:
            confirmed_at: Monotonic time up to which all was received.
        """
        with self._mutex:
            self.look = "tell"
            if self.found_at > confirmed_at:
                # A change after what was found may have been lost on the way.
                self._known = {path: known for path, known in self._known.items() if known.delivered}
                self.found_at = float("-inf")

    @property
    def known(self) -> dict[str, KnownVersion]:
        """What is known of the keys that match."""
        with self._mutex:
            return dict(self._known)

    def _know(self, path: str, stamp: EntryVersion, parts: Parts, delivered: bool) -> None:
        expires_at = max((stored.header.expires_at for stored in parts.values() if stored is not None), default=0)
        if expires_at < self._expires_by_path.get(path, expires_at + 1):
            self._schedule(path, expires_at)
        self._known[path] = KnownVersion(stamp, expires_at, delivered, _alive(parts))

    def _know_gone(self, path: str, parts: Parts) -> None:
        if _alive(parts) or all(stored is None for stored in parts.values()):
            self._known.pop(path, None)
        else:  # it was deleted, and the message that says so may be on its way
            self._know(path, stamp_of(parts), parts, delivered=True)

    def _schedule(self, path: str, expires_at: int) -> None:
        self._expires_by_path[path] = expires_at
        heapq.heappush(self._expiry_queue, (expires_at, path))

    def _put(self, path: str, news: PendingChange) -> None:
        waiting = self._news.get(path)
        if waiting is not None:
            self.skipped += 1
            recreated = news.recreated or waiting.recreated or waiting.parts is None and not waiting.unread
            news = news._replace(recreated=recreated)
        if waiting.unread if waiting is not None else len(self._news) >= MAX_WAITING:
            if not news.alive and path not in self._believed:
                # It came and went while all this waits.
                self.skipped += waiting is None
                self._news.pop(path, None)
                return
            if news.parts is not None:
                news = PendingChange(None, news.recreated, unread=True)
        self._news[path] = news

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
            if news.recreated and news.parts is not None:
                self.put_back(path, PendingChange(news.parts))
                news = PendingChange(None)
            (self._believed.add if news.alive else self._believed.discard)(path)
            return path, news

    def put_back(self, path: str, news: PendingChange) -> None:
        """Take back news that could not be told, unless there are newer ones."""
        with self._mutex:
            if path not in self._news:
                self._news[path] = news
                self._news.move_to_end(path, last=False)

    def unread(self, limit: int) -> dict[str, KnownVersion | None]:
        """Return the oldest keys that have to be read, at most ``limit``, and what is known of them."""
        with self._mutex:
            paths = islice((path for path, news in self._news.items() if news.unread), limit)
            return {path: self._known.get(path) for path in paths}

    def fill(self, path: str, parts: Parts, before: KnownVersion | None, there: bool) -> None:
        """Take what was read of an unread key, unless something newer was heard meanwhile.

        Args:
            before: What was known of it when the read began.
            there: Whether it holds anything now.
        """
        with self._mutex:
            news = self._news.get(path)
            if news is None or not news.unread or self._known.get(path) != before:
                return
            if not there:
                self._know_gone(path, parts)
                self._news[path] = PendingChange(None)
                return
            stamp = stamp_of(parts)
            recreated = before is not None and stamp.version < before.stamp.version
            self._know(path, stamp, parts, delivered=True)
            self._news[path] = PendingChange(parts, news.recreated or recreated)

    @property
    def waiting(self) -> int:
        """Number of keys that wait to be told."""
        return len(self._news)


def _alive(parts: Parts) -> bool:
    return any(stored is not None and not stored.deleted for stored in parts.values())
