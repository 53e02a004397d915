"""Connect to Redis by URL."""
from __future__ import annotations

from typing import Any, Mapping
from urllib.parse import unquote

import redis
from celery.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import embedded
from .settings import lower_scheme, scheme_of

#: Longest that connecting, or one call, may take, in seconds.
CONNECT_TIMEOUT = 2.0
CALL_TIMEOUT = 2.0

#: Connections a process may open: as many as it has threads or greenlets at once.
MAX_CONNECTIONS = 2 ** 16


def connect(url: str, options: Mapping[str, Any]) -> redis.Redis:
    """Return a client; nothing is connected or started yet.

    Everything that differs between versions of redis-py is set here.  A call
    is sent again once when its connection turns out to be broken; what is
    sent is made so that sending it twice is harmless.

    Arguments:
        url: ``redis://``, ``rediss://``, ``unix://`` or ``embedded://[path]``.
        options: For redis-py; they go before the defaults of this function.

    Raises:
        ImproperlyConfigured: If redis-py can't take the URL or an option.
    """
    settings: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": CALL_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "max_connections": MAX_CONNECTIONS,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        **options,
    }
    if scheme_of(url) == "embedded":
        folder = unquote(url.partition("://")[2].partition("?")[0])
        return _client(redis.ConnectionPool, {"connection_class": EmbeddedConnection, "folder": folder, **settings})
    return _client(redis.ConnectionPool.from_url, {"url": lower_scheme(url), **settings})


class EmbeddedConnection(redis.UnixDomainSocketConnection):
    """A connection to the private server, which is started first if it is not there.

    Arguments:
        folder: Directory of the server's files; empty for one that keeps nothing.
    """

    def __init__(self, folder: str = "", socket_connect_timeout: float | None = None, **kwargs: Any) -> None:
        super().__init__(path=embedded.socket_path(folder), **kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        self.folder = folder

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Connect, to a new server if need be."""
        if self._sock is None:
            embedded.start(self.folder)
        super().connect(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]


def _client(make_pool: Any, settings: dict[str, Any]) -> redis.Redis:
    try:
        pool = make_pool(**settings)
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError) as exc:
        # The text of the error may hold the URL; its kind and the options do not.
        names = ", ".join(sorted(set(settings) - {"url"}))
        raise ImproperlyConfigured(
            f"redis-py can't use memsync_backend with these options ({names}): {type(exc).__name__}"
        ) from None
    return redis.Redis(connection_pool=pool)
