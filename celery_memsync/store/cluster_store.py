"""The store in a cluster: as one Redis, but for what is in several slots."""
from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import redis

from ..exceptions import StoreUnavailable
from ..keys import STAGE, Location
from ..models.entry import StoredEntry
from ..models.order import RUNNING
from . import (
    SCRIPT_SIZE,
    TOLERATED_SKEW,
    UNANSWERED,
    UNREACHABLE,
    Call,
    CoordinationChange,
    CoordinationResult,
    EntryWrite,
    LockAnswer,
    LockRequest,
    Store,
    WriteResult,
    in_chunks,
    ms,
    raise_first,
    renewal,
)
from .causes import SENSELESS
from .cluster_client import slot_of, slot_tags
from .cluster_commands import Address, Command
from .errors import explain, is_lost, is_of_all, redis_call
from .index_queue import IndexQueue, IndexUpdate, PackedUpdate
from .locks import Renewal, renewals_of
from .push import ClusterPushConnection, PushConnection
from .script_caller import answers_of
from .scripts import INDEX_APPLY, Script
from .statistics import CountedLines

#: Writes in one round trip to the nodes.
WRITES_PER_CALL = 500

#: Seconds that it is remembered of a lock that it was held.
LOCK_MEMORY = 7 * 86400.0

F = TypeVar("F", bound=Callable[..., Any])


def after_updates(method: F) -> F:
    """Let a method on the indexes wait until the updates of this process are applied."""

    @functools.wraps(method)
    def call(self: ClusterStore, *args: Any, **kwargs: Any) -> Any:
        try:
            self.wait_indexed()
        except StoreUnavailable as exc:  # until now nothing of the call itself was sent
            raise StoreUnavailable(str(exc), False, exc.code) from exc
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


class ClusterStore(Store):
    """The shared state in a cluster.

    An entry is in the slot of its task or key, and what follows from entries -
    indexes, the lists of the queue, counters - in one slot of its own.  These
    index updates are queued when the entries are written, and follow: no write,
    lock or read of an entry waits for them.  What reads or changes a list does.
    """

    is_index_late = True
    _index: IndexQueue

    def _prepare(self, client: Any) -> int:
        self._index = IndexQueue(self._apply_updates)
        return 0

    @property
    def resent(self) -> int:
        """How often something was sent again that may have been done, for its answer was lost."""
        return int(self._client.resent)

    def _reads(self, source: Any = None) -> Any:
        return self._pipeline()  # no node reports what others read

    def with_token(self, token: str) -> ClusterStore:
        """Return a store that writes under a token of its own, for a second writer in this process."""
        other = super().with_token(token)
        other._index = self._index
        return other

    def close(self) -> None:
        """Close the connections; a later call opens new ones, which are not kept."""
        self._index.close()
        self._client.close()

    def read_run_id(self) -> str:
        """Return "": each node has a run id of its own."""
        return ""

    def _node(self) -> Any:
        return self._client.client_of()

    # -- entries

    @redis_call
    def write_entries(self, writes: Iterable[EntryWrite], repeated: bool = False) -> list[WriteResult]:
        """Store, version and publish entries; what each came to, in the same order.

        A node that gives no answer is an outcome of its writes only, unless no node of the cluster answers.
        """
        return [outcome for part in in_chunks(writes, WRITES_PER_CALL) for outcome in self._write(part, repeated)]

    def _write(self, writes: Sequence[EntryWrite], repeated: bool) -> list[WriteResult]:
        """Write entries to the nodes that have them, and queue their index updates."""
        groups = _by_slot(writes, lambda write: write.location.key)
        # What is written in the background must not wait for a node that is away each time.
        answers = self._call_nodes([self._entry_call([writes[at] for at in ats]) for ats in groups], repeated, divides=True)
        outcomes: dict[int, WriteResult] = {}
        for ats, answer in zip(groups, answers):
            outcomes.update(zip(ats, self._outcomes([writes[at] for at in ats], answer)))
        if self._client.is_away:
            raise_first(answers)
        return [outcomes[at] for at in range(len(writes))]

    def _outcomes(self, writes: Sequence[EntryWrite], answer: Any) -> list[WriteResult]:
        """Return what writes of one slot came to; what is wrong with their node is so of no other."""
        try:
            outcomes = super()._outcomes(writes, answer)
        except (redis.RedisError, OSError, *SENSELESS) as exc:
            code = UNREACHABLE if self._client.is_node_away(writes[0].location.key) else UNANSWERED
            why = f"its node {self._client.node_name(writes[0].location.key)} gave no answer: {explain(exc, self.timeout)}"
            outcomes = [WriteResult("error", error=why, code=code, maybe_done=is_lost(exc))] * len(writes)
        return [outcome._replace(is_of_node=True) if is_of_all(outcome.code, outcome.error) else outcome
                for outcome in outcomes]

    def _read_answer(self, writes: Sequence[EntryWrite], answer: Sequence[Any]) -> list[WriteResult]:
        """Return what one call answers, and queue its index updates."""
        outcomes = super()._read_answer(writes, answer[:-1])
        if answer[-1]:
            update = PackedUpdate(answer[-1])
            update.keys = (*self._member_sets(writes), *self._record_keys(writes))
            # A task that is in no list is not found when its worker is lost.
            self._index.add(update, urgent=any(map(_is_start, writes)))
        return [outcome if outcome.stored is None else
                outcome._replace(stored=self.in_our_time(write.location.key, outcome.stored))
                for write, outcome in zip(writes, outcomes)]

    @redis_call
    def change_coordination(self, changes: Sequence[CoordinationChange]) -> list[CoordinationResult]:
        """Change queue and metrics; that their node gives no answer is an outcome, unless no node of the cluster does."""
        try:
            return super().change_coordination(changes)
        except StoreUnavailable as exc:
            if self._client.is_away:
                raise
            return [CoordinationResult("error", [], UNREACHABLE, exc) for _ in changes]

    def _record_keys(self, writes: Sequence[EntryWrite]) -> list[str]:
        """Return the keys of the records of statistics that writes count in."""
        lines = CountedLines(self.counts_exceptions)
        for write in writes:
            if write.counts is not None:
                lines.words(write.counts)
        return lines.keys(self.keys.statistics)

    # -- clocks

    @redis_call
    def node_skews(self) -> dict[str, float]:
        """Return by how many seconds the clock of each node is ahead of that of the indexes."""
        clocks = self._client.measure_clocks()
        self._measure_clock()
        return {f"{host}:{port}": clock.now() - self.clock.now() for (host, port), clock in clocks.items()}

    def in_our_time(self, key: str, stored: StoredEntry) -> StoredEntry:
        """Return an entry with its time by the clock of the node of the indexes, whichever node it was read from.

        The time as which it is stored, which distinguishes its states, is left as it is.
        """
        clock = self._client.clock_of(key)
        ahead = round((clock.now() - self.clock.now()) * 1000)
        # With less than that a script takes the time of the writer, which is already by this clock.
        if not clock.measured or abs(ahead) <= TOLERATED_SKEW * 1000:
            return stored
        header = stored.header
        return StoredEntry(header._replace(time=header.time - ahead, lag=header.lag + ahead), stored.body)

    # -- indexes

    @redis_call
    def wait_indexed(self) -> None:
        """Return when the index updates of all that this process has written are applied.

        Raises:
            StoreUnavailable: If the node of the indexes is away; they stay pending.
        """
        self._index.wait()

    @redis_call
    def _apply_updates(self, serial: int, updates: Sequence[IndexUpdate]) -> None:
        """Send index updates to the node of the indexes; a second try has the number of the first."""
        self._note_locks([update for update in updates if not isinstance(update, bytes)])
        packed = [update for update in updates if isinstance(update, bytes)]
        if not packed:
            return
        sets = dict.fromkeys(key for update in packed if isinstance(update, PackedUpdate) for key in update.keys)
        keys = [*super()._shared_keys(), self.keys.done(self.token, "notes"), self.keys.noted, *sets]
        args = [self.worker_id, self._index_ttl, self.prefix, self._together, serial, *map(bytes, packed)]
        asked = time.monotonic()
        seconds, micros = self._run([(INDEX_APPLY, keys, args)])[0]
        self._sync_clock(seconds, micros, asked)

    def _note_locks(self, leases: Sequence[tuple[str, int]]) -> None:
        if leases:
            pipeline = self._pipeline()
            pipeline.zadd(self.keys.locks, dict(leases))
            pipeline.zremrangebyscore(self.keys.locks, "-inf", ms(self.clock.now()))
            pipeline.pexpire(self.keys.locks, ms(LOCK_MEMORY))
            pipeline.execute()

    enqueue_task = after_updates(Store.enqueue_task)
    dequeue_task = after_updates(Store.dequeue_task)
    complete_task = after_updates(Store.complete_task)
    read_queue = after_updates(Store.read_queue)
    read_queue_position = after_updates(Store.read_queue_position)
    scan_processing = after_updates(Store.scan_processing)
    read_metrics = after_updates(Store.read_metrics)
    read_recent_tasks = after_updates(Store.read_recent_tasks)
    find_names = after_updates(Store.find_names)
    read_held_locks = after_updates(Store.read_held_locks)
    read_group_counts = after_updates(Store.read_group_counts)
    read_members = after_updates(Store.read_members)
    read_statistics = after_updates(Store.read_statistics)
    read_totals = after_updates(Store.read_totals)

    def _shared_keys(self) -> tuple[str, ...]:
        return ()

    # -- locks

    def _acquire_lock(self, request: LockRequest) -> LockAnswer:
        """Take a lock or stand in its queue; its name is on its way to the index meanwhile."""
        self._index_lock(request)
        return super()._acquire_lock(request)

    def _index_lock(self, request: LockRequest) -> None:
        self._ensure_clock()
        self._index.add((request.location.path, ms(self.clock.now() + request.ttl)), urgent=True)

    def _run_for_lock(self, script: Script, location: Location, *args: Any) -> bytes:
        """Run a script on the node of a lock."""
        words = [location.path, self._turns, self.worker_id, *args]
        key = location.key
        beside = [key + "/queue/", key + "/asked/", self._clock_beside(key)]
        # Of a slot that is being moved only one key can be named: the lock then does without its queue.
        (answer,) = self._call_nodes([(script, [key, *beside], words)], divides=True)
        if isinstance(answer, redis.exceptions.TryAgainError):
            (answer,) = self._call_nodes([(script, [key], words)])
        raise_first([answer])
        return bytes(answer)

    def _clock_beside(self, key: str) -> str:
        """Return the key of the high-water mark for fences in the slot of a key; there is one in each slot with locks."""
        return f"{self.keys.namespace}//{{{slot_tags()[slot_of(key)]}}}/clock"

    @redis_call
    def renew_locks(self, requests: Sequence[LockRequest], replicas: int = 0) -> list[Renewal | None]:
        """Renew leases; return what became of each, None if its node gave no answer.

        There is no waiting for replicas.

        Raises:
            StoreError: If no node has answered.
        """
        groups = _by_slot(requests, lambda request: request.location.key)
        answers = self._renew_slots(groups, requests)
        renewals: dict[int, Renewal | None] = {}
        for ats, answer in zip(groups, answers):
            renewals.update(zip(ats, [None] * len(ats) if isinstance(answer, Exception) else renewals_of(answer)))
        if all(isinstance(answer, Exception) for answer in answers):
            raise_first(answers)
        for at, one in renewals.items():
            if one is not None and one.is_held:
                self._index_lock(requests[at])
        return [renewals[at] for at in range(len(requests))]

    def _renew_slots(self, groups: Sequence[list[int]], requests: Sequence[LockRequest]) -> list[Any]:
        """Return the answers to renewals of one slot each; while that is being moved each lock has one of its own."""
        answers = self._call_nodes([renewal([requests[at] for at in ats]) for ats in groups], divides=True)
        for n, (ats, answer) in enumerate(zip(groups, answers)):
            if isinstance(answer, redis.exceptions.TryAgainError):
                rows = self._call_nodes([renewal([requests[at]]) for at in ats])
                answers[n] = next((row for row in rows if isinstance(row, Exception)), None) or [
                    rows[0][0], *(row[1] for row in rows)]
        return answers

    @redis_call
    def node_of(self, location: Location) -> Address:
        """Return the address of the node that has a lock."""
        address: Address = self._client.address_of(location.key)
        return address

    @redis_call
    def listen_at(self, node: Address) -> PushConnection:
        """Return a connection to a node on which it speaks unasked; it is not open yet."""
        return PushConnection(self._client.client_at(node), self.timeout)

    # -- subscriptions

    @redis_call
    def listen(self) -> ClusterPushConnection:
        """Return a connection on which Redis pushes; it is not open yet."""
        return ClusterPushConnection(self._client, self.timeout)

    def renew_connections(self) -> None:
        """Do nothing: the slot map says from which node a key is read, and it was read again when the masters changed."""

    # -- how reads are sent, and scripts called

    def _answers(self, pipeline: Any) -> list[Any]:
        """Return what reads gave; Redis's time is read with writes, by the node of the indexes."""
        return answers_of(pipeline)

    def _try(self, calls: Iterable[Call], publishes: bool = False, replicas: int = 0) -> list[Any]:
        """Return the answers of scripts; an error is one."""
        return self._call_nodes(calls)

    def _call_nodes(self, calls: Iterable[Call], skip_away: bool = False, divides: bool = False) -> list[Any]:
        commands = [Command(("EVALSHA", script.sha, len(keys), *keys, *args), {}, script.text, divides)
                    for script, keys, args in calls]
        self._ensure_clock()
        answers: list[Any] = self._client.execute_all(commands, skip_away) if commands else []
        return answers


def _is_start(write: EntryWrite) -> bool:
    return write.location.slot == STAGE and write.rank[:1] == RUNNING


def _by_slot(items: Sequence[Any], key_of: Callable[[Any], str]) -> list[list[int]]:
    """Return positions of items in groups of one slot each, as many as go into a script call."""
    slots: dict[int, list[int]] = {}
    for at, item in enumerate(items):
        slots.setdefault(slot_of(key_of(item)), []).append(at)
    return [ats[start:start + SCRIPT_SIZE] for ats in slots.values() for start in range(0, len(ats), SCRIPT_SIZE)]
