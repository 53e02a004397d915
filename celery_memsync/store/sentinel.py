"""Connections to the master that Sentinels name."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from ..deadline import raise_if_expired

#: Longest that a Sentinel may take, in seconds: there are others.
SENTINEL_TIMEOUT = 0.5

#: What a server that takes no writes says when a script tries to; before Redis 7 amid other words.
READ_ONLY = "READONLY You can't write"


class Sentinels:
    """Those who know which server is the master.

    Each question has a connection of its own, so nothing is shared by threads
    or with a forked child, and an interrupted question leaves nothing behind.

    Args:
        addresses: Host and port of each.
        master_name: What they call the servers that belong together.
        options: For redis-py's connection to a Sentinel.
        connection_class: Its kind.
    """

    def __init__(
        self, addresses: tuple[tuple[str, int], ...], master_name: str, options: Mapping[str, Any], connection_class: Any,
    ) -> None:
        self._addresses = addresses
        self._master_name = master_name
        self._options = options
        self._connection_class = connection_class

    def __str__(self) -> str:
        return f"{self._master_name} of Sentinels {', '.join(f'{host}:{port}' for host, port in sorted(self._addresses))}"

    def masters(self) -> Iterator[tuple[str, int]]:
        """Yield the address of the master by one Sentinel after the other; those that do not answer are passed over."""
        for address in self._addresses:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, OSError):
                master = self._master_by(address)
                if master is not None:
                    # Who has answered is asked first from now on.
                    self._addresses = (address, *(other for other in self._addresses if other != address))
                    yield master

    def distrust(self) -> None:
        """Take note that who answered last does not know it yet: the others are asked first."""
        first, *others = self._addresses
        self._addresses = (*others, first)

    def _master_by(self, address: tuple[str, int]) -> tuple[str, int] | None:
        connection = self._connection_class(host=address[0], port=address[1], **self._options)
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name)
            answer = connection.read_response()
        finally:
            connection.disconnect()
        return (answer[0].decode(), int(answer[1])) if answer else None


class SentinelConnection(redis.Connection):
    """A connection to whatever server is the master when it is made.

    If that turns out to be a replica by now the connection is broken, so that
    the next one asks the Sentinels again.

    Args:
        sentinels: Who know where it is.
    """

    def __init__(self, sentinels: Sentinels, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        self._sentinels = sentinels

    def _connect(self) -> Any:
        """Return a socket; redis-py connects by itself, too, when it sends."""
        failures: dict[tuple[str, int], OSError] = {}
        for master in self._sentinels.masters():
            if master not in failures:
                self.host, self.port = master
                try:
                    return super()._connect()  # type: ignore[no-untyped-call,unused-ignore]
                except OSError as exc:
                    failures[master] = exc
        raise_if_expired()
        for failure in failures.values():
            if isinstance(failure, TimeoutError):
                raise failure  # which is not tried again
        raise redis.ConnectionError("no Sentinel names a master that can be reached")

    def on_connect(self) -> None:
        """Log in, and see that it is the master."""
        super().on_connect()  # type: ignore[no-untyped-call,unused-ignore]
        if not hasattr(redis.Connection, "on_connect_check_health"):
            self._see_role()

    def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Do the same; redis-py from 6 on calls this one, also for the other."""
        super().on_connect_check_health(*args, **kwargs)  # type: ignore[misc,no-untyped-call,unused-ignore]
        self._see_role()

    def _see_role(self) -> None:
        self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call,unused-ignore]
        try:
            role = super().read_response()[0]  # type: ignore[no-untyped-call,index,unused-ignore]
        except redis.ResponseError:
            return  # this user may not ask; a replica will say so at the first write
        if role != b"master":
            self._sentinels.distrust()
            raise redis.ConnectionError("the Sentinels name a replica as master")

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next answer; that this is a replica by now is no answer."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]
        except redis.ResponseError as exc:
            if not isinstance(exc, redis.ReadOnlyError) and READ_ONLY not in str(exc):
                raise
            self.disconnect()  # type: ignore[no-untyped-call,unused-ignore]
            raise redis.ConnectionError("the master has become a replica") from exc


class SentinelTLSConnection(SentinelConnection, redis.SSLConnection):
    """The same with TLS."""
