"""Receive the turns of waiters for locks: one connection for all of a process."""
from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from copy import copy
from typing import Any

from ..background_loop import BackgroundLoop, Steps, Wakeup
from ..deadline import remaining
from ..exceptions import StoreError, StoreUnavailable
from ..store import LockRequest, Store
from ..store.push import PushConnection

#: Seconds without a waiter after which the connection is closed.
REST_AFTER = 10.0

#: Holder, fence and lease (ms) of the message that gives a lock to a waiter; other programs may publish there, too.
_MESSAGE = re.compile(rb"(\S+) (\d{1,16}) (\d{1,14})").fullmatch


class Turn:
    """What one waiter receives, as long as this object is there.

    Args:
        line: The line on which it comes.
    """

    def __init__(self, line: TurnLine) -> None:
        self.bell = Wakeup()
        #: Fence and lease (seconds) of the last message.
        self.message: tuple[int, float] | None = None
        #: Why the line could not be opened.
        self.error: StoreError | None = None
        self._line = line
        self._opening: object | None = None

    def listen(self, timeout: float) -> Steps[None]:
        """End when all is received that is published from now on.

        Args:
            timeout: Most seconds to wait.

        Raises:
            StoreError: If Redis can't be listened to.
        """
        end = time.monotonic() + min(timeout, remaining())
        while (opening := self._line.opening) is None:
            self._line.open()
            left = end - time.monotonic()
            if left <= 0 or self._line.is_closed:
                why = "this manager was shut down" if self._line.is_closed else f"Redis did not answer within {timeout:g} s"
                raise StoreUnavailable(f"Waiting for a lock was given up: {why}")
            yield self.bell, left
            if self.error is not None:
                # Several waiters may get the same one.
                raise copy(self.error) from self.error
        self._opening = opening

    def wait(self, after: int, seconds: float) -> Steps[tuple[int, float] | None]:
        """Return the fence and the lease (seconds) with which the lock is given to this waiter.

        None: it is not within ``seconds``, or may have been while the connection was away.  What comes late was meant
        for the time before, and counts only with a fence that is greater than ``after``.
        """
        end = time.monotonic() + seconds
        while self._line.opening is self._opening and (left := end - time.monotonic()) > 0:
            if self.message is not None and self.message[0] > after:
                return self.message
            yield self.bell, left
        return None


class TurnLine:
    """One connection on which one Redis publishes the turns of all waiters of this process.

    A thread listens while there are waiters.  When the connection breaks each waiter tries again to take the lock.

    Args:
        connect: Returns a connection that is not open yet.
        channel: Where their turns are published.
    """

    def __init__(self, connect: Callable[[], PushConnection], channel: str) -> None:
        #: Stands for the time since it is subscribed; None: it is not.
        self.opening: object | None = None
        self.is_closed = False
        self._connect = connect
        self._channel = channel
        self._connection: PushConnection | None = None
        self._turns: weakref.WeakValueDictionary[str, Turn] = weakref.WeakValueDictionary()
        self._thread = BackgroundLoop("memsync-turns", self._listen, 0, on_demand=True)

    def turn_of(self, holder: str) -> Turn:
        """Return what a waiter receives from now on."""
        turn = self._turns[holder] = Turn(self)
        return turn

    def open(self) -> None:
        """Listen, if that is not so yet."""
        self._thread.call_now()

    def close(self, timeout: float) -> None:
        """Listen no more; return when the thread has ended, or after ``timeout`` seconds."""
        self.is_closed = True
        connection = self._connection
        if connection is not None:
            connection.wake()
        self._thread.stop(timeout)

    # -- the thread

    def _listen(self) -> None:
        if not self._turns or self.is_closed:
            return
        connection: PushConnection | None = None
        try:
            connection = self._connection = self._connect()
            connection.subscribe(self._channel)
            self.opening = object()
            self._ring()
            self._receive(connection)
        except StoreError as exc:
            self._fail(exc)
        except BaseException as exc:
            self._fail(StoreUnavailable(f"Listening for the turn of a lock has failed: {type(exc).__name__}"))
            raise
        finally:
            self._connection = self.opening = None
            self._ring()
            if connection is not None:
                connection.close()

    def _receive(self, connection: PushConnection) -> None:
        wanted_at = time.monotonic()
        while not self.is_closed and time.monotonic() < wanted_at + REST_AFTER:
            if connection.wait(REST_AFTER):
                for message in connection.receive():
                    self._take(message)
            if self._turns:
                wanted_at = time.monotonic()

    def _take(self, message: Any) -> None:
        if not isinstance(message, list) or len(message) != 3 or not isinstance(message[2], bytes):
            return
        match = _MESSAGE(message[2])
        turn = self._turns.get(match[1].decode(errors="replace")) if match else None
        if match and turn is not None:
            turn.message = int(match[2]), int(match[3]) / 1000
            turn.bell.set()

    def _fail(self, error: StoreError) -> None:
        if self.opening is None:
            for turn in self._present():
                turn.error = error

    def _ring(self) -> None:
        for turn in self._present():
            turn.bell.set()

    def _present(self) -> list[Turn]:
        return [turn for reference in self._turns.valuerefs() if (turn := reference()) is not None]


class Turns:
    """The lines of a process: one for each Redis that has a lock for which it waits."""

    def __init__(self, store: Store) -> None:
        #: Where turns of this process's waiters are published; no other one listens there.
        self.channel = store.turn_channel
        self._store = store
        self._lines: dict[object, TurnLine] = {}

    def turn_of(self, request: LockRequest) -> Turn:
        """Return what the waiter with this request receives from now on.

        Raises:
            StoreError: If it is not known which Redis has the lock.
        """
        node = self._store.node_of(request.location)
        line = self._lines.get(node)
        if line is None:
            line = self._lines.setdefault(node, TurnLine(lambda: self._store.listen_at(node), self.channel))
        return line.turn_of(request.holder)

    def close(self, timeout: float) -> None:
        """Listen no more; return after ``timeout`` seconds at the latest."""
        end = time.monotonic() + timeout
        for line in list(self._lines.values()):
            line.close(max(0.0, end - time.monotonic()))
        self._lines.clear()
