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
    """Return the script of files in ``store/lua/``, one after the other, behind those that every script begins with."""
    folder = resources.files(__package__).joinpath("lua")
    text = "".join(folder.joinpath(f"{name}.lua").read_text() for name in ("validation", "entry_header", *names))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ENTRY_WRITE = load(
    "counters", "queue_score", "coordination_version", "entry_format", "hybrid_clock", "run_order", "members",
    "statistics", "index_updates", "entry_write")

ENTRY_PUBLISH = load("entry_format", "entry_publish")

INDEX_APPLY = load(
    "counters", "queue_score", "coordination_version", "members", "statistics", "index_updates", "index_apply")

QUEUE_ENQUEUE = load("queue_score", "queue_list", "coordination_version", "coordination_change", "queue_enqueue")

QUEUE_DEQUEUE = load("queue_score", "queue_list", "coordination_version", "coordination_change", "queue_dequeue")

QUEUE_COMPLETE = load("coordination_version", "coordination_change", "queue_complete")

QUEUE_REPLACE = load("queue_score", "coordination_version", "coordination_change", "queue_replace")

CANCELLED_ADD = load("cancelled_add")

METRICS_UPDATE = load("counters", "coordination_version", "coordination_change", "metrics_update")

LOCK_ACQUIRE = load("hybrid_clock", "lock_lease", "lock_entry", "lock_acquire")

LOCK_RELEASE = load("hybrid_clock", "lock_lease", "lock_entry", "lock_release")

LOCK_FREE = load("hybrid_clock", "lock_lease", "lock_entry", "lock_free")

LOCK_RESTORE = load("hybrid_clock", "lock_lease", "lock_entry", "lock_restore")

LOCK_RENEW = load("lock_lease", "lock_renew")

HEARTBEAT_WRITE = load("heartbeat_times", "heartbeat_write")

HEARTBEAT_CUT = load("heartbeat_times", "heartbeat_cut")

LOST_WORKER_CLAIM = load("lost_worker_claim")
