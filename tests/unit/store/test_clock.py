"""Redis's clock: a host whose own clock is wrong does not matter."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync.store.clock import DRIFT, Clock
from tests.support.proxy import Proxy


def redis_time(redis):
    seconds, micros = redis.time()
    return seconds + micros / 1e6


def test_until_the_first_answer_the_hosts_clock_stands_in():
    clock = Clock()

    assert abs(clock.now() - time.time()) < 0.1
    assert not clock.measured


def test_an_answer_sets_the_clock_with_half_the_round_trip_as_error():
    clock = Clock()

    clock.learn(1000.0, asked=10.0, answered=12.0)

    assert clock.measured
    assert clock.at(11.0) == pytest.approx(1000.0)
    assert clock.at(20.0) == pytest.approx(1009.0)


def test_answer_with_the_shortest_round_trip_sets_the_clock():
    clock = Clock()

    clock.learn(1000.0, asked=10.0, answered=10.2)
    clock.learn(1001.3, asked=11.0, answered=12.0)

    assert clock.at(10.1) == pytest.approx(1000.0)


def test_a_better_answer_replaces_a_worse_one():
    clock = Clock()

    clock.learn(1000.0, asked=10.0, answered=12.0)
    clock.learn(1002.5, asked=13.0, answered=13.2)

    assert clock.at(13.1) == pytest.approx(1002.5)


@pytest.mark.parametrize("later, ahead", [(100.0, 0.0), (1.0 / DRIFT, 0.4)])
def test_an_old_measurement_gives_way_when_it_may_be_worse_because_clocks_drift(later, ahead):
    clock = Clock()

    clock.learn(1000.0, asked=0.0, answered=0.0)
    clock.learn(1000.0 + later + 0.9, asked=later, answered=later + 1)

    assert clock.at(later) == pytest.approx(1000.0 + later + ahead)


@pytest.mark.parametrize("step", [-3600.0, -2.0, 2.0, 3600.0])
def test_step_of_the_server_clock_is_followed_at_once(step):
    clock = Clock()

    clock.learn(1000.0, asked=10.0, answered=10.001)
    clock.learn(1001.0 + step, asked=11.0, answered=11.5)

    assert clock.at(11.25) == pytest.approx(1001.0 + step)


@pytest.mark.slow
def test_a_first_answer_that_was_slow_dates_nothing_wrongly(server, make_memsync, redis, other):
    with Proxy(server.port) as proxy:
        memsync = make_memsync(url=proxy.url, batch_interval=60.0)
        proxy.hold(b"TIME")
        threading.Timer(0.8, proxy.release).start()

        written_at = redis_time(redis)
        memsync.write("a", 1)
        memsync.force_sync()

        assert abs(other.read_entry("a").timestamp - written_at) < 0.25


@pytest.mark.parametrize("wrong", [3600.0, -3600.0, 1e8])
def test_entries_carry_the_time_of_redis_despite_a_wrong_host_clock(memsync, other, redis, wrong):
    memsync.runtime.store.clock.offset += wrong

    before = redis_time(redis)
    memsync.write("a", 1, ttl=60.0)
    memsync.force_sync()

    assert abs(other.read_entry("a").timestamp - before) < 1
    assert other.read("a") == 1


@pytest.mark.parametrize("fast", [0, 1])
def test_a_host_whose_clock_is_ahead_does_not_win(memsync, other, fast):
    (memsync, other)[fast].runtime.store.clock.offset += 3600.0
    memsync.write("a", "first")
    time.sleep(0.05)
    other.write("a", "second")

    other.force_sync()
    memsync.force_sync()

    assert memsync.read("a") == "second"


def test_a_pending_write_is_not_expired_by_a_wrong_host_clock(memsync):
    memsync.runtime.store.clock.offset -= 1e6

    memsync.write("a", 1, ttl=30.0)

    assert memsync.read("a") == 1


def test_progress_carries_the_time_of_redis(memsync, other, redis):
    memsync.runtime.store.clock.offset += 3600.0
    before = redis_time(redis)

    memsync.sync_task_progress("t1", 50)
    memsync.force_sync()

    progress = other.get_task_progress("t1")
    assert abs(progress["started_at"] - before) < 1
    assert abs(progress["updated_at"] - before) < 1


def test_a_clock_takes_what_another_process_of_its_host_knows_until_redis_answers():
    clock = Clock()
    clock.assume(5_000.0, time.monotonic())
    assumed, was_measured = clock.now(), clock.measured

    clock.learn(9_000.0, time.monotonic(), time.monotonic())

    assert (assumed, was_measured) == (pytest.approx(5_000.0, abs=1), False)
    assert (clock.now(), clock.measured) == (pytest.approx(9_000.0, abs=1), True)


@pytest.mark.parametrize("moment", [None, True, 5, "now", [], float("nan"), float("inf"), -1e300, 1e300], ids=repr)
def test_a_clock_takes_no_time_that_is_none(moment):
    clock = Clock()

    clock.assume(moment, time.monotonic())
    clock.assume(5_000.0, moment)

    assert clock.now() == pytest.approx(time.time(), abs=1)
