"""Commands on their way to the nodes of a cluster, and what their answers mean."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import redis

from .errors import code_of, is_lost, note_lost

#: Host and port of a node.
Address = tuple[str, int]

#: Errors that end when the nodes agree which of them has the slot.
DISAGREEMENT = (redis.exceptions.MovedError, redis.exceptions.TryAgainError, redis.exceptions.ClusterDownError,
                redis.exceptions.MasterDownError, redis.ReadOnlyError)

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
        script: Text of the script that EVALSHA runs, to be loaded on a node that does not know it.
        divides: Whether the caller sends it again in parts, or with fewer keys, while its keys are on two nodes.
    """

    args: tuple[Any, ...]
    options: Mapping[str, Any] = {}
    script: str = ""
    divides: bool = False

    @property
    def key(self) -> str | bytes | None:
        """The key that chooses the node; None for any."""
        name = str(self.args[0]).upper()
        if name == "EVALSHA":
            return self.args[3] if int(self.args[2]) else None
        return self.args[1] if len(self.args) > 1 and name != "INFO" else None


ASKING, TIME = Command(("ASKING",)), Command(("TIME",))


class Sending:
    """A command on its way to the node that takes it.

    Attributes:
        command: What is sent.
        answer: The last answer; an error is one.
        asking: The node to which the key is being moved, if the command goes there.
        failed: Nodes that gave no answer: none of them is tried twice.
    """

    __slots__ = ("command", "answer", "asking", "failed")

    def __init__(self, command: Command) -> None:
        self.command = command
        self.answer: Any = None
        self.asking: Address | None = None
        self.failed: set[Address] = set()

    def take(self, address: Address, answer: Any) -> bool:
        """Take an answer; return whether the one before was lost."""
        was_lost = is_lost(self.answer)
        if was_lost and isinstance(answer, Exception):
            note_lost(answer)
        self.answer = answer
        self.asking = (answer.host, answer.port) if is_asking(answer) else None
        if is_unanswered(answer):
            self.failed.add(address)
        return was_lost

    @property
    def goes_on(self) -> bool:
        """Whether another node may take the command, or this one a moment later."""
        if self.command.divides and isinstance(self.answer, redis.exceptions.TryAgainError):
            return False
        return self.asking is not None or isinstance(self.answer, DISAGREEMENT) or is_unanswered(self.answer)


def as_error(answer: Any) -> Any:
    """Return an answer; a plain error as the error of its kind."""
    if type(answer) is not redis.ResponseError:
        return answer
    word, _, rest = str(answer).partition(" ")
    return ERRORS[word](rest) if word in ERRORS else answer


def is_asking(answer: Any) -> bool:
    """Whether this command, and no other, is to be sent to another node, to which its slot is being moved."""
    return isinstance(answer, redis.exceptions.AskError) and not isinstance(answer, redis.exceptions.MovedError)


def is_unanswered(answer: Any) -> bool:
    """Whether a node has given no answer, so that another one may have taken its place."""
    return isinstance(answer, (redis.ConnectionError, redis.TimeoutError, OSError)) and not code_of(answer) \
        and not isinstance(answer, redis.exceptions.MaxConnectionsError)
