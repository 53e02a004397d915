"""Connections to the broker that block no thread for long."""
from __future__ import annotations

import os
import weakref
from typing import Any

from redis.backoff import NoBackoff
from redis.retry import Retry

#: Longest that connecting to the broker, or one answer of it, may take, in seconds.
TIMEOUT = 2.0

#: What transports call their timeouts, by kind of driver; other kinds have none.
_TIMEOUTS = {
    "redis": {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT},
    "amqp": {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT},
}


#: Channels of connections that threads of this package use.
_channels: weakref.WeakSet[Any] = weakref.WeakSet()


def _forget_pools() -> None:
    """Let a forked child leave the connections of its parent alone.

    Kombu closes them there.  For that it takes a lock of redis-py, which no thread of the child ever releases if another
    thread of the parent had it.
    """
    for channel in _channels:
        if hasattr(channel, "_disconnect_pools"):
            channel._pool = channel._async_pool = None


os.register_at_fork(after_in_child=_forget_pools)


def open_channel(connection: Any) -> Any:
    """Return a channel of a connection of kombu that no other thread uses."""
    channel = connection.channel()
    _channels.add(channel)
    return channel


def bounded_connection(app: Any, write: bool = False) -> Any:
    """Return a connection of kombu's own, that is not one of the app's pool; it is not open yet.

    Args:
        write: Whether it is for publishing.
    """
    connect = app.connection_for_write if write else app.connection_for_read
    return connect(connect_timeout=TIMEOUT, transport_options=_timeouts_of(connect()))


class WorkerConnection:
    """A connection of a thread's own to the broker that its worker is connected to.

    Args:
        app: Of the worker.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        #: Of kombu; None until it is needed.
        self.connection: Any = None
        #: What the connection was made like.
        self._like: tuple[Any, ...] | None = None
        self._channel: Any = None

    def follow(self, used: Any) -> None:
        """Be to the broker of another connection from now on.

        Args:
            used: That of the worker.  If it has none (None), this goes on as before, or as the app is configured.
        """
        like = None if used is None else (used.hostname, used.port, used.virtual_host)
        if like is not None and like != self._like:
            self.close()
            self.connection, self._like = bounded_copy(used), like
        elif self.connection is None:
            self.connection = bounded_connection(self.app)

    def channel(self) -> Any:
        """Return an open channel; `follow` comes first."""
        # RabbitMQ closes a channel on which something was read that is not there.
        if self._channel is None or not getattr(self._channel, "is_open", True):
            # By itself it would sleep for two seconds after the first failure.
            self.connection.ensure_connection(max_retries=1, interval_start=0)
            self._channel = open_channel(self.connection)
        return self._channel

    def close(self) -> None:
        """Close the connection; the next channel opens it again."""
        self._channel = None
        if self.connection is not None:
            self.connection.release()


def bounded_copy(connection: Any) -> Any:
    """Return another connection of kombu to the same broker, which is not open yet.

    Of several URLs it keeps the one that is used now, because the next may be of a broker with other messages.
    """
    options = {**connection.transport_options, **_timeouts_of(connection)}
    # Without heartbeats, which no thread would send.
    copy = connection.clone(connect_timeout=TIMEOUT, transport_options=options, heartbeat=0)
    copy.cycle = None
    return copy


def _timeouts_of(connection: Any) -> dict[str, Any]:
    """Return the transport options of a connection that bound it in time."""
    options, timeouts = connection.transport_options, _TIMEOUTS.get(connection.get_transport_cls().driver_type, {})
    if "master_name" not in options:
        return {**timeouts}
    # A client of redis-py, as that for Sentinels is, tries four times.
    once = {**timeouts, "retry": Retry(NoBackoff(), 0)}
    return {**timeouts, "sentinel_kwargs": {**(options.get("sentinel_kwargs") or {}), **once}}


def place_of(connection: Any) -> str:
    """Return where a broker is, without user and password; "-" if that is not known."""
    if connection is None or not connection.hostname:
        return "-"
    _, scheme, path = connection.hostname.partition("://")
    if scheme:  # of a socket, with its password in front
        return str(path.rpartition("@")[2].partition("?")[0])
    port, database = connection.port or connection.transport.default_port, (connection.virtual_host or "").strip("/")
    return f"{connection.hostname}:{port}/{database or 0}"
