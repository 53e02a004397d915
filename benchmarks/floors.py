"""Floors: the least code that does each job, with nothing of this package.

A floor shows what is physically possible on this machine, with Python and one Redis. None is fit
for use: there are no checks, no retries, no order, no shutdown, and nothing that another process
wrote is kept safe. They use a bare socket, because a client library costs more than some jobs.
"""
from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from celery import signals

TTL_MS = 3_600_000

#: Entries that one script writes, and scripts that are sent before the first reply is read.
ENTRIES_PER_SCRIPT, SCRIPTS_AT_ONCE = 100, 5

#: Seconds in which ends of tasks are gathered, as ``memsync_batch_interval`` does.
INTERVAL = 0.1

#: Store entries of which the writer knows the version, with a ttl, and index them.
#: KEYS: the entries, the index. ARGV: now and ttl in ms, then of each entry version and value.
WRITE = """
local n = #KEYS - 1
local stored, names = redis.call("MGET", unpack(KEYS, 1, n)), {}
for i = 1, n do
  local version = stored[i] and tonumber(string.match(stored[i], "^%d+")) or 0
  if version == tonumber(ARGV[2 * i + 1]) then
    redis.call("SET", KEYS[i], version + 1 .. "\\n" .. ARGV[2 * i + 2], "PX", ARGV[2])
    names[#names + 1] = ARGV[1] + ARGV[2]
    names[#names + 1] = KEYS[i]
  end
end
if #names > 0 then redis.call("ZADD", KEYS[n + 1], unpack(names)) end
return #names / 2
"""

#: Store a value and publish it.
PUBLISH = """
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return redis.call("PUBLISH", KEYS[1], ARGV[1])
"""

#: Acquire a lock, and release one's own.
ACQUIRE = "return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])"
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

encode = json.JSONEncoder(separators=(",", ":")).encode


class Connection:
    """A connection to Redis without a client library."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")
        self.call(b"SELECT", parts.path.strip("/").encode() or b"0")

    def call(self, *words: bytes) -> Any:
        """Send a command; return its reply."""
        self.socket.sendall(frame(words))
        return self.read()

    def read(self) -> Any:
        """Return the next reply, or the next message of a subscription."""
        line = self.replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return rest

    def load(self, script: str) -> bytes:
        """Load a script; return its hash."""
        sha: bytes = self.call(b"SCRIPT", b"LOAD", script.encode())
        return sha


def frame(words: Iterable[bytes]) -> bytes:
    """Return a command as it is sent."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


# -- writing


class Writer:
    """Writes versioned entries with a ttl, a hundred in a script."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self.script = self.connection.load(WRITE)
        self.versions: dict[str, int] = {}

    def write(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Write keys and values; encode the next script while Redis runs the one before."""
        sent: deque[list[str]] = deque()
        for part in chunks(entries):
            self.connection.socket.sendall(self.command(part))
            sent.append([key for key, _ in part])
            if len(sent) == SCRIPTS_AT_ONCE:
                self.take_reply(sent.popleft())
        while sent:
            self.take_reply(sent.popleft())

    def command(self, entries: list[tuple[str, Any]]) -> bytes:
        """Return the script call that writes entries."""
        head = [b"EVALSHA", self.script, b"%d" % (len(entries) + 1)]
        keys = [b"floor/" + key.encode() for key, _ in entries]
        words = [*head, *keys, b"floor", b"%d" % (time.time() * 1000), b"%d" % TTL_MS]
        for key, value in entries:
            words += b"%d" % self.versions.get(key, 0), encode(value).encode()
        return frame(words)

    def take_reply(self, keys: list[str]) -> None:
        """Count the versions of what was written."""
        stored = self.connection.read()
        if stored != len(keys):
            raise RuntimeError(f"{stored} of {len(keys)} entries were written")
        self.versions.update((key, self.versions.get(key, 0) + 1) for key in keys)


def chunks(entries: Iterable[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    """Yield entries in lists of as many as one script takes."""
    part: list[tuple[str, Any]] = []
    for entry in entries:
        part.append(entry)
        if len(part) == ENTRIES_PER_SCRIPT:
            yield part
            part = []
    if part:
        yield part


class Counter:
    """Adds in this process, and writes the sum."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self.sums: dict[str, int] = {}
        self.lock = threading.Lock()

    def add(self, name: str, number: int) -> None:
        """Add to a counter."""
        with self.lock:
            self.sums[name] = self.sums.get(name, 0) + number

    def flush(self) -> None:
        """Write all sums."""
        with self.lock:
            sums, self.sums = self.sums, {}
        for name, number in sums.items():
            self.connection.call(b"HINCRBY", b"counters", name.encode(), b"%d" % number)


class TaskRecorder:
    """Records each task of a worker at its end, by signals of the pool child alone."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.started: dict[str, float] = {}
        self.ended: deque[tuple[str, list[Any]]] = deque()
        self.wakeup = threading.Event()
        self.thread: threading.Thread | None = None
        signals.task_prerun.connect(self.on_started, weak=False)
        signals.task_postrun.connect(self.on_ended, weak=False)

    def on_started(self, task_id: str, **_: Any) -> None:
        """Note when a task starts."""
        self.started[task_id] = time.time()

    def on_ended(self, task_id: str, task: Any, state: str, **_: Any) -> None:
        """Queue the record of a task."""
        now, request = time.time(), task.request
        record = [state, task.name, request.hostname, self.started.pop(task_id), now]
        self.ended.append((task_id, record))
        if self.thread is None:  # not in the main process, which forks
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
        self.wakeup.set()

    def run(self) -> None:
        """Write what is queued, a batch after each interval."""
        writer = Writer(self.url)
        while self.wakeup.wait():
            time.sleep(INTERVAL)
            self.wakeup.clear()
            writer.write([self.ended.popleft() for _ in range(len(self.ended))])


def store_task_records(url: str, records: Iterable[tuple[str, str]]) -> None:
    """Store all of a task as one string with a ttl, and its id in a stream."""
    connection = Connection(url)
    for task_id, text in records:
        key = b"floor/tasks/" + task_id.encode()
        connection.call(b"SET", key, text.encode(), b"PX", b"%d" % TTL_MS)
        connection.call(b"XADD", b"floor/index", b"*", b"", task_id.encode())


# -- reading


class Cache:
    """A dict under a lock; all callers get the same object."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values = dict(values or {})
        self.lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Return a value."""
        with self.lock:
            return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        """Set a value, such as the progress of a task."""
        with self.lock:
            self.values[key] = value


def reader(url: str, prefix: str) -> Callable[[str], Any]:
    """Return a function that reads the JSON in the second line of a string."""
    call, root = Connection(url).call, prefix.encode()
    return lambda key: json.loads(call(b"GET", root + key.encode()).split(b"\n")[1])


def reader_of_workers(url: str, names: Iterable[str]) -> Callable[[], list[bytes]]:
    """Return a function that reads which workers have sent a heartbeat; store theirs first."""
    connection = Connection(url)
    for name in names:
        expires = b"%d" % (time.time() + 3600)
        connection.call(b"ZADD", b"floor/workers", expires, name.encode())

    def read() -> list[bytes]:
        now = b"%d" % time.time()
        found: list[bytes] = connection.call(b"ZRANGEBYSCORE", b"floor/workers", now, b"+inf")
        return found
    return read


# -- locks


def locker(url: str) -> Callable[[], None]:
    """Return a function that acquires and releases a lock: two scripts, two round trips."""
    connection = Connection(url)
    call, acquire, release = connection.call, connection.load(ACQUIRE), connection.load(RELEASE)

    def acquire_and_release() -> None:
        call(b"EVALSHA", acquire, b"1", b"floor/lock", b"token", b"30000")
        call(b"EVALSHA", release, b"1", b"floor/lock", b"token")
    return acquire_and_release


def baton(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return how to take an item from another process, and how to pass it on."""
    call = Connection(url).call
    return (lambda: call(b"BLPOP", b"floor/item", b"60"),
            lambda: call(b"LPUSH", b"floor/item", b"1"))


# -- subscriptions


def publisher(url: str) -> Callable[[str, Any], object]:
    """Return a function that stores a value and publishes it, in one script."""
    connection = Connection(url)
    call, script, ttl = connection.call, connection.load(PUBLISH), b"%d" % TTL_MS
    return lambda key, value: call(
        b"EVALSHA", script, b"1", key.encode(), encode(value).encode(), ttl)


def listen(url: str, pattern: str, ready: Callable[[], None],
           handle: Callable[[str, Any], object]) -> None:
    """Call a handler with each change of the keys that match a pattern, for as long as it runs."""
    connection = Connection(url)
    connection.call(b"PSUBSCRIBE", pattern.encode())
    ready()
    while True:
        _, _, channel, text = connection.read()
        handle(channel.decode(), json.loads(text))
