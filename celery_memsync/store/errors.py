"""redis-py's errors as errors of this package, in words without a password or a value."""
from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import redis

from ..deadline import DEFAULT_TIMEOUT, Deadline, is_within
from ..exceptions import MemSyncError, StoreError, StoreRefused, StoreUnavailable
from ..keys import Location
from .causes import SENSELESS, TEXTS, cause_of_connection

#: Codes that redis-py takes away from the text of an error, by the kind of error that it makes of them.
KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (redis.exceptions.OutOfMemoryError, "OOM"), (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.AuthorizationError, "NOPERM"), (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.BusyLoadingError, "LOADING"), (redis.exceptions.NoScriptError, "NOSCRIPT"),
    (redis.exceptions.MovedError, "MOVED"), (redis.exceptions.AskError, "ASK"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"), (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"), (redis.exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (redis.exceptions.AuthenticationError, "WRONGPASS"),
)

#: Codes that go by with the state of the server, which refuses all writes alike.
EVERYWHERE = frozenset({
    "OOM", "READONLY", "MISCONF", "NOREPLICAS", "LOADING", "BUSY", "NOSCRIPT", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN",
    "MOVED", "ASK",
})

#: Our own code: whenever this was sent the answer was lost, though Redis is there.
UNANSWERED = "UNANSWERED"

#: Our own code: the node of a cluster that has an entry gave no answer, though others are there.
UNREACHABLE = "UNREACHABLE"

#: Codes that may go by; one right may be enough for one key and not for another.
PASSING = EVERYWHERE | {"NOPERM", UNANSWERED, UNREACHABLE}

#: What Redis refuses, by code, and what to do about it.
REFUSALS = {
    "NOPERM": "its user may not do that; docs/howto/security.md has the rights that are needed",
    "OOM": "it is full; raise its maxmemory, or shorten memsync_default_ttl",
    "MISCONF": "it takes no writes, for it can't save its data; see its log, is its disk full?",
    "READONLY": "it is a replica, which takes no writes; let memsync_backend name its master",
    "NOREPLICAS": "it takes no writes, for too few of its replicas keep up; see min-replicas-to-write",
    "LOADING": "it is loading its data; it answers when that is done",
    "BUSY": "a script keeps it busy; it answers when that is done, or after SCRIPT KILL",
    "NOSCRIPT": "it forgets scripts at once; does something call SCRIPT FLUSH?",
    "WRONGTYPE": "something else may be stored there: look at it with redis-cli TYPE and remove it",
    UNANSWERED: "it is there, but whenever this is sent no answer comes: is it larger than Redis's proto-max-bulk-len, or "
    "more than can be sent within memsync_timeout?",
    "CLUSTERDOWN": "its cluster has no node for this key; see redis-cli --cluster check and cluster-require-full-coverage",
    "TRYAGAIN": "the slot is being moved; it answers when that is done",
    "MOVED": "it is a node of a cluster; let memsync_backend begin with redis+cluster://, or wait, if it does, until "
    "the nodes agree on which of them has this key",
    "ASK": "the nodes of the cluster do not agree on which of them has this key",
    "WRONGPASS": "it refuses the user or password of memsync_backend; correct them in its URL",
}

#: Our own code: Redis does not remember an earlier try any more.
FORGOTTEN = "FORGOTTEN"

#: A code at the beginning of an error, or of that which ended a script.
_CODE = re.compile(r"(?:^|: -?)([A-Z]{2,}) ")

#: Redis 7's error in a script instead of NOPERM.
_NOT_ALLOWED = re.compile(r"The user executing the script|ACL failure in script")

#: What was tried, by the name of a method for which its name is not the word.
WHAT = {"listen": "subscribe to changes", "listen at": "subscribe to changes", "receive": "receive changes",
        "ping": "reach Redis", "check": "check the connection"}

#: Names of arguments that say on what a method of the store acts; the values of others are not shown.
_SUBJECTS = frozenset({"locations", "writes", "task_ids", "task_id", "worker_id", "location", "names", "pattern", "request"})

F = TypeVar("F", bound=Callable[..., Any])


def redis_call(method: F) -> F:
    """Turn redis-py's errors, and answers without sense, into a :exc:`StoreError` that names what was tried, and where.

    It ends by the deadline of the public call under way, and within ``timeout`` of its object in any case.
    """

    name = method.__name__.strip("_").replace("_", " ")
    what, named = WHAT.get(name, name), [*inspect.signature(method).parameters][1:2]
    is_named = not _SUBJECTS.isdisjoint(named)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if is_within(self.timeout):
                return method(self, *args, **kwargs)
            return Deadline(self.timeout).run(method, self, *args, **kwargs)
        except MemSyncError:
            raise
        except (redis.RedisError, OSError, *SENSELESS) as exc:
            on = _subject(args[0]) if args and is_named else ""
            raise store_error(what + on, exc, address_of_owner(self), self.timeout) from exc

    return call  # type: ignore[return-value]


def store_error(what: str, exc: BaseException, address: str = "", timeout: float = DEFAULT_TIMEOUT) -> StoreError:
    """Return the error that a user gets instead of one of redis-py.

    Args:
        what: What was tried.
        address: Where that was.
        timeout: Most seconds that Redis had.
    """
    where = f"Redis at {address}" if address else "Redis"
    message, code = f"Could not {what} ({where}): {explain(exc, timeout)}", code_of(exc)
    # What came before an answer without sense can't be known.
    lost = is_lost(exc) or isinstance(exc, SENSELESS)
    is_refused = code and code not in PASSING and not lost
    error = StoreRefused(message, code) if is_refused else StoreUnavailable(message, lost, code)
    error.address = address
    return error


def code_of(exc: BaseException) -> str:
    """Return the code of an error that Redis has answered, "" if it has not answered."""
    for kind, code in KINDS:
        if isinstance(exc, kind):
            return str(code)
    if isinstance(exc, redis.ResponseError):
        return code_in(str(exc))
    return code_of(exc.__cause__) if isinstance(exc, redis.ConnectionError) and exc.__cause__ is not None else ""


def code_in(text: str) -> str:
    """Return the code of an error from its text; what ended a script comes behind other words."""
    if _NOT_ALLOWED.search(text):
        return "NOPERM"
    return str((_CODE.findall(text) or ["ERR"])[-1])


def is_of_all(code: str, text: str) -> bool:
    """Whether Redis would refuse any other write as well.

    Args:
        text: What it has answered.
    """
    return code in EVERYWHERE or code == UNREACHABLE or code == "NOPERM" and "'evalsha'" in text.lower()


def note_lost(exc: BaseException) -> None:
    """Note of an error that what was sent may have been done, for its answer was lost."""
    exc.__dict__["lost_answer"] = True


def is_lost(exc: Any) -> bool:
    """Whether that was noted of an error."""
    return isinstance(exc, BaseException) and "lost_answer" in exc.__dict__


def explain(exc: BaseException, timeout: float = DEFAULT_TIMEOUT) -> str:
    """Return what is wrong with Redis, and what to do, in words without an address, a password or a value.

    Args:
        timeout: Most seconds that Redis had.
    """
    code = code_of(exc)
    return explain_code(code, _answer_in(exc)) if code else cause_of_connection(exc, timeout)


def _answer_in(exc: BaseException) -> str:
    """Return the text of an error that Redis has answered, of which a lost connection may be what came of it."""
    return _answer_in(exc.__cause__) if isinstance(exc, redis.ConnectionError) and exc.__cause__ is not None else str(exc)


def forgotten(what: str) -> StoreUnavailable:
    """Return the error of a call of which Redis does not remember any more whether an earlier try has done it."""
    return StoreUnavailable(
        f"{what} whose answer was lost may or may not have been done: too much time has passed, or too many others "
        "were made since; look at what is there, and decide anew", maybe_done=True, code=FORGOTTEN)


def was_forgotten(error: BaseException) -> bool:
    """Return whether it can't be known any more if an earlier try has done it."""
    return isinstance(error, StoreError) and error.code == FORGOTTEN


def may_be_done(error: BaseException) -> bool:
    """Return whether something may have been done, or may still be done, although it ended in an error."""
    return bool(getattr(error, "maybe_done", not isinstance(error, StoreError)))


def was_refused(error: BaseException) -> bool:
    """Return whether Redis has answered, and refused: until then nothing was done."""
    return isinstance(error, StoreError) and error.code not in ("", FORGOTTEN) and not may_be_done(error)


def explain_code(code: str, text: str) -> str:
    """Return what Redis refuses.

    Args:
        text: What it has answered; of a node that has not, why.
    """
    if code == UNREACHABLE:
        return text
    for part, meaning in TEXTS:
        if part in text:
            return meaning
    return REFUSALS.get(code) or "it answers: " + text.partition(" script: ")[0][:120]


def address_of(facts: Mapping[str, Any]) -> str:
    """Return where a Redis is.

    Args:
        facts: Options or attributes of a connection.
    """
    sentinels = facts.get("sentinels") or facts.get("_sentinels")
    if sentinels is not None:
        return str(sentinels)
    if "folder" in facts:
        return f"embedded://{facts['folder']}"
    database = facts.get("db") or 0
    if facts.get("path"):
        return f"{facts['path']}, database {database}"
    host = facts.get("host") or "localhost"
    return f"{f'[{host}]' if ':' in host else host}:{facts.get('port') or 6379}/{database}"


def address_of_owner(owner: Any) -> str:
    """Return where the Redis of an object of this package is, "" if that is not known."""
    client, connection = getattr(owner, "_client", None), getattr(owner, "_connection", None)
    if client is not None:
        pool = getattr(client, "connection_pool", None)
        return str(client) if pool is None else address_of(pool.connection_kwargs)
    if connection is None:
        return ""
    # redis-py 8 keeps the host under another name.
    return address_of({**vars(connection), "host": getattr(connection, "host", None)})


def _subject(argument: Any) -> str:
    """Return on what a method of the store acts, in words with a blank in front: the first of several, and how many more."""
    is_one = isinstance(argument, Location) or hasattr(argument, "location")
    several = isinstance(argument, (list, tuple)) and not is_one
    first = next(iter(argument), None) if several else argument
    location = getattr(first, "location", first)
    name = location.path if isinstance(location, Location) else location if isinstance(location, str) else ""
    more = f" and {len(argument) - 1} more" if several and len(argument) > 1 else ""
    return f" {name[:200]}{more}" if name else ""


def run_all(actions: Iterable[Callable[[], None]]) -> None:
    """Call actions, each whatever the others raise.

    Raises:
        StoreError: The first that one of them has raised.
    """
    failures: list[StoreError] = []
    for action in actions:
        try:
            action()
        except StoreError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]
