"""One of the processes of the model: it does anything at random with the shared state, and notes
what it saw."""
from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from fnmatch import fnmatchcase
from pathlib import Path

from celery_memsync import ConflictError, MemorySyncManager, StoreError
from tests.support.waiting import eventually

#: What is done, and how often.
OPERATIONS = {
    "read": 60, "write_own": 8, "delete_own": 2, "cas_own": 3, "write_open": 6, "cas_shared": 8,
    "refused": 2, "mix": 6, "brief": 3, "state": 6, "agent": 4, "subscribe": 1, "unsubscribe": 1,
    "sync": 1,
}
SHARED = ("cas/0", "cas/1", "open/0", "open/1", "mixed/0", "mixed/1", "brief/0")
TASKS = ("t0", "t1")
PATTERNS = ("*", "solo/*", "cas/?", "open/*", "mixed/[01]", "tasks/*/state", "tasks/t0/agents/*")


class Process:
    """One of the processes, with its manager and some threads that do things."""

    def __init__(self, number, url, folder, seed, sessions, names):
        self.p = f"p{number}"
        self.seed = seed
        self.sessions = [f"{self.p}.{at}" for at in range(sessions)]
        self.keys = keys_of(names)
        self.history = open(Path(folder) / f"{self.p}.jsonl", "w")
        self.mutex = threading.Lock()
        self.memsync = MemorySyncManager(worker_id=self.p, url=url, batch_interval=0.01)
        self.root = self.memsync.settings.namespace + "/"
        self.numbers = itertools.count(1)
        self.subscriptions = {}
        self.received = {}
        self.doubted = set()
        self.memsync.on("write", self.stored)
        self.memsync.on("delete", self.stored)
        self.memsync.on("batch-failed", lambda count, error: self.note("failed", at=time.monotonic()))

    def note(self, op, **row):
        with self.mutex:
            self.history.write(json.dumps({"op": op, "p": self.p, **row}) + "\n")

    def stored(self, key, value=None):
        self.note("stored", key=key[len(self.root):], value=value, at=time.monotonic())

    # -- its life

    def run(self, seconds, pipe):
        self.subscribe("*")
        pipe.send("ready")
        pipe.recv()
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=Session(self, name).run, args=(until,)) for name in self.sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send("done")
        pipe.recv()
        self.sync(timeout=30, last=True)
        pipe.send("synced")
        final = pipe.recv()
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.has_received(final), timeout=10)
        for fresh in (False, True):
            for key in self.keys:
                self.read(key, "read_entry", f"{self.p}.end", fresh)
        pipe.send(self.memsync.get_metrics())
        pipe.recv()
        with self.mutex:
            self.history.close()
        self.memsync.shutdown()

    def has_received(self, final):
        """Whether all subscriptions have received the last change of each key that they know."""
        expected = [
            (sub, key, version) for sub, pattern in self.subscriptions.items()
            for key, version in final.items()
            if fnmatchcase(key, pattern) and (sub == "1" or (sub, key) in self.received)]
        return all(
            (sub, key) not in self.received or (sub, key) in self.doubted
            if version is None or key.startswith("brief/")
            else self.received.get((sub, key)) == version for sub, key, version in expected)

    # -- what it does

    def subscribe(self, pattern):
        sub = str(next(self.numbers))

        def on_change(key, value, entry):
            key = key[len(self.root):]
            self.note(
                "received", sub=sub, key=key, value=value, version=entry.version,
                at=time.monotonic())
            self.received[sub, key] = entry.version
            self.doubted.discard((sub, key))

        def on_invalidate(key):
            key = key[len(self.root):]
            self.note("doubted", sub=sub, key=key, at=time.monotonic())
            self.doubted.add((sub, key))

        begin = time.monotonic()
        number = self.memsync.subscribe(pattern, on_change, on_invalidate)
        self.note("subscribed", sub=sub, pattern=pattern, begin=begin, end=time.monotonic())
        self.subscriptions[sub] = pattern
        return sub, number

    def unsubscribe(self, sub, number):
        self.memsync.unsubscribe(number)
        self.subscriptions.pop(sub)
        self.note("unsubscribed", sub=sub)

    def sync(self, timeout=5.0, last=False):
        begin = time.monotonic()
        with contextlib.suppress(StoreError, ConflictError):
            self.memsync.force_sync(timeout=timeout)
            self.note("synced", begin=begin, end=time.monotonic(), last=last)

    def read(self, key, how, session, fresh=False):
        """Read in one of the ways; return the entry if it was read by ``read_entry``."""
        begin = time.monotonic()
        try:
            if how == "read_entry":
                found = self.memsync.read_entry(key, consistent=fresh)
                value, version = (None, None) if found is None else (found.value, found.version)
            elif how == "read":
                found, value, version = None, self.memsync.read(key, consistent=fresh), None
            elif how == "state":
                found, value, version = None, self.memsync.get_task_state(key.split("/")[1]), None
            else:
                _, task, _, agent = key.split("/")
                found, value, version = None, self.memsync.get_agent_coordination(task, agent), None
        except StoreError:
            return None
        self.note("read", s=session, key=key, value=value, version=version, fresh=fresh, how=how,
                  begin=begin, end=time.monotonic())
        return found

    def read_many(self, keys, session, fresh):
        begin = time.monotonic()
        try:
            found = self.memsync.read_many(keys, consistent=fresh)
        except StoreError:
            return
        end = time.monotonic()
        for key in keys:
            self.note("read", s=session, key=key, value=found[key], version=None, fresh=fresh, how="read_many",
                      begin=begin, end=end)


class Session:
    """A thread that does one thing after the other."""

    def __init__(self, process, name):
        self.process = process
        self.memsync = process.memsync
        self.name = name
        self.random = random.Random(f"{process.seed} {name}")
        self.count = 0
        self.own = [f"solo/{name}/{at}" for at in range(2)]
        self.subscriptions = []

    def run(self, until):
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        while time.monotonic() < until:
            getattr(self, self.random.choices(names, weights)[0])()
            time.sleep(self.random.expovariate(1000))

    def value(self):
        self.count += 1
        return f"{self.name}:{self.count}"

    def note_write(self, key, value, write, how="buffered", **about):
        """Call ``write``, and note how that went."""
        begin, error, version = time.monotonic(), None, None
        try:
            entry = write()
            version = entry and entry.version
        except (ConflictError, StoreError) as exc:
            error = "ConflictError" if isinstance(exc, ConflictError) else "StoreError"
        self.process.note("write", s=self.name, key=key, value=value, how=how, begin=begin, end=time.monotonic(),
                          error=error, version=version, **about)

    def read(self):
        key, fresh = self.random.choice(self.process.keys), self.random.random() < 0.1
        how = self.random.choice(("read", "read_entry", "read_entry", "read_many", "about"))
        if how == "read_many":
            self.process.read_many(self.random.sample(self.process.keys, 4), self.name, fresh)
        elif how == "about" and key.startswith("tasks/"):
            self.process.read(key, "state" if key.endswith("/state") else "agent", self.name)
        else:
            self.process.read(key, "read_entry" if how == "about" else how, self.name, fresh)

    def write(self, key, ttl=None):
        value = self.value()
        self.note_write(key, value, lambda: self.memsync.write(key, value, ttl=ttl), ttl=ttl)

    def delete(self, key):
        self.note_write(key, None, lambda: self.memsync.delete(key))

    def compare_and_set(self, key, beside=0):
        entry = self.process.read(key, "read_entry", self.name, self.random.random() < 0.3)
        saw, expected = (None, 0) if entry is None else (entry.value, entry.version)
        value, expected = self.value(), expected + beside
        self.note_write(
            key, value, lambda: self.memsync.write(key, value, expected_version=expected), "cas",
            expected=expected, saw=None if beside else saw)

    def write_own(self):
        self.write(self.random.choice(self.own))

    def delete_own(self):
        self.delete(self.random.choice(self.own))

    def cas_own(self):
        self.compare_and_set(self.random.choice(self.own))

    def write_open(self):
        self.write(self.random.choice(("open/0", "open/1")))

    def cas_shared(self):
        self.compare_and_set(self.random.choice(("cas/0", "cas/1")))

    def refused(self):
        self.compare_and_set(self.random.choice(self.own), beside=1000)

    def mix(self):
        key = self.random.choice(("mixed/0", "mixed/1"))
        for how in self.random.choice((
                (self.write,), (self.delete,), (self.compare_and_set,),
                (self.write, self.compare_and_set))):
            how(key)

    def brief(self):
        self.write("brief/0", ttl=self.random.choice((0.1, 0.3, 1.0)))

    def state(self):
        task, field = self.random.choice(TASKS), f"{self.name}.{self.random.choice('ab')}"
        value = {field: self.value()}
        self.note_write(
            f"tasks/{task}/state", value, lambda: self.memsync.sync_task_state(task, value))

    def agent(self):
        task, agent, value = self.random.choice(TASKS), self.random.choice((self.name, "all")), self.value()
        self.note_write(
            f"tasks/{task}/agents/{agent}", value,
            lambda: self.memsync.sync_agent_coordination(task, agent, value))

    def subscribe(self):
        if len(self.subscriptions) < 5:
            self.subscriptions.append(self.process.subscribe(self.random.choice(PATTERNS)))

    def unsubscribe(self):
        if self.subscriptions:
            at = self.random.randrange(len(self.subscriptions))
            self.process.unsubscribe(*self.subscriptions.pop(at))

    def sync(self):
        self.process.sync()


def keys_of(names):
    """Return all keys that these sessions use."""
    own = [f"solo/{name}/{at}" for name in names for at in range(2)]
    return [*own, *SHARED, *(f"tasks/{task}/{rest}" for task in TASKS
                             for rest in ("state", *(f"agents/{name}" for name in ("all", *names))))]


def work(number, url, folder, seed, sessions, names, seconds, pipe):
    Process(number, url, folder, seed, sessions, names).run(seconds, pipe)
