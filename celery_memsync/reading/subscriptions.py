"""Hear of changes by pattern: of each key the newest, and nothing for ever missed."""
from __future__ import annotations

import functools
import inspect
import threading
import time
from itertools import count
from typing import Callable, Iterator, Sequence

from ..background_loop import BackgroundLoop, Wakeup
from ..closing import closer
from ..deadline import remaining, within
from ..events import Events
from ..exceptions import InvalidKey, StoreError
from ..keys import STAGE, STATE, Location
from ..models.entry import Entry, StoredEntry
from ..user_code import call_user_code
from .cache import deep_copy
from .listener import ChangeListener
from .projections import entry_of, stamp_of
from .reader import READ_AT_ONCE, Parts, Reader
from .search import Search
from .subscription import KeyChange, KnownVersion, Subscription

#: Longest that `subscribe` waits for Redis to confirm, in seconds.
CONFIRM_TIMEOUT = 2.0

#: Longest that it waits until it is known what is there, so that nothing of that can go without a word, in seconds.
FIND_TIMEOUT = 0.5

#: Seconds between two tries to read what has changed while Redis is away.
READ_PAUSE = 0.2

#: Paths of which it is remembered where they are kept: what one hears of, one hears of again.
MAX_LOCATIONS = 1000

#: Seconds by which a message may be ahead of Redis's clock as this process knows it; none of ours is.
FUTURE = 60.0

#: Seconds between two looks for keys whose time is over.
EXPIRY_INTERVAL = 1.0

OnChange = Callable[..., object]

OnInvalidate = Callable[[str], object]


class Subscriptions:
    """Those in this process who want to hear of changes.

    The link's thread listens.  Each subscription has a thread of its own for
    its handlers, so that a slow one delays only itself.  One more thread reads
    what has to be read: at the start what is there, after a lost connection
    what has changed meanwhile.
    """

    def __init__(self, reader: Reader, search: Search, link: ChangeListener, events: Events) -> None:
        self.reader = reader
        self.search = search
        self.link = link
        self.events = events
        self.keys = reader.keys
        self._numbers = count(1)
        self._subscriptions: dict[str, Subscription] = {}
        self._threads: dict[str, BackgroundLoop] = {}
        #: Those who have heard of something and were not woken yet: not before the link's thread rests, or they would get
        #: into each other's way.
        self._to_wake: dict[str, Subscription] = {}
        self._location = functools.lru_cache(MAX_LOCATIONS)(self.keys.location)
        self._expired_at = 0.0
        #: News that those who have ended were never told.
        self._skipped = 0
        self._mutex = threading.RLock()
        self._reading = BackgroundLoop("memsync-catch-up", self._catch_up, 0, on_demand=True)

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
        with_entry = on_change is not None and takes_entry(on_change)
        subscription: Subscription

        def deliver() -> None:
            while (change := self.next_change(subscription)) is not None:
                if change.entry is None and on_invalidate is not None:
                    call_user_code("A handler of changes", on_invalidate, change.key)
                elif change.entry is not None and on_change is not None:
                    call_user_code("A handler of changes", on_change, *(change if with_entry else change[:2]))

        number = self._new_id()
        thread = BackgroundLoop(f"memsync-subscription-{number}", deliver, 0, on_demand=True)
        subscription = Subscription(number, self.keys.pattern(pattern), thread.wake, on_invalidate is not None)
        self._threads[number] = thread
        self._begin(subscription)
        return number

    def watch(self, pattern: str, timeout: float | None, owner: object = None) -> Watch:
        """Return an iterator over changes from now on.

        Args:
            owner: Who ends all this with its own life; it lives as long as the iterator.
        """
        bell = Wakeup()
        subscription = Subscription(self._new_id(), self.keys.pattern(pattern), bell.set, False)
        self._begin(subscription)
        watch = Watch(self, subscription, bell, timeout, owner)
        watch.closer_number = closer.add(watch, functools.partial(self.unsubscribe, subscription.id))
        return watch

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
        if self.link.subscribe_to(subscription.pattern):
            self.on_up([subscription.pattern])
        subscription.answered.wait(min(CONFIRM_TIMEOUT, remaining()))
        if self.link.subscription_line(subscription.pattern) is None:
            self._restart_snapshot(subscription)
        else:
            subscription.found.wait(min(FIND_TIMEOUT, remaining()))
        self.events.emit("subscribed", id=subscription.id, pattern=subscription.pattern)

    # -- what the link tells

    def on_up(self, patterns: Sequence[str]) -> None:
        """Changes of paths that match these patterns are heard from now on."""
        for subscription in self._all():
            if subscription.pattern in patterns:
                subscription.answered.set()
                if subscription.look:
                    self._reading.wake()

    def on_down(self, confirmed_at: float, copies: Sequence[str]) -> None:
        """Nothing is heard any more.

        Who subscribes while Redis is away hears of all there is when it is back.

        Args:
            copies: Paths of which this process had copies that can't be trusted now.
        """
        for subscription in self._all():
            subscription.link_lost(confirmed_at)
            if subscription.with_invalidations and confirmed_at > float("-inf"):
                subscription.invalidate(copies)
            subscription.answered.set()

    def on_emptied(self) -> None:
        """Redis has lost all that it had."""
        for subscription in self._all():
            subscription.look = "tell"
        self._reading.wake()

    def on_message(self, pattern: str, path: str, data: bytes) -> None:
        """Something was told of a path that matches a pattern; what is no entry is passed over."""
        try:
            parts = _parts_of(self._location(path), data)
        except (InvalidKey, ValueError):
            return
        stamp = stamp_of(parts)
        if stamp.stored_at > (self.reader.store.clock.now() + FUTURE) * 1000:
            return
        for subscription in self._all():
            if subscription.pattern == pattern:
                subscription.note_change(path, parts, stamp)
                self._to_wake[subscription.id] = subscription

    def on_taken(self) -> None:
        """All that had been told is known now."""
        while self._to_wake:
            self._to_wake.popitem()[1].wake()

    def check_expired(self) -> None:
        """Tell of keys whose time is over, now and then."""
        if time.monotonic() - self._expired_at < EXPIRY_INTERVAL:
            return
        self._expired_at = time.monotonic()
        now_ms = self.reader.store.clock.now() * 1000
        for subscription in self._all():
            if subscription.find_expired(now_ms):
                self._reading.wake()

    def _all(self) -> list[Subscription]:
        with self._mutex:
            return list(self._subscriptions.values())

    # -- reading

    def _catch_up(self) -> None:
        for subscription in self._all():
            line = self.link.subscription_line(subscription.pattern)
            if subscription.look and line is not None:
                self._take_snapshot(subscription, deliver=subscription.look == "tell")
                if self.link.subscription_line(subscription.pattern) is not line:
                    self._restart_snapshot(subscription)
            self._check_expired(subscription)

    def _restart_snapshot(self, subscription: Subscription) -> None:
        subscription.link_lost(float("-inf"))
        self._reading.wake()

    def _take_snapshot(self, subscription: Subscription, deliver: bool) -> None:
        """Read all that matches a pattern; what has moved on is told."""
        look, subscription.look = subscription.look, ""
        try:
            before = subscription.known
            found = set()
            for location, parts in self.search.survey(subscription.pattern):
                found.add(location.path)
                self._found(subscription, location, parts, before, deliver)
                if subscription.look:  # it has to begin anew
                    return
            # An index may lag behind, or have lost what lives on.
            locations = [self.keys.location(path) for path in before if path not in found]
            for at in range(0, len(locations), READ_AT_ONCE):
                for location, parts in self.reader.stored_parts(locations[at:at + READ_AT_ONCE]).items():
                    self._found(subscription, location, parts, before, deliver)
            subscription.found_at = time.monotonic()
            subscription.found.set()
        except BaseException:
            subscription.look = subscription.look or look
            raise

    def _check_expired(self, subscription: Subscription) -> None:
        known = subscription.take_maybe_expired()
        paths = list(known)
        now = self.reader.store.clock.now()
        for at in range(0, len(paths), READ_AT_ONCE):
            locations = [self.keys.location(path) for path in paths[at:at + READ_AT_ONCE]]
            try:
                stored = self.reader.stored_parts(locations)
            except StoreError:
                subscription.look = "tell"  # all is looked at again
                raise
            for location, parts in stored.items():
                if entry_of(location, parts, now) is None:
                    subscription.lose(location.path, parts, known[location.path])
                else:
                    subscription.is_alive_in(location.path, parts)
                    subscription.find(location.path, parts, known[location.path], deliver=True)

    def _found(
        self, subscription: Subscription, location: Location, parts: Parts, before: dict[str, KnownVersion], deliver: bool,
    ) -> None:
        known = before.get(location.path)
        if entry_of(location, parts, self.reader.store.clock.now()) is not None:
            subscription.find(location.path, parts, known, deliver)
        elif known is not None:
            subscription.lose(location.path, parts, known)

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
        location = self._location(path)
        try:
            entry = self._entry(location, news.parts)
        except StoreError:
            subscription.put_back(path, news)
            raise
        if entry is None:
            return KeyChange(path, None, None)
        if self.events.wanted("change"):
            self.events.emit("change", key=path, value=deep_copy(entry.value), entry=entry)
        # Others are told of the same message; what one does to the value is not for them.
        if isinstance(entry.value, (dict, list)):
            entry = entry.evolve(deep_copy(entry.value))
        self.reader.shown(location, news.parts)
        return KeyChange(path, entry.value, entry)

    def _read_unread(self, subscription: Subscription) -> None:
        known = subscription.unread(READ_AT_ONCE)
        stored = self.reader.stored_parts([self.keys.location(path) for path in known])
        now = self.reader.store.clock.now()
        for location, parts in stored.items():
            there = entry_of(location, parts, now) is not None
            subscription.fill(location.path, parts, known[location.path], there)

    def _entry(self, location: Location, parts: Parts) -> Entry | None:
        if location.key == self.keys.about:
            # What has no value in one piece is told without it.
            return self.reader.stored_whole(location)
        # What was over before it could be told is told as it was.
        return entry_of(location, parts, stamp_of(parts).stored_at / 1000)


class Watch:
    """Changes, one after the other; a context manager and an iterator.

    Usage::

        with memsync.watch("tasks/*/progress", timeout=60) as changes:
            for change in changes:
                print(change.key, change.value)

    The loop ends when nothing has changed for ``timeout`` seconds, or after :meth:`close`.  One that is collected is
    closed soon, by a thread.
    """

    #: Given by what closes this if nothing else does.
    closer_number = 0

    def __init__(
        self, subscriptions: Subscriptions, subscription: Subscription, bell: Wakeup, timeout: float | None,
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

        Args:
            timeout: Seconds to wait for it.  None: as long as it takes.

        Returns:
            The change; None if there was none in time, or this is closed.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        change = None
        while change is None and not self._subscription.closed:
            pause = float("inf")
            try:
                change = within(
                    self._subscriptions.reader.store.timeout, self._subscriptions.next_change, self._subscription)
            except StoreError:
                # Redis went away before what has changed could be read; it is tried again.
                pause = READ_PAUSE
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if change is None:
                self._bell.wait(min(left, pause))
        if self._subscription.closed or self._subscription.waiting:
            self._bell.set()  # for the next of those who share this
        return change

    def close(self) -> None:
        """Watch no more."""
        closer.remove(self.closer_number)
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


def _parts_of(location: Location, data: bytes) -> Parts:
    """Return what a message tells, by slot.

    Raises:
        ValueError: If it is none of ours.
    """
    where, *lines = data.split(b"\n")
    stored = [StoredEntry.parse(b"\n".join(lines[at:at + 2])) for at in range(0, len(lines), 2)]
    if not stored:
        raise ValueError("it tells nothing")
    is_stage = where == b"%d" % STAGE and location.task_id and location.slot == STATE
    if where != location.slot_or_field.encode() and not is_stage:
        raise ValueError("it is told of another place")
    if location.task_id and location.slot == STATE:
        first, second = (STAGE, STATE) if where == b"%d" % STAGE else (STATE, STAGE)
        return {first: stored[0], second: stored[1] if len(stored) > 1 else None}
    return {location.slot: stored[0]}


def takes_entry(handler: OnChange) -> bool:
    """Whether a handler takes the entry too, as a third argument that is not merely a default."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "entry")
