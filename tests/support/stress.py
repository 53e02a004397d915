"""How long tests go on that repeat something: short in `make test`, long in `make acceptance`."""
from __future__ import annotations

import os


def stressed(much, little=1.0):
    """Return how many seconds, or repetitions, a test takes: little, unless MEMSYNC_STRESS is set."""
    return much if os.environ.get("MEMSYNC_STRESS") else little
