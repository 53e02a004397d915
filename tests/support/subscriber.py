"""A subscriber that records what it receives."""
from __future__ import annotations

import threading
import time

from tests.support.publishing import publish
from tests.support.waiting import eventually

#: Recorded for a key that was invalidated.
INVALIDATED = "invalidated"


class Subscriber:
    """Subscribes and records what it receives; its handler can be kept busy."""

    def __init__(self, memsync, pattern="*", invalidate=True):
        self.received = []
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
        self.received.append((short(key), value))
        self.free.wait(60)

    def on_invalidate(self, key):
        self.history.append((short(key), None))
        self.received.append((short(key), INVALIDATED))

    def of(self, key):
        return [value for name, value in self.received if name == key]

    def wait_for(self, key, value):
        """Return when the last value that was received for a key is this one."""
        eventually(
            lambda: self.of(key)[-1:] == [value],
            message=f"{key} is not {value!r}: {self.of(key)[-5:]}")

    def keep_busy(self, writer):
        """Return when the handler is running; it runs until ``free`` is set."""
        self.free.clear()
        publish(writer, {"busy": True})
        self.wait_for("busy", True)

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
    """Kill the idle connection of a manager's subscriptions; return once it has caught up."""
    caught_up(memsync)
    line, cut_at = memsync.runtime.link._line, time.monotonic()
    assert redis.client_kill_filter(_type="pubsub")
    meanwhile()
    eventually(lambda: memsync.runtime.link._line not in (line, None))
    caught_up(memsync, since=cut_at)
