"""The client of a Redis Cluster: which node has a key, and commands that follow the key to another node."""
from __future__ import annotations

import contextlib
import functools
import itertools
import string
import threading
import time
from binascii import crc_hqx
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from redis.commands import CoreCommands
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from ..background_loop import start_thread
from ..deadline import remaining, within
from .causes import SENSELESS
from .clock import Clock
from .cluster_commands import ASKING, DISAGREEMENT, TIME, Address, Command, Sending, as_error, is_unanswered
from .pool import packed_command

#: Rounds in which a command looks for the node that takes it, and the pause between two of them in seconds while the nodes
#: do not agree.
ROUNDS = 5

PAUSE = 0.1

#: Seconds after which a process that only listens reads the slot map again.
SLOT_MAP_INTERVAL = 3.0

#: Seconds after which a node's time is read again, with other commands.
CLOCK_AGE = 1.0

#: Part of the time of a call that one node may take; the rest is for its successor.
NODE_SHARE = 0.5

#: Longest that a node may take to answer a PING, in seconds, when it has not answered the command before.
PING_TIMEOUT = 0.3

#: Seconds for which no write is sent to a node that has just given no answer: its writes must not delay those of others.
AWAY_PAUSE = 0.5

#: What a node that fails raises; an exception of a signal's handler, such as a soft time limit, is none and goes on.
FAILURES = (redis.RedisError, OSError, *SENSELESS)


class Cluster(CoreCommands):  # type: ignore[misc,type-arg,unused-ignore]
    """The client of all masters of a cluster; nothing is connected before it is needed.

    A command goes to the master that has its key, to all nodes at the same
    time.  Whatever keeps it from there - another master, no answer - leads to a
    new look at the slot map, and then it is sent to the node that has the key
    by now: what is sent is made so that sending it twice is harmless.

    redis-py's own client connects when it is made, holds a lock while it reads
    the slot map, needs more rights, and keeps connections that an interruption
    spoils.

    Args:
        seeds: Nodes that are read first.
        make_client: Makes the client of one node.
        query: Runs a command on a node over a connection of its own.
        home: Key of which the node answers what is about no key.
    """

    def __init__(
        self, seeds: Sequence[Address], make_client: Callable[[Address], Any],
        query: Callable[[Address, tuple[str, ...]], Any], home: str,
    ) -> None:
        self._seeds = tuple(seeds)
        self._make_client = make_client
        self._query = query
        self._home = home
        self._clients: dict[Address, Any] = {}
        #: Last slot of each range, and its master; replaced as a whole.
        self._map: tuple[list[int], list[Address]] = [], []
        self._others: tuple[Address, ...] = ()
        self._answered: Address | None = None
        self._read_at = float("-inf")
        #: Nodes that do not answer, by the monotonic time of the last try.
        self._away: dict[Address, float] = {}
        #: Whether a node was not where the slot map says.
        self._is_stale = True
        self._clocks: dict[Address, Clock] = {}
        self._listeners = itertools.count()
        self._resent = 0

    def __str__(self) -> str:
        return f"cluster {', '.join(f'{host}:{port}' for host, port in self._seeds)}"

    @property
    def resent(self) -> int:
        """How often something was sent again that may have been done, for its answer was lost."""
        return self._resent + sum(int(client.connection_pool.resent) for client in list(self._clients.values()))

    # -- the slot map

    def address_of(self, key: str | bytes | None) -> Address:
        """Return the master that has a key, as far as is known; of no key that of ``home``, or another if it is away.

        Raises:
            redis.ConnectionError: If no node knows.
            redis.TimeoutError: If the deadline of the call has passed by then.
        """
        if not self._map[0]:
            self.read_slots()
        slot = slot_of(self._home if key is None else key)
        ends, owners = self._map
        at = bisect_left(ends, slot)
        if key is None and (at == len(ends) or owners[at] in self._away):
            return next((owner for owner in owners if owner not in self._away), owners[0])
        if at == len(ends):
            raise redis.ConnectionError("no node of the cluster has this key's slot")
        return owners[at]

    def client_of(self, key: str | bytes | None = None) -> Any:
        """Return the client of the master that has a key; None: of one that answers what is about no key."""
        return self.client_at(self.address_of(key))

    def listening_client(self) -> Any:
        """Return the client of a master on which to listen, another one each time."""
        self.address_of(None)
        owners = sorted(set(self._map[1]))
        present = [owner for owner in owners if owner not in self._away] or owners
        return self.client_at(present[next(self._listeners) % len(present)])

    def masters(self) -> frozenset[Address]:
        """Return all masters, read again if that was some time ago."""
        if time.monotonic() > self._read_at + SLOT_MAP_INTERVAL:
            with contextlib.suppress(redis.RedisError):
                self.read_slots()
        return frozenset(self._map[1])

    @property
    def is_away(self) -> bool:
        """Whether no master answers."""
        return all(owner in self._away for owner in self._map[1])

    def node_name(self, key: str) -> str:
        """Return host and port of the master that has a key, as users read it."""
        try:
            host, port = self.address_of(key)
        except redis.RedisError:
            return "(unknown)"
        return f"{host}:{port}"

    def is_node_away(self, key: str) -> bool:
        """Return whether the master that has a key does not answer, or is not known."""
        try:
            return self.address_of(key) in self._away
        except redis.RedisError:
            return True

    def clock_of(self, key: str) -> Clock:
        """Return the clock of the master that has a key, as it was read last."""
        return self._clocks.setdefault(self.address_of(key), Clock())

    def measure_clocks(self) -> dict[Address, Clock]:
        """Return the clocks of all masters that answer."""
        groups = {address: [Sending(TIME)] for address in self.masters()}
        self._execute_on_nodes(groups, False)
        return {address: clock for address, clock in self._clocks.items() if clock.measured and address in groups}

    def read_slots(self) -> None:
        """Read from the nodes which of them has which slots.

        Raises:
            redis.ConnectionError: If none answers.
            redis.TimeoutError: If the deadline of the call has passed by then.
            redis.exceptions.NoPermissionError: If those that answer do not let this user read it.
        """
        refusal: redis.RedisError | None = None
        failure: Exception | None = None
        for address in self._nodes():
            try:
                return self._take(sorted(self._query(address, ("CLUSTER", "SLOTS"))), address)
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
                refusal = exc
            except (redis.RedisError, OSError) as exc:
                failure = exc
                if is_unanswered(exc):
                    self._away[address] = time.monotonic()
            except (TypeError, ValueError, LookupError, AttributeError) as exc:
                failure = exc  # its answer makes no sense
        if not remaining():
            raise redis.TimeoutError("no node of the cluster has answered in time")
        raise refusal or redis.ConnectionError("no node of the cluster answers") from failure

    def _nodes(self) -> list[Address]:
        """Return all nodes in the order in which they are read."""
        nodes = list(dict.fromkeys((*self._map[1], *self._others, *self._seeds)))
        # The one that answered last comes last: it may be cut off from the others, and not know better.
        next_one = nodes.index(self._answered) + 1 if self._answered in nodes else 0
        return sorted((*nodes[next_one:], *nodes[:next_one]), key=lambda node: node in self._away)

    def _take(self, rows: Sequence[Any], asked: Address) -> None:
        nodes = [[_address(node, asked) for node in row[2:]] for row in rows]
        self._map = [row[1] for row in rows], [masters[0] for masters in nodes]
        self._others = tuple(one for row in nodes for one in row[1:])
        self._answered, self._read_at, self._is_stale = asked, time.monotonic(), False

    def client_at(self, address: Address) -> Any:
        """Return the client of a node."""
        client = self._clients.get(address)
        return self._clients.setdefault(address, self._make_client(address)) if client is None else client

    # -- commands

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node that has its key, and return the answer."""
        (answer,) = self.execute_all([Command(args, options)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pipeline(self, transaction: bool = False) -> Pipeline:
        """Return what gathers commands, to send them to each node together."""
        return Pipeline(self)  # type: ignore[abstract,unused-ignore]

    def execute_all(self, commands: Sequence[Command], skip_away: bool = False) -> list[Any]:
        """Return the answer to each command; an error is one.

        Args:
            skip_away: Whether a node that has just given no answer is left out, because the next call comes soon.

        Raises:
            redis.ConnectionError: If no node of the cluster answers.
            redis.TimeoutError: If none has by the deadline of the call.
        """
        if self._is_stale:
            self.read_slots()
        sendings = [Sending(command) for command in commands]
        waiting = sendings
        for _ in range(ROUNDS):
            self._execute_on_nodes(self._by_node(waiting), skip_away)
            waiting = [one for one in waiting if one.goes_on]
            if not waiting or not remaining() or not self._look_again(waiting):
                break
        return [one.answer for one in sendings]

    def _by_node(self, sendings: Sequence[Sending]) -> dict[Address, list[Sending]]:
        """Return what goes to which node; what no node has is answered."""
        groups: dict[Address, list[Sending]] = {}
        for one in sendings:
            try:
                address = one.asking or self.address_of(one.command.key)
            except redis.RedisError as exc:
                one.answer = exc
                continue
            if address not in one.failed:
                groups.setdefault(address, []).append(one)
        return groups

    def _look_again(self, waiting: Sequence[Sending]) -> bool:
        """Find out which node takes what is waiting; return whether there is one that was not tried in vain."""
        if any(isinstance(one.answer, DISAGREEMENT) for one in waiting) and not self._is_stale:
            time.sleep(min(PAUSE, remaining()))
        if any(one.asking is None for one in waiting):
            with contextlib.suppress(redis.RedisError):
                self.read_slots()
        return bool(self._by_node(waiting))

    def _execute_on_nodes(self, groups: Mapping[Address, list[Sending]], skip_away: bool) -> None:
        """Send commands to all nodes at the same time, and return when each has answered or taken too long."""
        seconds = remaining() * NODE_SHARE
        if not groups:
            return
        *others, last = ((address, group, skip_away, seconds) for address, group in groups.items())
        threads = [threading.Thread(target=self._execute_on, args=one, name="memsync-node", daemon=True) for one in others]
        for thread, one in zip(threads, others):
            try:
                start_thread(thread)
            except RuntimeError:  # the interpreter is shutting down and starts no other one
                self._execute_on(*one)
        self._execute_on(*last)
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    def _execute_on(self, address: Address, group: Sequence[Sending], skip_away: bool, seconds: float) -> None:
        """Send commands to one node, and let each take its answer."""
        away_since = self._away.get(address)
        if skip_away and away_since is not None and time.monotonic() < away_since + AWAY_PAUSE:
            answers: list[Any] = [redis.ConnectionError("this node of the cluster has just given no answer")] * len(group)
        else:
            answers = self._try_on(address, group, seconds)
        for one, answer in zip(group, answers):
            self._resent += one.take(address, answer)

    def _try_on(self, address: Address, group: Sequence[Sending], seconds: float) -> list[Any]:
        """Return the answers of one node, and note whether it is there."""
        try:
            if address in self._away:
                within(PING_TIMEOUT, self.client_at(address).ping)
            answers = within(seconds, self._answers_of, address, group)
        except FAILURES as exc:
            answers = [exc] * len(group)
        if any(map(is_unanswered, answers)):
            self._is_stale = True
            self._see_whether_there(address)
        else:
            self._away.pop(address, None)
            self._is_stale |= any(isinstance(answer, redis.exceptions.MovedError) for answer in answers)
        return answers

    def _see_whether_there(self, address: Address) -> None:
        """Find out whether it is the node that gives no answer, or only to what was sent."""
        try:
            within(PING_TIMEOUT, self.client_at(address).ping)
        except FAILURES:
            self._away[address] = time.monotonic()
        else:
            self._away.pop(address, None)

    def _answers_of(self, address: Address, group: Sequence[Sending]) -> list[Any]:
        """Return the answers of one node, which is given the scripts that it lacks."""
        answers = self._send_to(address, group)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            for script in dict.fromkeys(group[at].command.script for at in unknown):
                self.client_at(address).script_load(script)
            for at, answer in zip(unknown, self._send_to(address, [group[at] for at in unknown])):
                answers[at] = answer
        return answers

    def _send_to(self, address: Address, group: Sequence[Sending]) -> list[Any]:
        """Send commands to one node, and measure its clock at intervals."""
        clock = self._clocks.setdefault(address, Clock())
        commands = [command for one in group for command in ([ASKING] if one.asking else []) + [one.command]]
        is_old = clock.age > CLOCK_AGE
        sent_at = time.monotonic()
        answers = self._send_packed(address, commands + [TIME] * is_old)
        if is_old and not isinstance(moment := answers.pop(), Exception):
            clock.learn(int(moment[0]) + int(moment[1]) / 1e6, sent_at, time.monotonic())
        rest = map(as_error, answers)
        return [(next(rest), next(rest))[1] if one.asking else next(rest) for one in group]

    def _send_packed(self, address: Address, commands: Sequence[Command]) -> list[Any]:
        client = self.client_at(address)
        if any(command.script for command in commands):
            # In a way that shows whether they may have run although no answer came.
            answers: list[Any] = client.connection_pool.execute_packed(
                [packed_command(*command.args) for command in commands])
            return answers
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command.args, **command.options)
        return list(pipeline.execute(raise_on_error=False))

    def close(self) -> None:
        """Close all connections."""
        for client in list(self._clients.values()):
            client.close()
            client.connection_pool.close()


class Pipeline(CoreCommands):  # type: ignore[misc,type-arg,unused-ignore]
    """Commands that go to the nodes of a cluster together: one round trip for each node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._commands: list[Command] = []

    def execute_command(self, *args: Any, **options: Any) -> Pipeline:
        """Gather a command."""
        self._commands.append(Command(args, options))
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the answers; an error is one, or raised."""
        answers = self._cluster.execute_all(self._commands)
        for answer in answers:
            if raise_on_error and isinstance(answer, Exception):
                raise answer
        return answers


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key."""
    return int(key_slot(key if isinstance(key, bytes) else key.encode()))


@functools.cache
def slot_tags() -> list[str]:
    """Return for each slot a hash tag that chooses it."""
    # As `slot_of`, at half of the cost: the first lock of a process waits for this.
    tags: dict[int, bytes] = {}
    for letters in itertools.product((string.ascii_lowercase + string.digits).encode(), repeat=4):
        tag = bytes(letters)
        tags.setdefault(crc_hqx(tag, 0) % SLOTS, tag)
        if len(tags) == SLOTS:
            break
    return [tags[slot].decode() for slot in range(SLOTS)]


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Return where a node is; one that does not know its own host is where its answer came from."""
    host = node[0].decode() if node[0] else ""
    return (host if host not in ("", "?") else asked[0]), int(node[1])
