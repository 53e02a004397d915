"""A write that gets no answer from a Redis that is there is alone with that: the others are written."""
from __future__ import annotations

import pytest

from celery_memsync import StoreError
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually


@pytest.fixture
def narrow_server(tmp_path):
    """A Redis that closes the connection at an argument of more than a mebibyte."""
    server = RedisServer(tmp_path / "redis", "--proto-max-bulk-len", "1mb").start()
    yield server
    server.stop()


def make_narrow(make_memsync, server):
    return make_memsync(url=server.url, batch_interval=60.0, max_value_size=8 << 20)


@pytest.mark.parametrize("before, after", [(0, 0), (0, 1200), (700, 500), (1200, 0)])
def test_value_at_which_redis_closes_the_connection_is_alone(make_memsync, narrow_server, before, after):
    memsync, other = make_narrow(make_memsync, narrow_server), make_memsync(url=narrow_server.url)
    keys = [f"k{number}" for number in range(before + after)]
    for key in keys[:before]:
        memsync.write(key, 1)
    memsync.write("large", "x" * (2 << 20))
    for key in keys[before:]:
        memsync.write(key, 1)

    with pytest.raises(StoreError, match="Redis refuses to write task-sentinel/large .*proto-max-bulk-len"):
        memsync.force_sync()

    assert eventually(lambda: memsync.writer.pending == 1)
    assert sum(value == 1 for value in other.read_many(keys).values()) == len(keys)


def test_counters_are_written_beside_a_value_at_which_redis_closes_the_connection(make_memsync, narrow_server):
    memsync, other = make_narrow(make_memsync, narrow_server), make_memsync(url=narrow_server.url)
    memsync.write("large", "x" * (2 << 20))
    memsync.increment_metrics(done=3)
    memsync.sync_queue({"pending": ["a", "b"]})

    with pytest.raises(StoreError, match="task-sentinel/large"):
        memsync.force_sync()

    assert eventually(lambda: other.get_queue()["pending"] == ["a", "b"])
    assert other.get_coordination_metrics()["done"] == 3


def test_value_at_which_redis_closed_the_connection_is_written_when_it_may_be(make_memsync, narrow_server):
    memsync, other = make_narrow(make_memsync, narrow_server), make_memsync(url=narrow_server.url)
    memsync.write("large", "x" * (2 << 20))
    with pytest.raises(StoreError):
        memsync.force_sync()

    with narrow_server.client() as client:
        client.config_set("proto-max-bulk-len", 8 << 20)
    memsync.force_sync()

    assert other.read("large") == "x" * (2 << 20)
    assert memsync.writer.pending == 0


def test_compare_and_set_at_which_redis_closes_the_connection_raises(make_memsync, narrow_server):
    memsync = make_narrow(make_memsync, narrow_server)

    with pytest.raises(StoreError):
        memsync.write("large", "x" * (2 << 20), expected_version=0)

    assert memsync.write("small", 1, expected_version=0).version == 1


def test_batches_are_as_small_as_a_slow_link_needs(server, redis, make_memsync, other):
    with Proxy(server.port) as proxy:
        memsync = make_memsync(url=proxy.url, batch_interval=60.0, timeout=0.6)
        memsync.read("a")
        proxy.rate = 1 << 20
        for number in range(100):
            memsync.write(f"k{number}", "x" * 20_000)  # two seconds for all of them

        memsync.force_sync(timeout=20)

    assert all(len(value) == 20_000 for value in other.read_many([f"k{number}" for number in range(100)]).values())


def test_value_that_a_link_can_not_carry_in_time_is_alone(server, redis, make_memsync, other):
    with Proxy(server.port) as proxy:
        memsync = make_memsync(url=proxy.url, batch_interval=0.1, timeout=0.6)
        memsync.read("a")
        memsync.write("small", 1)
        memsync.force_sync()
        proxy.rate = 500_000
        memsync.write("large", "x" * 900_000)
        memsync.write("small", 2)

        eventually(lambda: other.read("small") == 2, timeout=10)
        proxy.rate = 0
        memsync.force_sync(timeout=5)

        assert other.read("large") == "x" * 900_000


def test_batches_grow_again(make_memsync, narrow_server):
    memsync = make_narrow(make_memsync, narrow_server)
    memsync.write("large", "x" * (2 << 20))
    with pytest.raises(StoreError):
        memsync.force_sync()
    memsync.delete("large")
    memsync.force_sync()

    for number in range(40_000):
        memsync.write(f"k{number}", number)
    with narrow_server.client() as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        memsync.force_sync(timeout=20)
        flushed = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert flushed < 2 * 40_000 / 100
