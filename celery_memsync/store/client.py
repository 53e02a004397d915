"""Connect to Redis by URL."""
from __future__ import annotations

# By the first connection otherwise, in any thread: a child that is forked meanwhile would wait for ever to import it.
import encodings.idna  # noqa: F401
import socket
import time
from typing import Any, Mapping
from urllib.parse import unquote

import redis
from celery.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..deadline import DEFAULT_TIMEOUT, current
from ..exceptions import StoreRefused
from ..urls import is_cluster, lower_scheme, scheme_of, servers_of
from . import embedded
from .bounded import bounded
from .cluster_client import Cluster
from .cluster_commands import Address
from .embedded_supervisor import UnsafePathError, check_peer
from .pool import Pool
from .push import execute_on_new_connection
from .sentinel import SENTINEL_TIMEOUT, SentinelConnection, Sentinels, SentinelTLSConnection

#: Longest that connecting may take, in seconds.
CONNECT_TIMEOUT = 2.0

#: Connections a process may open: as many as it has threads or greenlets at once.
MAX_CONNECTIONS = 2 ** 16

#: Longest that a node of a cluster may take to say who has which slots, in seconds: there are others.
SLOT_MAP_TIMEOUT = 0.5


def connect(url: str, options: Mapping[str, Any], home: str = "", timeout: float = DEFAULT_TIMEOUT) -> Any:
    """Return a client; nothing is connected or started yet.

    Everything that differs between versions of redis-py is set here.  A call
    is sent again once when its connection turns out to be broken, and not when
    Redis is silent; what is sent is made so that sending it twice is harmless.
    Its connections keep the deadline of the call that uses them.

    Args:
        url: As ``memsync_backend``.
        options: For redis-py; they go before the defaults of this function.
        home: A key.  The node of a cluster that has it answers what is about no key.
        timeout: Most seconds that Redis may take to answer.

    Raises:
        ImproperlyConfigured: If redis-py can't take the URL or an option.
    """
    settings: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": timeout,
        "socket_connect_timeout": min(CONNECT_TIMEOUT, timeout),
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
            began, deadline = time.monotonic(), current()
            if embedded.start(self.folder) and deadline is not None:
                deadline.postpone(time.monotonic() - began)
        super().connect(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]

    def _connect(self) -> socket.socket:
        # redis-py calls this for each socket, before it sends the first command.
        sock: socket.socket = super()._connect()  # type: ignore[no-untyped-call,unused-ignore]
        try:
            check_peer(sock)
        except UnsafePathError as exc:
            sock.close()
            raise StoreRefused(str(exc)) from exc
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
    kind = bounded(redis.SSLConnection if tls else redis.Connection)
    sentinels = Sentinels(addresses, str(name), {**about, **own}, kind)
    return {**options, "connection_class": SentinelTLSConnection if tls else SentinelConnection, "sentinels": sentinels}


def _cluster(url: str, settings: Mapping[str, Any], home: str) -> Cluster:
    addresses, said = servers_of(url)
    options = {**settings, **said}
    tls = _pop_tls(options) or scheme_of(url).startswith("rediss")
    options["connection_class"] = redis.SSLConnection if tls else redis.Connection
    patience = {"socket_timeout": SLOT_MAP_TIMEOUT, "socket_connect_timeout": SLOT_MAP_TIMEOUT,
                "retry": Retry(NoBackoff(), 0)}

    def make_client(address: Address) -> redis.Redis:
        return _client(Pool, {**options, "host": address[0], "port": address[1]})

    def query(address: Address, question: tuple[str, ...]) -> Any:
        host, port = address
        answer = execute_on_new_connection(_client(Pool, {**options, **patience, "host": host, "port": port}), [question])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    make_client(addresses[0])  # wrong options are told now
    return Cluster(addresses, make_client, query, home)  # type: ignore[abstract,unused-ignore]


def _pop_tls(options: dict[str, Any]) -> bool:
    """Whether options ask for TLS: by ``ssl``, which redis-py's connections do not know, or by anything about it."""
    wanted = options.pop("ssl", any(name.startswith("ssl_") for name in options))
    return str(wanted).lower() not in ("false", "0", "no", "")


def _client(make_pool: Any, settings: dict[str, Any]) -> redis.Redis:
    try:
        pool = make_pool(**settings)
        pool.connection_class = bounded(pool.connection_class)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError) as exc:
        # The text of the error may hold the URL; its kind and the options do not.
        names = ", ".join(sorted(set(settings) - {"url"}))
        raise ImproperlyConfigured(
            f"redis-py can't use memsync_backend with these options ({names}): {type(exc).__name__}"
        ) from None
    return redis.Redis(connection_pool=pool)
