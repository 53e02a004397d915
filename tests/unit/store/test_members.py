"""How far a group is, counted from the stages of its members: each once, and an end is never taken back."""
from __future__ import annotations

import random

import pytest

from celery_memsync.models.task import TaskRun
from celery_memsync.store.members import SINCE, TOTAL, TOTAL_FROM, note
from celery_memsync.writing.changes import StageChange
from tests.support.redis_calls import calls_of
from tests.support.runs import run_key

#: What is recorded of a member, in this order; done, succeeded, failed and running at the end.
STAGES = {
    "it was published": (["0 PENDING"], (0, 0, 0, 0)),
    "it is running": (["0 PENDING", "0 RECEIVED", "0 STARTED"], (0, 0, 0, 1)),
    "it has a status of its own": (["0 STARTED", "0 READING"], (0, 0, 0, 1)),
    "success": (["0 PENDING", "0 STARTED", "0 SUCCESS"], (1, 1, 0, 0)),
    "failure": (["0 STARTED", "0 FAILURE"], (1, 0, 1, 0)),
    "revoked": (["0 PENDING", "0 REVOKED"], (1, 0, 0, 0)),
    "revoked while running, then failure": (["0 STARTED", "0 REVOKED", "0 FAILURE"], (1, 0, 1, 0)),
    "ignored": (["0 STARTED", "0 IGNORED"], (1, 0, 0, 0)),
    "it waits for a retry": (["0 STARTED", "0 RETRY"], (0, 0, 0, 0)),
    "its retry is received": (["0 STARTED", "0 RETRY", "1 RECEIVED"], (0, 0, 0, 0)),
    "its retry is running": (["0 STARTED", "0 RETRY", "1 RECEIVED", "1 STARTED"], (0, 0, 0, 1)),
    "its retry succeeds": (["0 STARTED", "0 RETRY", "1 STARTED", "1 SUCCESS"], (1, 1, 0, 0)),
    "lost with its worker": (["0 STARTED", "0 LOST"], (0, 0, 0, 0)),
    "lost, and sent again": (["0 STARTED", "0 LOST", "1 PENDING", "1 STARTED", "1 SUCCESS"], (1, 1, 0, 0)),
    "late publishing": (["0 SUCCESS", "0 PENDING"], (1, 1, 0, 0)),
    "failure, run again": (["0 FAILURE", "1 PENDING", "1 STARTED"], (1, 0, 1, 0)),
    "failure, run again, retry": (["0 FAILURE", "1 STARTED", "1 RETRY"], (1, 0, 1, 0)),
    "failure, then success": (["0 FAILURE", "1 STARTED", "1 SUCCESS"], (1, 1, 0, 0)),
}


def record(memsync, task_id, words, group="g"):
    step, status = words.split()
    memsync.sync_task_run(task_id, TaskRun(status, group=group), run_key(int(step), int(step)))


def figures(memsync, group="g"):
    """Return what is counted of a group, which is read by another process."""
    found = memsync.get_group(group)
    return found.done, found.succeeded, found.failed, found.running


@pytest.mark.parametrize("words, counted", STAGES.values(), ids=list(STAGES))
@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_member_is_counted_by_its_stages(memsync, other, words, counted, at_once):
    for one in words:
        record(memsync, "t", one)
        if not at_once:
            memsync.force_sync()
    memsync.force_sync()

    assert figures(other) == counted
    assert other.get_group("g").total == 1


def test_count_does_not_depend_on_the_order_of_members_and_batches(memsync, other):
    ends = {f"t{number}": end for number, end in enumerate(["SUCCESS"] * 30 + ["FAILURE"] * 12 + ["REVOKED"] * 5)}
    stages = [(task_id, f"0 {status}") for task_id, end in ends.items() for status in ("PENDING", "STARTED", end)]
    order = random.Random(7)
    order.shuffle(stages)

    for manager, task_id, words in zip([memsync, other] * len(stages), *zip(*stages)):
        record(manager, task_id, words)
        if order.random() < 0.1:
            manager.force_sync()
    memsync.force_sync()

    assert figures(other) == (47, 30, 12, 0)
    assert other.get_group("g").percent == 100


def test_total_is_what_was_sent_and_more_if_members_were_added(memsync, other):
    notes = (("g", note(TOTAL, TOTAL_FROM + 3)), ("g", note(SINCE, -1_000_000)))
    location = memsync.runtime.keys.task_location("t0", 1)
    run = TaskRun("PENDING", group="g")
    memsync.runtime.writer.put(StageChange(location, run, run_key(0, 0), 60.0, notes=notes))
    memsync.force_sync()
    before = other.get_group("g")
    for number in range(1, 5):
        record(memsync, f"t{number}", "0 SUCCESS")
    memsync.force_sync()

    assert (before.total, before.done, before.started_at) == (3, 0, 1000.0)
    assert (other.get_group("g").total, other.get_group("g").percent) == (5, 80.0)


def test_member_costs_at_most_a_tenth_more_commands_than_a_task_alone(memsync, redis):
    def cost(name, group=None):
        redis.config_resetstat()
        for status in ("PENDING", "STARTED", "SUCCESS"):
            for number in range(25):
                task_id = f"{name}{number}"
                memsync.sync_task_run(task_id, TaskRun(status, root_id=task_id, group=group), run_key(0, 0))
            memsync.force_sync()
        return sum(calls_of(redis).values())

    cost("first")
    alone, grouped = cost("alone"), cost("member", "g")

    assert alone < grouped < 1.1 * alone


def test_unknown_group_is_none(memsync):
    assert memsync.get_group("nothing") is None


def test_task_without_a_group_has_no_set(memsync, redis):
    memsync.sync_task_run("alone", TaskRun("SUCCESS", root_id="alone"), run_key(0, 0))
    memsync.force_sync()

    assert redis.keys("*members*") == []


def test_set_expires_after_its_members(memsync, redis):
    record(memsync, "t", "0 SUCCESS")
    memsync.force_sync()
    (key,) = redis.keys("*members*")

    left = redis.pttl(key)

    assert redis.pttl(memsync.runtime.keys.task("t")) < left < 2000 * memsync.settings.default_ttl


@pytest.mark.parametrize("junk", [
    lambda redis, key: redis.set(key, "text"),
    lambda redis, key: redis.zadd(key, {"//total": 1e300, "//since": 5, b"\xff\x00": 3, "a/b": 9}),
    lambda redis, key: redis.zadd(key, {"//total": "-inf", "//since": "-inf", "x": "inf"}),
], ids=["a text", "foreign names", "infinite"])
def test_foreign_data_in_a_set_breaks_nothing(memsync, other, redis, junk):
    key = memsync.runtime.keys.members("g")
    junk(redis, key)
    other.get_group("g")
    record(memsync, "t", "0 SUCCESS")
    memsync.force_sync()

    found = other.get_group("g")

    assert found.succeeded >= 1
    assert found.done <= found.total


@pytest.mark.parametrize("group", ["a\nb", "a/b", "", "g" * 600])
def test_group_of_a_record_that_is_no_id_is_not_counted(memsync, redis, group):
    memsync.sync_task_run("t", TaskRun("SUCCESS", group=group), run_key(0, 0))
    memsync.force_sync()

    assert redis.keys("*members*") == []
    assert memsync.get_task_state("t")["status"] == "SUCCESS"
