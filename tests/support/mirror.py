"""A copy of keys that a subscriber keeps, as users do."""
from __future__ import annotations

import random
import threading
import time


class Mirror:
    """Keeps the values of the keys that match a pattern; what it shows may be compared with what Redis has.

    Args:
        slow: Seconds that a call takes at most, drawn for each.
    """

    def __init__(self, memsync, pattern, slow=0.0, seed=0):
        self.values = {}
        #: What came after something newer.
        self.backward = []
        self._versions = {}
        self._slow = slow
        self._random = random.Random(seed)
        self._mutex = threading.Lock()
        self.id = memsync.subscribe(pattern, self.on_change, self.on_invalidate)
        for entry in memsync.iter_entries(pattern):
            with self._mutex:
                if entry.key not in self._versions:
                    self._versions[entry.key] = entry.version
                    self.values[entry.key] = entry.value

    def on_change(self, key, value, entry):
        with self._mutex:
            if entry.version < self._versions.get(key, 0):
                self.backward.append((key, self._versions[key], entry.version))
            self._versions[key] = entry.version
            self.values[key] = value
        time.sleep(self._random.random() * self._slow)

    def on_invalidate(self, key):
        with self._mutex:
            # A key that was lost begins anew.
            self._versions[key] = 0
            self.values.pop(key, None)


def contents(memsync, pattern):
    """Return what Redis has by key."""
    return {entry.key: entry.value for entry in memsync.iter_entries(pattern)}
