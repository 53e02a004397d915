"""Locks, and those who wait for them."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis

from ..exceptions import InvalidKey
from ..keys import Location
from ..models.entry import StoredEntry
from .errors import is_lost, redis_call
from .pool import packed
from .push import PushConnection
from .script_caller import CLOCK_AGE, SCRIPT_SIZE, Call, ScriptCaller, answers_of, ms, stored_of
from .scripts import LOCK_ACQUIRE, LOCK_FREE, LOCK_RELEASE, LOCK_RENEW, LOCK_RESTORE, Script

#: Most of those who wait for one lock that are looked at.
MAX_WAITERS = 100

#: Locks of which is remembered how they are spelled.
MAX_LOCK_WORDS = 1000

#: Words that every call of a script on one lock begins with: two, the number of its keys, five keys, three arguments.
LOCK_WORDS = 11

#: A row of the queue, as ``WAITER_ROW`` in ``store/lua/lock_entry.lua``.
_WAITER_ROW = re.compile(rb"(\S+) (\d+) [^\n]*?/\w+/\d+ (\S+) ([^\n]*)\n(.*)", re.DOTALL).fullmatch


class LockRequest(NamedTuple):
    """A request for a lock; see ``store/lua/lock_acquire.lua``.

    Attributes:
        location: Where the lock is kept.
        holder: Names one acquisition: a second try has the same.
        ttl: Its lease, in seconds.
        run: Id of the run of a task that asks; "-" for none.
        body: What readers are to know of who holds it, as JSON.
        channel: Where a waiter is notified of its turn; "" without waiting.
    """

    location: Location
    holder: str
    ttl: float
    run: str
    body: bytes
    channel: str = ""


class LockAnswer(NamedTuple):
    """What became of asking.

    Attributes:
        status: ``ok`` (it is the holder's), ``busy`` or ``lost``.
        fence: Of this acquisition, or with ``busy`` of the present one.
        lease: Seconds until the lease of the present holder ends.
        stored: With ``busy``: the lock as it is stored.
    """

    status: str
    fence: int = 0
    lease: float = 0.0
    stored: StoredEntry | None = None


class Renewal(NamedTuple):
    """What became of renewing a lease.

    Attributes:
        is_held: Whether the lock was still the holder's.
        run_id: Redis's run id, which a restart changes; "" if it can't be read.
    """

    is_held: bool
    run_id: str


class LockStore(ScriptCaller):
    """What is about locks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: What is the same in all that is sent of a lock, by its key.
        self._lock_words: dict[str, bytes] = {}
        #: The channels of this namespace's waiters begin with that.
        self._turns = self.prefix + self.keys.turns
        #: That of this process's.
        self.turn_channel = f"{self._turns}{self.token}/1"

    @redis_call
    def take_lock(self, request: LockRequest) -> LockAnswer:
        """Take a lock if it is free and there is no waiter."""
        return self._acquire_lock(request)

    @redis_call
    def wait_for_lock(self, request: LockRequest) -> LockAnswer:
        """Take a lock, or join its queue: the channel gets a message when it is granted."""
        try:
            return self._acquire_lock(request)
        except redis.ConnectionError as exc:
            # A waiter has time, and one request that comes twice is done once.
            if not is_lost(exc):
                raise
            return self._acquire_lock(request)

    def _acquire_lock(self, request: LockRequest) -> LockAnswer:
        location, holder, ttl, run, body, channel = request
        waits = (channel,) if channel else ()
        answer = self._run_for_lock(LOCK_ACQUIRE, location, holder, ms(ttl), run, body, *waits)
        words, _, text = answer.partition(b"\n")
        status, fence, left = words.split()
        stored = self._stored(location.key, text) if text else None
        return LockAnswer(status.decode(), int(fence), int(left) / 1000, stored)

    @redis_call
    def leave_lock(self, request: LockRequest) -> bool:
        """Give a lock back, or leave its queue; return whether it was held until now."""
        location, holder, ttl, run, body, channel = request
        row = (ms(ttl), run, body, channel) if channel else ()
        return self._run_for_lock(LOCK_RELEASE, location, holder, *row).startswith(b"ok")

    @redis_call
    def free_lock(self, location: Location, fence: int) -> bool:
        """Give a lock back for its holder; return False if it is not held with that fence."""
        return self._run_for_lock(LOCK_FREE, location, fence).startswith(b"ok")

    @redis_call
    def restore_lock(self, request: LockRequest, fence: int) -> bool:
        """Give a lock back its holder if Redis lacks the data of that acquisition; return whether that has it now.

        Args:
            fence: Of the acquisition; it stays the same.
        """
        location, holder, ttl, run, body, _ = request
        return self._run_for_lock(LOCK_RESTORE, location, holder, ms(ttl), run, body, fence).startswith(b"ok")

    @redis_call
    def read_waiters(self, names: Sequence[str]) -> list[list[StoredEntry]]:
        """Return the waiters of locks, each as the record of the lock if it were the holder.

        Of many waiters those are left out who came after the first :data:`MAX_WAITERS`.
        """
        pipeline = self._pipeline()
        for name in names:
            pipeline.lrange(self.keys.lock_location(name).key + "/queue/", 0, MAX_WAITERS - 1)
        return [_waiters(rows or ()) for rows in (answers_of(pipeline) if names else ())]

    def _run_for_lock(self, script: Script, location: Location, *args: Any) -> bytes:
        """Run a script on one lock.

        Args:
            args: What it takes after the three that all take.
        """
        key = location.key
        begin = self._lock_words.get(key)
        if begin is None:
            if len(self._lock_words) >= MAX_LOCK_WORDS:
                self._lock_words.clear()
            begin = self._lock_words[key] = packed(
                5, key, key + "/queue/", key + "/asked/", self.keys.clock, self.keys.locks, location.path, self._turns,
                self.worker_id)
        command = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n%b%b" % (
            LOCK_WORDS + len(args), script.sha.encode(), begin, packed(*args))
        execute: Callable[[bytes], bytes] = self._client.connection_pool.execute_one
        try:
            return execute(command)
        except redis.exceptions.NoScriptError:
            self.redis.script_load(script.text)
            return execute(command)

    @redis_call
    def renew_locks(self, requests: Sequence[LockRequest], replicas: int = 0) -> list[Renewal | None]:
        """Renew leases; return what became of each, None if its node of a cluster gave no answer.

        Args:
            replicas: How many replicas of Redis must have taken note.

        Raises:
            StoreError: Also if fewer have within :data:`REPLICA_TIMEOUT`.
        """
        starts = range(0, len(requests), SCRIPT_SIZE)
        calls = [renewal(requests[start:start + SCRIPT_SIZE], self.keys.locks) for start in starts]
        if not calls:
            return []
        answers = self._run(calls, replicas=replicas)
        return [one for answer in answers for one in renewals_of(answer)]

    @redis_call
    def read_held_locks(self) -> list[str]:
        """Return the names of all locks whose lease is not over."""
        if self.clock.age > CLOCK_AGE:
            self._measure_clock()
        pipeline = self._pipeline()
        pipeline.zrangebyscore(self.keys.locks, f"({self.clock.now() * 1000:.0f}", "+inf")
        (paths,) = answers_of(pipeline)
        texts = [path.decode(errors="surrogateescape") for path in paths or ()]
        names = {path: self._lock_name(path) for path in texts}
        self.remove_names(self.keys.locks, [path for path, name in names.items() if name is None])
        return [name for name in names.values() if name is not None]

    def _lock_name(self, path: str) -> str | None:
        with contextlib.suppress(InvalidKey):
            return self.keys.lock_name(path) if self.keys.full(path) == path else None
        return None

    @redis_call
    def count_waiters(self, paths: Sequence[str]) -> int:
        """Return how many wait for locks, by their paths in the index of held locks; what is no lock of ours has none."""
        names = [name for path in paths if (name := self._lock_name(path)) is not None]
        pipeline = self._pipeline()
        for name in names:
            pipeline.llen(self.keys.lock_location(name).key + "/queue/")
        return sum(count or 0 for count in (answers_of(pipeline) if names else ()))

    @redis_call
    def read_locks(self, names: Sequence[str]) -> list[tuple[StoredEntry | None, int]]:
        """Return locks as they are stored, and how many wait for each."""
        pipeline = self._pipeline()
        keys = [self.keys.lock_location(name).key for name in names]
        for key in keys:
            pipeline.get(key)
            pipeline.llen(key + "/queue/")
        answers = self._answers(pipeline) if names else []
        return [(self._stored(key, text), waiters or 0)
                for key, text, waiters in zip(keys, answers[::2], answers[1::2])]

    @redis_call
    def node_of(self, location: Location) -> object:
        """Return what stands for the Redis that has a lock."""
        return None

    @redis_call
    def listen_at(self, node: Any) -> PushConnection:
        """Return a connection to a Redis on which it speaks unasked; it is not open yet.

        Args:
            node: As returned by :meth:`node_of`.
        """
        return PushConnection(self._client, self.timeout)


def renewal(requests: Sequence[LockRequest], *index: str) -> Call:
    """Return the call that lets leases begin anew.

    Args:
        index: The key of the index of locks, if it is where the locks are.
    """
    args: list[Any] = [len(requests)]
    for request in requests:
        args += (request.holder, request.location.path, ms(request.ttl))
    return LOCK_RENEW, [*(request.location.key for request in requests), *index], args


def renewals_of(answer: Sequence[Any]) -> list[Renewal]:
    """Return what the answer to a call of :func:`renewal` says."""
    run_id, *held = answer
    return [Renewal(bool(is_held), run_id.decode()) for is_held in held]


def _waiters(rows: Sequence[bytes]) -> list[StoredEntry]:
    """Read the queue of a lock, see ``store/lua/lock_entry.lua``; what is something else is left out."""
    found = []
    for row in rows:
        waiter = _WAITER_ROW(row)
        if waiter is not None:
            holder, lease_ms, run, worker_id, body = waiter.groups()
            header = b" ".join((b"0", run, b"- 0 0", lease_ms, b"0", holder, worker_id))
            found.append(stored_of(header + b"\n" + body))
    return [stored for stored in found if stored is not None]
