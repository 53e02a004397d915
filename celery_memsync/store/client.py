"""Connect to Redis by URL."""
from __future__ import annotations

# By the first connection otherwise, in any thread: a child that is forked meanwhile would wait for ever to import it.
import encodings.idna  # noqa: F401
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import redis
from celery.exceptions import ImproperlyConfigured
from kombu.utils.imports import symbol_by_name
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from ..deadline import DEFAULT_TIMEOUT, current
from ..exceptions import StoreRefused, StoreUnavailable
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
    return _client(Pool, settings, url)


def connect_to_nothing() -> Any:
    """Return a client of which each use raises :exc:`StoreUnavailable`, because this package is switched off."""
    return _client(Pool, {"connection_class": NoConnection})


class NoConnection(redis.Connection):
    """A connection that is never made."""

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to connect."""
        raise StoreUnavailable("memsync_enabled is False, so nothing is read or stored; set it to True and start again")


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


def _of_one_server(url: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of connections to the server of a URL, whose own options go before the others."""
    options = {**settings, **parse_url(lower_scheme(url))}  # type: ignore[no-untyped-call,unused-ignore]
    if _pop_tls(options) and "connection_class" not in options:
        options["connection_class"] = redis.SSLConnection
    return {**options, **{name: settings[name] for name in ("connection_class",) if name in settings}}


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

    make_client(addresses[0])  # wrong options raise now
    return Cluster(addresses, make_client, query, home)  # type: ignore[abstract,unused-ignore]


def _pop_tls(options: dict[str, Any]) -> bool:
    """Whether options ask for TLS: by ``ssl``, which redis-py's connections do not know, or by anything about it."""
    wanted = options.pop("ssl", any(name.startswith("ssl_") for name in options))
    return str(wanted).lower() not in ("false", "0", "no", "")


def _client(make_pool: Any, settings: dict[str, Any], url: str = "") -> redis.Redis:
    options: Mapping[str, Any] = settings
    try:
        options = _of_one_server(url, settings) if url else settings
        pool = make_pool(**_as_redis_py(options))
        pool.connection_class = bounded(pool.connection_class)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, ImportError, AttributeError, redis.RedisError) as exc:
        raise ImproperlyConfigured(_unusable(options, exc)) from None
    return redis.Redis(connection_pool=pool)


def _as_redis_py(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options whose values may be written as Celery documents them, as redis-py takes them."""
    changed = dict(options)
    verify, provider = changed.get("ssl_cert_reqs"), changed.get("credential_provider")
    if isinstance(verify, str):
        changed["ssl_cert_reqs"] = verify.lower().removeprefix("cert_")
    if isinstance(provider, str):
        changed["credential_provider"] = symbol_by_name(provider)()  # type: ignore[no-untyped-call]
    if provider:
        changed.update(username=None, password=None)
    return changed


def _unusable(options: Mapping[str, Any], error: Exception) -> str:
    """Return why redis-py can't use options: which one it is, if its error says so; the text may hold a password."""
    unknown = [name for name in options if f"'{name}'" in str(error)]
    if isinstance(error, TypeError) and unknown:
        return f"redis-py does not know the option {unknown[0]} of memsync_backend or memsync_backend_options"
    named = [name for name in options if name.startswith("ssl_") or name == "credential_provider"] or sorted(options)
    return (f"redis-py can't use one of these options of memsync_backend or memsync_backend_options: {', '.join(named)} "
            f"({type(error).__name__})")
