"""Connections to the broker: bounded in time, otherwise as the app has them."""
from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from billiard.util import _run_after_forkers
from celery import Celery

from celery_memsync.fleet.broker_connection import TIMEOUT, bounded_connection, bounded_copy, open_channel
from tests.support.redis_server import RedisServer


@pytest.fixture
def make_app():
    made = []

    def make(url, **conf):
        app = Celery("proj", broker=url, set_as_current=False)
        app.conf.update(conf)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.mark.parametrize("url, options", [
    ("redis://localhost/0", {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}),
    ("amqp://localhost", {"read_timeout": TIMEOUT, "write_timeout": TIMEOUT}),
])
def test_connections_have_timeouts_and_the_options_of_the_app(make_app, url, options):
    app = make_app(url, broker_transport_options={"visibility_timeout": 77})

    connection = bounded_connection(app)

    assert connection.transport_options == {"visibility_timeout": 77, **options}
    assert connection.connect_timeout == TIMEOUT


@pytest.mark.parametrize("own", [{}, {"sentinel_kwargs": {"password": "geheim", "socket_timeout": 100}}])
def test_sentinels_have_timeouts_and_their_options(make_app, own):
    app = make_app("sentinel://localhost", broker_transport_options={"master_name": "mymaster", **own})
    connection = bounded_connection(app)

    for one in (connection, bounded_copy(connection)):
        options = dict(one.transport_options["sentinel_kwargs"])
        assert options.pop("retry")._retries == 0
        assert options == {**own.get("sentinel_kwargs", {}), "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}


@pytest.mark.parametrize("write", [False, True])
def test_reading_and_writing_have_the_urls_that_the_app_gives_them(make_app, write):
    app = make_app("memory://", broker_read_url="redis://reader/1", broker_write_url="redis://writer/2")

    connection = bounded_connection(app, write=write)

    assert (connection.hostname, connection.virtual_host) == (("writer", "2") if write else ("reader", "1"))


@pytest.mark.parametrize("is_ours", [True, False])
def test_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_had(make_app, redis_url, is_ours):
    connection = bounded_connection(make_app(redis_url))
    channel = open_channel(connection) if is_ours else connection.channel()
    channel.queue_declare("q1")
    held, release = threading.Event(), threading.Event()

    def hold():
        with channel.pool._lock:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(1)
        _run_after_forkers()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    release.set()
    thread.join()
    connection.release()

    assert os.waitstatus_to_exitcode(status) == (0 if is_ours else -signal.SIGALRM)


@pytest.mark.slow
def test_missing_broker_is_reported_at_once(make_app, tmp_path):
    server = RedisServer(tmp_path / "broker")
    began = time.monotonic()

    with pytest.raises(Exception) as caught:
        with bounded_connection(make_app(server.url)) as connection:
            connection.connect()
            connection.channel()

    assert isinstance(caught.value, connection.connection_errors)
    assert time.monotonic() - began < 3 * TIMEOUT
