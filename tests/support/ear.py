"""A subscriber that records what it receives."""
from __future__ import annotations

import threading
import time

from tests.support.publishing import publish
from tests.support.waiting import eventually

#: Recorded for a key that was invalidated.
GONE = "gone"


class Ear:
    """Subscribes and records what it receives; its handler can be kept busy."""

    def __init__(self, memsync, pattern="*", invalidate=True):
        self.heard = []
        self.versions = []
        #: Keys and versions in the order in which they came, None for one that was invalidated.
        self.history = []
        self.free = threading.Event()
        self.free.set()
        self.id = memsync.subscribe(pattern, self.on_change, self.on_invalidate if invalidate else None)

    def on_change(self, key, value, entry):
        assert key == entry.key and value == entry.value
        self.versions.append((short(key), entry.version))
        self.history.append((short(key), entry.version))
        self.heard.append((short(key), value))
        self.free.wait(60)

    def on_invalidate(self, key):
        self.history.append((short(key), None))
        self.heard.append((short(key), GONE))

    def of(self, key):
        return [value for heard, value in self.heard if heard == key]

    def hears(self, key, value):
        """Return when the latest value that was received for a key is that one."""
        eventually(lambda: self.of(key)[-1:] == [value], message=f"{key} is not {value!r}: {self.of(key)[-5:]}")

    def keep_busy(self, teller):
        """Return when the handler is at work, where it stays until ``free`` is set."""
        self.free.clear()
        publish(teller, {"busy": True})
        self.hears("busy", True)

    def never_goes_back(self):
        """Whether the versions of each key only grow; one that was invalidated may come again."""
        latest, lowest = {}, {}
        for key, version in self.history:
            if version is None:
                lowest[key] = latest.get(key, 0)
            elif version < lowest.get(key, 1):
                return False
            else:
                latest[key], lowest[key] = version, version + 1
        return True


def short(key):
    assert key.startswith("task-sentinel/")
    return key.removeprefix("task-sentinel/")


def caught_up(memsync, since=0.0):
    """Return when a manager has read all keys after a monotonic time and received all messages since."""
    services = memsync.runtime
    eventually(lambda: all(
        not one.look and since < one.found_at < services.link.confirmed_at for one in services.subscriptions._all()))


def cut_off(memsync, redis, meanwhile=lambda: None):
    """Kill the connection of a manager's subscriptions when nothing is under way; return when it has read what it missed."""
    caught_up(memsync)
    line, cut_at = memsync.runtime.link._line, time.monotonic()
    assert redis.client_kill_filter(_type="pubsub")
    meanwhile()
    eventually(lambda: memsync.runtime.link._line not in (line, None))
    caught_up(memsync, since=cut_at)
