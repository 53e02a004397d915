"""A write that gets no answer from a Redis that is there is alone with that: the others are written."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreError
from celery_memsync.keys import Keys
from celery_memsync.writing.changes import SetValue
from celery_memsync.writing.pending import LONGEST_REFUSED_PAUSE, PendingChanges
from tests.support.poisoned_proxy import PoisonedProxy
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.stress import stressed
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

    with pytest.raises(StoreError, match="Could not write task-sentinel/large .*proto-max-bulk-len"):
        memsync.force_sync()

    assert eventually(lambda: memsync.runtime.writer.pending == 1)
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
    assert memsync.runtime.writer.pending == 0


def test_compare_and_set_at_which_redis_closes_the_connection_raises(make_memsync, narrow_server):
    memsync = make_narrow(make_memsync, narrow_server)

    with pytest.raises(StoreError):
        memsync.write("large", "x" * (2 << 20), expected_version=0)

    assert memsync.write("small", 1, expected_version=0).version == 1


@pytest.mark.acceptance
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

    count = stressed(40_000, 15_000)
    for number in range(count):
        memsync.write(f"k{number}", number)
    with narrow_server.client() as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        memsync.force_sync(timeout=20)
        flushed = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert flushed < 2 * count / 100


# -- what is behind it, and beside it

@pytest.fixture
def poisoned(server, redis):
    """A proxy that cuts each connection over which it is to send a poison on."""
    with PoisonedProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def memsync(poisoned, make_memsync):
    return make_memsync(url=poisoned.url, batch_interval=60.0, timeout=1.0)


def test_atomic_operations_come_after_what_was_pending_behind_the_poison(memsync, other):
    memsync.write("poison", "POISON")
    memsync.write("k", "older")
    memsync.sync_queue({"pending": ["a", "b"]})

    entry = memsync.write("k", "newer", expected_version=1)
    memsync.enqueue("c")

    assert (entry.version, other.read("k")) == (2, "newer")
    assert other.get_queue()["pending"] == ["a", "b", "c"]


def test_own_writes_behind_the_poison_are_read(memsync):
    memsync.write("poison", "POISON")
    memsync.write("k", 1)
    memsync.increment_metrics(x=3)

    assert memsync.read("k") == 1
    assert memsync.get_coordination_metrics() == {"x": 3}


def test_compare_and_set_does_not_overtake_a_write_of_its_key_that_is_set_aside(memsync, other, poisoned):
    memsync.write("k", "POISON")
    with pytest.raises(StoreError):
        memsync.force_sync()

    with pytest.raises(StoreError):
        memsync.write("k", "newer", expected_version=0)
    poisoned.stop_cutting()
    memsync.force_sync()

    assert other.read("k") == "POISON"


def test_changes_of_an_entry_keep_their_order_behind_a_poison(memsync, other, poisoned):
    memsync.sync_metrics({"v": "POISON"})
    with pytest.raises(StoreError):
        memsync.force_sync()
    memsync.sync_metrics({"v": 1})
    memsync.increment_metrics(v=1)
    with pytest.raises(StoreError):
        memsync.force_sync()

    poisoned.stop_cutting()
    memsync.force_sync()

    assert other.get_coordination_metrics() == {"v": 2}


@pytest.mark.parametrize("poisons", stressed([1, 2, 5], [5]))
def test_shutdown_writes_all_but_the_poisons(memsync, other, poisons):
    keys = [f"k{number}" for number in range(2000)]
    for number in range(poisons):
        memsync.write(f"poison-{number}", f"POISON {number}")
    for key in keys:
        memsync.write(key, 1)

    memsync.shutdown(5)

    assert sum(value == 1 for value in other.read_many(keys).values()) == len(keys)


def test_a_poison_beside_a_key_that_may_not_be_written_is_sent_a_few_times_only(make_memsync, limited, redis):
    port = int(limited.url.split(":")[-1].split("/")[0])
    with PoisonedProxy(port) as poisoned:
        memsync = make_memsync(url=poisoned.url_of(limited.url), batch_interval=60.0, timeout=1.0)
        limited.refuse("hget")
        memsync.sync_worker_status("w1", "up")
        memsync.write("poison", "POISON")
        with pytest.raises(StoreError):
            memsync.force_sync()
        before = poisoned.cuts

        with pytest.raises(StoreError):
            memsync.force_sync()

        assert poisoned.cuts - before < 10


def test_what_is_refused_a_thousand_times_keeps_its_pause():
    pending = PendingChanges(10)
    pending.put("k", SetValue(Keys("ns").location("k"), b"1", 60.0))
    pending.drain(float("inf"))
    (change,) = pending.due(float("inf"))

    for _ in range(2000):
        pending.refuse(change)

    assert 0 < pending._row_of(change).retry_at - time.monotonic() <= LONGEST_REFUSED_PAUSE


@pytest.mark.parametrize("hold", [False, True])
def test_what_was_sent_in_front_of_a_piece_that_broke_off_is_done_once(server, redis, make_memsync, other, hold):
    with PoisonedProxy(server.port, window=8192, hold=hold) as poisoned:
        memsync = make_memsync(url=poisoned.url, batch_interval=60.0, timeout=1.0)
        memsync.increment_metrics(x=1)
        memsync.force_sync()
        poisoned.stop_cutting_after(1 if hold else 2)
        memsync.increment_metrics(x=1)
        memsync.sync_queue({"pending": [f"POISON{number:0500}" for number in range(1000)]})

        memsync.force_sync(timeout=20)

    assert other.get_coordination_metrics() == {"x": 2}
    assert len(other.get_queue()["pending"]) == 1000
