"""The server that answers at an address is another one than before, and the former one lives on."""
from __future__ import annotations

import contextlib
import logging

import pytest

from tests.support.cache_hits import is_hit
from tests.support.proxy import Proxy
from tests.support.publishing import publish
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually


@pytest.fixture
def redis_url(own_server):
    """The former server, to which no other client is connected."""
    return own_server.url


@pytest.fixture
def successor(tmp_path):
    server = RedisServer(tmp_path / "successor").start()
    yield server
    server.stop()


@pytest.fixture
def address(own_server):
    """Where a process finds the one or the other."""
    with Proxy(own_server.port) as proxy:
        yield proxy


@pytest.fixture(params=["former", "successor"])
def busy(request, own_server, successor):
    """Which of the servers has more connections, so that ids of the other are those of a client there, or of none."""
    server = own_server if request.param == "former" else successor
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(server.client()).client_id()
        yield request.param


def move(address, former, successor):
    """Let new connections go to another server, and the listening one stay where it is."""
    address.port = successor.port
    former.client_kill_filter(_type="normal", skipme=True)


def test_what_is_read_from_another_server_than_the_listeners_is_not_kept(
    redis, make_memsync, address, successor, busy, caplog,
):
    memsync, other = make_memsync(url=address.url), make_memsync(url=successor.url)
    caplog.set_level(logging.WARNING, "celery_memsync")
    publish(other, {"a": 1})
    memsync.read("b")
    move(address, redis, successor)

    found = [memsync.read("a") for _ in range(3)]
    publish(other, {"a": 2})

    assert found == [1, 1, 1]
    eventually(lambda: memsync.read("a") == 2, timeout=5)
    assert eventually(lambda: is_hit(memsync, "a"))
    assert "does not allow" not in caplog.text


def test_the_listener_goes_where_new_connections_go(redis, make_memsync, address, successor, busy):
    memsync, other, received = make_memsync(url=address.url), make_memsync(url=successor.url), []
    memsync.subscribe("a", lambda key, value: received.append(value))
    memsync.read("b")
    move(address, redis, successor)

    for key in "cde":
        memsync.read(key)
    publish(other, {"a": 1})

    eventually(lambda: received == [1], timeout=5)


def test_subscription_reads_from_the_server_its_listener_moved_to(
    redis, make_memsync, address, successor, redis_url,
):
    memsync, former, other, received = (
        make_memsync(url=address.url), make_memsync(url=redis_url), make_memsync(url=successor.url), [])
    for value in ("old", "lost"):
        publish(former, {"a": value})
    publish(other, {"a": "new"})
    memsync.subscribe("a", lambda key, value: received.append(value))
    publish(former, {"a": "lost, too"})
    eventually(lambda: received)

    address.port = successor.port
    redis.client_kill_filter(_type="pubsub", skipme=True)

    eventually(lambda: received[-1] == "new", timeout=5)
