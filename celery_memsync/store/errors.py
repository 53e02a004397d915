"""redis-py's errors as errors of this package, in words without an address or a value."""
from __future__ import annotations

import functools
import re
from typing import Any, Callable, TypeVar

import redis

from ..exceptions import MemSyncError, StoreError

#: What is raised by taking apart an answer that is not what was asked for.
SENSELESS = (TypeError, ValueError, AttributeError, LookupError)

#: What Redis refuses, by a word of its answer, and what to do about it.
REFUSALS = {
    "NOPERM": "its user may not do that; docs/howto/security.md tells the rights that are needed",
    "OOM": "it is full; raise its maxmemory, or shorten memsync_default_ttl",
    "maxmemory": "it is full; raise its maxmemory, or shorten memsync_default_ttl",
    "MISCONF": "it takes no writes, for it can't save its data; see its log, is its disk full?",
    "READONLY": "it is a replica, which takes no writes; let memsync_backend name its master",
}

#: Words of Redis's errors that redis-py turns into a class of errors.
CODES = {
    redis.exceptions.OutOfMemoryError: "OOM", redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.NoPermissionError: "NOPERM", redis.BusyLoadingError: "LOADING",
}

#: The word by which an error of Redis begins, or what a script of Redis 6 was refused.
_CODE = re.compile(r"(?:^|: -)([A-Z]{3,})\b")

F = TypeVar("F", bound=Callable[..., Any])


class MaybeDone(StoreError):
    """What was to be done may have been done, by a try whose answer was lost, or not: Redis does not remember any more.

    Args:
        what: What was to be done.
    """

    maybe_done = True

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} whose answer was lost may or may not have been done: too much time has passed, or too many others "
            "were made since; look at what is there, and decide anew"
        )


def redis_call(method: F) -> F:
    """Turn redis-py's errors, and answers without sense, into :exc:`StoreError`, with what was tried but no address."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except MemSyncError:
            raise
        except (redis.RedisError, OSError, *SENSELESS) as exc:
            what = method.__name__.replace("_", " ")
            raise StoreError(f"Redis could not do this: {what} ({explain(exc)})") from exc

    return call  # type: ignore[return-value]


def explain(exc: BaseException) -> str:
    """Return what is wrong with Redis in words without an address, a password or a value."""
    if isinstance(exc, redis.AuthenticationError):
        return "it refuses the user or password of memsync_backend"
    if isinstance(exc, (redis.TimeoutError, TimeoutError)):
        return "it does not answer in time; is it overloaded or paused?"
    if isinstance(exc, redis.BusyLoadingError):
        return "it is loading its data; it answers when that is done"
    if isinstance(exc, (redis.ConnectionError, OSError)):
        return "it can't be reached; is it running, and is memsync_backend right?"
    if isinstance(exc, redis.exceptions.NoPermissionError):
        return REFUSALS["NOPERM"]
    if isinstance(exc, redis.ResponseError):
        for word, known in REFUSALS.items():
            # What a script is refused comes amid other words.
            if word in str(exc):
                return known
        return "it answers: " + str(exc).partition(" script: ")[0][:120]
    if isinstance(exc, SENSELESS):
        return "its answer makes no sense; is that a Redis?"
    return type(exc).__name__


def refusal_code(error: Exception) -> str:
    """Return the word by which an error of Redis begins, such as ``OOM``; ``ERR`` if it has none of its own."""
    known = [word for kind, word in CODES.items() if isinstance(error, kind)]
    found = _CODE.search(str(error))
    return known[0] if known else found.group(1) if found else "ERR"


def may_be_done(error: BaseException) -> bool:
    """Return whether something may have been done, or may still be done, although it ended in an error.

    That Redis refuses it does not say that it did not take an earlier try, which may even be on its way.
    """
    unsent = getattr(error.__cause__, "unsent", False)
    return bool(getattr(error, "maybe_done", not (isinstance(error, StoreError) and unsent)))


def was_refused(error: BaseException) -> bool:
    """Return whether Redis has answered, and refused: until then nothing was done."""
    return isinstance(error, StoreError) and isinstance(error.__cause__, redis.ResponseError)
