"""How Redis is called: connections, scripts, clocks, answers."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import Any, TypeVar

import redis

from ..deadline import DEFAULT_TIMEOUT
from ..exceptions import StoreUnavailable
from ..keys import COORDINATION, Keys
from ..models.entry import StoredEntry
from ..models.formats import FleetFormat
from .acl import MissingRights, is_unknown, missing, probes
from .clock import Clock
from .errors import address_of_owner, redis_call
from .pool import PIECE, Reads, noted, packed_command
from .push import PushConnection, PushTarget, TrackedConnection, execute_on_new_connection
from .scripts import Script

#: How often Redis is asked for its time at first, and the error in seconds that is good enough.
CLOCK_TRIES = 3

CLOCK_ERROR = 0.001

#: Seconds that Redis's time is believed by who reads without asking for it again.
CLOCK_AGE = 1.0

#: Seconds that replicas may take to get what the master has.
REPLICA_TIMEOUT = 1.0

#: Names that Redis looks at in one round trip of a search through a sorted set.
NAMES_AT_ONCE = 1000

#: Writes in one script call: a hundred hold Redis for one or two milliseconds.
SCRIPT_SIZE = 100

#: The longest time limit, as ``LONGEST`` in ``store/lua/validation.lua``.
MAX_MS = 10 ** 13

#: Seconds by which a stored time may be ahead of Redis's clock.
AHEAD = 86400.0

#: Seconds by which the clocks of two nodes of a cluster may differ without being noticed, as ``UNNOTICED`` in
#: ``store/lua/entry_write.lua``.
TOLERATED_SKEW = 1.0

PING = packed_command("PING")

#: A script, and keys and arguments of one call of it.
Call = tuple[Script, Sequence[str], Sequence[Any]]

K = TypeVar("K")

T = TypeVar("T")

C = TypeVar("C", bound="ScriptCaller")


class ScriptCaller:
    """How Redis is called.

    Args:
        client: Of redis-py.
        keys: The keys of one namespace.
        worker_id: Who writes.
        token: Eight letters and digits that no other process has; with a
            write's serial they make the id of the write.
        default_ttl: Seconds that index entries live.
        timeout: Most seconds that one method takes.

    Attributes:
        serials: Numbers of what is done under its token, each once.
        is_index_late: Whether an entry may be there before it is in the indexes.
    """

    is_index_late = False

    def __init__(
        self, client: Any, keys: Keys, worker_id: str, token: str, default_ttl: float, timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.timeout = timeout
        self.keys = keys
        self.clock = Clock()
        #: The format in which this process is to write.
        self.format = FleetFormat()
        self.worker_id = worker_id
        self.token = token
        self.serials = count(1)
        self._client = client
        self._index_ttl = ms(default_ttl)
        #: Put before a path to make its channel: channels know no database numbers.
        self.prefix = f"{self._prepare(client)}:"
        self._together = keys.full(COORDINATION) + "/"
        #: Whether invalidations of what was written may still be pending.
        self._invalidation_pending = False

    def _prepare(self, client: Any) -> int:
        """Make what this kind of store keeps beside the client; return the number of its database."""
        return client.connection_pool.connection_kwargs.get("db") or 0

    @property
    def address(self) -> str:
        """Where Redis is, for people: ``host:port/database``, without credentials."""
        return address_of_owner(self)

    @property
    def redis(self) -> Any:
        """The client of redis-py; Redis's time is known once it is used."""
        self._ensure_clock()
        return self._client

    @property
    def resent(self) -> int:
        """How often something was sent again that may have been done, for its answer was lost."""
        return int(self._client.connection_pool.resent)

    def close(self) -> None:
        """Close the connections; a later call opens new ones, which are not kept."""
        self._client.close()
        self._client.connection_pool.close()

    def with_token(self: C, token: str) -> C:
        """Return a store that writes under a token of its own, for a second writer in this process."""
        other = type(self)(self._client, self.keys, self.worker_id, token, self._index_ttl / 1000, self.timeout)
        other.clock, other.format = self.clock, self.format
        return other

    @redis_call
    def connect(self) -> None:
        """Learn Redis's time, unless it is known, and the format of the fleet, if it is wanted."""
        self._ensure_clock()
        if self.format.is_due:
            pipeline = self._pipeline()
            pipeline.zrange(self.keys.formats, 0, 0, withscores=True)
            (rows,) = answers_of(pipeline)
            self.format.note(rows[0][1] if rows else None)

    @redis_call
    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        self._client.ping()
        self._measure_clock()

    @redis_call
    def measure_clock(self) -> None:
        """Read Redis's time."""
        self._measure_clock()

    @redis_call
    def read_server_info(self) -> dict[str, Any]:
        """Return what Redis reports of itself (INFO), or {} if its user may not call that, or it does not know it."""
        self._ensure_clock()
        return self._server_info()

    def _server_info(self, *section: str) -> dict[str, Any]:
        try:
            return dict(self._client.info(*section))
        except redis.exceptions.ResponseError as exc:
            if isinstance(exc, redis.exceptions.NoPermissionError) or is_unknown(str(exc)):
                return {}
            raise

    @redis_call
    def read_run_id(self) -> str:
        """Return Redis's run id, which a restart changes; "" if it can't be read."""
        return str(self._server_info("server").get("run_id", ""))

    @redis_call
    def check_rights(self) -> MissingRights:
        """Return what is needed and this user may not do, or Redis does not know; see :mod:`.acl`."""
        asked = probes(self.keys.scratch, self.prefix + self.keys.scratch)
        answers = execute_on_new_connection(self._node(), [probe.command for probe in asked])
        refused = [(probe.right, answer) for probe, answer in zip(asked, answers) if isinstance(answer, redis.ResponseError)]
        return MissingRights(
            sorted({missing(right, str(answer)) for right, answer in refused
                    if isinstance(answer, redis.exceptions.NoPermissionError)}),
            sorted({right for right, answer in refused if is_unknown(str(answer))}))

    def _node(self) -> Any:
        """Return the client of one server."""
        return self._client

    @redis_call
    def listen(self) -> PushConnection:
        """Return a connection on which Redis speaks unasked; it is not open yet."""
        return PushConnection(self._client, self.timeout)

    def renew_connections(self) -> None:
        """Connect anew from now on, so that what is read comes from the server that reports changes."""
        self._client.connection_pool.renew()

    def source(self, target: PushTarget) -> TrackedConnection:
        """Return a connection whose reads Redis remembers, to notify another one when they are old.

        Args:
            target: That other one.
        """
        return TrackedConnection(self._client, target, self.timeout)

    def _pipeline(self) -> Any:
        return self.redis.pipeline(transaction=False)

    def _reads(self, source: TrackedConnection | None = None) -> Any:
        """Return what gathers the reads that :class:`Reads` has, to send them together: a pipeline takes twice the time."""
        client = self.redis
        return Reads(client.connection_pool.read_packed) if source is None else source.pipeline()

    def _answers(self, pipeline: Any) -> list[Any]:
        """Return what reads in one round trip gave; a process that only reads learns so that Redis's clock was set."""
        is_old = self.clock.age > CLOCK_AGE
        if is_old:
            pipeline.time()
        asked = time.monotonic()
        answers = answers_of(pipeline)
        if is_old:
            seconds, micros = answers.pop()
            self._sync_clock(seconds, micros, asked)
        return answers

    def in_our_time(self, key: str, stored: StoredEntry) -> StoredEntry:
        """Return an entry with its time by the clock of this store; the nodes of a cluster have clocks of their own.

        Args:
            key: The Redis key under which it was read.
        """
        return stored

    @redis_call
    def node_skews(self) -> dict[str, float]:
        """Return by how many seconds the clocks of a cluster's nodes are ahead of that of the indexes; {} of one Redis."""
        return {}

    def _stored(self, key: str, text: bytes | None) -> StoredEntry | None:
        stored = stored_of(text)
        return None if stored is None else self.in_our_time(key, stored)

    def _present(self, entries: Mapping[K, StoredEntry | None]) -> dict[K, StoredEntry]:
        now = self.clock.now()
        return {name: stored for name, stored in entries.items() if stored is not None and not stored.absent(now)}

    def _scan(self, key: str, cursor: int, pattern: str | None = None) -> tuple[int, list[str]]:
        pipeline = self._pipeline()
        pipeline.zscan(key, cursor, pattern, NAMES_AT_ONCE)
        (answer,) = answers_of(pipeline)
        after, rows = answer or (0, [])
        # What is no text can be removed under its own name.
        return int(after), [name.decode(errors="surrogateescape") for name, _ in rows]

    @redis_call
    def remove_names(self, key: str, names: Sequence[str]) -> None:
        """Remove foreign names from a sorted set, decoded with ``surrogateescape``."""
        if names:
            pipeline = self._pipeline()
            pipeline.zrem(key, *(name.encode(errors="surrogateescape") for name in names))
            answers_of(pipeline)

    def _run(self, calls: Iterable[Call], publishes: bool = False, replicas: int = 0) -> list[list[Any]]:
        """Run scripts in one round trip; load those that Redis has forgotten.

        Then calls of other scripts may come first, but those of one script come in their order.

        Args:
            calls: Each is sent when it is made.
            publishes: Whether what they do is to be published before they are answered.
            replicas: How many replicas must have what they do before they are answered.
        """
        answers = self._try(calls, publishes, replicas)
        raise_first(answers)
        return answers

    def _try(self, calls: Iterable[Call], publishes: bool = False, replicas: int = 0) -> list[Any]:
        """Return the answers of scripts; an error is one."""
        made: list[Call] = []
        answers = self._send(noted(calls, made), publishes, replicas)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            for script in dict.fromkeys(made[at][0] for at in unknown):
                self.redis.script_load(script.text)
            for at, answer in zip(unknown, self._send([made[at] for at in unknown], publishes, replicas)):
                answers[at] = answer
        return answers

    def _send(self, calls: Iterable[Call], publishes: bool, replicas: int = 0) -> list[Any]:
        calls = iter(calls)
        first = next(calls, None)
        if first is None:
            return []
        self._ensure_clock()
        # Redis sends last to the connection that had an answer to come first: so with this PING the readers of old copies
        # are notified before the caller has its answer.
        before = [PING] if publishes else []
        after = [packed_command("WAIT", replicas, ms(REPLICA_TIMEOUT))] if replicas else []
        sent: list[bytes] = []
        commands = (
            packed_command("EVALSHA", script.sha, len(keys), *keys, *args) for script, keys, args in chain([first], calls))
        pool = self._client.connection_pool
        answers: list[Any] = pool.execute_packed(noted(chain(before, commands, after), sent))[publishes:]
        # What Redis reads in several pieces it answers later than the PING.
        self._invalidation_pending = self._invalidation_pending or publishes and sum(map(len, sent)) > PIECE
        if replicas:
            _check_replicas(answers.pop(), replicas)
        return answers

    @redis_call
    def wait_invalidated(self) -> None:
        """Return when all readers with copies of what was written are notified that they are old."""
        if self._invalidation_pending:
            self._client.ping()
            self._invalidation_pending = False

    @redis_call
    def wait_indexed(self) -> None:
        """Return when lists and counters have what this process has written: in one Redis they have it at once."""

    def _ensure_clock(self) -> None:
        if not self.clock.measured:
            for _ in range(CLOCK_TRIES):
                self._measure_clock()
                if self.clock.error < CLOCK_ERROR:
                    break

    def _measure_clock(self) -> None:
        if not self.clock.measured:
            self._client.ping()  # to connect is no part of the round trip that is measured
        asked = time.monotonic()
        seconds, micros = self._client.time()
        self._sync_clock(seconds, micros, asked)

    def _sync_clock(self, seconds: int, micros: int, asked: float) -> None:
        self.clock.learn(int(seconds) + int(micros) / 1e6, asked, time.monotonic())


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of items, the last perhaps shorter; they are asked for when a list is."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def raise_first(answers: Sequence[Any]) -> None:
    """Raise the first answer that is an error."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _check_replicas(answer: Any, wanted: int) -> None:
    if isinstance(answer, Exception):
        raise answer
    if int(answer) < wanted:
        raise StoreUnavailable(
            f"{int(answer)} replicas of Redis have taken note of a lock in time, and memsync_lock_replicas asks for "
            f"{wanted}; see whether they are there, and keep up", maybe_done=True)


def stored_of(text: bytes | None) -> StoredEntry | None:
    """Return an entry, or None for foreign data; the scripts see it the same way (``store/lua/entry_header.lua``)."""
    if not text:
        return None
    try:
        return StoredEntry.parse(text)
    except ValueError:
        return None


def answers_of(pipeline: Any) -> list[Any]:
    """Return what reads in one round trip gave, as :func:`read_by`."""
    return [read_by(answer) for answer in pipeline.execute(raise_on_error=False)]


def read_by(answer: Any) -> Any:
    """Return what a read gave, or raise the error that it is; what is of another type than ours reads as nothing."""
    if not isinstance(answer, Exception):
        return answer
    if isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer):
        return None
    raise answer


def ms(seconds: float) -> int:
    """Return seconds as the whole milliseconds that Redis takes, at least one and at most what scripts take."""
    return max(1, min(round(seconds * 1000), MAX_MS))
