"""A Redis Cluster: which node has a key, and asking it, wherever it has gone meanwhile."""
from __future__ import annotations

import contextlib
import functools
import itertools
import string
import time
from bisect import bisect_left
from typing import Any, Callable, Iterable, NamedTuple, Sequence

import redis
from redis.commands import CoreCommands
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from ..deadline import remaining
from .errors import is_lost, note_lost
from .pool import packed_command

#: Host and port of a node.
Address = tuple[str, int]

#: Rounds in which a command looks for the node that takes it, and seconds between two of them if none does.
ROUNDS = 5

PAUSE = 0.1

#: Seconds that who has the slots is believed without a word from the nodes, by those who only listen.
SLOT_MAP_INTERVAL = 3.0

#: Errors that go by when the nodes have agreed on who has the slot.
PASSING = (redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError, redis.exceptions.MasterDownError,
           redis.ConnectionError)

#: Errors by their first word; before version 6 redis-py knew them in its own clusters only.
ERRORS = {
    "ASK": redis.exceptions.AskError, "MOVED": redis.exceptions.MovedError, "TRYAGAIN": redis.exceptions.TryAgainError,
    "CLUSTERDOWN": redis.exceptions.ClusterDownError, "MASTERDOWN": redis.exceptions.MasterDownError,
}


class Command(NamedTuple):
    """What is sent to a node.

    Attributes:
        args: Its words.
        options: For redis-py, which reads the answer.
    """

    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def key(self) -> str | bytes | None:
        """The key that chooses the node; None for any."""
        name = str(self.args[0]).upper()
        if name == "EVALSHA":
            return self.args[3] if int(self.args[2]) else None
        return self.args[1] if len(self.args) > 1 and name not in ("SCRIPT LOAD", "INFO") else None


class Cluster(CoreCommands):  # type: ignore[misc,type-arg,unused-ignore]
    """What a client of redis-py is, for all masters of a cluster; nothing is connected before it is needed.

    A command goes to the master that has its key.  If that has changed, or
    the master is gone, it is sent again to whom it belongs then: what is sent
    is made so that sending it twice is harmless.  redis-py's own client would
    connect when it is made, and keeps connections that an interruption spoils.

    Args:
        seeds: Nodes that are asked first.
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
        #: Last slot of each range, and who has it; replaced as a whole.
        self._map: tuple[list[int], list[Address]] = [], []
        self._others: tuple[Address, ...] = ()
        self._answered: Address | None = None
        self._read_at = float("-inf")
        self._resent = 0

    def __str__(self) -> str:
        return f"cluster {', '.join(f'{host}:{port}' for host, port in self._seeds)}"

    @property
    def resent(self) -> int:
        """How often something was sent again that may have been done, for its answer was lost."""
        return self._resent + sum(int(client.connection_pool.resent) for client in list(self._clients.values()))

    # -- who has what

    def address_of(self, key: str | bytes | None) -> Address:
        """Return the master that has a key, as far as is known.

        Raises:
            redis.ConnectionError: If no node says who has it.
        """
        if not self._map[0]:
            self.read_slots()
        slot = slot_of(self._home if key is None else key)
        ends, owners = self._map
        at = bisect_left(ends, slot)
        if at == len(ends):
            raise redis.ConnectionError("no node of the cluster has this key's slot")
        return owners[at]

    def client_of(self, key: str | bytes | None = None) -> Any:
        """Return the client of the master that has a key; None: of the one that answers what is about no key."""
        return self.client_at(self.address_of(key))

    def masters(self) -> frozenset[Address]:
        """Return all masters, looked up again if that was some time ago."""
        if time.monotonic() > self._read_at + SLOT_MAP_INTERVAL:
            with contextlib.suppress(redis.RedisError):
                self.read_slots()
        return frozenset(self._map[1])

    def read_slots(self) -> None:
        """Ask the nodes who has which slots.

        Raises:
            redis.ConnectionError: If none answers.
            redis.TimeoutError: If the deadline of the call has passed by then.
            redis.exceptions.NoPermissionError: If those that answer do not let this user ask.
        """
        refusal: redis.RedisError | None = None
        failure: Exception | None = None
        nodes = list(dict.fromkeys((*self._map[1], *self._others, *self._seeds)))
        # Who answered last comes last: it may be cut off from the others, and not know better.
        next_one = nodes.index(self._answered) + 1 if self._answered in nodes else 0
        for address in (*nodes[next_one:], *nodes[:next_one]):
            try:
                return self._take(sorted(self._query(address, ("CLUSTER", "SLOTS"))), address)
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
                refusal = exc
            except (redis.RedisError, OSError, TypeError, ValueError, LookupError, AttributeError) as exc:
                failure = exc  # it does not answer, or without sense
        if not remaining():
            raise redis.TimeoutError("no node of the cluster has answered in time")
        raise refusal or redis.ConnectionError("no node of the cluster answers") from failure

    def _take(self, rows: Sequence[Any], asked: Address) -> None:
        nodes = [[_address(node, asked) for node in row[2:]] for row in rows]
        self._map = [row[1] for row in rows], [masters[0] for masters in nodes]
        self._others = tuple(one for row in nodes for one in row[1:])
        self._answered, self._read_at = asked, time.monotonic()

    def client_at(self, address: Address) -> Any:
        """Return the client of a node."""
        client = self._clients.get(address)
        return self._clients.setdefault(address, self._make_client(address)) if client is None else client

    # -- asking

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to the node that has its key, and return the answer; a script is taught to all."""
        if str(args[0]).upper() == "SCRIPT LOAD":
            return [self.client_at(address).execute_command(*args) for address in self.masters()]
        (answer,) = self.execute_all([Command(args, options)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ping_all(self) -> None:
        """Ask every master for a sign of life."""
        for address in self.masters():
            self.client_at(address).ping()

    def pipeline(self, transaction: bool = False) -> Pipeline:
        """Return what gathers commands, to send them to each node together."""
        return Pipeline(self)  # type: ignore[abstract,unused-ignore]

    def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answer to each command; an error is one."""
        answers: list[Any] = [None] * len(commands)
        waiting: Iterable[int] = range(len(commands))
        sent_on: dict[int, Address] = {}
        for turn in range(ROUNDS):
            if turn:
                if not remaining():
                    break
                self._refresh_slots(answers, waiting)
            by_node: dict[Address, list[int]] = {}
            for at in waiting:
                by_node.setdefault(sent_on.get(at) or self.address_of(commands[at].key), []).append(at)
            for address, ats in by_node.items():
                is_asking_at = [at in sent_on for at in ats]
                answers_here = self._execute_on(address, [commands[at] for at in ats], is_asking_at)
                for at, answer in zip(ats, answers_here):
                    if is_lost(answers[at]):
                        self._resent += 1
                        if isinstance(answer, Exception):
                            note_lost(answer)
                    answers[at] = answer
            sent_on = {at: (answers[at].host, answers[at].port) for at in waiting if _is_sent_on(answers[at])}
            waiting = [at for at in waiting if at in sent_on or _is_elsewhere(answers[at])]
            if not waiting:
                break
        return [_plain(answer) for answer in answers]

    def _execute_on(self, address: Address, commands: Sequence[Command], is_asking_at: Sequence[bool]) -> list[Any]:
        if all(command.args[0] == "EVALSHA" for command in commands):
            return self._run_on(address, commands, is_asking_at)
        pipeline = self.client_at(address).pipeline(transaction=False)
        for command, is_asking in zip(commands, is_asking_at):
            if is_asking:
                pipeline.execute_command("ASKING")
            pipeline.execute_command(*command.args, **command.options)
        try:
            answers = map(_as_error, pipeline.execute(raise_on_error=False))
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            return [exc] * len(commands)
        return [(next(answers), next(answers))[1] if is_asking else next(answers) for is_asking in is_asking_at]

    def _run_on(self, address: Address, commands: Sequence[Command], is_asking_at: Sequence[bool]) -> list[Any]:
        """Run scripts, in a way that shows whether they may have run although no answer came."""
        words: list[tuple[Any, ...]] = []
        for command, is_asking in zip(commands, is_asking_at):
            words += [("ASKING",)] * is_asking + [command.args]
        try:
            answers = map(_as_error, self.client_at(address).connection_pool.execute_packed(
                [packed_command(*command) for command in words]))
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            return [exc] * len(commands)
        return [(next(answers), next(answers))[1] if is_asking else next(answers) for is_asking in is_asking_at]

    def _refresh_slots(self, answers: Sequence[Any], waiting: Iterable[int]) -> None:
        """Find out who has what, as soon as there may be something new."""
        errors = [answers[at] for at in waiting]
        if any(isinstance(error, PASSING) for error in errors):
            time.sleep(min(PAUSE, remaining()))
        if not all(map(_is_sent_on, errors)):
            with contextlib.suppress(redis.RedisError):
                self.read_slots()

    def close(self) -> None:
        """Close all connections."""
        for client in list(self._clients.values()):
            client.close()
            client.connection_pool.disconnect()


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
    tags: dict[int, str] = {}
    for letters in itertools.product(string.ascii_lowercase + string.digits, repeat=4):
        tags.setdefault(slot_of("".join(letters)), "".join(letters))
        if len(tags) == SLOTS:
            break
    return [tags[slot] for slot in range(SLOTS)]


def _address(node: Sequence[Any], asked: Address) -> Address:
    """Return where a node is; one that does not know its own host is where it was asked."""
    host = node[0].decode() if node[0] else ""
    return (host if host not in ("", "?") else asked[0]), int(node[1])


def _as_error(answer: Any) -> Any:
    """Return an answer; one that is a plain error as that which it is."""
    if type(answer) is not redis.ResponseError:
        return answer
    word, _, rest = str(answer).partition(" ")
    return ERRORS[word](rest) if word in ERRORS else answer


def _is_sent_on(answer: Any) -> bool:
    """Whether this command, and no other, is to be sent to another node, to which its slot is being moved."""
    return isinstance(answer, redis.exceptions.AskError) and not isinstance(answer, redis.exceptions.MovedError)


def _is_elsewhere(answer: Any) -> bool:
    """Whether a command is to be sent again to whom it belongs by then."""
    return isinstance(answer, (redis.exceptions.MovedError, *PASSING))


def _plain(answer: Any) -> Any:
    """Return an answer as one server would give it: that nobody takes a command is no word of a server's."""
    if not (_is_sent_on(answer) or _is_elsewhere(answer)) or isinstance(answer, redis.ConnectionError):
        return answer
    plain = redis.ConnectionError("the nodes of the cluster do not agree on who has this key")
    if is_lost(answer):
        note_lost(plain)
    return plain
