"""Connections on which Redis pushes: invalidations, changes and lock turns."""
from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import redis

from ..deadline import DEFAULT_TIMEOUT
from .cluster_client import Cluster
from .errors import redis_call
from .pool import Reads, exchange, read_answer

#: Bytes of messages after which all else is looked at, and what each counts beside its text: a thousand small ones, or one
#: large.  All of them have to come within one timeout, and are held together.
TAKEN_AT_ONCE = 256 * 1024

MESSAGE_SIZE = 256

#: Channel on which Redis reports to one connection which keys that others read have changed.
INVALIDATIONS = b"__redis__:invalidate"

#: Finds it in an answer to INFO.  Compiled before a worker forks: to compile copies pages which its processes share.
_RUN_ID = re.compile(rb"^run_id:(\w+)", re.M)


def execute_on_new_connection(client: redis.Redis, commands: Iterable[tuple[str, ...]]) -> list[Any]:
    """Return Redis's answer to each command, on a connection that is used for nothing else; an error is one, too."""
    connection: Any = client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    try:
        connection.connect()  # which starts an embedded server; sending would not
        answers = []
        for command in commands:
            connection.send_command(*command)
            answers.append(read_answer(connection))
        return answers
    finally:
        connection.disconnect()


class PushTarget(NamedTuple):
    """A connection on which Redis reports which keys that others read have changed.

    Attributes:
        number: Redis's id of the connection.
        server: Which start of a server gave that id, for another one may give it, too; "" if this user may not know.
    """

    number: int
    server: str


class PushConnection:
    """A connection on which Redis speaks unasked.

    One thread uses it; any may call :meth:`wake`.

    Args:
        client: Its address and options are used.
        timeout: Seconds that Redis may take for a step, or a message.

    Attributes:
        tracks: Whether it can report keys that were read by other connections.
    """

    tracks = True

    def __init__(self, client: redis.Redis, timeout: float = DEFAULT_TIMEOUT) -> None:
        pool = client.connection_pool
        self.timeout = timeout
        self._connection: Any = pool.connection_class(**pool.connection_kwargs)
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        #: Whether more may have been read off the socket than was returned.
        self._has_more = False

    @redis_call
    def listen(self) -> PushTarget | None:
        """Connect; return this connection as the target of invalidations, None if it can't be one."""
        self._connect()
        number, server = self._execute("CLIENT", "ID"), _run_id(self._execute("INFO", "server"))
        # Nothing is read over this one, but a tracking connection is notified when Redis is emptied.
        tracking = self._execute("CLIENT", "TRACKING", "ON", "REDIRECT", str(number))
        refused = [isinstance(answer, Exception) for answer in (number, tracking, self._execute("SUBSCRIBE", INVALIDATIONS))]
        return None if any(refused) else PushTarget(int(number), server)

    @redis_call
    def subscribe(self, channel: str) -> None:
        """Connect, and subscribe to one channel."""
        self._connect()
        answer = self._execute("SUBSCRIBE", channel)
        if isinstance(answer, Exception):
            raise answer

    def _connect(self) -> None:
        self._connection.connect()
        self._files = self._connection._sock.fileno(), self._woken.fileno()

    def _execute(self, *command: str | bytes) -> Any:
        self._connection.send_command(*command, check_health=False)
        return read_answer(self._connection)

    @redis_call
    def send_command(self, *command: str | bytes) -> None:
        """Send a command; its answer comes among the messages."""
        self._connection.send_command(*command, check_health=False)

    def wait(self, timeout: float) -> bool:
        """Return when there is something to receive, after :meth:`wake`, or after ``timeout`` seconds.

        Returns:
            Whether there is something to receive; False if it was woken.
        """
        ready = dict(_readable(self._files, 0 if self._has_more else timeout))
        if self._files[1] in ready:
            with contextlib.suppress(OSError):
                self._woken.recv(4096)
            return False
        return bool(ready or self._has_more)

    def has_arrived(self) -> bool:
        """Whether something has arrived that was not received yet; any thread may ask."""
        if self._has_more:
            return True
        sock = self._connection._sock
        try:
            return bool(_readable((sock,), 0))
        except RuntimeError:  # eventlet lets one greenlet only wait for a socket, and that one does
            return False
        except (OSError, ValueError, TypeError):  # it is being closed
            return True

    def wake(self) -> None:
        """Let the thread that waits look around."""
        with contextlib.suppress(OSError):  # it has been woken often enough, or is closed
            self._waker.send(b"!")

    @redis_call
    def receive(self) -> list[Any]:
        """Return what has arrived, as Redis's lists; an error of Redis's is one.  It waits for the rest of one."""
        messages: list[Any] = []
        room = TAKEN_AT_ONCE
        while room > 0 and self._connection.can_read(0):
            message = read_answer(self._connection)
            messages.append(message)
            room -= MESSAGE_SIZE
            if type(message) is list and type(message[-1]) is bytes:
                room -= len(message[-1])
        self._has_more = room <= 0
        return messages

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        for end in (self._waker, self._woken):
            end.close()


class ClusterPushConnection(PushConnection):
    """The same for a cluster: one node passes on what all of them publish, another one with each new connection.

    It does not invalidate keys that are read from others, so nothing that is
    read can be kept.  What a node published when it went away may be lost: so the
    connection is broken when the masters change, and its users read again.
    """

    tracks = False

    def __init__(self, cluster: Cluster, timeout: float = DEFAULT_TIMEOUT) -> None:
        super().__init__(cluster.listening_client(), timeout)
        self._cluster = cluster
        self._masters = cluster.masters()

    def listen(self) -> PushTarget | None:
        """Connect."""
        super().listen()
        return None

    @redis_call
    def wait(self, timeout: float) -> bool:
        """As of any other, while the masters are the same."""
        if self._cluster.masters() != self._masters:
            raise redis.ConnectionError("the masters of the cluster have changed")
        return super().wait(timeout)


class TrackedConnection:
    """A connection for reading.  Redis remembers what is read and notifies another connection when that is old.

    Redis forgets it all when this one breaks, so it is never connected a second time.

    Args:
        client: Its address and options are used.
        target: The other connection.
        timeout: Seconds that Redis may take for a sign of life.

    Attributes:
        target: The other connection.
        until: Monotonic time until which all that was read with it is valid, unless invalidated.
        checked_at: Monotonic time when it last was known to be there.
        refused: Whether Redis does not allow it.
        is_elsewhere: Whether it leads to another server than the target's, such as the next master.
    """

    def __init__(self, client: redis.Redis, target: PushTarget, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.timeout = timeout
        self.until = float("-inf")
        self.checked_at = float("-inf")
        self.refused = False
        self.is_elsewhere = False
        self.target = target
        self._connected = False
        pool = client.connection_pool
        self._on_connected = pool.connection_kwargs.get("redis_connect_func")
        # If this one does not answer there has to be time to read over another.
        self._connection: Any = pool.connection_class(
            **{**pool.connection_kwargs, "redis_connect_func": self._on_connect, "socket_timeout": timeout / 2})

    def pipeline(self) -> Reads:
        """Return what gathers commands, to send them together."""
        return Reads(partial(exchange, connection=self._connection))

    def get(self, key: str) -> Any:
        """Return the answer to GET; an error that Redis answers is one."""
        name = key.encode()
        self._connection.send_packed_command([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)], check_health=False)
        return read_answer(self._connection)

    @redis_call
    def check(self) -> float:
        """Return Redis's time, in seconds, as a sign of life."""
        reads = self.pipeline()
        reads.time()
        ((seconds, micros),) = reads.execute()
        return int(seconds) + int(micros) / 1e6

    def close(self) -> None:
        """Close it; nothing that was read with it may be believed any more."""
        self.until = float("-inf")
        self._connection.disconnect()

    def _on_connect(self, connection: Any) -> None:
        if self._connected:
            self.until = float("-inf")
            raise redis.ConnectionError("it was closed, and what it read is not watched any more")
        self._connected = True
        (self._on_connected or type(connection).on_connect)(connection)
        connection.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", self.target.number)
        connection.send_command("INFO", "server")
        tracking, server = read_answer(connection), _run_id(read_answer(connection))
        if server != self.target.server and server and self.target.server:
            self.is_elsewhere = True
            raise redis.ConnectionError("another server answers here than the one that reports changes")
        if isinstance(tracking, Exception):
            self.refused = True
            raise tracking
        self.checked_at = time.monotonic()


def _readable(files: Iterable[Any], seconds: float) -> list[tuple[Any, int]]:
    """Return those files from which something can be read within some seconds, each with what poll() says of it."""
    if not hasattr(select, "poll"):
        return [(file, 0) for file in select.select(files, [], [], seconds)[0]]
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return poll.poll(seconds * 1000)


def _run_id(info: Any) -> str:
    """Return which start of a server an answer to INFO comes from, "" if that is not in it."""
    found = _RUN_ID.search(info) if isinstance(info, bytes) else None
    return found.group(1).decode() if found else ""
