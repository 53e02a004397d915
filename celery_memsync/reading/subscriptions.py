"""Deliver changes by pattern: the newest value of each key, also after a lost connection."""
from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from ..background_loop import Wakeup
from ..closing import closer
from ..deadline import bounded, remaining, within
from ..events import Events
from ..exceptions import InvalidKey, StoreError
from ..keys import STAGE, STATE, Location
from ..models.entry import Entry, Header, StoredEntry
from .cache import copier
from .handler_pool import HandlerPool, Job
from .handlers import Handlers
from .listener import ChangeListener
from .projections import as_written, entry_of
from .reader import READ_AT_ONCE, Parts, Reader
from .search import Search
from .subscription import KeyChange, KnownVersion, PendingBytes, Subscription, is_alive
from .watch import Watch

#: Longest that `subscribe` waits for Redis to confirm, in seconds.
CONFIRM_TIMEOUT = 2.0

#: Longest that it waits until all that matches was read once, so that its deletion is noticed, in seconds.
FIND_TIMEOUT = 0.5

#: Paths whose locations are cached: a path that has changed changes again.
MAX_LOCATIONS = 1000

#: Seconds between two checks for keys that have expired.
EXPIRY_INTERVAL = 1.0

#: Seconds after which index updates of a cluster that were under way are applied: longer than a try and the pause before.
INDEX_LAG = 6.0

#: Most seconds that the listener's thread waits for Redis's time.
CLOCK_TIMEOUT = 0.5


class Subscriptions:
    """The subscriptions of a process.

    The listener's thread takes what Redis publishes.  The threads of a pool call the handlers, and read what has to be
    read: at the start what is there, after a lost connection what has changed meanwhile.

    Args:
        handler_threads: Most threads for handlers that are not slow.
    """

    def __init__(
        self, reader: Reader, search: Search, link: ChangeListener, events: Events, handler_threads: int,
    ) -> None:
        self.reader = reader
        self.search = search
        self.link = link
        self.events = events
        self.keys = reader.keys
        self.timeout = reader.store.timeout
        self._numbers = count(1)
        self._subscriptions: dict[str, Subscription] = {}
        self._by_pattern: dict[str, tuple[Subscription, ...]] = {}
        #: Those for which something was received and that were not woken yet: not before the listener's thread rests,
        #: because they would compete with it for the interpreter.
        self._to_wake: dict[str, Subscription] = {}
        self._location = functools.lru_cache(MAX_LOCATIONS)(self.keys.location)
        self._expired_at = 0.0
        #: Changes of subscriptions that have ended that were never delivered.
        self._skipped = 0
        self._pending_bytes = PendingBytes()
        self._mutex = threading.RLock()
        self._pool = HandlerPool(handler_threads)
        self._reading = Job(self._catch_up, lambda: "Reading what subscriptions may have missed", urgent=True)
        #: Whether something has to be read; the listener's thread sees to it.
        self._to_read = False
        #: Whether Redis's clock was read since the present reading began.
        self._knows_time = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def is_connected(self) -> bool:
        """Whether Redis has answered on the connection for changes, a few seconds ago at most."""
        return self.link.is_up

    @property
    def skipped(self) -> int:
        """Number of changes that were never delivered, because newer ones came before a handler was ready."""
        with self._mutex:
            return self._skipped + sum(subscription.skipped for subscription in self._subscriptions.values())

    @bounded
    def subscribe(self, pattern: str, handlers: Handlers) -> str:
        """Call handlers from now on, as long as the caller keeps them; return an id for :meth:`unsubscribe`."""
        subscription = self.prepare(pattern, handlers)
        self._begin(subscription)
        return subscription.id

    def prepare(self, pattern: str, handlers: Handlers) -> Subscription:
        """Return a subscription that calls handlers from its :meth:`begin`, as long as the caller keeps them."""
        delivery = _Delivery(self, self._pool, handlers)
        subscription = delivery.subscription = Subscription(
            self._new_id(), self.keys.pattern(pattern), delivery.wake, handlers.on_invalidate is not None,
            self._pending_bytes)
        return subscription

    @bounded
    def watch(self, pattern: str, timeout: float | None, owner: object = None) -> Watch:
        """Return an iterator over changes from now on.

        Args:
            owner: Who ends all this with its own life; it lives as long as the iterator.
        """
        bell = Wakeup()
        subscription = Subscription(self._new_id(), self.keys.pattern(pattern), bell.set, False, self._pending_bytes)
        self._begin(subscription)
        next_change = functools.partial(within, self.timeout, self.next_change, subscription)
        end = functools.partial(self.unsubscribe, subscription.id)
        watch = Watch(subscription, bell, timeout, next_change, end, owner)
        watch.closer_number = closer.add(watch, end)
        return watch

    def _new_id(self) -> str:
        return f"{self.reader.store.token}-{next(self._numbers)}"

    def unsubscribe(self, number: str) -> bool:
        """End a subscription; return whether there was one of that id."""
        with self._mutex:
            subscription = self._subscriptions.pop(number, None)
            if subscription is None:
                return False
            self._skipped += subscription.skipped
            same = tuple(one for one in self._by_pattern[subscription.pattern] if one is not subscription)
            self._by_pattern[subscription.pattern] = same
            if not same:
                del self._by_pattern[subscription.pattern]
        subscription.close()
        subscription.wake()
        self.link.ignore(subscription.pattern)
        self.events.emit("unsubscribed", id=number, pattern=subscription.pattern)
        return True

    def close(self, timeout: float) -> None:
        """End all subscriptions; handlers that are running are left to themselves."""
        for number in list(self._subscriptions):
            self.unsubscribe(number)
        self._pool.close(timeout)

    def _begin(self, subscription: Subscription) -> None:
        self.begin(subscription)
        subscription.answered.wait(min(CONFIRM_TIMEOUT, remaining()))
        if not self.deliver_all_if_down(subscription):
            subscription.found.wait(min(FIND_TIMEOUT, remaining()))

    def begin(self, subscription: Subscription) -> None:
        """Subscribe, without waiting for Redis."""
        with self._mutex:
            self._subscriptions[subscription.id] = subscription
            self._by_pattern[subscription.pattern] = (*self._by_pattern.get(subscription.pattern, ()), subscription)
        if self.link.subscribe_to(subscription.pattern):
            self.on_up([subscription.pattern])
        self.events.emit("subscribed", id=subscription.id, pattern=subscription.pattern)

    def deliver_all_if_down(self, subscription: Subscription) -> bool:
        """Have all that matches delivered when Redis is back, if it has not confirmed by now; return whether that is so."""
        is_down = self.link.subscription_line(subscription.pattern) is None
        if is_down:
            self._restart_snapshot(subscription)
        return is_down

    def _read_soon(self) -> None:
        """Have what has to be read be read by a thread of the pool, which the listener's thread starts."""
        self._to_read = True
        self.link.start()

    # -- what the listener receives

    def on_up(self, patterns: Sequence[str]) -> None:
        """Note that changes of paths that match these patterns are received from now on."""
        for subscription in [one for pattern in patterns for one in self._by_pattern.get(pattern, ())]:
            subscription.answered.set()
            if subscription.look:
                self._read_soon()

    def on_down(self, confirmed_at: float, copies: Sequence[str]) -> None:
        """Note that the connection is lost.

        What was subscribed while Redis was away gets all that matches when it is back.

        Args:
            copies: Paths of which this process had copies that are not valid now.
        """
        for subscription in self._all():
            subscription.link_lost(confirmed_at)
            if subscription.with_invalidations and confirmed_at > float("-inf"):
                subscription.invalidate(copies)
            subscription.answered.set()
        self._pool.check()

    def on_emptied(self) -> None:
        """Note that Redis has lost its data."""
        for subscription in self._all():
            subscription.look = "deliver"
        self._read_soon()

    def on_message(self, pattern: str, path: str, data: bytes) -> None:
        """Take a message about a path that matches a pattern; what is no entry is ignored."""
        try:
            location = self._location(path)
            parts = _parts_of(location, data, self.reader.store.in_our_time)
        except (InvalidKey, ValueError):
            return
        state = KnownVersion.of(parts)
        for subscription in self._by_pattern.get(pattern, ()):
            subscription.note_change(path, parts, state)
            self._to_wake[subscription.id] = subscription

    def on_taken(self) -> None:
        """Deliver what was received."""
        while self._to_wake:
            subscription = self._to_wake.popitem()[1]
            subscription.wake()
            if subscription.unsure:
                self._read_soon()

    def on_look(self) -> None:
        """Look for keys that have expired, and go on with what waits for a thread."""
        self._check_expired()
        self._pool.check()
        for subscription in self._all():
            if time.monotonic() > subscription.read_again_at:
                subscription.read_again_at, subscription.look = float("inf"), subscription.look or "again"
                self._to_read = True
        if self._to_read:
            self._to_read = False
            self._pool.submit(self._reading)

    def _check_expired(self) -> None:
        if time.monotonic() - self._expired_at < EXPIRY_INTERVAL:
            return
        self._expired_at = time.monotonic()
        self._follow_clock()
        now_ms = self.reader.store.clock.now() * 1000
        for subscription in self._all():
            if subscription.find_expired(now_ms):
                self._to_read = True

    def _follow_clock(self) -> None:
        """Read Redis's time, which may have been set ahead, unless that was done a moment ago."""
        store = self.reader.store
        if self._subscriptions and store.clock.age > EXPIRY_INTERVAL:
            # Redis does not send it on the connection of the messages.  Whether Redis is there is noticed by that one.
            with contextlib.suppress(StoreError):
                within(CLOCK_TIMEOUT, store.measure_clock)

    def _all(self) -> list[Subscription]:
        with self._mutex:
            return list(self._subscriptions.values())

    # -- reading

    def _catch_up(self) -> bool:
        self._knows_time = False
        for subscription in self._all():
            line = self.link.subscription_line(subscription.pattern)
            if subscription.look and line is not None:
                self._take_snapshot(subscription, deliver=subscription.look != "find")
                if self.link.subscription_line(subscription.pattern) is not line:
                    self._restart_snapshot(subscription)
            self._read_unsure(subscription)
        return False

    def _restart_snapshot(self, subscription: Subscription) -> None:
        subscription.link_lost(float("-inf"))
        self._read_soon()

    def _take_snapshot(self, subscription: Subscription, deliver: bool) -> None:
        """Read all that matches a pattern; what has moved on is delivered."""
        look, subscription.look = subscription.look, ""
        try:
            before = subscription.known
            found = set()
            for location, parts in self.search.survey(subscription.pattern):
                found.add(location.path)
                self._found(subscription, location, parts, before, deliver)
                if subscription.look or subscription.closed:  # it has to begin anew, or has ended
                    return
            # An index may lag behind, or have lost what lives on.
            missing = [self.keys.location(path) for path in {*before, *subscription.doubted} - found]
            for at in range(0, len(missing), READ_AT_ONCE):
                for location, parts in self.reader.stored_parts(missing[at:at + READ_AT_ONCE]).items():
                    self._found(subscription, location, parts, before, deliver)
            subscription.found_at = time.monotonic()
            if look == "deliver" and self.reader.store.is_index_late:
                # What was written while the connection was lost may come into the index after that.
                subscription.read_again_at = subscription.found_at + INDEX_LAG
            subscription.found.set()
        except BaseException:
            subscription.look = subscription.look or look
            raise

    def _read_unsure(self, subscription: Subscription) -> None:
        known = subscription.take_unsure()
        paths = list(known)
        for at in range(0, len(paths), READ_AT_ONCE):
            locations = [self.keys.location(path) for path in paths[at:at + READ_AT_ONCE]]
            try:
                stored = self.reader.stored_parts(locations)
            except StoreError:
                subscription.look = "deliver"  # all is looked at again
                raise
            for location, parts in stored.items():
                self._found(subscription, location, parts, known, deliver=True)
                subscription.is_alive_in(location.path, parts)

    def _found(
        self, subscription: Subscription, location: Location, parts: Parts, before: Mapping[str, KnownVersion | None],
        deliver: bool,
    ) -> None:
        known = before.get(location.path)
        if self._is_there(location, parts):
            subscription.find(location.path, parts, known, deliver)
        else:
            subscription.lose(location.path, parts, known)

    def _is_there(self, location: Location, parts: Parts) -> bool:
        store = self.reader.store
        there = entry_of(location, parts, store.clock.now()) is not None
        if not there and not self._knows_time and is_alive(parts):
            # Its ttl is over by Redis's clock as it was when it was read last; it may have been set back.
            self._knows_time = True
            store.measure_clock()
            there = entry_of(location, parts, store.clock.now()) is not None
        return there

    # -- deliver

    def next_change(self, subscription: Subscription) -> KeyChange | None:
        """Return the next change to deliver, or None if none is pending.

        Raises:
            StoreError: If it has to be read and Redis is away; it is delivered later.
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
            take = copier(entry.value)
            self.events.emit("change", key=path, value=take(), entry=entry.evolve(take()))
        self.reader.shown(location, news.parts)
        return KeyChange(path, entry.value, entry)

    def _read_unread(self, subscription: Subscription) -> None:
        known = subscription.unread(READ_AT_ONCE)
        stored = self.reader.stored_parts([self.keys.location(path) for path in known])
        for location, parts in stored.items():
            there = entry_of(location, *as_written(parts)) is not None
            subscription.fill(location.path, parts, known[location.path], there)

    def _entry(self, location: Location, parts: Parts) -> Entry | None:
        if location.key == self.keys.about:
            # The queue and the counters have no value in one piece; they are read.
            return self.reader.stored_whole(location)
        # What has expired before it could be delivered is delivered as it was.  Each delivery decodes for itself: a handler
        # may change the value, and what is decoded would be pending beside its text.
        return entry_of(location, *as_written(parts))


class _Delivery:
    """Delivers the changes of one subscription, one a call."""

    subscription: Subscription

    def __init__(self, subscriptions: Subscriptions, pool: HandlerPool, handlers: Handlers) -> None:
        self._subscriptions = subscriptions
        self._pool = pool
        self._handlers = weakref.ref(handlers)
        self._job = Job(self.deliver, self.name)

    def wake(self) -> None:
        """Have changes delivered that are pending."""
        # One that has ended needs no thread, and its caller may be in the middle of a task.
        if not self.subscription.closed:
            self._pool.submit(self._job)
        elif (handlers := self._handlers()) is not None:
            handlers.ended()

    def deliver(self) -> bool:
        """Deliver the next change; return whether more are pending."""
        change = self._subscriptions.next_change(self.subscription)
        handlers = self._handlers()
        if change is None or handlers is None:
            return False
        handlers.call(change)
        return bool(self.subscription.waiting)

    def name(self) -> str:
        """Return what the log calls the handlers."""
        handlers = self._handlers()
        return "a handler" if handlers is None else handlers.name


def _parts_of(location: Location, data: bytes, in_our_time: Callable[[str, StoredEntry], StoredEntry]) -> Parts:
    """Return the entries of a message, by slot.

    Raises:
        ValueError: If it is none of ours.
    """
    where, header, body, *rest = data.split(b"\n")
    stored = in_our_time(location.key, StoredEntry(Header.parse(header), body))
    other = in_our_time(location.key, StoredEntry.parse(b"\n".join(rest))) if rest else None
    is_state = location.task_id and location.slot == STATE
    if is_state and where == b"%d" % STAGE:
        return {STAGE: stored, STATE: other}
    if where != location.slot_or_field.encode():
        raise ValueError("it is of another location")
    return {STATE: stored, STAGE: other} if is_state else {location.slot: stored}
