"""Receive from Redis which copies are old, and what has changed."""
from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from ..background_loop import BackgroundLoop, Wakeup
from ..deadline import remaining
from ..exceptions import StoreError, StoreUnavailable
from ..globs import is_glob
from ..store import Store
from ..store.push import INVALIDATIONS, PushConnection, PushTarget, TrackedConnection

logger = logging.getLogger(__name__)

#: Seconds between two looks whether all connections are there.
CHECK_INTERVAL = 1.0

#: Seconds that Redis may take to answer such a look.
ANSWER_TIMEOUT = 2.0

#: Longest that anything is believed without a sign of life of the connections, in seconds.
TRUST = CHECK_INTERVAL + ANSWER_TIMEOUT

#: Seconds without a read after which there is no more looking.
REST_AFTER = 60.0

#: Longest that a read waits for the link to come up, in seconds.
CONNECT_PATIENCE = 0.5

#: Seconds after which a connection that was checked out and not checked in is lost: its reader was interrupted.
LOST_AFTER = 10.0

#: Connections whose reads may be kept; threads beyond them read without keeping.
MAX_SOURCES = 8


class ChangeListener:
    """One connection on which Redis speaks, and those whose reads it vouches for.

    A thread listens, and connects again after a growing pause.  It starts with
    the first use.

    Redis remembers what is read over a :class:`TrackedConnection` and notifies when it was
    changed.  If the listening connection or the source breaks, nothing is received
    any more: so each vouches for what was read only for some seconds after its
    last sign of life.

    Args:
        on_invalid: Called with the Redis keys that have changed; None: all.
        on_message: Called with the pattern that matches, a path, and what was published.
        on_taken: Called when all that had arrived was taken.
        on_up: Called with patterns when changes of what matches them are received from now on.
        on_down: Called when the connection is lost, or could not be made, with the monotonic time up to which all
            was received.
        on_look: Called now and then.
    """

    def __init__(
        self, store: Store, *,
        on_invalid: Callable[[Sequence[str] | None], None], on_message: Callable[[str, str, bytes], None],
        on_taken: Callable[[], None], on_up: Callable[[Sequence[str]], None], on_down: Callable[[float], None],
        on_look: Callable[[], None],
    ) -> None:
        self.store = store
        #: Length of what stands before a path in the name of its channel.
        self._prefix = len(store.prefix)
        self.on_invalid = on_invalid
        self.on_message = on_message
        self.on_taken = on_taken
        self.on_up = on_up
        self.on_down = on_down
        self.on_look = on_look
        #: Monotonic time of the last ping that Redis has answered on this connection: all sent before was received.
        self.confirmed_at = float("-inf")
        self._line: PushConnection | None = None
        self._was_up = False
        self._target: PushTarget | None = None
        #: Whether new connections go to another server than the line's.
        self._is_elsewhere = False
        self._asked_at: float | None = None
        self._patterns: Counter[str] = Counter()
        self._subscribed: set[str] = set()
        #: How often a subscription to a pattern was sent to Redis and is not confirmed yet.
        self._unconfirmed: Counter[str] = Counter()
        self._sources: set[TrackedConnection] = set()
        self._idle: deque[TrackedConnection] = deque()
        self._read_at = float("-inf")
        self._waiting: list[Wakeup] = []
        self._gave_up = False
        #: Whether messages are being taken off the line just now.
        self._listening = False
        self._closing = False
        self._mutex = threading.RLock()
        self._thread = BackgroundLoop("memsync-link", self._listen, 0)

    # -- reading

    def checkout(self) -> TrackedConnection | None:
        """Return a connection whose reads may be kept, to be given back; None if there is none now."""
        now = self._read_at = time.monotonic()
        if now > self.confirmed_at + CHECK_INTERVAL + ANSWER_TIMEOUT / 2:
            self._come_up()
            if time.monotonic() > self.confirmed_at + TRUST:
                return None
        with self._mutex:
            if self._idle:
                return self._idle.pop()
            if self._target is None or len(self._sources) >= MAX_SOURCES:
                return None
            source = self.store.source(self._target)
            source.checked_at = now
            source.until = self.confirmed_at + TRUST
            self._sources.add(source)
            return source

    def checkin(self, source: TrackedConnection, asked_at: float) -> None:
        """Take a connection back that was checked out, and has answered.

        Args:
            asked_at: Monotonic time when it was asked.
        """
        source.checked_at = max(source.checked_at, asked_at)
        with self._mutex:
            if source in self._sources:
                self._idle.append(source)
                return
        source.close()

    def discard(self, source: TrackedConnection) -> None:
        """Part with a connection that was checked out and is broken."""
        with self._mutex:
            self._sources.discard(source)
            if source.refused:
                logger.warning("Redis does not allow CLIENT TRACKING, so nothing that is read can be kept")
                self._target = None
            elif source.is_elsewhere and source.target == self._target:
                self._target, self._is_elsewhere = None, True
        source.close()
        if self._is_elsewhere:
            self._wake()

    def _come_up(self) -> None:
        """Wait a little until the link is up, but once only for each time that it is down."""
        if self._gave_up or self._closing:
            return
        bell = Wakeup()
        self._waiting.append(bell)
        self.start()
        bell.wait(min(CONNECT_PATIENCE, remaining() / 2))
        self._gave_up = time.monotonic() > self.confirmed_at + TRUST

    # -- hearing

    @property
    def is_up(self) -> bool:
        """Whether Redis has answered on the connection on which it speaks, a few seconds ago at most."""
        return time.monotonic() <= self.confirmed_at + TRUST

    def is_stale(self) -> bool:
        """Whether Redis has sent something that was not received yet."""
        line = self._line
        return self._listening or line is None or line.has_arrived()

    def subscribe_to(self, pattern: str) -> bool:
        """Subscribe to changes of all paths that match a pattern; return whether they are received already."""
        with self._mutex:
            self._patterns[pattern] += 1
        self.start()
        return self.subscription_line(pattern) is not None

    def subscription_line(self, pattern: str) -> object | None:
        """Return what stands for the connection on which all changes of a pattern are received, None if they are not."""
        with self._mutex:
            return self._line if pattern in self._subscribed and not self._unconfirmed[pattern] else None

    def ignore(self, pattern: str) -> None:
        """Unsubscribe, unless another subscription needs the pattern."""
        with self._mutex:
            self._patterns[pattern] -= 1
            self._patterns += Counter()
        self._wake()

    def start(self) -> None:
        """Begin to listen, or look around now."""
        self._thread.wake()
        self._wake()

    def stop(self, timeout: float) -> None:
        """Listen no more."""
        self._closing = True
        self._wake()
        self._thread.stop(timeout)
        self._lose()

    def _wake(self) -> None:
        line = self._line
        if line is not None:
            line.wake()

    # -- the thread

    def _listen(self) -> None:
        if self._closing:
            return
        try:
            if self._line is None:
                self._connect()
            self._attend()
        except BaseException:
            self._lose()
            self._let_go()
            raise

    def _connect(self) -> None:
        line, asked_at = self.store.listen(), time.monotonic()
        self._line, self._listening = line, False
        target = line.listen()
        if target is None and line.tracks and not self._gave_up:
            logger.warning("Redis does not allow CLIENT and SUBSCRIBE, so nothing that is read can be kept")
        if self._was_up:
            self.store.renew_connections()
        self._was_up = True
        with self._mutex:
            self._target, self._is_elsewhere = target, False
        self._confirm(asked_at)

    def _attend(self) -> None:
        line = self._line
        assert line is not None
        self._send_patterns(line)
        now = time.monotonic()
        if self._asked_at is None and (self._wanted(now) and now >= self.confirmed_at + CHECK_INTERVAL or self._waiting):
            self._check()
        self.on_look()
        if self._is_elsewhere:
            raise StoreUnavailable("Another Redis answers at the address of the one that reports changes")
        end = now + CHECK_INTERVAL / 2
        while line.wait(end - now):
            self._receive(line)
            now = time.monotonic()
            if now >= end:
                return
        if self._asked_at is not None and now > self._asked_at + ANSWER_TIMEOUT:
            raise StoreUnavailable("Redis does not answer on the connection on which it reports changes")

    def _receive(self, line: PushConnection) -> None:
        self._listening = True
        try:
            for message in line.receive():
                self._take(message)
            self._listening = False
        finally:
            self.on_taken()

    def _wanted(self, now: float) -> bool:
        return bool(self._patterns) or now < self._read_at + REST_AFTER

    def _check(self) -> None:
        assert self._line is not None
        self._asked_at = time.monotonic()
        self._line.send_command("PING")

    def _send_patterns(self, line: PushConnection) -> None:
        with self._mutex:
            if self._patterns.keys() == self._subscribed:
                return
            wanted = set(self._patterns)
            new, old = wanted - self._subscribed, self._subscribed - wanted
            self._subscribed = wanted
            self._unconfirmed.update(new)
        prefix = self.store.prefix
        # Redis compares each message with each pattern (measured: 100 us for 500 of them), but finds a channel by its name.
        for pattern in new:
            line.send_command("PSUBSCRIBE" if is_glob(pattern) else "SUBSCRIBE", prefix + pattern)
        for pattern in old:
            line.send_command("PUNSUBSCRIBE" if is_glob(pattern) else "UNSUBSCRIBE", prefix + pattern)

    def _take(self, message: Any) -> None:
        if isinstance(message, Exception):
            raise StoreUnavailable("Redis does not allow to subscribe to changes; see the rights of its user") from message
        # An answer to PING is a list only on a connection that is subscribed to something.
        kind = message[0] if isinstance(message, list) and len(message) > 1 else bytes(message or b"").lower()
        if kind == b"pmessage" or kind == b"message" and message[1] != INVALIDATIONS:
            pattern, channel = message[1].decode(errors="replace"), message[-2].decode(errors="replace")
            self.on_message(pattern[self._prefix:], channel[self._prefix:], message[-1])
        elif kind == b"message":
            keys = message[2]
            # Redis names keys in a list; a text was published by a client.
            if keys is None or isinstance(keys, list):
                self.on_invalid(None if keys is None else [key.decode(errors="replace") for key in keys])
        elif kind in (b"subscribe", b"psubscribe"):
            pattern = message[1].decode(errors="replace")[self._prefix:]
            with self._mutex:
                self._unconfirmed -= Counter([pattern])
            self.on_up([pattern])
        elif kind == b"pong" and self._asked_at is not None:
            self._confirm(self._asked_at)

    def _confirm(self, asked_at: float) -> None:
        """Redis has answered: all that it sent before has been received."""
        self.confirmed_at, self._asked_at = asked_at, None
        for _ in range(len(self._idle)):
            with self._mutex:
                source = self._idle.popleft() if self._idle else None
            if source is not None:
                self._check_source(source)
        with self._mutex:
            for source in self._sources:
                source.until = min(self.confirmed_at, source.checked_at) + TRUST
            lost = [source for source in self._sources if source.checked_at < asked_at - LOST_AFTER]
        for source in lost:
            self.discard(source)
        self._gave_up = False
        self._let_go()

    def _check_source(self, source: TrackedConnection) -> None:
        asked_at = time.monotonic()
        try:
            redis_time = source.check()
        except StoreError:
            self.discard(source)
        else:
            self.store.clock.learn(redis_time, asked_at, time.monotonic())
            self.checkin(source, asked_at)

    def _let_go(self) -> None:
        while self._waiting:
            self._waiting.pop().set()

    def _lose(self) -> None:
        line, self._line = self._line, None
        self._listening = False
        with self._mutex:
            self._target = None
            for source in self._sources:
                source.until = float("-inf")
            idle = list(self._idle)
            # Those that are checked out are closed by the reader that checks them in.
            self._sources.clear()
            self._idle.clear()
            self._subscribed, self._unconfirmed = set(), Counter()
        confirmed_at, self.confirmed_at = self.confirmed_at, float("-inf")
        self.on_down(confirmed_at)
        for source in idle:
            source.close()
        if line is not None:
            line.close()
