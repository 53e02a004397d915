"""redis-py's errors as errors of this package, in words without an address or a value."""
from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar

import redis

from ..deadline import current, within
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

F = TypeVar("F", bound=Callable[..., Any])


def redis_call(method: F) -> F:
    """Turn redis-py's errors, and answers without sense, into :exc:`StoreError`, with what was tried but no address.

    It ends by the deadline of the public call under way, and within ``timeout`` of its object in any case.
    """

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return within(self.timeout, method, self, *args, **kwargs)
        except MemSyncError:
            raise
        except (redis.RedisError, OSError, *SENSELESS) as exc:
            what = method.__name__.replace("_", " ")
            raise StoreError(f"Redis could not do this: {what} ({explain(exc, self.timeout)})") from exc

    return call  # type: ignore[return-value]


def explain(exc: BaseException, timeout: float) -> str:
    """Return what is wrong with Redis in words without an address, a password or a value.

    Args:
        timeout: Most seconds that Redis had.
    """
    if isinstance(exc, redis.AuthenticationError):
        return "it refuses the user or password of memsync_backend"
    if isinstance(exc, (redis.TimeoutError, TimeoutError)):
        deadline = current()
        seconds = timeout if deadline is None else min(timeout, deadline.elapsed)
        return f"it did not answer within {seconds:.1f} s; is it overloaded or paused?"
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
