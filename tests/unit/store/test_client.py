"""Connecting: everything that differs between versions of redis-py is set."""
from __future__ import annotations

import pytest
import redis as redis_py
from celery.exceptions import ImproperlyConfigured

from celery_memsync.deadline import DEFAULT_TIMEOUT
from celery_memsync.store.client import CONNECT_TIMEOUT, connect
from tests.support.proxy import Proxy
from tests.support.publishing import publish
from tests.support.redis_server import free_port
from tests.support.threads import in_background
from tests.support.waiting import eventually


def options_of(client):
    return client.connection_pool.connection_kwargs


def test_nothing_is_connected_before_it_is_needed():
    client = connect(f"redis://127.0.0.1:{free_port()}", {})

    with pytest.raises(redis_py.ConnectionError):
        client.ping()


def test_what_differs_between_versions_of_redis_py_is_set():
    options = options_of(connect("redis://localhost", {}))

    assert options["protocol"] == 2
    assert options["decode_responses"] is False
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (DEFAULT_TIMEOUT, CONNECT_TIMEOUT)


def test_options_go_before_the_defaults():
    options = options_of(connect("redis://localhost", {"socket_timeout": 1.5, "client_name": "me"}))

    assert options["socket_timeout"] == 1.5
    assert options["client_name"] == "me"


@pytest.mark.parametrize("url, kind", [
    ("redis://localhost:1/2", redis_py.Connection),
    ("rediss://localhost:1/2", redis_py.SSLConnection),
    ("unix:///tmp/redis.sock", redis_py.UnixDomainSocketConnection),
])
def test_the_scheme_chooses_the_kind_of_connection(url, kind):
    assert issubclass(connect(url, {}).connection_pool.connection_class, kind)


@pytest.mark.parametrize("url, options", [
    ("redis://localhost:port", {}), ("redis://localhost", {"bogus": 1}), ("redis://localhost?bogus=1", {}),
    ("unix:///tmp/redis.sock", {"ssl_ca_certs": "x"}),
])
def test_what_redis_py_can_not_use_is_a_wrong_setting(url, options):
    with pytest.raises(ImproperlyConfigured, match="memsync_backend") as caught:
        connect(url, options)

    assert "localhost" not in str(caught.value)


def test_a_call_is_sent_again_when_its_connection_was_closed_by_the_server(redis_url, redis):
    client = connect(redis_url, {})
    client.set("a", 1)

    redis.client_kill_filter(_type="normal", skipme=True)

    assert client.get("a") == b"1"


def test_missing_redis_is_reported_soon():
    client = connect(f"redis://127.0.0.1:{free_port()}", {})

    with pytest.raises(redis_py.ConnectionError):
        client.ping()

    assert options_of(client)["retry"]._retries <= 1


def test_a_read_that_is_under_way_at_shutdown_gets_its_answer(make_memsync, own_server):
    with Proxy(own_server.port) as proxy:
        memsync = make_memsync(url=proxy.url, cache_size=0)
        other = make_memsync(url=own_server.url, batch_interval=60.0)
        publish(other, {"a": 1})
        memsync.read("warm")

        proxy.hold(b"GET")
        answer = in_background(lambda: memsync.read("a"))
        eventually(lambda: proxy.held)
        memsync.shutdown(timeout=0.1)
        proxy.release()

        assert answer() == 1
        assert len(proxy._sent) == 1
