"""What tests of the cache read from it."""
from __future__ import annotations

NEVER = float("inf")


class Source:
    """Stands for a connection that vouches for what was read with it."""

    def __init__(self, until=NEVER):
        self.until = until


def value_of(cache, name, **how):
    copy = cache.get(name, **how)
    return None if copy is None else copy.take()
