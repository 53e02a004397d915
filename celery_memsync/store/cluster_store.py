"""What a cluster does for us: as one Redis, but for what several slots would have to do at once."""
from __future__ import annotations

import threading
import time
from itertools import count
from typing import Any, Callable, Iterable, Sequence

import redis

from ..keys import Location
from . import (SCRIPT_SIZE, Call, EntryWrite, LockAnswer, LockRequest, Store, WriteResult, in_chunks, ms, raise_first,
               renewal)
from .cluster_client import Address, slot_of, slot_tags
from .errors import redis_call
from .push import ClusterPushConnection, PushConnection
from .script_caller import answers_of
from .scripts import INDEX_APPLY, Script

#: Writes of which the index updates go in one script call.
UPDATES_SIZE = 500

#: Seconds that it is remembered of a lock that it was held.
LOCK_MEMORY = 7 * 86400.0


class ClusterStore(Store):
    """The shared memory in a cluster.

    An entry is in the slot of its task or key, and what follows from entries -
    indexes, the lists of the queue, counters - in one slot of its own: these
    index updates are applied after the entries were written, before that is
    told as done.
    """

    def _prepare(self, client: Any) -> int:
        #: Index updates that may not be applied yet, and the number of the call that does so.
        self._updates: list[bytes] = []
        self._update_serials = count(1)
        self._update_serial = 0
        self._updating = threading.RLock()
        return 0

    @property
    def resent(self) -> int:
        """How often something was sent again that may have been done, for its answer was lost."""
        return int(self._client.resent)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._client.close()

    def _node(self) -> Any:
        return self._client.client_of()

    @redis_call
    def ping(self) -> None:
        """Ask every master for a sign of life."""
        self._client.ping_all()
        self._measure_clock()

    # -- entries

    @redis_call
    def write_entries(self, writes: Iterable[EntryWrite]) -> list[WriteResult]:
        """Store, version and tell entries; what each came to, in the same order."""
        return [outcome for part in in_chunks(writes, UPDATES_SIZE) for outcome in self._write(part)]

    def _write(self, writes: Sequence[EntryWrite]) -> list[WriteResult]:
        """Write entries to the nodes that have them, and then apply their index updates."""
        with self._updating:
            self._apply_updates()
            groups = _by_slot(writes, lambda write: write.location.key)
            answers = self._try([self._entry_call([writes[at] for at in ats]) for ats in groups])
            outcomes: dict[int, WriteResult] = {}
            failures: list[Any] = []
            for ats, answer in zip(groups, answers):
                try:
                    outcomes.update(zip(ats, self._outcomes([writes[at] for at in ats], answer)))
                except redis.RedisError as exc:
                    failures.append(exc)
            # What is written has its updates applied, whatever became of the rest.
            self._update_serial = next(self._update_serials)
            self._apply_updates()
        raise_first(failures)
        return [outcomes[at] for at in range(len(writes))]

    def _read_answer(self, writes: Sequence[EntryWrite], answer: Sequence[Any]) -> list[WriteResult]:
        """Return what one call answers, and keep its index updates."""
        outcomes = super()._read_answer(writes, answer[:-1])
        if answer[-1]:
            self._updates.append(answer[-1])
        return outcomes

    def _apply_updates(self) -> None:
        """Send index updates to the node of the indexes; a second try has the number of the first."""
        if not self._updates:
            return
        keys = [*super()._shared_keys(), self.keys.done(self.token, "notes"), self.keys.noted]
        args = [self.worker_id, self._index_ttl, self.prefix, self._together, self._update_serial, *self._updates]
        asked = time.monotonic()
        seconds, micros = self._run([(INDEX_APPLY, keys, args)])[0]
        self._updates = []
        self._sync_clock(seconds, micros, asked)

    def _shared_keys(self) -> tuple[str, ...]:
        return ()

    # -- locks

    @redis_call
    def take_lock(self, request: LockRequest) -> LockAnswer:
        """Note that a lock may be held from now on, and take it if it is free and has no waiters."""
        self._note_locks([request])
        return super().take_lock(request)

    @redis_call
    def wait_for_lock(self, request: LockRequest) -> LockAnswer:
        """Note that a lock may be held from now on, and take it or stand in its queue."""
        self._note_locks([request])
        return super().wait_for_lock(request)

    def _run_for_lock(self, script: Script, location: Location, *args: Any) -> bytes:
        """Run a script on the node of a lock."""
        words = [location.path, self._turns, self.worker_id, *args]
        key = location.key
        keys = [key, key + "/queue/", key + "/asked/", self._clock_beside(key)]
        answer: Any = self._run([(script, keys, words)])[0]
        return bytes(answer)

    def _clock_beside(self, key: str) -> str:
        """Return the key of the high-water mark for fences in the slot of a key; there is one in each slot with locks."""
        return f"{self.keys.namespace}//{{{slot_tags()[slot_of(key)]}}}/clock"

    def _note_locks(self, requests: Sequence[LockRequest]) -> None:
        now = self.clock.now()
        pipeline = self._pipeline(None)
        pipeline.zadd(self.keys.locks, {request.location.path: ms(now + request.ttl) for request in requests})
        pipeline.zremrangebyscore(self.keys.locks, "-inf", ms(now))
        pipeline.pexpire(self.keys.locks, ms(LOCK_MEMORY))
        pipeline.execute()

    @redis_call
    def renew_locks(self, requests: Sequence[LockRequest], replicas: int = 0) -> list[bool]:
        """Let leases begin anew; tell of each lock whether it was still held.  There is no waiting for replicas."""
        if not requests:
            return []
        self._note_locks(requests)
        groups = _by_slot(requests, lambda request: request.location.key)
        answers = self._run([renewal([requests[at] for at in ats]) for ats in groups])
        held = {at: bool(one) for ats, answer in zip(groups, answers) for at, one in zip(ats, answer)}
        return [held[at] for at in range(len(requests))]

    @redis_call
    def node_of(self, location: Location) -> Address:
        """Return the address of the node that has a lock."""
        address: Address = self._client.address_of(location.key)
        return address

    @redis_call
    def listen_at(self, node: Address) -> PushConnection:
        """Return a connection to a node on which it speaks unasked; it is not open yet."""
        return PushConnection(self._client.client_at(node), self.timeout)

    # -- hearing

    @redis_call
    def listen(self) -> ClusterPushConnection:
        """Return a connection on which Redis speaks unasked; it is not open yet."""
        return ClusterPushConnection(self._client, self.timeout)

    # -- how reads are sent, and scripts called

    def _answers(self, pipeline: Any) -> list[Any]:
        """Return what reads gave; the node that tells the time may be away while those that have the entries are there."""
        return answers_of(pipeline)

    def _send(self, calls: Iterable[Call], publishes: bool, replicas: int = 0) -> list[Any]:
        # Nobody has copies of what is in a cluster, so nobody is to be told before others are answered.
        pipeline = self.redis.pipeline()
        for script, keys, args in calls:
            pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers


def _by_slot(items: Sequence[Any], key_of: Callable[[Any], str]) -> list[list[int]]:
    """Return positions of items in groups of one slot each, as many as go into a script call."""
    slots: dict[int, list[int]] = {}
    for at, item in enumerate(items):
        slots.setdefault(slot_of(key_of(item)), []).append(at)
    return [ats[start:start + SCRIPT_SIZE] for ats in slots.values() for start in range(0, len(ats), SCRIPT_SIZE)]
