"""Connections to the broker that block no thread for long."""
from __future__ import annotations

from typing import Any

#: Longest that connecting to the broker, or one answer of it, may take, in seconds.
TIMEOUT = 2.0

#: What transports call their timeouts, by kind of driver; other kinds have none.
_TIMEOUTS = {
    "redis": {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT},
    "amqp": {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT},
}


def bounded_connection(app: Any, write: bool = False) -> Any:
    """Return a connection of kombu's own, that is not one of the app's pool; it is not open yet.

    Args:
        write: Whether it is for publishing.
    """
    connect = app.connection_for_write if write else app.connection_for_read
    kind = connect().get_transport_cls().driver_type
    return connect(connect_timeout=TIMEOUT, transport_options=_TIMEOUTS.get(kind, {}))
