"""Whether the cache answers."""
from __future__ import annotations


def is_hit(memsync, key):
    """Whether a read is answered by the cache."""
    before = memsync.get_metrics()["cache_hits"]
    memsync.read(key)
    return memsync.get_metrics()["cache_hits"] > before
