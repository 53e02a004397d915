"""What kombu's Redis transport has delivered and what is not acknowledged; its private names are used here only."""
from __future__ import annotations

from typing import Any

#: Names of kombu's Redis transport that are needed and not documented, by the class that has them.
PRIVATE_NAMES = {
    "Channel": ("ack_emulation", "conn_or_acquire", "qos", "unacked_index_key", "visibility_timeout"),
    "QoS": ("_delivered", "_dirty"),
}


#: Times to look at what changes while one looks.
MAX_LOOKS = 10

#: Seconds between two sweeps in releases of kombu before 5.7, which have no options for that.
SWEEP = 100.0


def channel_class(connection: Any) -> Any:
    """Return the class of the channels of a connection if its transport is kombu's for Redis, else None.

    Args:
        connection: Of kombu; it need not be open.
    """
    if connection.get_transport_cls().driver_type != "redis":
        return None
    from kombu.transport import redis

    channel: Any = connection.transport.Channel
    return channel if issubclass(channel, redis.Channel) else None


def sweep_of(connection: Any) -> float | None:
    """Return how many seconds there are between two sweeps of kombu for what is to be delivered again.

    Args:
        connection: Of kombu; it need not be open.  None is returned if its transport is not kombu's for Redis.
    """
    channel, options = channel_class(connection), connection.transport_options
    if channel is None:
        return None
    if not hasattr(channel, "unacked_restore_interval"):
        return SWEEP
    interval = float(options.get("unacked_restore_interval", channel.unacked_restore_interval))
    throttle = float(options.get("unacked_restore_throttle", channel.unacked_restore_throttle))
    return (interval if interval > 0 else float(channel.unacked_restore_interval)) * (throttle or 1.0)


def missing_names(channel: Any) -> list[str]:
    """Return which of `PRIVATE_NAMES` a class of channels lacks, as ``QoS._dirty``."""
    owners = {"Channel": channel, "QoS": getattr(channel, "QoS", None)}
    return [f"{owner}.{name}" for owner, names in PRIVATE_NAMES.items() for name in names
            if not hasattr(owners[owner], name)]


def is_unacked(message: Any) -> bool:
    """Whether a message was delivered over its channel, and neither acknowledged nor given back to its queue.

    The thread of the consumer may be changing what is looked at, so this asks for one tag and goes through nothing.
    """
    tag, qos = message.delivery_tag, getattr(message.channel, "qos", None)
    return tag in getattr(qos, "_delivered", ()) and tag not in getattr(qos, "_dirty", ())


def delivered(channel: Any) -> list[Any]:
    """Return what was delivered over a channel, as far as the thread of the consumer has not forgotten it yet."""
    for _ in range(MAX_LOOKS):
        try:
            return list(channel.qos._delivered.values())
        except RuntimeError:
            # It changed while it was being read.
            continue
    return []


def is_closed(message: Any) -> bool:
    """Whether the channel of a message is closed: it was delivered before the worker connected to its broker anew."""
    return bool(message.channel.closed)


def adopt(message: Any, channel: Any) -> None:
    """Let an open channel acknowledge a message of a closed one.

    Kombu can't do that over the closed one; it gives such a message back when it closes that, unless the broker is away.
    """
    channel.qos._delivered.setdefault(message.delivery_tag, message)
    message.channel = channel
