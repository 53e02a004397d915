"""Connections that keep the deadline of the call that uses them, whatever Redis does."""
from __future__ import annotations

import functools
from typing import Any

from ..deadline import raise_if_expired, remaining
from .errors import note_lost

#: Seconds by which a socket may wait longer or shorter than it should: each change of its timeout is a call of the system.
TOLERANCE = 0.02

#: Most bytes that are received at once.
RECEIVED_AT_ONCE = 64 * 1024


class BoundedSocket:
    """A socket; nothing that is done with it takes longer than its timeout, nor than what is left to the call under way.

    A timeout of Python's sockets alone would begin anew with each byte that comes.
    """

    __slots__ = ("_sock", "_limit", "_set", "_prepared", "_receive", "_receive_into", "_send", "_arrived")

    def __init__(self, sock: Any, limit: float | None) -> None:
        self._sock = sock
        self._receive, self._receive_into, self._send = sock.recv, sock.recv_into, sock.send
        self._set = float("-inf")
        #: Whether a question has just gone out, so that the first wait for its answer may take as long as that might.
        self._prepared = False
        #: What was received, or raised, and is to be received next; None: nothing.
        self._arrived: bytes | OSError | None = None
        self.settimeout(limit)

    def settimeout(self, limit: float | None) -> None:
        """Set the longest that one step may take, in seconds; None: as long as the call may."""
        self._limit = float("inf") if limit is None else limit
        self._prepared = False

    def receive_string(self) -> bytes | None:
        """Return Redis's next answer if that is a string and comes whole; else None, and what came is received again."""
        try:
            data: bytes = self.recv(RECEIVED_AT_ONCE)
        except OSError as exc:
            self._arrived = exc
            return None
        begin = data.find(b"\r\n")
        length = data[1:begin]
        if data[:1] == b"$" and length.isdigit() and len(data) == begin + int(length) + 4:
            return data[begin + 2:-2]
        self._arrived = data
        return None

    def _receive_again(self, size: int) -> bytes:
        arrived, self._arrived = self._arrived, None
        if isinstance(arrived, OSError):
            try:
                raise arrived
            finally:
                del arrived  # its traceback has this frame: only the garbage collector would end such a circle
        assert arrived is not None
        self._arrived = arrived[size:] or None
        return arrived[:size]

    def recv(self, *args: Any) -> Any:
        """Receive, as of any socket."""
        if self._arrived is not None:
            return self._receive_again(args[0])
        if self._prepared:
            self._prepared = False
        else:
            self._prepare()
        return self._receive(*args)

    def recv_into(self, *args: Any) -> Any:
        """Receive, as of any socket."""
        if self._arrived is not None:
            data = self._receive_again(len(args[0]))
            args[0][:len(data)] = data
            return len(data)
        if self._prepared:
            self._prepared = False
        else:
            self._prepare()
        return self._receive_into(*args)

    def sendall(self, data: Any) -> None:
        """Send, as of any socket; TLS sends in pieces, each of which would have the whole time."""
        self._prepare()
        sent = self._send(data)
        if sent == len(data):
            self._prepared = True
            return
        rest = memoryview(data)[sent:]
        try:
            while rest:
                self._prepare()
                rest = rest[self._send(rest):]
        except OSError as exc:
            note_lost(exc)  # Redis may do what was sent before
            raise

    def _prepare(self) -> None:
        """Let the next step take no longer than it may."""
        left = remaining()
        if left > self._limit or not self._limit:
            left = self._limit
        elif not left:
            raise TimeoutError("the deadline has passed")
        if not -TOLERANCE < left - self._set < TOLERANCE:
            self._sock.settimeout(None if left == float("inf") else left)
            self._set = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class BoundedConnection:
    """What redis-py's connections get beside their own: each of their steps keeps the deadline of the call under way."""

    _socket_connect_timeout: float | None
    socket_timeout: float | None
    _bounded: BoundedSocket

    @property
    def socket_connect_timeout(self) -> float | None:
        """Longest that connecting to one address may take, in seconds."""
        left, limit = remaining(), self._socket_connect_timeout
        if limit is not None and limit < left:
            return limit
        return None if left == float("inf") else max(left, 0.001)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, limit: float | None) -> None:
        """Set the longest that it may take in any case."""
        self._socket_connect_timeout = limit

    def _connect(self) -> Any:
        raise_if_expired()
        self._bounded = BoundedSocket(super()._connect(), self.socket_timeout)  # type: ignore[misc]
        return self._bounded

    def read_only_response(self) -> Any:
        """Return the answer to a command that was sent alone, as ``read_response`` does; most strings without its parser."""
        answer = self._bounded.receive_string()
        return self.read_response() if answer is None else answer  # type: ignore[attr-defined]

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        sock.settimeout(self.socket_connect_timeout)
        return super()._wrap_socket_with_ssl(sock)  # type: ignore[misc]


@functools.cache
def bounded(kind: Any) -> Any:
    """Return a kind of connection that is as another, and keeps deadlines."""
    return kind if issubclass(kind, BoundedConnection) else type(f"Bounded{kind.__name__}", (BoundedConnection, kind), {})
