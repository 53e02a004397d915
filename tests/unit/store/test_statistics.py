"""Statistics of the runs of tasks: counted when a stage is accepted, once."""
from __future__ import annotations

import contextlib
import math

import pytest

from celery_memsync import StoreError
from celery_memsync.keys import Keys
from celery_memsync.models.statistics import MAX_EXCEPTIONS, MAX_RECORDS, OTHER, RECORD_SIZE, counts_of
from celery_memsync.models.task import TaskRun
from celery_memsync.store import scripts
from tests.support.redis_calls import calls_of, round_trips
from tests.support.runs import run_key

KEY = Keys("task-sentinel").statistics
WHY = {"type": "ValueError", "message": "no"}


def stage(status, name="proj.add", queue="celery", **known):
    """Return a stage of a run that waited for 2 s and took 0.3 s."""
    times = {"published_at": 1000.0, "started_at": 1002.0}
    if status in ("SUCCESS", "FAILURE", "RETRY"):
        times.update(finished_at=1002.3, runtime=0.3)
    return TaskRun(status, name=name, queue=queue, **{**times, **known})


PENDING = stage("PENDING", started_at=None)


def record(memsync, run, task_id="t1", key=None):
    memsync.sync_task_run(task_id, run, key or run_key(0, 1))
    memsync.force_sync()


def statistics(memsync, task="proj.add", queue="celery"):
    return {(one.task, one.queue): one for one in memsync.runtime.store.read_statistics()}[task, queue]


def counted(one):
    """Return all counts of a record but those that are 0."""
    counts = {"created": one.created, "started": one.started, **one.outcomes, "revised": one.revised,
              "waits": one.wait.count, "runtimes": one.runtime.count}
    return {name: count for name, count in counts.items() if count}


SUCCEEDED = {"created": 1, "started": 1, "succeeded": 1, "waits": 1, "runtimes": 1}

STORIES = {
    "every stage": ([PENDING, stage("STARTED"), stage("SUCCESS")], SUCCEEDED),
    "the end alone": ([stage("SUCCESS")], SUCCEEDED),
    "the end twice": ([stage("SUCCESS"), stage("SUCCESS")], SUCCEEDED),
    "the stages backward": ([stage("SUCCESS"), stage("STARTED"), PENDING], SUCCEEDED),
    "a failure by child and parent": (
        [stage("FAILURE", exception=WHY), stage("FAILURE", runtime=None, exception=WHY)],
        {"created": 1, "started": 1, "failed": 1, "waits": 1, "runtimes": 1}),
    "a killed child": (
        [stage("STARTED"), stage("FAILURE", runtime=None, exception=WHY)],
        {"created": 1, "started": 1, "failed": 1, "waits": 1}),
    "a lost worker": (
        [stage("STARTED"), stage("LOST")], {"created": 1, "started": 1, "lost": 1, "waits": 1}),
    "a lost worker that came back": (
        [stage("STARTED"), stage("LOST"), stage("SUCCESS")], {**SUCCEEDED, "lost": 1, "revised": 1}),
    "revoked in the queue": ([PENDING, stage("REVOKED", started_at=None)], {"created": 1, "revoked": 1}),
    "with an ETA": ([stage("SUCCESS", eta=1001.0)], {"created": 1, "started": 1, "succeeded": 1, "runtimes": 1}),
    "a retry": ([stage("SUCCESS", retries=1)], {"created": 1, "started": 1, "succeeded": 1, "runtimes": 1}),
    "requeued": ([stage("SUCCESS", recoveries=1)], {"created": 1, "started": 1, "succeeded": 1, "runtimes": 1}),
    "planned only": ([stage("PENDING", started_at=None, never_ran=False)], None),
    "never sent": ([stage("CANCELLED", started_at=None, never_ran=True)], None),
}


@pytest.mark.parametrize("name", STORIES)
def test_stages_of_a_run_are_counted_once(memsync, other, name):
    stages, counts = STORIES[name]

    for number, one in enumerate(stages):
        record((memsync, other)[number % 2], one)

    found = memsync.runtime.store.read_statistics()
    assert [counted(one) for one in found] == ([] if counts is None else [counts])


def test_runs_of_a_task_are_counted_each_in_any_order(memsync):
    record(memsync, stage("SUCCESS", retries=1), key=run_key(1, 1))
    record(memsync, stage("RETRY"), key=run_key(0, 1))
    record(memsync, stage("STARTED"), key=run_key(0, 1))

    assert counted(statistics(memsync)) == {
        "created": 1, "started": 2, "retried": 1, "succeeded": 1, "waits": 1, "runtimes": 2}


def test_a_record_has_sums_and_buckets(memsync):
    for number, runtime in enumerate([0.004, 0.3, 0.3, 4000.0]):
        record(memsync, stage("SUCCESS", runtime=runtime, started_at=1000.0 + runtime), f"t{number}")

    one = statistics(memsync)
    assert (one.runtime.sum, one.wait.sum) == (4000.604, 4000.604)
    assert one.runtime.counts == (1, 0, 0, 0, 0, 2, *[0] * 8, 1)
    assert one.wait.counts == (1, 0, 0, 2, *[0] * 10, 1)
    assert one.runtime.mean == pytest.approx(1000.151)
    assert 0.25 < one.runtime.quantile(0.5) <= 0.5 and one.runtime.quantile(1.0) == 1800.0


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_write_without_an_answer_counts_once(proxied, proxy, other, times):
    record(proxied, stage("STARTED"))
    proxied.sync_task_run("t1", stage("SUCCESS"), run_key(0, 1))
    proxy.cut(scripts.ENTRY_WRITE.sha.encode(), times)

    for _ in range(times):
        with contextlib.suppress(StoreError):
            proxied.force_sync()
    proxied.force_sync()

    assert proxy.cuts == 0
    assert counted(statistics(other)) == SUCCEEDED


def test_tasks_of_a_batch_cost_one_command_for_each_name(memsync, redis):
    for name in ("proj.add", "proj.mul"):
        record(memsync, stage("SUCCESS", name=name), f"warm {name}")
    redis.config_resetstat()

    for number in range(100):
        memsync.sync_task_run(f"t{number}", stage("SUCCESS", name=("proj.add", "proj.mul")[number % 2]), run_key(0, 1))
    memsync.force_sync()

    assert calls_of(redis)["bitfield"] == 2


def test_statistics_are_read_in_two_round_trips(memsync, other):
    for number in range(200):
        memsync.sync_task_run(f"t{number}", stage("SUCCESS", name=f"proj.task{number}"), run_key(0, 1))
    memsync.force_sync()
    other.runtime.store.connect()

    assert round_trips(other, other.runtime.store.read_statistics) == 2
    assert len(other.runtime.store.read_statistics()) == 200


def test_names_above_the_limit_are_counted_together(memsync, redis):
    for number in range(MAX_RECORDS + 20):
        memsync.sync_task_run(f"t{number}", stage("SUCCESS", name=f"proj.task{number}"), run_key(0, 1))
    memsync.force_sync()

    found = memsync.runtime.store.read_statistics()
    assert len(found) == MAX_RECORDS + 1
    assert sum(one.outcomes["succeeded"] for one in found) == MAX_RECORDS + 20
    assert counted(statistics(memsync, OTHER, OTHER)) == {name: 20 for name in SUCCEEDED}
    assert len(redis.keys(f"{KEY}*")) == MAX_RECORDS + 2


def test_a_name_without_runs_makes_room_for_another(memsync, redis):
    for number in range(MAX_RECORDS):
        memsync.sync_task_run(f"t{number}", stage("SUCCESS", name=f"proj.task{number}"), run_key(0, 1))
    memsync.force_sync()
    redis.zadd(KEY, {"celery\nproj.task7": 1}, xx=True)
    redis.delete(f"{KEY}/celery\nproj.task7")

    record(memsync, stage("SUCCESS"), "t")

    assert counted(statistics(memsync)) == SUCCEEDED


def test_records_stay_for_a_week(memsync, redis):
    record(memsync, stage("SUCCESS"))

    assert {7 * 86400 < redis.ttl(key) <= 8 * 86400 for key in redis.keys(f"{KEY}*")} == {True}


def test_a_record_of_another_day_is_renewed(memsync, redis):
    record(memsync, stage("SUCCESS"))
    redis.bitfield(f"{KEY}/celery\nproj.add").set("u16", 1712, 7).execute()
    redis.pexpire(f"{KEY}/celery\nproj.add", 60_000)

    record(memsync, stage("SUCCESS"), "t2")

    assert counted(statistics(memsync)) == {name: 2 for name in SUCCEEDED}
    assert redis.ttl(f"{KEY}/celery\nproj.add") > 7 * 86400


def test_a_record_takes_few_bytes(memsync, redis):
    record(memsync, stage("SUCCESS"))

    assert redis.strlen(f"{KEY}/celery\nproj.add") == RECORD_SIZE == 216
    print(redis.memory_usage(f"{KEY}/celery\nproj.add"))
    assert redis.memory_usage(f"{KEY}/celery\nproj.add") < 400


@pytest.mark.parametrize("value", ["x", "y" * 10_000])
def test_what_other_programs_left_there_stops_nothing(memsync, redis, value):
    redis.set(KEY, value)
    redis.lpush(f"{KEY}/celery\nproj.add", value)

    record(memsync, stage("SUCCESS"))

    assert counted(statistics(memsync)) == SUCCEEDED


def test_foreign_names_are_left_out(memsync, redis):
    record(memsync, stage("SUCCESS"))
    foreign = [b"\xff\nx", "a", "a\n", "a\nb\nc", "x" * 300 + "\ny", "q\n" + "z" * 300, "q\n\x1b[1m"]
    redis.zadd(KEY, dict.fromkeys(foreign, 9e12))

    assert [(one.task, one.queue) for one in memsync.runtime.store.read_statistics()] == [("proj.add", "celery")]


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x00", "\ud800", 7, ["a"], {"a": 1}, True])
def test_names_that_cannot_be_shown_are_counted_together(memsync, name):
    run = stage("SUCCESS").evolve(name=name)

    assert counts_of(run, "9").name.split("\n")[1] == OTHER
    assert counts_of(stage("SUCCESS").evolve(queue=name), "9").name.split("\n")[0] == OTHER


@pytest.mark.parametrize("published", [None, "x", 10 ** 400, math.nan, math.inf, -math.inf, 0.0, -5.0, 1e12, True])
def test_a_forged_time_of_publishing_counts_no_waiting_time(memsync, published):
    record(memsync, stage("SUCCESS", published_at=published, started_at=1.7e9))

    assert statistics(memsync).wait.count == 0


def test_failures_are_counted_by_exception_where_that_is_wanted(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    memsync.runtime.store.counts_exceptions = True

    for number in range(MAX_EXCEPTIONS + 5):
        for again in range(2):
            why = {"type": f"Error{number}", "message": ""}
            record(memsync, stage("FAILURE", exception=why), f"t{number}.{again}")

    failures = statistics(memsync).failures
    assert failures == {**{f"Error{number}": 2 for number in range(MAX_EXCEPTIONS)}, OTHER: 10}


def test_failures_are_not_counted_by_exception_unless_wanted(memsync, redis):
    record(memsync, stage("FAILURE", exception=WHY))

    assert statistics(memsync).failures == {}
    assert len(redis.keys(f"{KEY}*")) == 2


def test_a_user_without_the_right_lacks_statistics_and_nothing_else(make_memsync, limited, memsync):
    limited.refuse("bitfield")
    without = make_memsync(url=limited.url, batch_interval=60.0)

    record(without, stage("SUCCESS"))

    assert memsync.get_task_state("t1")["status"] == "SUCCESS"
    assert memsync.get_coordination_metrics()["succeeded"] == 1
    assert memsync.runtime.store.read_statistics() == []
    assert without.runtime.store.check_rights().forbidden == ["bitfield"]
