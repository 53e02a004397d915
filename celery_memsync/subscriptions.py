"""Hear of changes by pattern: of each key the newest, and nothing for ever missed."""
from __future__ import annotations

import functools
import heapq
import inspect
import threading
import time
from collections import OrderedDict
from itertools import count, islice
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

from celery.utils.log import get_logger

from .cache import twin
from .events import Events
from .exceptions import InvalidKey, StoreError
from .keys import LIFE, STATE, Place, matcher
from .link import Link
from .periodic import Bell, PeriodicThread
from .reader import READ_AT_ONCE, Parts, Reader
from .records import Entry, Stamp, Stored
from .views import entry_of, stamp_of

logger = get_logger(__name__)

#: Longest that `subscribe` waits for Redis to confirm, in seconds.
CONFIRM_TIMEOUT = 2.0

#: Longest that it waits until it is known what is there, so that nothing of that can go without a word, in seconds.
FIND_TIMEOUT = 0.5

#: Most keys that wait for a slow handler with what they hold; of more only the names wait, and are read in their turn.
MAX_WAITING = 100_000

#: Seconds between two tries to read what has changed while Redis is away.
READ_PAUSE = 0.2

#: Paths of which it is remembered where they are kept: what one hears of, one hears of again.
PLACES = 1000

#: Seconds by which a message may be ahead of Redis's clock as this process knows it; none of ours is.
FUTURE = 60.0

#: Seconds between two looks for keys whose time is over.
EXPIRY_INTERVAL = 1.0

OnChange = Callable[..., object]
OnInvalidate = Callable[[str], object]


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


class Known(NamedTuple):
    """What a subscription knows of a key.

    Attributes:
        stamp: Which state of it.
        over_at: When its ttl is over, in milliseconds.
        told: Whether that state was heard of, and not merely found.
        alive: Whether there is anything, and it was not deleted.
    """

    stamp: Stamp
    over_at: int
    told: bool
    alive: bool


class News(NamedTuple):
    """What waits to be told of a key.

    Attributes:
        parts: Its parts by slot; None: only that it can't be trusted any more.
        reborn: Whether it was gone in between, so that its versions begin anew.
        unread: Whether it has to be read, when its turn comes, what is to be told.
    """

    parts: Parts | None
    reborn: bool = False
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

    def __init__(self, number: str, pattern: str, on_news: Callable[[], None], doubts: bool) -> None:
        self.id = number
        self.pattern = pattern
        #: Whether it wants to hear that copies can't be trusted any more.
        self.doubts = doubts
        self.matches = matcher(pattern)
        self.answered = Bell()
        self.found = Bell()
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
        self._known: dict[str, Known] = {}
        #: When to look whether a key is over: a heap, and the time in it by path.
        self._over: list[tuple[int, str]] = []
        self._over_by_path: dict[str, int] = {}
        self._perhaps_over: dict[str, Known] = {}
        self._news: OrderedDict[str, News] = OrderedDict()
        #: Keys that are there as far as it was told, or could have read when it began.
        self._believed: set[str] = set()
        self._mutex = threading.RLock()

    # -- put in

    def hear(self, path: str, parts: Parts, stamp: Stamp) -> None:
        """Take what Redis told of a key; :meth:`wake` has to follow."""
        with self._mutex:
            known = self._known.get(path)
            if known is not None and (stamp < known.stamp or stamp == known.stamp and known.told):
                return
            reborn = known is not None and stamp.version < known.stamp.version
            self._know(path, stamp, parts, told=True)
            self._put(path, News(parts, reborn))

    def find(self, path: str, parts: Parts, before: Known | None, tell: bool) -> None:
        """Take what was read of a key.

        Arguments:
            before: What was known of it when the read began.
            tell: Whether to tell it if it is not known.
        """
        stamp = stamp_of(parts)
        with self._mutex:
            known = self._known.get(path)
            # Redis may have lost what it had; but what was heard since the read began is newer.
            older = before is not None and stamp < before.stamp and known == before
            if known is not None and not older and stamp <= known.stamp:
                return
            if known is None and not tell:
                if self.look:  # the connection is lost: what is found now may have changed without a word
                    return
                self._know(path, stamp, parts, told=False)
                self._believed.add(path)
                return
            self._know(path, stamp, parts, told=True)
            self._put(path, News(parts, known is not None and stamp.version < known.stamp.version))
        self.wake()

    def lose(self, path: str, parts: Parts, before: Known) -> None:
        """Take note that a key is not there any more."""
        with self._mutex:
            if self._known.get(path) == before:
                self._know_gone(path, parts)
                if before.alive:
                    self._put(path, News(None))
        self.wake()

    def doubt(self, paths: Iterable[str]) -> None:
        """Take note that copies of keys can't be trusted any more, nor what was told of others."""
        with self._mutex:
            told = [path for path, known in self._known.items() if known.told and known.alive]
            for path in {*told, *filter(self.matches, paths)} - set(self._news):
                self._put(path, News(None))
        self.wake()

    def find_what_is_over(self, now_ms: float) -> bool:
        """Take note of the keys whose ttl is over, as far as is known; tell whether there are any to look at."""
        with self._mutex:
            while self._over and self._over[0][0] <= now_ms:
                at, path = heapq.heappop(self._over)
                known = self._known.get(path)
                if at != self._over_by_path.get(path):
                    continue
                del self._over_by_path[path]
                if known is None:
                    continue
                if known.over_at > now_ms:
                    self._schedule(path, known.over_at)
                elif known.alive:
                    self._perhaps_over[path] = known
                else:
                    del self._known[path]
            return bool(self._perhaps_over)

    def take_perhaps_over(self) -> dict[str, Known]:
        """Return what was known of keys whose ttl is over, unless somebody has made it longer without a word."""
        with self._mutex:
            paths, self._perhaps_over = self._perhaps_over, {}
            return paths

    def lives_on(self, path: str, parts: Parts) -> None:
        """Take note that the ttl of a key is longer than it was."""
        with self._mutex:
            known = self._known.get(path)
            if known is not None:
                self._know(path, known.stamp, parts, known.told)

    def link_lost(self, heard_at: float) -> None:
        """Take note that changes are not heard any more; all is looked at again when they are.

        Arguments:
            heard_at: Monotonic time up to which all was heard.
        """
        with self._mutex:
            self.look = "tell"
            if self.found_at > heard_at:
                # A change after what was found may have been lost on the way.
                self._known = {path: known for path, known in self._known.items() if known.told}
                self.found_at = float("-inf")

    @property
    def known(self) -> dict[str, Known]:
        """What is known of the keys that match."""
        with self._mutex:
            return dict(self._known)

    def _know(self, path: str, stamp: Stamp, parts: Parts, told: bool) -> None:
        over_at = max((stored.header.over_at for stored in parts.values() if stored is not None), default=0)
        if over_at < self._over_by_path.get(path, over_at + 1):
            self._schedule(path, over_at)
        self._known[path] = Known(stamp, over_at, told, _alive(parts))

    def _know_gone(self, path: str, parts: Parts) -> None:
        if _alive(parts) or all(stored is None for stored in parts.values()):
            self._known.pop(path, None)
        else:  # it was deleted, and the message that says so may be on its way
            self._know(path, stamp_of(parts), parts, told=True)

    def _schedule(self, path: str, over_at: int) -> None:
        self._over_by_path[path] = over_at
        heapq.heappush(self._over, (over_at, path))

    def _put(self, path: str, news: News) -> None:
        waiting = self._news.get(path)
        if waiting is not None:
            self.skipped += 1
            news = news._replace(reborn=news.reborn or waiting.reborn or waiting.parts is None and not waiting.unread)
        if waiting.unread if waiting is not None else len(self._news) >= MAX_WAITING:
            if not news.alive and path not in self._believed:
                # It came and went while all this waits.
                self.skipped += waiting is None
                self._news.pop(path, None)
                return
            if news.parts is not None:
                news = News(None, news.reborn, unread=True)
        self._news[path] = news

    # -- take out

    def take(self) -> tuple[str, News] | None:
        """Return the oldest news, None if there are none; those that are unread stay and have to be read first."""
        with self._mutex:
            if self.closed or not self._news:
                return None
            path, news = next(iter(self._news.items()))
            if news.unread:
                return path, news
            del self._news[path]
            if news.reborn and news.parts is not None:
                self.put_back(path, News(news.parts))
                news = News(None)
            (self._believed.add if news.alive else self._believed.discard)(path)
            return path, news

    def put_back(self, path: str, news: News) -> None:
        """Take back news that could not be told, unless there are newer ones."""
        with self._mutex:
            if path not in self._news:
                self._news[path] = news
                self._news.move_to_end(path, last=False)

    def unread(self, limit: int) -> dict[str, Known | None]:
        """Return the oldest keys that have to be read, at most ``limit``, and what is known of them."""
        with self._mutex:
            paths = islice((path for path, news in self._news.items() if news.unread), limit)
            return {path: self._known.get(path) for path in paths}

    def fill(self, path: str, parts: Parts, before: Known | None, there: bool) -> None:
        """Take what was read of an unread key, unless something newer was heard meanwhile.

        Arguments:
            before: What was known of it when the read began.
            there: Whether it holds anything now.
        """
        with self._mutex:
            news = self._news.get(path)
            if news is None or not news.unread or self._known.get(path) != before:
                return
            if not there:
                self._know_gone(path, parts)
                self._news[path] = News(None)
                return
            stamp = stamp_of(parts)
            reborn = before is not None and stamp.version < before.stamp.version
            self._know(path, stamp, parts, told=True)
            self._news[path] = News(parts, news.reborn or reborn)

    @property
    def waiting(self) -> int:
        """Number of keys that wait to be told."""
        return len(self._news)


class Subscriptions:
    """Those in this process who want to hear of changes.

    The link's thread listens.  Each subscription has a thread of its own for
    its handlers, so that a slow one delays only itself.  One more thread reads
    what has to be read: at the start what is there, after a lost connection
    what has changed meanwhile.
    """

    def __init__(self, reader: Reader, link: Link, events: Events) -> None:
        self.reader = reader
        self.link = link
        self.events = events
        self.keys = reader.keys
        self._numbers = count(1)
        self._subscriptions: dict[str, Subscription] = {}
        self._threads: dict[str, PeriodicThread] = {}
        #: Those who have heard of something and were not woken yet: not before the link's thread rests, or they would get
        #: into each other's way.
        self._to_wake: dict[str, Subscription] = {}
        self._place = functools.lru_cache(PLACES)(self.keys.place)
        self._expired_at = 0.0
        #: News that those who have ended were never told.
        self._skipped = 0
        self._mutex = threading.RLock()
        self._reading = PeriodicThread("memsync-catch-up", self._catch_up, 0, on_demand=True)

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def skipped(self) -> int:
        """Number of news that were never told, for newer ones came before a handler was ready."""
        with self._mutex:
            return self._skipped + sum(subscription.skipped for subscription in self._subscriptions.values())

    def subscribe(self, pattern: str, on_change: OnChange | None, on_invalidate: OnInvalidate | None) -> str:
        """Call handlers from now on; return an id for :meth:`unsubscribe`."""
        for handler, what in ((on_change, "on_change"), (on_invalidate, "on_invalidate")):
            if handler is not None and not callable(handler):
                raise TypeError(f"{what} must be callable, not {type(handler).__name__}")
        with_entry = on_change is not None and _takes_entry(on_change)
        subscription: Subscription

        def deliver() -> None:
            while (change := self.next_change(subscription)) is not None:
                if change.entry is None:
                    _call(on_invalidate, change.key)
                else:
                    _call(on_change, *(change if with_entry else change[:2]))

        number = self._new_id()
        thread = PeriodicThread(f"memsync-subscription-{number}", deliver, 0, on_demand=True)
        subscription = Subscription(number, self.keys.pattern(pattern), thread.wake, on_invalidate is not None)
        self._threads[number] = thread
        self._begin(subscription)
        return number

    def watch(self, pattern: str, timeout: float | None, owner: object = None) -> Watch:
        """Return an iterator over changes from now on.

        Arguments:
            owner: Who ends all this with its own life; it lives as long as the iterator.
        """
        bell = Bell()
        subscription = Subscription(self._new_id(), self.keys.pattern(pattern), bell.ring, False)
        self._begin(subscription)
        return Watch(self, subscription, bell, timeout, owner)

    def _new_id(self) -> str:
        return f"{self.reader.store.token}-{next(self._numbers)}"

    def unsubscribe(self, number: str) -> bool:
        """End a subscription; tell whether there was one of that id."""
        with self._mutex:
            subscription = self._subscriptions.pop(number, None)
            thread = self._threads.pop(number, None)
            if subscription is None:
                return False
            self._skipped += subscription.skipped
        subscription.closed = True
        subscription.wake()
        self.link.ignore(subscription.pattern)
        if thread is not None:
            thread.stop(0)
        self.events.emit("unsubscribed", id=number, pattern=subscription.pattern)
        return True

    def close(self, timeout: float) -> None:
        """End all subscriptions."""
        for number in list(self._subscriptions):
            self.unsubscribe(number)
        self._reading.stop(timeout)

    def _begin(self, subscription: Subscription) -> None:
        with self._mutex:
            self._subscriptions[subscription.id] = subscription
        if self.link.hear(subscription.pattern):
            self.on_up([subscription.pattern])
        subscription.answered.wait(CONFIRM_TIMEOUT)
        if self.link.hears(subscription.pattern) is None:
            self._look_anew(subscription)
        else:
            subscription.found.wait(FIND_TIMEOUT)
        self.events.emit("subscribed", id=subscription.id, pattern=subscription.pattern)

    # -- what the link tells

    def on_up(self, patterns: Sequence[str]) -> None:
        """Changes of paths that match these patterns are heard from now on."""
        for subscription in self._all():
            if subscription.pattern in patterns:
                subscription.answered.ring()
                if subscription.look:
                    self._reading.wake()

    def on_down(self, heard_at: float, copies: Sequence[str]) -> None:
        """Nothing is heard any more.

        Who subscribes while Redis is away hears of all there is when it is back.

        Arguments:
            copies: Paths of which this process had copies that can't be trusted now.
        """
        for subscription in self._all():
            subscription.link_lost(heard_at)
            if subscription.doubts and heard_at > float("-inf"):
                subscription.doubt(copies)
            subscription.answered.ring()

    def on_emptied(self) -> None:
        """Redis has lost all that it had."""
        for subscription in self._all():
            subscription.look = "tell"
        self._reading.wake()

    def on_message(self, pattern: str, path: str, data: bytes) -> None:
        """Something was told of a path that matches a pattern; what is no entry is passed over."""
        try:
            parts = _parts_of(self._place(path), data)
        except (InvalidKey, ValueError):
            return
        stamp = stamp_of(parts)
        if stamp.stored_at > (self.reader.store.clock.now() + FUTURE) * 1000:
            return
        for subscription in self._all():
            if subscription.pattern == pattern:
                subscription.hear(path, parts, stamp)
                self._to_wake[subscription.id] = subscription

    def on_taken(self) -> None:
        """All that had been told is known now."""
        while self._to_wake:
            self._to_wake.popitem()[1].wake()

    def look_around(self) -> None:
        """Tell of keys whose time is over, now and then."""
        if time.monotonic() - self._expired_at < EXPIRY_INTERVAL:
            return
        self._expired_at = time.monotonic()
        now_ms = self.reader.store.clock.now() * 1000
        for subscription in self._all():
            if subscription.find_what_is_over(now_ms):
                self._reading.wake()

    def _all(self) -> list[Subscription]:
        with self._mutex:
            return list(self._subscriptions.values())

    # -- reading

    def _catch_up(self) -> None:
        for subscription in self._all():
            line = self.link.hears(subscription.pattern)
            if subscription.look and line is not None:
                self._look(subscription, tell=subscription.look == "tell")
                if self.link.hears(subscription.pattern) is not line:
                    self._look_anew(subscription)
            self._look_at_what_is_over(subscription)

    def _look_anew(self, subscription: Subscription) -> None:
        subscription.link_lost(float("-inf"))
        self._reading.wake()

    def _look(self, subscription: Subscription, tell: bool) -> None:
        """Read all that matches a pattern; what has moved on is told."""
        look, subscription.look = subscription.look, ""
        try:
            before = subscription.known
            found = set()
            for place, parts in self.reader.survey(subscription.pattern):
                found.add(place.path)
                self._found(subscription, place, parts, before, tell)
                if subscription.look:  # it has to begin anew
                    return
            # An index may lag behind, or have lost what lives on.
            places = [self.keys.place(path) for path in before if path not in found]
            for at in range(0, len(places), READ_AT_ONCE):
                for place, parts in self.reader.stored_parts(places[at:at + READ_AT_ONCE]).items():
                    self._found(subscription, place, parts, before, tell)
            subscription.found_at = time.monotonic()
            subscription.found.ring()
        except BaseException:
            subscription.look = subscription.look or look
            raise

    def _look_at_what_is_over(self, subscription: Subscription) -> None:
        known = subscription.take_perhaps_over()
        paths = list(known)
        now = self.reader.store.clock.now()
        for at in range(0, len(paths), READ_AT_ONCE):
            places = [self.keys.place(path) for path in paths[at:at + READ_AT_ONCE]]
            try:
                stored = self.reader.stored_parts(places)
            except StoreError:
                subscription.look = "tell"  # all is looked at again
                raise
            for place, parts in stored.items():
                if entry_of(place, parts, now) is None:
                    subscription.lose(place.path, parts, known[place.path])
                else:
                    subscription.lives_on(place.path, parts)
                    subscription.find(place.path, parts, known[place.path], tell=True)

    def _found(
        self, subscription: Subscription, place: Place, parts: Parts, before: dict[str, Known], tell: bool,
    ) -> None:
        known = before.get(place.path)
        if entry_of(place, parts, self.reader.store.clock.now()) is not None:
            subscription.find(place.path, parts, known, tell)
        elif known is not None:
            subscription.lose(place.path, parts, known)

    # -- telling

    def next_change(self, subscription: Subscription) -> KeyChange | None:
        """Return what a subscription is to be told next, None for nothing.

        Raises:
            StoreError: If it has to be read and Redis is away; it is told later.
        """
        while (item := subscription.take()) is not None and item[1].unread:
            self._read_unread(subscription)
        if item is None:
            return None
        path, news = item
        if news.parts is None:
            return KeyChange(path, None, None)
        place = self._place(path)
        try:
            entry = self._entry(place, news.parts)
        except StoreError:
            subscription.put_back(path, news)
            raise
        if entry is None:
            return KeyChange(path, None, None)
        if self.events.wanted("change"):
            self.events.emit("change", key=path, value=twin(entry.value), entry=entry)
        # Others are told of the same message; what one does to the value is not for them.
        if isinstance(entry.value, (dict, list)):
            entry = entry.evolve(twin(entry.value))
        self.reader.shown(place, news.parts)
        return KeyChange(path, entry.value, entry)

    def _read_unread(self, subscription: Subscription) -> None:
        known = subscription.unread(READ_AT_ONCE)
        stored = self.reader.stored_parts([self.keys.place(path) for path in known])
        now = self.reader.store.clock.now()
        for place, parts in stored.items():
            there = entry_of(place, parts, now) is not None
            subscription.fill(place.path, parts, known[place.path], there)

    def _entry(self, place: Place, parts: Parts) -> Entry | None:
        if place.key == self.keys.about:
            # What has no value in one piece is told without it.
            return self.reader.stored_whole(place)
        # What was over before it could be told is told as it was.
        return entry_of(place, parts, stamp_of(parts).stored_at / 1000)


class Watch:
    """Changes, one after the other; a context manager and an iterator.

    Usage::

        with memsync.watch("tasks/*/progress", timeout=60) as changes:
            for change in changes:
                print(change.key, change.value)

    The loop ends when nothing has changed for ``timeout`` seconds, or after :meth:`close`.
    """

    def __init__(
        self, subscriptions: Subscriptions, subscription: Subscription, bell: Bell, timeout: float | None,
        owner: object = None,
    ) -> None:
        self.id = subscription.id
        self.timeout = timeout
        self._subscriptions = subscriptions
        self._subscription = subscription
        self._bell = bell
        self._owner = owner

    def get(self, timeout: float | None = None) -> KeyChange | None:
        """Return the next change.

        Arguments:
            timeout: Seconds to wait for it.  None: as long as it takes.

        Returns:
            The change; None if there was none in time, or this is closed.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        change = None
        while change is None and not self._subscription.closed:
            pause = float("inf")
            try:
                change = self._subscriptions.next_change(self._subscription)
            except StoreError:
                # Redis went away before what has changed could be read; it is tried again.
                pause = READ_PAUSE
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if change is None:
                self._bell.wait(min(left, pause))
        if self._subscription.closed or self._subscription.waiting:
            self._bell.ring()  # for the next of those who share this
        return change

    def close(self) -> None:
        """Watch no more."""
        self._subscriptions.unsubscribe(self.id)

    def __iter__(self) -> Iterator[KeyChange]:
        return self

    def __next__(self) -> KeyChange:
        change = self.get(self.timeout)
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _parts_of(place: Place, data: bytes) -> Parts:
    """Return what a message tells, by slot.

    Raises:
        ValueError: If it is none of ours.
    """
    where, *lines = data.split(b"\n")
    stored = [Stored.parse(b"\n".join(lines[at:at + 2])) for at in range(0, len(lines), 2)]
    if not stored:
        raise ValueError("it tells nothing")
    if where != place.where.encode() and not (where == b"%d" % LIFE and place.task_id and place.slot == STATE):
        raise ValueError("it is told of another place")
    if place.task_id and place.slot == STATE:
        first, second = (LIFE, STATE) if where == b"%d" % LIFE else (STATE, LIFE)
        return {first: stored[0], second: stored[1] if len(stored) > 1 else None}
    return {place.slot: stored[0]}


def _alive(parts: Parts) -> bool:
    return any(stored is not None and not stored.deleted for stored in parts.values())


def _takes_entry(handler: OnChange) -> bool:
    """Whether a handler takes the entry too, as a third argument that is not merely a default."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "entry")


def _call(handler: Callable[..., object] | None, *args: object) -> None:
    try:
        if handler is not None:
            handler(*args)
    except (Exception, SystemExit):
        logger.exception("A handler of changes raised")
