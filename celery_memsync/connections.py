"""Connect to Redis by URL."""
from __future__ import annotations

import contextlib
# By the first connection otherwise, in any thread: a child that is forked meanwhile would wait for ever to import it.
import encodings.idna  # noqa: F401
import functools
import select
import selectors
import socket
import sys
import time
import weakref
from collections import deque
from itertools import chain
from typing import Any, Callable, Iterable, Iterator, Mapping, TypeVar
from urllib.parse import unquote

import redis
from celery.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import embedded
from .cluster import Address, Cluster
from .embedded_supervisor import UnsafePathError, check_peer
from .exceptions import MemSyncError, StoreError
from .sentinels import SENTINEL_TIMEOUT, SentinelConnection, Sentinels, SentinelTLSConnection
from .urls import is_cluster, lower_scheme, scheme_of, servers_of

#: Longest that connecting, or one call, may take, in seconds.
CONNECT_TIMEOUT = 2.0
CALL_TIMEOUT = 2.0

#: Connections a process may open: as many as it has threads or greenlets at once.
MAX_CONNECTIONS = 2 ** 16

#: Longest that a node of a cluster may take to say who has which slots, in seconds: there are others.
LOOK_TIMEOUT = 0.5

#: Where Redis tells, to one connection, which keys that others read have changed.
INVALIDATIONS = b"__redis__:invalidate"

#: Bytes of commands that are sent together, and that Redis reads at once (PROTO_IOBUF_LEN in its server.h).
PIECE = 16 * 1024

#: Connections of a kind that are kept for the next who needs one.
MAX_IDLE = 8

#: What is raised by taking apart an answer that is not what was asked for.
SENSELESS = (TypeError, ValueError, AttributeError, LookupError)

#: What Redis refuses, by a word of its answer, and what to do about it.
REFUSALS = {
    "NOPERM": "its user may not do that; docs/howto/security.md tells the rights that are needed",
    "OOM": "it is full; raise its maxmemory, or shorten memsync_default_ttl",
    "maxmemory": "it is full; raise its maxmemory, or shorten memsync_default_ttl",
    "MISCONF": "it takes no writes, for it can't save its data; see its log, is its disk full?",
    "READONLY": "it is a replica, which takes no writes; let memsync_backend name its master",
}

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def redis_call(method: F) -> F:
    """Turn redis-py's errors, and answers without sense, into :exc:`StoreError`, with what was tried but no address."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except MemSyncError:
            raise
        except (redis.RedisError, OSError, *SENSELESS) as exc:
            what = method.__name__.replace("_", " ")
            raise StoreError(f"Redis could not do this: {what} ({explain(exc)})") from exc

    return call  # type: ignore[return-value]


def explain(exc: BaseException) -> str:
    """Return what is wrong with Redis in words without an address, a password or a value."""
    if isinstance(exc, redis.AuthenticationError):
        return "it refuses the user or password of memsync_backend"
    if isinstance(exc, (redis.TimeoutError, TimeoutError)):
        return "it does not answer in time; is it overloaded or paused?"
    if isinstance(exc, redis.BusyLoadingError):
        return "it is loading its data; it answers when that is done"
    if isinstance(exc, (redis.ConnectionError, OSError)):
        return "it can't be reached; is it running, and is memsync_backend right?"
    if isinstance(exc, redis.exceptions.NoPermissionError):
        return REFUSALS["NOPERM"]
    if isinstance(exc, redis.ResponseError):
        for word, told in REFUSALS.items():
            # What a script is refused comes amid other words.
            if word in str(exc):
                return told
        return "it answers: " + str(exc).partition(" script: ")[0][:120]
    if isinstance(exc, SENSELESS):
        return "its answer makes no sense; is that a Redis?"
    return type(exc).__name__


def connect(url: str, options: Mapping[str, Any], home: str = "") -> Any:
    """Return a client; nothing is connected or started yet.

    Everything that differs between versions of redis-py is set here.  A call
    is sent again once when its connection turns out to be broken; what is
    sent is made so that sending it twice is harmless.

    Arguments:
        url: As ``memsync_backend``.
        options: For redis-py; they go before the defaults of this function.
        home: A key.  The node of a cluster that has it answers what is about no key.

    Raises:
        ImproperlyConfigured: If redis-py can't take the URL or an option.
    """
    settings: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": CALL_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "max_connections": MAX_CONNECTIONS,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        **_DRIVER,
        **options,
    }
    if is_cluster(url):
        return _cluster(url, settings, home)
    if scheme_of(url) == "sentinel":
        return _client(Pool, _by_sentinels(url, settings))
    if scheme_of(url) == "embedded":
        folder = unquote(url.partition("://")[2].partition("?")[0])
        return _client(Pool, {"connection_class": EmbeddedConnection, "folder": folder, **settings})
    return _client(Pool.from_url, {"url": lower_scheme(url), **settings})


#: Before 5.3 redis-py wants to know what a connection is for.
_PURPOSE = ("EVALSHA",) if redis.VERSION < (5, 3) else ()

#: Marks a connection of a pool that was closed while it was lent.
_CLOSED: Any = object()


class Pool(redis.ConnectionPool):
    """Connections; who was interrupted leaves none behind on which the next would get his answer.

    A soft time limit may raise at any bytecode, so also between a question and its answer.

    What redis-py does around a call takes as long as Redis does.  So there is a short way too, :meth:`exchange`, over
    connections that have just worked.
    """

    def reset(self) -> None:
        """Begin anew, in a child too."""
        super().reset()  # type: ignore[no-untyped-call,unused-ignore]
        #: Those that an interruption kept from being released go with whom they were lent to.
        self._in_use_connections: Any = weakref.WeakSet()
        #: Those that have worked and wait for the next; redis-py's own code takes them for lent.
        self._ready: deque[Any] = deque()

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Lend a connection that was looked at: it is connected, and there is nothing on it to read."""
        with contextlib.suppress(IndexError):
            super().release(self._ready.pop())
        connection: Any = super().get_connection(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        connection.lent_amid = sys.exc_info()[1]
        return connection

    def release(self, connection: Any) -> None:
        """Take a connection back; what raised since it was lent may have left an answer unread."""
        lent_amid, connection.lent_amid = getattr(connection, "lent_amid", None), None
        raised = sys.exc_info()[1]
        answered = raised is None or raised is lent_amid or isinstance(raised, redis.ResponseError)
        if lent_amid is not _CLOSED and answered and len(self._ready) < MAX_IDLE:
            self._ready.append(connection)
            return
        if lent_amid is _CLOSED or not answered:
            connection.disconnect()
        super().release(connection)

    def exchange(self, commands: Iterable[bytes]) -> list[Any]:
        """Send commands as they go over the wire, and return their answers; an error that Redis answers is one.

        One that has waited and turns out to be broken is replaced, and all is sent again.

        Arguments:
            commands: They are sent as they are made, a piece at a time: Redis is at work on one while the next is made.
        """
        rest = iter(commands)
        sent: list[bytes] = []

        def talk(connection: Any) -> list[Any]:
            again = sent.copy()
            sent.clear()
            for piece in pieces(noted(chain(again, rest), sent), PIECE):
                connection.send_packed_command([piece], check_health=False)
            return [_answer_of(connection) for _ in sent]

        return self._talk(talk)

    def ask(self, command: bytes) -> Any:
        """Send one command as it goes over the wire, and return the answer."""
        def talk(connection: Any) -> Any:
            connection.send_packed_command([command], check_health=False)
            return connection.read_response()

        return self._talk(talk)

    def _talk(self, talk: Callable[[Any], T]) -> T:
        """Lend a connection that has waited, and if it is broken one that was looked at."""
        self._checkpid()  # type: ignore[no-untyped-call,unused-ignore]
        try:
            connection = self._ready.pop()
        except IndexError:
            connection = None
        if connection is not None:
            connection.lent_amid = sys.exc_info()[1]
            try:
                return self._use(connection, talk)
            except redis.ConnectionError:
                # Others that have waited as long are as broken.
                self._retire()
        return self._use(self.get_connection(*_PURPOSE), talk)

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

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close connections; those that are lent when they come back, for other threads read from them."""
        self._retire()
        for connection in list(self._in_use_connections) if inuse_connections else ():
            connection.lent_amid = _CLOSED
        super().disconnect(inuse_connections=False)  # type: ignore[no-untyped-call,unused-ignore]


class EmbeddedConnection(redis.UnixDomainSocketConnection):
    """A connection to the private server, which is started first unless it runs.

    Args:
        folder: Folder of the server's files; empty for one that keeps nothing.
    """

    def __init__(
        self, folder: str = "", socket_connect_timeout: float | None = None, **kwargs: Any
    ) -> None:
        path = embedded.socket_path(folder)
        super().__init__(path=path, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        self.folder = folder

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect; start a server first unless one runs."""
        if self._sock is None:
            embedded.start(self.folder)
        super().connect(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]

    def _connect(self) -> socket.socket:
        # redis-py calls this for each socket, before it sends the first command.
        sock: socket.socket = super()._connect()  # type: ignore[no-untyped-call,unused-ignore]
        try:
            check_peer(sock)
        except UnsafePathError as exc:
            sock.close()
            raise StoreError(str(exc)) from exc
        return sock


def _driver() -> dict[str, Any]:
    """Return the option that says who connects.

    Without it redis-py, from 7 on, looks its own version up for each new connection: half a millisecond of reading
    files and importing, which hangs in a child that was forked meanwhile.
    """
    try:
        from redis.driver_info import DriverInfo
    except ImportError:
        return {}
    return {"driver_info": DriverInfo()}


_DRIVER = _driver()


def _by_sentinels(url: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of connections that ask Sentinels first; TLS is for the Sentinels, too."""
    addresses, said = servers_of(url)
    options = {**settings, **said}
    name, own = options.pop("master_name", ""), options.pop("sentinel_kwargs", {})
    tls = _pop_tls(options)
    about = {key: value for key, value in options.items() if key.startswith("ssl_") or key in _DRIVER or key == "protocol"}
    about.update(retry=Retry(NoBackoff(), 0), socket_timeout=SENTINEL_TIMEOUT, socket_connect_timeout=SENTINEL_TIMEOUT)
    kind = redis.SSLConnection if tls else redis.Connection
    sentinels = Sentinels(addresses, str(name), {**about, **own}, kind)
    return {**options, "connection_class": SentinelTLSConnection if tls else SentinelConnection, "sentinels": sentinels}


def _cluster(url: str, settings: Mapping[str, Any], home: str) -> Cluster:
    addresses, said = servers_of(url)
    options = {**settings, **said}
    tls = _pop_tls(options) or scheme_of(url).startswith("rediss")
    options["connection_class"] = redis.SSLConnection if tls else redis.Connection
    patience = {"socket_timeout": LOOK_TIMEOUT, "socket_connect_timeout": LOOK_TIMEOUT, "retry": Retry(NoBackoff(), 0)}

    def make_client(address: Address) -> redis.Redis:
        return _client(Pool, {**options, "host": address[0], "port": address[1]})

    def ask(address: Address, question: tuple[str, ...]) -> Any:
        host, port = address
        answer = ask_apart(_client(Pool, {**options, **patience, "host": host, "port": port}), [question])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    make_client(addresses[0])  # wrong options are told now
    return Cluster(addresses, make_client, ask, home)  # type: ignore[abstract,unused-ignore]


def _pop_tls(options: dict[str, Any]) -> bool:
    """Whether options ask for TLS: by ``ssl``, which redis-py's connections do not know, or by anything about it."""
    wanted = options.pop("ssl", any(name.startswith("ssl_") for name in options))
    return str(wanted).lower() not in ("false", "0", "no", "")


def _client(make_pool: Any, settings: dict[str, Any]) -> redis.Redis:
    try:
        pool = make_pool(**settings)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError) as exc:
        # The text of the error may hold the URL; its kind and the options do not.
        names = ", ".join(sorted(set(settings) - {"url"}))
        raise ImproperlyConfigured(
            f"redis-py can't use memsync_backend with these options ({names}): {type(exc).__name__}"
        ) from None
    return redis.Redis(connection_pool=pool)


def ask_apart(client: redis.Redis, commands: Iterable[tuple[str, ...]]) -> list[Any]:
    """Return Redis's answer to each command, on a connection that is used for nothing else; an error is one, too."""
    connection: Any = client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    try:
        connection.connect()  # which starts an embedded server; sending would not
        answers = []
        for command in commands:
            connection.send_command(*command)
            answers.append(_answer_of(connection))
        return answers
    finally:
        connection.disconnect()


class Announcements:
    """A connection on which Redis speaks unasked.

    One thread uses it; any may call :meth:`wake`.

    Arguments:
        client: Its address and options are used.

    Attributes:
        tracks: Whether it can tell of keys that were read by other connections.
    """

    tracks = True

    def __init__(self, client: redis.Redis) -> None:
        pool = client.connection_pool
        self._connection: Any = pool.connection_class(**pool.connection_kwargs)
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)

    @redis_call
    def listen(self) -> int | None:
        """Connect; return Redis's id of this connection, None if sources can't be told by it."""
        self._connection.connect()
        self._selector.register(self._connection._sock, selectors.EVENT_READ)
        number = self._ask("CLIENT", "ID")
        # Nothing is read over this one, but who is told of anything is told when Redis is emptied.
        tracking = self._ask("CLIENT", "TRACKING", "ON", "REDIRECT", str(number))
        refused = [isinstance(answer, Exception) for answer in (number, tracking, self._ask("SUBSCRIBE", INVALIDATIONS))]
        return None if any(refused) else int(number)

    def _ask(self, *command: str | bytes) -> Any:
        self._connection.send_command(*command)
        return self._read_message()

    @redis_call
    def send_command(self, *command: str) -> None:
        """Send a command; its answer comes among the messages."""
        self._connection.send_command(*command)

    def wait(self, timeout: float) -> bool:
        """Return when there is something to read, after :meth:`wake`, or after ``timeout`` seconds.

        Returns:
            Whether there is something to read.
        """
        ready = [key.fileobj for key, _ in self._selector.select(timeout)]
        if self._woken in ready:
            with contextlib.suppress(OSError):
                self._woken.recv(4096)
        return any(file is not self._woken for file in ready)

    def has_arrived(self) -> bool:
        """Whether something has arrived that was not read yet; any thread may ask."""
        sock = self._connection._sock
        try:
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                return bool(poll.poll(0))
            return bool(select.select([sock], [], [], 0)[0])
        except RuntimeError:  # eventlet lets one greenlet only wait for a socket, and that one does
            return False
        except (OSError, ValueError, TypeError):  # it is being closed
            return True

    def wake(self) -> None:
        """Let the thread that waits look around."""
        with contextlib.suppress(OSError):  # it has been woken often enough, or is closed
            self._waker.send(b"!")

    def messages(self) -> Iterator[Any]:
        """Yield what has arrived, as Redis's lists; what is an error of Redis's, as that."""
        while self._has_message():
            yield self._read_message()

    @redis_call
    def _has_message(self) -> bool:
        return bool(self._connection.can_read(0))

    @redis_call
    def _read_message(self) -> Any:
        return _answer_of(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()


class ClusterAnnouncements(Announcements):
    """The same for a cluster: one node passes on what all of them tell.

    It tells of no keys that are read from others, so nothing that is read can
    be kept.  What a node told when it went may be lost: so the connection is
    broken when the masters are others than before, and its users look again.
    """

    tracks = False

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.client_of())
        self._cluster = cluster
        self._masters = cluster.masters()

    def listen(self) -> int | None:
        """Connect."""
        super().listen()
        return None

    @redis_call
    def wait(self, timeout: float) -> bool:
        """As of any other, while the masters are the same."""
        if self._cluster.masters() != self._masters:
            raise redis.ConnectionError("the masters of the cluster have changed")
        return super().wait(timeout)


class Source:
    """A connection for reading.  Redis remembers what is read and tells another connection when that is old.

    Redis forgets it all when this one breaks, so it is never connected a second time.

    Arguments:
        client: Its address and options are used.
        redirect: Redis's id of the other connection.

    Attributes:
        until: Monotonic time until which all that was read with it may be believed, unless told otherwise.
        checked_at: Monotonic time when it last was known to be there.
        refused: Whether Redis does not allow it.
    """

    def __init__(self, client: redis.Redis, redirect: int) -> None:
        self.until = float("-inf")
        self.checked_at = float("-inf")
        self.refused = False
        self._redirect = redirect
        self._connected = False
        pool = client.connection_pool
        self._on_connected = pool.connection_kwargs.get("redis_connect_func")
        self._connection: Any = pool.connection_class(
            **{**pool.connection_kwargs, "redis_connect_func": self._on_connect})

    def pipeline(self) -> Reads:
        """Return what gathers commands, to send them together."""
        return Reads(self._ask)

    @redis_call
    def check(self) -> None:
        """Ask Redis for a sign of life."""
        self._ask([("PING",)])

    def close(self) -> None:
        """Close it; nothing that was read with it may be believed any more."""
        self.until = float("-inf")
        self._connection.disconnect()

    def _ask(self, commands: list[tuple[str, ...]]) -> list[Any]:
        connection = self._connection
        sent = b"".join(packed_command(*command) for command in commands)
        connection.send_packed_command([sent], check_health=False)
        return [_answer_of(connection) for _ in commands]

    def _on_connect(self, connection: Any) -> None:
        if self._connected:
            self.until = float("-inf")
            raise redis.ConnectionError("it was closed, and what it read is not watched any more")
        self._connected = True
        (self._on_connected or type(connection).on_connect)(connection)
        connection.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", self._redirect)
        try:
            connection.read_response()
        except redis.ResponseError:
            self.refused = True
            raise
        self.checked_at = time.monotonic()


class Ear:
    """A connection on which one thread hears what is told on one channel.

    Arguments:
        client: Its address and options are used.
    """

    def __init__(self, client: redis.Redis, channel: str) -> None:
        pool = client.connection_pool
        self.channel = channel
        self._connection: Any = pool.connection_class(**pool.connection_kwargs)
        self._subscribed = False

    @redis_call
    def listen(self) -> None:
        """Subscribe, unless that is done; a connection that breaks meanwhile is made anew once."""
        if self._subscribed:
            return
        try:
            self._subscribe()
        except redis.ConnectionError:
            self._connection.disconnect()
            self._subscribe()
        self._subscribed = True

    def _subscribe(self) -> None:
        self._connection.connect()
        self._connection.send_command("SUBSCRIBE", self.channel)
        self._connection.read_response()

    @redis_call
    def hear(self, timeout: float) -> bytes | None:
        """Return what is told next, None if that takes longer than ``timeout`` seconds."""
        if not self._connection.can_read(timeout):
            return None
        told: bytes = self._connection.read_response()[2]
        return told

    def close(self) -> None:
        """Close the connection."""
        self._subscribed = False
        self._connection.disconnect()


class ClusterEar(Ear):
    """The same on the node of a cluster that has a key, wherever that is.

    Arguments:
        key: A lock's: whoever gives it on asks its own node who listens.
    """

    def __init__(self, cluster: Cluster, channel: str, key: str) -> None:
        self._cluster, self._key = cluster, key
        self._address = cluster.address_of(key)
        super().__init__(cluster.client_of(key), channel)

    @redis_call
    def listen(self) -> None:
        """Subscribe, unless that is done and the key still has that node."""
        address = self._cluster.address_of(self._key)
        if address != self._address:
            self.close()
            self._address = address
            pool = self._cluster.client_of(self._key).connection_pool
            self._connection = pool.connection_class(**pool.connection_kwargs)
        super().listen()


def packed(*words: Any) -> bytes:
    """Return words as they go over the wire, each with its length."""
    parts = []
    for word in words:
        data = word if type(word) is bytes else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def packed_command(*words: Any) -> bytes:
    """Return a command as it goes over the wire."""
    return b"*%d\r\n%b" % (len(words), packed(*words))


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

    Arguments:
        ask: Sends commands; returns their answers.
    """

    def __init__(self, ask: Callable[[list[tuple[str, ...]]], list[Any]]) -> None:
        self._ask = ask
        self._commands: list[tuple[str, ...]] = []

    def get(self, key: str) -> None:
        """Read a string."""
        self._commands.append(("GET", key))

    def hget(self, key: str, field: str) -> None:
        """Read a field of a hash."""
        self._commands.append(("HGET", key, field))

    def hgetall(self, key: str) -> None:
        """Read all fields of a hash."""
        self._commands.append(("HGETALL", key))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the answers, those of HGETALL as dicts; an error of one command is its answer, or raised."""
        answers = self._ask(self._commands)
        for at, (command, answer) in enumerate(zip(self._commands, answers)):
            if raise_on_error and isinstance(answer, Exception):
                raise answer
            if command[0] == "HGETALL" and isinstance(answer, list):
                answers[at] = dict(zip(answer[::2], answer[1::2]))
        return answers


def _answer_of(connection: Any) -> Any:
    """Return Redis's next answer; an error that it answers is one."""
    try:
        return connection.read_response()
    except redis.ResponseError as exc:
        return exc
