"""The history of statistics: kept once a minute by whichever worker gets to it first."""
from __future__ import annotations

import time

import pytest

from celery_memsync.fleet.history import HistoryWriter
from celery_memsync.models.statistics import RunSums
from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key
from tests.support.waiting import eventually

HOUR = 60


@pytest.fixture
def minute(memsync):
    memsync.runtime.store.connect()
    return int(memsync.runtime.store.clock.now() // 60)


def end_runs(memsync, first, count, status="SUCCESS", name="proj.add", queue="celery"):
    now = time.time()
    for number in range(first, first + count):
        memsync.sync_task_run(
            f"t{number}", TaskRun(status, name=name, queue=queue, published_at=now - 3, started_at=now - 1, runtime=0.5),
            run_key(0, 1))
    memsync.force_sync()


def keep(memsync, minute):
    store = memsync.runtime.store
    store.write_history(store.claim_history(minute), store.read_statistics())


def test_a_minute_is_kept_by_one_process_only(memsync, other, minute):
    keys = memsync.runtime.store.claim_history(minute), other.runtime.store.claim_history(minute)

    assert [len(row) for row in keys] == [2, 0]
    assert len(other.runtime.store.claim_history(10 * (minute // 10 + 2))) == 2
    assert len(other.runtime.store.claim_history(10 * (minute // 10 + 2) + 1)) == 1


def test_minutes_show_what_was_added_in_each(memsync, other, minute):
    keep(memsync, minute - 3)
    end_runs(memsync, 0, 5)
    keep(memsync, minute - 2)
    end_runs(memsync, 5, 2, "FAILURE")
    keep(memsync, minute)

    found = other.runtime.statistics.minutes()

    assert [(at - minute, sums.ended, sums.failed) for at, sums in found] == [(-2, 5, 0), (0, 2, 2)]
    assert found[0][1].runtime == 2_500_000 and found[0][1].waits == 5


def test_recent_shows_the_last_hour_by_task(memsync, other, minute):
    end_runs(memsync, 0, 3)
    keep(memsync, minute - HOUR)
    end_runs(memsync, 3, 4)
    end_runs(memsync, 7, 2, "FAILURE", "proj.mul")

    found = other.runtime.statistics.recent()

    assert {name: (one.ended, one.failed) for name, one in found.items()} == {"proj.add": (4, 0), "proj.mul": (2, 2)}


def test_without_history_there_is_no_last_hour(memsync, minute):
    end_runs(memsync, 0, 3)

    assert memsync.runtime.statistics.recent() is None
    assert memsync.runtime.statistics.minutes() == []


def test_data_that_redis_lost_count_from_the_begin(memsync, redis, minute):
    end_runs(memsync, 0, 9)
    keep(memsync, minute - HOUR)
    kept = {key: redis.get(key) for key in redis.keys("*statistics/*/*")}
    redis.flushall()
    redis.mset(kept)
    end_runs(memsync, 20, 4)

    assert memsync.runtime.statistics.recent()["proj.add"].ended == 4


@pytest.mark.parametrize("body", [b"", b"x", b"[1]", b"[1,2,3,4,5,6,-7]", b'{"a": 1, "q\\nt": [1]}', b"\xff", b"[" * 5000])
def test_foreign_data_are_left_out(memsync, redis, minute, body):
    keep(memsync, minute)
    for key in redis.keys("*statistics/minute/*") + redis.keys("*statistics/names/*"):
        redis.set(key, body)

    assert memsync.runtime.store.read_minutes([minute]) == {}
    assert not memsync.runtime.store.read_names(minute)


def test_a_writer_keeps_each_minute_in_its_own_thread(memsync, minute):
    writer = HistoryWriter(memsync.runtime.store, wanted=True)
    end_runs(memsync, 0, 1)

    for _ in range(3):
        writer.note(memsync.runtime.store.clock.now())

    found = eventually(lambda: memsync.runtime.store.read_minutes(range(minute, minute + 3)))
    writer.stop(1)
    assert [one.ended for one in found.values()] == [1]


def test_a_writer_that_is_not_wanted_keeps_nothing(memsync, redis, minute):
    writer = HistoryWriter(memsync.runtime.store, wanted=False)

    writer.note(memsync.runtime.store.clock.now())

    writer.stop(1)
    assert redis.keys("*statistics/minute/*") == []


def test_a_day_of_minutes_and_three_of_200_tasks_take_few_bytes(memsync, redis, minute):
    for number in range(200):
        end_runs(memsync, number, 1, name=f"proj.package.module.task_{number:03}")
    names = memsync.runtime.store.read_statistics()
    big = [one + one for one in names]
    for _ in range(20):
        big = [one + one for one in big]
    store = memsync.runtime.store

    store.write_history(store.claim_history(minute), big)

    (minute_key,), (names_key,) = redis.keys("*statistics/minute/*"), redis.keys("*statistics/names/*")
    a_day, three_days = 1440 * redis.memory_usage(minute_key), 432 * redis.memory_usage(names_key)
    print(a_day, three_days)
    assert a_day < 400_000 and three_days < 12_000_000
    assert 86_000 < redis.ttl(minute_key) <= 86_400 and redis.ttl(names_key) > 3 * 86_000


def test_sums_are_of_whole_numbers():
    assert RunSums.parse([1, 2, 3, 4, 5, 6, 7]) == RunSums(1, 2, 3, 4, 5, 6, 7)
    assert [RunSums.parse(row) for row in (None, [], [1.0] * 7, [True] * 7, ["1"] * 7, [2 ** 63] * 7)] == [None] * 6
