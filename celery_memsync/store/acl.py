"""The smallest rights with which everything works, for Redis's ACL; which of them a user lacks."""
from __future__ import annotations

from typing import NamedTuple

#: What the store and its scripts run: command, and the part of it that is needed, if not all.
COMMANDS = (
    "bitfield", "client|id", "client|tracking", "del", "evalsha", "get", "getrange", "hdel", "hget", "hgetall", "hincrby",
    "hincrbyfloat", "hrandfield", "hscan", "hset", "info", "llen", "lpop", "lpos", "lrange", "lrem", "pexpire", "ping",
    "psubscribe", "pttl", "publish", "pubsub|numsub", "punsubscribe", "rename", "rpush", "script|load", "set",
    "subscribe", "time", "unlink", "unsubscribe", "xadd", "xrevrange", "zadd", "zcount", "zmscore", "zpopmin", "zrange",
    "zrangebyscore", "zrank", "zrem", "zremrangebyscore", "zscan", "zscore",
)

#: Rights that are no commands.
KEYS, CHANNELS = "keys", "channels"


class MissingRights(NamedTuple):
    """What is needed and can't be done.

    Attributes:
        forbidden: Commands that the user may not call, :data:`KEYS` and :data:`CHANNELS`.
        unknown: Commands that Redis does not know: it is too old, or they were renamed.
    """

    forbidden: list[str]
    unknown: list[str]


class Probe(NamedTuple):
    """Something harmless that takes a right.

    Attributes:
        right: The command, as in :data:`COMMANDS`.
        command: What to send.
    """

    right: str
    command: tuple[str, ...]


def rules(namespace: str) -> list[str]:
    """Return the rights as words of ``ACL SETUSER``.

    Channels can't be named: a subscription to a pattern needs that very pattern in them.
    """
    return [f"~{namespace}/*", "&*", *(f"+{command}" for command in COMMANDS)]


def probes(key: str, channel: str) -> list[Probe]:
    """Return what to ask to see which rights are there; whatever the answers, nothing stays behind for more than a second.

    Args:
        key: One that is not used.
        channel: One without subscribers.
    """
    # While a text is stored there, all that is for other types is refused, which takes the right all the same.
    arguments = {
        "bitfield": (key, "GET", "u8", "0"), "getrange": (key, "0", "1"),
        "client|id": (), "client|tracking": ("OFF",), "evalsha": ("0" * 40, "1", key), "hdel": (key, "a"),
        "hget": (key, "a"), "hincrby": (key, "a", "1"), "hincrbyfloat": (key, "a", "1"), "hscan": (key, "0"),
        "hset": (key, "a", "1"), "info": ("server",),
        "lpos": (key, "a"), "lrange": (key, "0", "1"), "lrem": (key, "1", "a"), "pexpire": (key, "1000"), "ping": (),
        "publish": (channel, ""),
        "pubsub|numsub": (channel,), "rename": (key, key), "rpush": (key, "a"), "script|load": ("return 1",),
        "set": (key, "", "PX", "1000"), "time": (), "xadd": (key, "*", "a", "1"), "xrevrange": (key, "+", "-"),
        "zadd": (key, "1", "a"), "zcount": (key, "0", "1"), "zmscore": (key, "a"), "zrange": (key, "0", "1"),
        "zrangebyscore": (key, "0", "1"), "zrank": (key, "a"), "zrem": (key, "a"),
        "zremrangebyscore": (key, "0", "1"), "zscan": (key, "0"), "zscore": (key, "a"),
        "psubscribe": (channel,), "punsubscribe": (channel,), "subscribe": (channel,), "unsubscribe": (channel,),
    }
    # After the last ones no other command is allowed.
    last = ("pexpire", "unlink", "del", "subscribe", "psubscribe", "punsubscribe", "unsubscribe")
    order = ["set", *(one for one in COMMANDS if one not in ("set", *last)), *last]
    return [Probe(one, (*one.upper().split("|"), *arguments.get(one, (key,)))) for one in order]


def is_unknown(refusal: str) -> bool:
    """Whether Redis does not know a command, or a part of it.

    Args:
        refusal: What Redis said.
    """
    return "unknown command" in refusal.lower() or "unknown subcommand" in refusal.lower()


def missing(right: str, refusal: str) -> str:
    """Return which right Redis misses: the command, or those to all keys or channels.

    Args:
        right: The command that was sent.
        refusal: What Redis said.
    """
    words = refusal.lower()
    if " channel" in words:
        return CHANNELS
    return KEYS if " key" in words else right
