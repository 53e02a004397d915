"""The Lua scripts, by name."""
from __future__ import annotations

from hashlib import sha1
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the name that Redis gives it.

    Attributes:
        text: The Lua.
        sha: What EVALSHA calls it by.
    """

    text: str
    sha: str


def load(*names: str) -> Script:
    """Return the script of files in ``store/lua/``, one after the other, behind ``validation.lua``."""
    folder = resources.files(__package__).joinpath("lua")
    text = "".join(folder.joinpath(f"{name}.lua").read_text() for name in ("validation", *names))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


COORDINATION_WRITE = load("counters", "queue_score", "coordination_write")

INDEX_APPLY = load("counters", "queue_score", "entry_format", "index_updates", "index_apply")

ENTRY_WRITE = load("counters", "queue_score", "entry_format", "index_updates", "entry_write")

LOCK_PASS = load("lock_pass")

LOCK_RENEW = load("lock_renew")

LOST_WORKER_CLAIM = load("lost_worker_claim")

HEARTBEAT_WRITE = load("heartbeat_write")
