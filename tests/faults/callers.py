"""Threads that call the package while servers are harmed, and the log of what each call was answered."""
from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import defaultdict

from celery_memsync import ConflictError, LockLost, MemorySyncManager, StoreError
from tests.support.mirror import Mirror
from tests.support.waiting import eventually

#: Seconds that a call has.
TIMEOUT = 2.0

#: Lease of the locks, in seconds.
LEASE = 3.0

LOCKS = [f"lock-{number}" for number in range(5)]
SHARED = [f"shared/{number}" for number in range(12)]
OWN = 8

#: Seconds between two calls of a thread.
PAUSE = 0.03


class NotingMirror(Mirror):
    """Also notes when it receives which version."""

    def __init__(self, memsync, pattern):
        self.received = []
        super().__init__(memsync, pattern)

    def on_change(self, key, value, entry):
        self.received.append((time.time(), key, entry.version))
        super().on_change(key, value, entry)

    def on_invalidate(self, key):
        self.received.append((time.time(), key, 0))
        super().on_invalidate(key)


class Callers:
    """Two processes' worth of managers, and threads that use them at random until they are to end.

    Attributes:
        rows: One for each call: what, on which key, called and answered in seconds since the epoch,
            and how: ``"done"``, or how it failed.
        states: Of each key that one thread alone writes, what it wrote: pairs of time and value, None for a deletion.
        wrote: When each key was written last, or was to be.
        grants: One for each lock that was held: called, granted, owned until.
        failed: Errors that no call may raise.
    """

    def __init__(self, url, namespace, seed):
        self.namespace = namespace
        settings = {"namespace": namespace, "batch_interval": 0.02, "timeout": TIMEOUT}
        self.managers = [MemorySyncManager(f"caller-{number}", url, **settings) for number in range(2)]
        self.mirrors = [NotingMirror(memsync, "[ogs]*/*") for memsync in self.managers]
        self.rows, self.grants, self.failed = [], [], []
        self.states, self.wrote = defaultdict(list), {}
        self.added = defaultdict(list)
        self.over = threading.Event()
        acts = (self.write, self.write, self.change, self.change, self.hold, self.hold, self.hold, self.count, self.queue)
        self.threads = [
            threading.Thread(target=self._play, daemon=True, args=(
                act, self.managers[number % 2], random.Random(f"{seed} {number}"), f"{act.__name__}-{number}"))
            for number, act in enumerate(acts)]

    def path(self, key):
        """Return a key as it is in Redis."""
        return f"{self.namespace}/{key}"

    @property
    def home(self):
        """A key in the slot of the lists of a cluster."""
        return f"{{{self.namespace}}}"

    @property
    def keys(self):
        """Keys in slots that are used."""
        return [*map(self.path, SHARED), *(self.path(f"locks/{{{name}}}") for name in LOCKS), self.home]

    def start(self):
        for thread in self.threads:
            thread.start()

    def end(self):
        """Let the threads end, and all that is pending be written."""
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        for memsync in self.managers:
            eventually(lambda: self._is_synced(memsync), timeout=30)

    def close(self):
        self.over.set()
        for memsync in self.managers:
            memsync.shutdown(timeout=0.5)

    @staticmethod
    def _is_synced(memsync):
        with contextlib.suppress(StoreError, LockLost):
            memsync.force_sync()
            return True

    def _play(self, act, memsync, chance, name):
        try:
            for number in itertools.count():
                if self.over.wait(chance.uniform(0, 2 * PAUSE)):
                    return
                act(memsync, chance, name, number)
        except BaseException as exc:
            self.failed.append(f"{name}: {exc!r}")

    def call(self, what, key, action, wait=0.0, **facts):
        """Call something, and note what came of it; return that row."""
        row = {"what": what, "key": key, "wait": wait, "called": time.time(), **facts}
        try:
            row.update(result=action(), how="done")
        except StoreError as exc:
            row.update(how="maybe" if getattr(exc, "maybe_done", False) else "not", error=str(exc))
        except (ConflictError, LockLost) as exc:
            row.update(how=type(exc).__name__, error=str(exc))
        row["answered"] = time.time()
        self.rows.append(row)
        return row

    # -- what threads do

    def write(self, memsync, chance, name, number):
        """Write to keys of one's own, and read them; at random moments see that all is in Redis."""
        key = self.path(f"own/{name}-{chance.randrange(OWN)}")
        value = None if chance.random() < 0.1 else number
        memsync.delete(key) if value is None else memsync.write(key, value)
        states = self.states[key]
        self.wrote[key] = time.time()
        states.append((self.wrote[key], value))
        if chance.random() < 0.3:
            self.call("read own", key, lambda: memsync.read(key), at=len(states) - 1)
        if chance.random() < 0.2:
            mine = {key: len(states) - 1 for key, states in list(self.states.items()) if f"/{name}-" in key}
            self.call("sync", "", lambda: memsync.force_sync(), states=mine)
        if chance.random() < 0.2:
            other = self.managers[memsync is self.managers[0]]
            self.call("read", key, lambda: other.read(key, consistent=True))

    def change(self, memsync, chance, name, number):
        """Read a key of all, and compare and set it; if the answer was lost do so again."""
        key, value = self.path(chance.choice(SHARED)), f"{name}.{number}"
        row = self.call("read version", key, lambda: _version(memsync.read_entry(key, consistent=True)))
        if row["how"] != "done":
            return
        for _ in range(3):
            change = self.call("change", key, value=value, expected=row["result"], action=lambda: _version(
                memsync.write(key, value, expected_version=row["result"])))
            self.wrote[key] = change["answered"]
            if change["how"] != "maybe":
                break

    def hold(self, memsync, chance, name, number):
        """Hold a lock for a while, and write its fence under it."""
        lock, wait = chance.choice(LOCKS), chance.choice((0.0, 1.0))
        held = memsync.lock(lock, ttl=LEASE, wait=wait)
        row = self.call("acquire", self.path(f"locks/{{{lock}}}"), held.acquire, wait=wait)
        if row.get("result") is not True:
            return
        grant = {
            "key": row["key"], "fence": held.fence, "called": row["called"],
            "granted": row["answered"], "owned": 0.0}
        self.grants.append(grant)
        end = time.monotonic() + chance.choice((0.0, 0.02, 0.3, 1.5 * LEASE if chance.random() < 0.1 else 0.1))
        while True:
            before = time.time()
            if not held.owned:
                return
            grant["owned"] = before
            with contextlib.suppress(LockLost):
                memsync.write(f"guarded/{lock}", held.fence, fence=held)
                self.wrote[self.path(f"guarded/{lock}")] = before
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        self.call("release", row["key"], held.release)

    def count(self, memsync, chance, name, number):
        """Add to a counter; read it at random moments."""
        memsync.increment_metrics(**{name.replace("-", "_"): 1})
        self.added[name.replace("-", "_")].append(time.time())
        if chance.random() < 0.1:
            self.call("counters", self.home, memsync.get_coordination_metrics)

    def queue(self, memsync, chance, name, number):
        """Put an id into the shared queue, take one, complete it."""
        for _ in range(3):
            if self.call("enqueue", self.home, lambda: memsync.enqueue(f"q{number}"), id=f"q{number}")["how"] != "maybe":
                break
        if chance.random() < 0.9:
            row = self.call("dequeue", self.home, memsync.dequeue)
            if row.get("result"):
                self.call("complete", self.home, lambda: memsync.complete(row["result"]), id=row["result"])


def _version(entry):
    return 0 if entry is None else entry.version
