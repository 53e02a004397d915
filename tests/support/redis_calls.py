"""Count the commands and round trips of an operation."""
from __future__ import annotations

import threading

import pytest


def calls_of(redis):
    """Return how often each command was called since the statistics were reset."""
    ours = {"cmdstat_info", "cmdstat_config|resetstat", "cmdstat_config"}
    return {name[8:]: stats["calls"] for name, stats in redis.info("commandstats").items() if name not in ours}


def round_trips(memsync, act):
    """Return how often ``act`` sends something to Redis after it has read what came before.

    What it has the writer's thread do counts, too.
    """
    steps = []
    caller = threading.get_ident()
    kind = memsync.runtime.store.redis.connection_pool.connection_class

    def noting(step, original):
        def note(*args, **kwargs):
            if threading.get_ident() == caller or threading.current_thread().name == "memsync-writer":
                steps.append(step)
            return original(*args, **kwargs)
        return note

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "send_packed_command", noting("send", kind.send_packed_command))
        patch.setattr(kind, "read_response", noting("read", kind.read_response))
        act()
    return sum(step == "send" != before for before, step in zip([None, *steps], steps))
