"""Connections that are checked out quickly, and commands that are sent packed."""
from __future__ import annotations

import contextlib
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import redis

from .errors import code_of, is_lost, note_lost

#: Bytes of commands that are sent together, and that Redis reads at once (PROTO_IOBUF_LEN in its server.h).
PIECE = 16 * 1024

#: Connections of a kind that are kept for the next who needs one.
MAX_IDLE = 8

T = TypeVar("T")

#: Before 5.3 redis-py wants to know what a connection is for.
_PURPOSE = ("EVALSHA",) if redis.VERSION < (5, 3) else ()

#: What stands between two words that are sent, by the length of the second one: to make it takes longer than all the rest.
_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(1024)]

#: Marks a connection of a pool that was closed while it was lent.
_CLOSED: Any = object()


class Pool(redis.ConnectionPool):
    """Connections; who was interrupted leaves none behind on which the next would get his answer.

    A soft time limit may raise at any bytecode, so also between a question and its answer.

    What redis-py does around a call takes as long as Redis does.  So there is a short way too, :meth:`execute_packed`, over
    connections that have just worked.
    """

    def reset(self) -> None:
        """Begin anew, in a child too."""
        super().reset()  # type: ignore[no-untyped-call,unused-ignore]
        #: Those that an interruption kept from being released go with whom they were lent to.
        self._in_use_connections: Any = weakref.WeakSet()
        #: Those that have worked and wait for the next; redis-py's own code takes them for lent.
        self._ready: deque[Any] = deque()
        #: How often something was sent again that may have been done.
        self.resent = 0
        #: How often all connections were to be made anew.
        self._generation = 0
        self._keeps_idle = True

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Lend a connection that was looked at: it is connected, and there is nothing on it to read."""
        generation = self._generation
        with contextlib.suppress(IndexError):
            super().release(self._ready.pop())
        connection: Any = super().get_connection(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        connection.lent_amid, connection.lent_in = sys.exc_info()[1], generation
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back; what raised since it was lent may have left an answer unread."""
        lent_amid, connection.lent_amid = getattr(connection, "lent_amid", None), None
        raised = sys.exc_info()[1]
        answered = raised is None or raised is lent_amid or isinstance(raised, redis.ResponseError)
        is_closed = lent_amid is _CLOSED or getattr(connection, "lent_in", self._generation) != self._generation
        if not is_closed and answered and len(self._ready) < MAX_IDLE:
            self._ready.append(connection)
            if not self._keeps_idle:
                self._disconnect_idle()
            return
        if is_closed or not answered:
            connection.disconnect()
        if not answered and isinstance(raised, redis.TimeoutError):
            self._disconnect_idle()
        super().release(connection)

    def execute_packed(self, commands: Iterable[bytes]) -> list[Any]:
        """Send commands as they go over the wire, and return their answers; an error that Redis answers is one.

        One that has waited and turns out to be broken is replaced, and all is sent again.

        Args:
            commands: They are sent as they are made, a piece at a time: Redis executes one while
                the next is made.
        """
        rest = iter(commands)
        sent: list[bytes] = []

        def talk(connection: Any) -> list[Any]:
            again = sent.copy()
            sent.clear()
            under_way = False
            try:
                for piece in pieces(noted(chain(again, rest), sent), PIECE):
                    connection.send_packed_command([piece], check_health=False)
                    under_way = True
                return [read_answer(connection) for _ in sent]
            except (redis.RedisError, OSError) as exc:
                if (under_way or is_lost(exc.__context__)) and not code_of(exc):
                    note_lost(exc)
                raise

        return self._talk(talk)

    def read_packed(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands that change nothing, and return their answers: it does no harm if they are sent twice."""
        return self._talk(partial(exchange, commands))

    def execute_one(self, command: bytes) -> Any:
        """Send one command as it goes over the wire, and return the answer."""
        def talk(connection: Any) -> Any:
            connection.send_packed_command([command], check_health=False)
            try:
                return connection.read_response()
            except (redis.RedisError, OSError) as exc:
                if not code_of(exc):
                    note_lost(exc)
                raise

        return self._talk(talk)

    def _talk(self, talk: Callable[[Any], T]) -> T:
        """Lend a connection that has waited, and if it is broken one that was looked at."""
        self._checkpid()  # type: ignore[no-untyped-call,unused-ignore]
        generation = self._generation
        try:
            connection = self._ready.pop()
        except IndexError:
            connection = None
        if connection is not None:
            connection.lent_amid, connection.lent_in = sys.exc_info()[1], generation
            try:
                return self._use(connection, talk)
            except redis.ConnectionError as exc:
                # Others that have waited as long are as broken.
                self._retire()
                if is_lost(exc):
                    return self._talk_again(talk)
        return self._use(self.get_connection(*_PURPOSE), talk)

    def _talk_again(self, talk: Callable[[Any], T]) -> T:
        """Send once more what may have been done; whatever is wrong now, that it may have been is still true."""
        self.resent += 1
        try:
            answer = self._use(self.get_connection(*_PURPOSE), talk)
        except (redis.RedisError, OSError) as exc:
            note_lost(exc)
            raise
        for one in answer if isinstance(answer, list) else ():
            if isinstance(one, redis.RedisError):
                note_lost(one)
        return answer

    def _use(self, connection: Any, talk: Callable[[Any], T]) -> T:
        try:
            return talk(connection)
        finally:
            self.release(connection)

    def _retire(self) -> None:
        """Let those that wait be looked at before they are used again."""
        while self._ready:
            with contextlib.suppress(IndexError):
                super().release(self._ready.pop())

    def _disconnect_idle(self) -> None:
        """Connect anew from now on: if one connection does not answer, nor do the others, though nothing shows it."""
        self._retire()
        idle = []
        with contextlib.suppress(IndexError):
            while True:
                idle.append(self._available_connections.pop())
                idle[-1].disconnect()
        self._available_connections.extend(idle)

    def renew(self) -> None:
        """Connect anew from now on, for another server may answer here; what is lent is closed when it comes back."""
        self._generation += 1
        self._disconnect_idle()

    def close(self) -> None:
        """Close connections, and keep none from now on: a later call leaves none open."""
        self._keeps_idle = False
        self.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close connections; those that are lent when they come back, for other threads read from them."""
        self._retire()
        for connection in list(self._in_use_connections) if inuse_connections else ():
            connection.lent_amid = _CLOSED
        super().disconnect(inuse_connections=False)  # type: ignore[no-untyped-call,unused-ignore]


def packed(*words: Any) -> bytes:
    """Return words as they go over the wire, each with its length."""
    return b"".join((*_parts_of(words), b"\r\n"))[2:]


def _parts_of(words: Iterable[Any]) -> list[bytes]:
    """Return what is sent for words: before each its length, with the end of the line before."""
    parts: list[bytes] = []
    for word in words:
        data = word if type(word) is bytes else str(word).encode()
        length = len(data)
        parts += (_LENGTHS[length] if length < len(_LENGTHS) else b"\r\n$%d\r\n" % length), data
    return parts


def packed_command(*words: Any) -> bytes:
    """Return a command as it goes over the wire."""
    return b"".join((b"*%d" % len(words), *_parts_of(words), b"\r\n"))


def noted(items: Iterable[T], made: list[T]) -> Iterator[T]:
    """Yield items when they are asked for, and keep them in a list."""
    for item in items:
        made.append(item)
        yield item


def pieces(commands: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield commands together, as soon as they are so many bytes."""
    waiting: list[bytes] = []
    length = 0
    for command in commands:
        waiting.append(command)
        length += len(command)
        if length >= size:
            yield b"".join(waiting)
            waiting, length = [], 0
    if waiting:
        yield b"".join(waiting)


class Reads:
    """Commands that go to Redis together: what a pipeline of redis-py is, without the pool and the rest of a client.

    It takes a third of the time, which is most of that of a read.

    Args:
        send: Sends packed commands and returns their answers, as :meth:`Pool.read_packed`.
    """

    def __init__(self, send: Callable[[Sequence[bytes]], list[Any]]) -> None:
        self._send = send
        self._commands: list[bytes] = []
        self._hashes: list[int] = []

    def get(self, key: str) -> None:
        """Read a string."""
        self._commands.append(packed_command("GET", key))

    def hget(self, key: str, field: str) -> None:
        """Read a field of a hash."""
        self._commands.append(packed_command("HGET", key, field))

    def hgetall(self, key: str) -> None:
        """Read all fields of a hash."""
        self._hashes.append(len(self._commands))
        self._commands.append(packed_command("HGETALL", key))

    def time(self) -> None:
        """Read Redis's time: seconds, and microseconds."""
        self._commands.append(packed_command("TIME"))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the answers, those of HGETALL as dicts; an error of one command is its answer, or raised."""
        answers = self._send(self._commands)
        for at in self._hashes:
            if isinstance(answers[at], list):
                answers[at] = dict(zip(answers[at][::2], answers[at][1::2]))
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


def exchange(commands: Sequence[bytes], connection: Any) -> list[Any]:
    """Send packed commands over a connection, and return their answers; an error that Redis answers is one."""
    connection.send_packed_command([b"".join(commands)], check_health=False)
    return [read_answer(connection) for _ in commands]


def read_answer(connection: Any) -> Any:
    """Return Redis's next answer; an error that it answers is one."""
    try:
        return connection.read_response()
    except redis.ResponseError as exc:
        return exc
