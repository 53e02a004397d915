"""The format of what is shared, by number: each release reads two, and writes the older one while an older worker lives."""
from __future__ import annotations

import time
from typing import Any

#: Newest format that this release reads and writes: keys, headers, bodies, headers of messages, arguments of scripts.
#: A release that changes one of them for its readers has the next number.  ``docs/reference/redis-keys.md`` lists them.
FORMAT = 1

#: Seconds for which a process that asks for the fleet's format takes the one that it has read.
FORMAT_AGE = 5.0


class FleetFormat:
    """The format in which a process writes: the newest that all live workers know.

    It is that of the release before until the workers' has been read, and never an older one.
    """

    def __init__(self) -> None:
        self._known = FORMAT - 1
        self._read_at = float("-inf")
        self._is_wanted = False

    @property
    def number(self) -> int:
        """The format to write; it does not wait, and lets the next batch of writes read it anew if it is old."""
        self._is_wanted = True
        return self._known

    @property
    def is_due(self) -> bool:
        """Whether it is to be read: it was asked for, and is old."""
        return self._is_wanted and time.monotonic() - self._read_at > FORMAT_AGE

    def note(self, lowest: Any) -> None:
        """Take what is stored: the lowest format that a live worker knows, or None if no worker is there."""
        self._known = max(FORMAT - 1, min(FORMAT, _number_of(lowest)))
        self._read_at = time.monotonic()
        self._is_wanted = False


def _number_of(stored: Any) -> int:
    """Return a stored number, or FORMAT for None and for what is none."""
    try:
        return int(float(stored))
    except (TypeError, ValueError, OverflowError):
        return FORMAT
