"""The server of the metrics: what it serves, and clients that hold it up."""
from __future__ import annotations

import gzip
import http.client
import socket
import threading
import time

import pytest

from celery_memsync.metrics import MemsyncCollector
from celery_memsync.metrics.server import MAX_CONNECTIONS, MetricsServer
from tests.support.waiting import eventually


@pytest.fixture
def served(memsync):
    server = MetricsServer(MemsyncCollector(memsync), "127.0.0.1", 0)
    yield server
    server.close()


def fetch(served, path="/metrics", method="GET", host="127.0.0.1", **headers):
    client = http.client.HTTPConnection(host, served.port, timeout=10)
    try:
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        client.close()


@pytest.mark.parametrize("path, status", [
    ("/metrics", 200), ("/metrics/", 200), ("/metrics?name[]=up", 200), ("/", 404), ("/favicon.ico", 404),
    ("/metrics/x", 404), ("/%00", 404), ("/../metrics", 404)])
def test_only_the_metrics_are_served(served, path, status):
    found, body, _ = fetch(served, path)

    assert found == status
    assert (b"celery_memsync_redis_up 1.0\n" in body) == (status == 200)


def test_head_has_the_status_without_the_page(served):
    assert fetch(served, method="HEAD")[:2] == (200, b"")
    assert fetch(served, "/other", method="HEAD")[:2] == (404, b"")
    assert fetch(served, method="POST")[0] == 405


def test_a_page_is_compressed_on_request(served):
    _, body, headers = fetch(served, **{"Accept-Encoding": "gzip"})

    assert headers["Content-Encoding"] == "gzip"
    assert b"celery_memsync_redis_up 1.0\n" in gzip.decompress(body)


def test_clients_that_send_nothing_keep_out_no_scrape(served, capfd):
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(MAX_CONNECTIONS + 60)]
    silent[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost")

    assert fetch(served)[0] == 200
    eventually(lambda: threading.active_count() - before <= MAX_CONNECTIONS)
    for one in silent:
        one.close()
    assert capfd.readouterr() == ("", "")


def test_a_server_closes_while_clients_are_connected(memsync):
    server = MetricsServer(MemsyncCollector(memsync), "127.0.0.1", 0)
    silent = socket.create_connection(("127.0.0.1", server.port))
    fetch(server)
    began = time.monotonic()

    server.close()

    assert time.monotonic() - began < 5
    silent.settimeout(5)
    assert silent.recv(1) == b""
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_an_address_of_ipv6_is_served(memsync):
    try:
        server = MetricsServer(MemsyncCollector(memsync), "::1", 0)
    except OSError:
        pytest.skip("this host has no IPv6")
    try:
        assert fetch(server, host="::1")[0] == 200
    finally:
        server.close()
