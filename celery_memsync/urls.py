"""URLs that name several servers: Sentinels, or the nodes of a cluster."""
from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus

from redis.connection import parse_url

#: Schemes of a cluster; the second is with TLS.
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")

#: What Celery calls a socket of this host.
SOCKET_SCHEMES = ("redis+socket", "socket")

#: Ports that are meant if none is named.
SENTINEL_PORT = 26379

NODE_PORT = 6379

#: Hosts with a login before them, path and query of a URL without its scheme.
_REST = re.compile(r"([^/?#]*)([^?#]*)\??([^#]*)")

#: What redis-py, by `urllib.parse.urlsplit`, removes from a URL before it reads it.
_IGNORED = str.maketrans("", "", "\t\r\n")


class Servers(NamedTuple):
    """What a URL of several servers says.

    Attributes:
        addresses: Host and port of each.
        options: For redis-py's connections: user, password, database, and what stands behind the ``?``.
    """

    addresses: tuple[tuple[str, int], ...]
    options: dict[str, Any]


def scheme_of(url: str) -> str:
    """Return what a URL begins with, in lower case."""
    return url.partition("://")[0].lower() if "://" in url else ""


def lower_scheme(url: str) -> str:
    """Return a URL as redis-py reads it."""
    return scheme_of(url) + url[len(scheme_of(url)):]


def as_redis_py(url: str) -> str:
    """Return an equivalent of one of Celery's URLs that redis-py can read: of a socket, or with a ``virtual_host``."""
    if scheme_of(url) in SOCKET_SCHEMES:
        url = "unix://" + url.partition("://")[2]
    return re.sub(r"([?&])virtual_host=/?", r"\1db=", url)


def check_database(url: str) -> None:
    """Check that the path of a URL is the number of a database, which redis-py does not.

    Raises:
        ValueError: If it is something else.
    """
    for part in _parts(url):
        found = _REST.match(part)
        if found and not re.fullmatch(r"/?\d*/?", found[2]):
            raise ValueError("the path is no number of a database")


def is_cluster(url: str) -> bool:
    """Whether a URL names nodes of a cluster."""
    return scheme_of(url) in CLUSTER_SCHEMES


def servers_of(url: str) -> Servers:
    """Read ``sentinel://h1:26379;sentinel://h2:26379/0?master_name=m`` or ``redis+cluster://h1:7000,h2:7000``.

    User, password, database and options may stand at any of the servers; the first counts.

    Raises:
        ValueError: If it can't be read.
    """
    port = NODE_PORT if is_cluster(url) else SENTINEL_PORT
    addresses: list[tuple[str, int]] = []
    options: dict[str, Any] = {}
    for part in _parts(url):
        said = dict(parse_url("redis://" + part))  # type: ignore[no-untyped-call,unused-ignore]
        if not said.get("host"):
            raise ValueError("a host is missing")
        addresses.append((said.pop("host"), said.pop("port", None) or port))
        options = {**said, **options}
    return Servers(tuple(dict.fromkeys(addresses)), options)


def with_login_in_front(url: str) -> str:
    """Return an equivalent URL whose user and password stand before its first host.

    redis-py also reads them as ``?username=...&password=...``, but Celery masks a password in
    its reports only before a host.  A URL without these options is returned as it is.
    """
    if scheme_of(url) == "embedded":
        return url  # it has a folder, and no login
    several = scheme_of(url) == "sentinel" or is_cluster(url)
    servers = [_server_of(part) for part in (url.split(";") if several else [url])]
    if all(len(one.users) == len(one.passwords) == 1 for one in servers):
        return url
    user = next((user for one in servers for user in one.users if user), "")
    password = next((password for one in servers for password in one.passwords if password), "")
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    logins = [login, *(one.login for one in servers[1:])]
    return ";".join(one.scheme + login + one.rest for one, login in zip(servers, logins))


class _Server(NamedTuple):
    """A server of a URL, all percent-encoded.

    Attributes:
        login: What stands before the host, with its ``@``.
        rest: Host, path and query, without user and password.
        users: The user before the host, then those in the query; the first not empty counts.
        passwords: The same of the password.
    """

    scheme: str
    login: str
    rest: str
    users: list[str]
    passwords: list[str]


def _server_of(part: str) -> _Server:
    scheme, sign, rest = part.partition("://") if "://" in part else ("", "", part)
    found = _REST.match(rest.translate(_IGNORED))
    hosts, path, query = found.groups() if found else (rest, "", "")
    login, at, hosts = hosts.rpartition("@")
    user, _, password = login.partition(":")
    users, passwords, kept = [user], [password], []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        values = {"username": users, "password": passwords}.get(unquote_plus(name).lower())
        if values is None:
            kept.append(option)
        else:
            values.append(_encoded(value))
    query = "&".join(kept)
    return _Server(
        scheme + sign, login + at, hosts + path + (query and f"?{query}"), users, passwords)


def _encoded(value: str) -> str:
    """Return a value of a query as it stands before a host."""
    # redis-py decodes it because its versions differ in how often they do so.
    options = parse_url(f"redis://?password={value}")  # type: ignore[no-untyped-call,unused-ignore]
    return quote(options.get("password", ""), safe="", errors="replace")


def with_master_name(url: str, name: object) -> str:
    """Return a URL of Sentinels with the name of the master, unless it has one, or none is known."""
    if not name or "master_name=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}master_name={quote(str(name), safe='')}"


def _parts(url: str) -> list[str]:
    """Return each server of a URL with what belongs to it, without the scheme."""
    parts: list[str] = []
    for piece in url.split(";"):
        rest = piece.partition("://")[2] if "://" in piece else piece
        if "://" in piece and scheme_of(piece) != scheme_of(url):
            raise ValueError("its servers have different schemes")
        end = min((at for mark in "/?" if (at := rest.find(mark)) >= 0), default=len(rest))
        login, sign, hosts = rest[:end].rpartition("@")
        first, *others = hosts.split(",")
        parts += [login + sign + first + rest[end:], *others]
    return parts
