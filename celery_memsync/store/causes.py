"""Why Redis could not do something, and what to do: sentences without an address, a password or a value."""
from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import redis

from ..deadline import DEFAULT_TIMEOUT, current

#: What is raised by taking apart an answer that is not what was asked for.
SENSELESS = (TypeError, ValueError, AttributeError, LookupError)

#: What to do if it can't be reached.
CHECK = "is it running, and is memsync_backend right?"

#: What the error of an attempt to connect says, by its kind; the first that fits counts.
UNREACHABLE: tuple[tuple[type[BaseException], str], ...] = (
    (ConnectionRefusedError, f"it refused the connection; {CHECK}"),
    (socket.gaierror, "the name of its host is unknown; correct it in memsync_backend, "
     "or see whether DNS works on this host"),
    (FileNotFoundError, f"its socket is not there; {CHECK}"),
    (PermissionError, "this user may not use its socket; see unixsocketperm in its configuration"),
    (ConnectionError, "it closed the connection; was it stopped, or does it want TLS (rediss:// in memsync_backend)?"),
)

#: What a part of the text of an error means, whatever its kind.
TEXTS = (
    ("closed by server", "it closed the connection; was it stopped, or does it want TLS (rediss:// in memsync_backend)?"),
    ("Protocol Error", "its answer makes no sense; is that a Redis?"),
    ("Authentication required", "it wants a password, and memsync_backend has none; the URL is redis://:password@host"),
    ("without any password configured", "it has no password; remove the one of memsync_backend, or set its requirepass"),
    ("DB index is out of range", "it has no database of that number; see `databases` in its configuration"),
    ("cluster support disabled", "it is not a cluster; let memsync_backend begin with redis://"),
    ("command `SENTINEL`", "it is no Sentinel; name the Sentinels in memsync_backend, mostly at port 26379"),
    ("command 'SENTINEL'", "it is no Sentinel; name the Sentinels in memsync_backend, mostly at port 26379"),
    ("unknown command", "it does not know a command that is needed; celery memsync doctor says which"),
    ("max number of clients", "all its connections are in use; raise its maxclients"),
    ("protected mode", "it takes connections from its own host only; "
     "see protected-mode and requirepass in its configuration"),
    ("invalid bulk length", "it takes no value of this size; raise its proto-max-bulk-len, or lower memsync_max_value_size"),
)


def cause_of_connection(exc: BaseException, timeout: float = DEFAULT_TIMEOUT) -> str:
    """Return why there was no answer, from an error without a code of Redis.

    Args:
        timeout: Most seconds that Redis had.
    """
    for part, meaning in TEXTS:
        if part in str(exc):
            return meaning
    if isinstance(exc, (redis.TimeoutError, TimeoutError)):
        return _late(exc, timeout)
    if isinstance(exc, redis.exceptions.MaxConnectionsError):
        return "all connections of this process are in use; raise max_connections in memsync_backend_options"
    if isinstance(exc, (redis.ConnectionError, OSError)):
        return next(filter(None, map(_unreachable, _chain(exc))), f"it can't be reached; {CHECK}")
    if isinstance(exc, SENSELESS):
        return "its answer makes no sense; is that a Redis?"
    return type(exc).__name__


def _late(exc: BaseException, timeout: float) -> str:
    deadline = current()
    seconds = timeout if deadline is None else min(timeout, deadline.elapsed)
    if any("handshake" in str(one) for one in _chain(exc)):
        return (f"no TLS was agreed on within {seconds:.1f} s; does it speak TLS? "
                "else let memsync_backend begin with redis://")
    return f"it did not answer within {seconds:.1f} s; is it overloaded or paused?"


def _unreachable(exc: BaseException) -> str:
    """Return what an error says; "" for one that is about something else."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({exc.verify_message}); see ssl_ca_certs, and the host in memsync_backend"
    if isinstance(exc, ssl.SSLError):
        return (f"TLS failed ({exc.reason or 'without a reason'}); does it speak TLS, and does it want a certificate "
                "(ssl_certfile and ssl_keyfile in memsync_backend_options)?")
    for kind, meaning in UNREACHABLE:
        if isinstance(exc, kind):
            return meaning
    return f"it can't be reached ({exc.strerror}); {CHECK}" if isinstance(exc, OSError) and exc.strerror else ""


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__
