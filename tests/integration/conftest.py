"""Fixtures: a broker, a Redis for the shared state, and fleets on them."""
from __future__ import annotations

import pytest

from celery_memsync import MemorySyncManager
from tests.support.fleet import TASKS, Fleet
from tests.support.flows import FLOWS
from tests.support.rabbitmq_server import SERVER, RabbitServer
from tests.support.redis_server import RedisServer
from tests.support.shell import Shell
from tests.support.topologies import Cluster, system_server


@pytest.fixture(scope="session")
def redis_broker(tmp_path_factory):
    """A Redis as the broker of the whole session."""
    server = RedisServer(tmp_path_factory.mktemp("broker")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory):
    """A RabbitMQ for the whole session; tests that use it are skipped where there is none."""
    if SERVER is None:
        pytest.skip("no rabbitmq-server here; install it to run these")
    server = RabbitServer(tmp_path_factory.mktemp("rabbit")).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def broker(redis_broker):
    """The broker of the fleets of a module."""
    return redis_broker


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A Redis for the shared state, for the whole session; not that of the broker."""
    server = RedisServer(tmp_path_factory.mktemp("store")).start()
    yield server
    server.stop()


@pytest.fixture
def own_broker(tmp_path):
    """A broker of this test's own, to be stopped."""
    server = RedisServer(tmp_path / "broker", keep=True).start()
    yield server
    server.stop()


@pytest.fixture
def own_store(tmp_path):
    """A Redis for the shared state of this test, to be stopped; its data survive."""
    server = RedisServer(tmp_path / "store", keep=True).start()
    yield server
    server.stop()


@pytest.fixture
def make_fleet(tmp_path, broker, store):
    """Makes fleets; their workers are killed at the end of the test."""
    made = []

    def make(broker=broker, store=store, **conf):
        made.append(Fleet(tmp_path, broker, store, **conf))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture(scope="module")
def module_fleet(tmp_path_factory, broker, store):
    """A fleet for the tests of one module."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), broker, store)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def flow_fleet(tmp_path_factory, broker, store):
    """A fleet with the tasks of workflows, and a worker of two processes."""
    fleet = Fleet(tmp_path_factory.mktemp("flows"), broker, store, include=[TASKS, FLOWS])
    fleet.start_worker("-c", "2")
    yield fleet
    fleet.close()


@pytest.fixture
def shell(fleet):
    """Where a user types commands about the fleet of a test."""
    return Shell(fleet.env())


@pytest.fixture
def client(own_store):
    """A client of redis-py on the own store of a test."""
    with own_store.client() as client:
        yield client


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three masters without replicas, of the redis-server of the system if there is one."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), replicas=0, patience=15000, binary=system_server())
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def make_on_cluster(cluster):
    """Makes managers, which are shut down at the end of the test."""
    for server in cluster.servers:
        server.client().flushall()
    made = []

    def make(**settings):
        made.append(MemorySyncManager(f"w{len(made) + 1}", settings.pop("url", cluster.url), **settings))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown(timeout=0.5)
