"""Connections to the broker that block no thread for long."""
from __future__ import annotations

import os
import weakref
from typing import Any

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
    kind = connect().get_transport_cls().driver_type
    return connect(connect_timeout=TIMEOUT, transport_options=_TIMEOUTS.get(kind, {}))


def bounded_copy(connection: Any) -> Any:
    """Return another connection of kombu to the same broker, which is not open yet.

    Args:
        connection: One to a Redis.
    """
    options = {**connection.transport_options, **_TIMEOUTS["redis"]}
    return connection.clone(connect_timeout=TIMEOUT, transport_options=options)


def place_of(connection: Any) -> str:
    """Return where a broker is, without user and password; "-" if that is not known."""
    if connection is None or not connection.hostname:
        return "-"
    _, scheme, path = connection.hostname.partition("://")
    if scheme:  # of a socket, with its password in front
        return str(path.rpartition("@")[2].partition("?")[0])
    port, database = connection.port or connection.transport.default_port, (connection.virtual_host or "").strip("/")
    return f"{connection.hostname}:{port}/{database or 0}"
