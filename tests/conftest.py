"""Fixtures: a real Redis, and memories in it."""
from __future__ import annotations

import gc
import os

import pytest
import redis as redis_py

from celery_memsync import MemorySyncManager
from celery_memsync.reading import listener, subscriptions
from tests.support.limited import Limited
from tests.support.lossy_proxy import LossyProxy
from tests.support.redis_server import RedisServer
from tests.support.sender import Sender
from tests.support.stress import stressed


def pytest_collection_modifyitems(config, items):
    """Leave the tests for `make acceptance` to that."""
    if not stressed(True, False):
        kept = [item for item in items if not item.get_closest_marker("acceptance")]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("acceptance")])
        items[:] = kept


def pytest_collection_finish():
    """Spare the garbage collector the thousands of tests, which stay to the end: some tests collect many times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One redis-server for the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(server):
    """URL of an empty Redis."""
    url = os.environ.get("MEMSYNC_TEST_REDIS_URL", server.url)
    with redis_py.Redis.from_url(url, protocol=2) as client:
        client.flushall()
    return url


@pytest.fixture
def redis(redis_url):
    """A client of redis-py on that Redis."""
    with redis_py.Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
def limited(redis):
    """A user of that Redis whose rights a test can remove."""
    yield Limited(redis)
    redis.execute_command("ACL", "DELUSER", "limited")


@pytest.fixture
def own_server(tmp_path):
    """A redis-server of this test's own, to be stopped, killed and paused."""
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.fixture
def make_memsync(redis_url):
    """Makes managers, which are shut down at the end of the test."""
    made = []

    def make(worker_id=None, url=None, **settings):
        manager = MemorySyncManager(worker_id=worker_id or f"worker-{len(made) + 1}", url=url or redis_url, **settings)
        made.append(manager)
        return manager

    yield make
    for manager in 2 * made:  # a resolver that is called at a shutdown may open another one
        manager.shutdown(timeout=0.5)


@pytest.fixture
def fast_polling(monkeypatch):
    """The listener and the expiry of keys are checked every tenth of a second."""
    for module, name, seconds in (
        (listener, "CHECK_INTERVAL", 0.1), (listener, "ANSWER_TIMEOUT", 1.0), (listener, "TRUST", 1.1),
        (subscriptions, "EXPIRY_INTERVAL", 0.1),
    ):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def memsync(make_memsync):
    """A manager; its writer's thread is as good as asleep, so that tests flush by hand."""
    return make_memsync(batch_interval=60.0)


@pytest.fixture
def other(make_memsync):
    """A second manager, which stands for another process."""
    return make_memsync(batch_interval=60.0)


@pytest.fixture
def proxy(server):
    """A proxy that loses answers of that Redis."""
    proxy = LossyProxy(server.port)
    yield proxy
    proxy.released.set()
    proxy.listener.close()


@pytest.fixture
def proxied(make_memsync, proxy):
    """A patient manager behind the proxy, connected already; its writer's thread is as good as asleep."""
    memsync = make_memsync(url=proxy.url, batch_interval=60.0, backend_options={"socket_timeout": 10})
    memsync.get_queue()
    return memsync


@pytest.fixture
def make_sender(redis_url):
    """Makes apps whose messages the test consumes and drops by hand."""
    made = []

    def make(**conf):
        made.append(Sender(redis_url, **conf))
        return made[-1]

    yield make
    for sender in made:
        sender.close()
