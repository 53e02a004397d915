"""Every setting, with its default and what is allowed."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.utils.nodenames import node_format
from kombu.utils.imports import symbol_by_name
from redis.connection import parse_url

from .conflicts import Resolvers
from .deadline import DEFAULT_TIMEOUT
from .exceptions import InvalidKey
from .keys import Keys, check_id
from .redaction import Redactor
from .urls import (
    CLUSTER_SCHEMES,
    as_redis_py,
    check_database,
    is_cluster,
    lower_scheme,
    scheme_of,
    servers_of,
    with_login_in_front,
)

#: What a Redis URL may begin with.
SCHEMES = ("redis", "rediss", "unix", "sentinel", *CLUSTER_SCHEMES, "embedded")

#: Options of redis-py that can't be chosen: the answers would be none that this package can read.
FIXED_OPTIONS = ("decode_responses", "protocol")

#: Options of redis-py that are seconds, and those that are objects, which no text in a URL can be.
TIMEOUT_OPTIONS = ("socket_timeout", "socket_connect_timeout")
OBJECT_OPTIONS = ("retry", "sentinel_kwargs")

#: What a task may have as attributes of its own.
TASK_SETTINGS = ("recover", "max_recoveries", "stall_after")

#: No given time is as long, in seconds: Redis and the C library can't wait so long.
MAX_SECONDS = 1e10

#: Fewest characters of a signing key: shorter ones can be guessed.
MIN_SIGNING_KEY = 16

_PREFIX = "memsync_"


@dataclass(frozen=True)
class Settings:
    """The settings of one shared memory; in Celery each name begins with ``memsync_``."""

    #: Whether anything is recorded, locked or stored at all.
    enabled: bool = True
    #: Redis URL.  ``None``: the result backend or broker of the app, if that is Redis.
    backend: str | None = field(default=None, repr=False)
    #: Passed on to redis-py.
    backend_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Most seconds that a call takes, whatever Redis does, beside those that it is given to wait.
    timeout: float = DEFAULT_TIMEOUT
    #: Root of every key.
    namespace: str = "task-sentinel"
    #: Name of this process.  ``None``: the node name in workers, else host:pid.
    worker_id: str | None = None
    #: Seconds that an entry lives after its last write.
    default_ttl: float = 3600.0
    #: Most entries in the read cache; 0: no cache.
    cache_size: int = 1000
    #: Seconds after which no cached copy is believed, whatever happened.
    cache_max_age: float = 60.0
    #: Seconds that writes are gathered; 0: flush at every write.
    batch_interval: float = 0.1
    #: Most writes in one round trip.
    batch_size: int = 500
    #: Most keys waiting in memory while Redis is away.
    max_pending: int = 100_000
    #: Most threads in which handlers of subscriptions run, beside those of slow ones.
    handler_threads: int = 8
    #: Largest value, in bytes of JSON.
    max_value_size: int = 1024 * 1024
    #: Seconds between two heartbeats of a worker.
    heartbeat_interval: float = 5.0
    #: Seconds without a heartbeat after which a worker is lost.
    worker_ttl: float = 15.0
    #: File in which a worker reports its status, for ``celery-memsync-probe``; ``%n`` and ``%h`` as
    #: in Celery's log files.
    probe_file: str | None = None
    #: What becomes of the running tasks of a lost worker: ``mark`` records it only, ``requeue`` sends them again.
    recover: str = "mark"
    #: Most times that a task is sent again because its worker was lost.
    max_recoveries: int = 1
    #: Seconds without new progress after which a running task is stalled; ``None`` or 0: never.  A task may have another as
    #: its attribute ``memsync_stall_after``.
    stall_timeout: float | None = None
    #: Secret that signs what is stored in Redis and sent to the broker later: a text, or several of which the
    #: first one signs and all are accepted.  ``recover = "requeue"`` needs it.
    signing_key: Any = field(default=None, repr=False)
    #: Hides secrets in texts of exceptions, messages of progress and lines of the log before they are written: a callable
    #: that takes and returns a text, or the dotted path of one.
    redact: Any = None
    #: Whether a worker renews the messages that it holds at a Redis broker, which delivers them again otherwise.
    renew_visibility: bool = True
    #: Lease of a lock, in seconds.
    lock_ttl: float = 30.0
    #: Replicas of Redis that must have a lock before it is had.
    lock_replicas: int = 0
    #: Resolver of conflicts: name, dotted path, callable, or {glob: one of these}.
    conflict_resolver: Any = "last_write_wins"
    #: Whether a bad value in what a task reports raises.  ``None``: outside of workers only; there it is logged.
    strict: bool | None = None
    #: Whether the state of a task shows its arguments, as Celery's log does.
    task_args: bool = False
    #: Whether failures are counted by type of exception, too: at most 10 of each task.
    failure_types: bool = False
    #: Whether the statistics of each minute are kept for a day, and by task each ten minutes for three days.
    history: bool = False

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            allowed = check(getattr(self, name))
            if allowed is not None:
                raise wrong(name, getattr(self, name), allowed)
        if self.worker_ttl <= self.heartbeat_interval:
            longer = f"longer than memsync_heartbeat_interval ({self.heartbeat_interval:g})"
            raise wrong("worker_ttl", self.worker_ttl, longer)
        if self.backend is not None:
            check_together(self.backend, self.backend_options, self.namespace, self.lock_replicas)
        try:
            Resolvers(self.conflict_resolver, self.namespace)
        except ValueError as exc:
            raise ImproperlyConfigured(f"memsync_conflict_resolver: {exc}") from exc

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys of ``signing_key`` as bytes, the one that signs first; none without it."""
        return tuple(key.encode() if isinstance(key, str) else key for key in _listed(self.signing_key))

    @property
    def redactor(self) -> Redactor | None:
        """What calls ``redact``, or None without it."""
        return None if self.redact is None else Redactor(_imported(self.redact))

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> Settings:
        """Return checked settings.

        Args:
            given: Values by name, with ``memsync_`` in front or without.

        Raises:
            ImproperlyConfigured: For an unknown name or a wrong value.
        """
        known = {one.name for one in fields(cls)}
        plain = {}
        for name, value in given.items():
            short = str(name).removeprefix(_PREFIX)
            if short not in known:
                raise ImproperlyConfigured(unknown(short, known))
            plain[short] = value
        if isinstance(plain.get("backend"), str):
            plain["backend"] = with_login_in_front(as_redis_py(plain["backend"]))
        return cls(**plain)


def wrong(name: str, value: object, allowed: str) -> ImproperlyConfigured:
    """Return the error for a setting that is not what is allowed, without a URL or a key in it."""
    if name == "backend" and isinstance(value, str):
        return ImproperlyConfigured(f"memsync_backend must be {allowed}")
    shown = short(value)
    if name == "signing_key":
        shown = " and ".join(
            f"a text of {len(key)} characters" if isinstance(key, (str, bytes)) else f"of type {type(key).__name__}"
            for key in _listed(value)) or "empty"
    return ImproperlyConfigured(f"memsync_{name} is {shown}; it must be {allowed}")


def check_together(url: str, options: Mapping[str, Any], namespace: str, lock_replicas: int) -> None:
    """Check what a URL needs of other settings.

    Raises:
        ImproperlyConfigured: If that is missing, or does not fit.
    """
    if scheme_of(url) == "sentinel" and not {**servers_of(url).options, **options}.get("master_name"):
        raise wrong("backend", url, "a URL with the name of the master: ...?master_name=name, or in memsync_backend_options")
    if is_cluster(url) and not _spreads(namespace):
        raise wrong("namespace", namespace, "a text without braces, or with a whole {tag}: it chooses a cluster's node")
    if is_cluster(url) and lock_replicas:
        raise wrong("lock_replicas", lock_replicas, "0 with a cluster")


def _spreads(namespace: str) -> bool:
    """Whether what is under a namespace goes to the nodes of a cluster by the tags of its keys, or by its own."""
    before, brace, rest = namespace.partition("{")
    return "}" not in before and (not brace or rest.find("}") > 0)


def short(value: object) -> str:
    """Return a value in a few words, for an error."""
    if isinstance(value, int) and abs(value) > 10 ** 80:
        return "a huge number"  # Python refuses to write those of over 4,300 digits
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def unknown(name: str, known: Iterable[str], what: str = "setting") -> str:
    """Return what to say of a name that there is not, with the one that may be meant."""
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean memsync_{close[0]}?" if close else "known are: " + ", ".join(f"memsync_{n}" for n in sorted(known))
    return f"there is no {what} memsync_{name}; {hint}"


def allowed_for(name: str, value: object) -> str | None:
    """Return what a setting must be, or None if a value is allowed."""
    return (_CHECKS.get(name) or _TASK_CHECKS[name])(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_SECONDS


def _seconds(value: object) -> str | None:
    return None if _is_number(value) and value > 0 else "a number of seconds above 0"  # type: ignore[operator]


def _seconds_or_0(value: object) -> str | None:
    return None if _is_number(value) and value >= 0 else "a number of seconds, 0 or more"  # type: ignore[operator]


def _seconds_or_none(value: object) -> str | None:
    return None if value is None or _seconds_or_0(value) is None else "a number of seconds, 0 or more, or None"


def _count(value: object) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value > 0 else "a whole number above 0"


def _count_or_0(value: object) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "a whole number, 0 or more"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _flag_or_none(value: object) -> str | None:
    return None if value is None or isinstance(value, bool) else "True, False or None"


def _file(value: object) -> str | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and value and "\0" not in value and node_format(value, "name@host"):
            return None
    except ValueError:  # of a part that there is not
        return "the path of a file, in which %n, %h and %d stand for parts of the worker's name and %% for %"
    return "the path of a file"


def _recover(value: object) -> str | None:
    return None if value in ("mark", "requeue") else "'mark' or 'requeue'"


def _listed(value: object) -> list[Any]:
    """Return the members of a tuple or list, one value as a list, and None as an empty one."""
    return list(value) if isinstance(value, (tuple, list)) else [] if value is None else [value]


def _signing_key(value: object) -> str | None:
    keys = _listed(value)
    sound = all(isinstance(key, (str, bytes)) and len(key) >= MIN_SIGNING_KEY for key in keys)
    return None if value is None or keys and sound else \
        f"a secret text of {MIN_SIGNING_KEY} characters or more, or a tuple of such texts, the newest one first"


def _imported(value: object) -> Any:
    """Return what a dotted path names, and anything else as it is."""
    return symbol_by_name(value) if isinstance(value, str) else value  # type: ignore[no-untyped-call]


def _redact(value: object) -> str | None:
    try:
        is_fit = value is None or callable(_imported(value))
    except (ImportError, AttributeError, ValueError):
        is_fit = False
    return None if is_fit else "a callable that takes and returns a text, the dotted path of one, or None"


def _url(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and scheme_of(value) in SCHEMES:
        return _unreadable(value)
    return "a URL that begins with one of " + ", ".join(f"{scheme}://" for scheme in SCHEMES)


def _unreadable(url: str) -> str | None:
    scheme = scheme_of(url)
    if scheme == "embedded":
        return None
    # The text of an error may hold a part of the URL.
    try:
        if scheme == "sentinel" or is_cluster(url):
            options = servers_of(url).options
        else:
            options = parse_url(lower_scheme(url))  # type: ignore[no-untyped-call,unused-ignore]
    except (ValueError, TypeError):
        return _READABLE.get(scheme, "a URL that redis-py can read: redis://[user:password@]host[:port][/database]")
    try:
        if scheme != "unix":
            check_database(url)
    except ValueError:
        return "a URL whose path is the number of a database, such as redis://localhost:6379/0"
    if is_cluster(url) and options.get("db"):
        return "a URL without a database: a cluster has number 0 only"
    objects = " and ".join(name for name in OBJECT_OPTIONS if name in options)
    if objects:
        return f"a URL without {objects}, which can stand in memsync_backend_options only"
    return _fixed(options, "a URL")


def _fixed(options: Mapping[str, Any], what: str) -> str | None:
    named = " and ".join(name for name in FIXED_OPTIONS if name in options)
    if named:
        return f"{what} without {named}: celery-memsync needs RESP2 and bytes, and chooses them itself"
    timeouts = [name for name in TIMEOUT_OPTIONS if options.get(name) is not None and _seconds(options[name])]
    return f"{what} whose {' and '.join(timeouts)} is {_seconds(None)}" if timeouts else None


_READABLE = {
    "sentinel": "a URL that can be read: sentinel://host:26379;sentinel://host:26379/0?master_name=name",
    **dict.fromkeys(CLUSTER_SCHEMES, "a URL that can be read: redis+cluster://[user:password@]host:port,host:port"),
}


def _options(value: object) -> str | None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return "a dict of options for redis-py, by name"
    return _fixed(value, "a dict")


def _namespace(value: object) -> str | None:
    try:
        Keys("").full(value)
    except InvalidKey as exc:
        return f"a text fit for keys: {exc}"
    return "a text without a slash in front" if str(value).startswith("/") else None


def _worker_id(value: object) -> str | None:
    try:
        return None if value is None else (check_id(value, "worker") and None)
    except InvalidKey as exc:
        return f"a text fit for keys: {exc}"


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "enabled": _flag,
    "failure_types": _flag,
    "history": _flag,
    "backend": _url,
    "backend_options": _options,
    "timeout": _seconds,
    "namespace": _namespace,
    "worker_id": _worker_id,
    "default_ttl": _seconds,
    "cache_size": _count_or_0,
    "cache_max_age": _seconds_or_0,
    "batch_interval": _seconds_or_0,
    "batch_size": _count,
    "max_pending": _count,
    "handler_threads": _count,
    "max_value_size": _count,
    "heartbeat_interval": _seconds,
    "worker_ttl": _seconds,
    "probe_file": _file,
    "recover": _recover,
    "max_recoveries": _count_or_0,
    "stall_timeout": _seconds_or_none,
    "signing_key": _signing_key,
    "redact": _redact,
    "lock_ttl": _seconds,
    "lock_replicas": _count_or_0,
    "strict": _flag_or_none,
    "task_args": _flag,
    "renew_visibility": _flag,
}

#: Those of attributes of tasks that are no settings.
_TASK_CHECKS = {"stall_after": _seconds_or_none}
