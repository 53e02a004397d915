"""One write that Redis does not take: it is alone, and what follows from the others happens."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreUnavailable
from celery_memsync.keys import STAGE, Keys
from celery_memsync.models.task import TaskRun
from celery_memsync.store import EntryWrite
from celery_memsync.writing.changes import StageChange
from tests.support.runs import run_key
from tests.support.waiting import eventually

KEYS = Keys("task-sentinel")


def write(name, serial, body=b"1", seen="*"):
    return EntryWrite(KEYS.location(name), seen, "", "-", 0, time.monotonic(), 60_000, serial, body)


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


@pytest.fixture
def guarded(make_memsync, limited):
    """A manager of that user."""
    return make_memsync(url=limited.url, batch_interval=60.0)


@pytest.mark.parametrize("bad", [0, 1, 57, 99, 100, 149])
def test_a_key_that_is_not_allowed_is_found_among_many(guarded, other, redis, bad):
    names = [f"k{number}" for number in range(150)]
    own = [*guarded.runtime.store._shared_keys(), KEYS.clock]
    allowed = [f"~{KEYS.location(name).key}" for at, name in enumerate(names) if at != bad]
    redis.execute_command("ACL", "SETUSER", "limited", "resetkeys", *allowed, *(f"~{key}" for key in own))

    outcomes = guarded.runtime.store.write_entries([write(name, at + 1) for at, name in enumerate(names)])

    refused = [(at, outcome.code) for at, outcome in enumerate(outcomes) if outcome.status != "ok"]
    assert refused == [(bad, "NOPERM")]
    assert outcomes[bad].passes and not outcomes[bad].is_of_all
    assert len(other.search("k*")) == 149


def test_every_write_is_refused_where_nothing_is_allowed(guarded, redis):
    redis.execute_command("ACL", "SETUSER", "limited", "-evalsha")

    outcomes = guarded.runtime.store.write_entries([write(f"k{number}", number + 1) for number in range(250)])

    assert {(outcome.status, outcome.code, outcome.is_of_all) for outcome in outcomes} == {("error", "NOPERM", True)}
    assert len(outcomes) == 250


def test_a_script_that_fails_in_one_write_makes_the_others(memsync, other):
    broken = write("b", 2)._replace(fence="no number")

    outcomes = memsync.runtime.store.write_entries([write("a", 1), broken, write("c", 3)])

    assert statuses(outcomes) == ["ok", "error", "ok"]
    assert (outcomes[1].code, outcomes[1].passes) == ("ERR", False)
    assert other.search("?") == ["task-sentinel/a", "task-sentinel/c"]


def test_later_writes_of_an_entry_do_not_overtake_one_that_was_refused(memsync, other):
    broken = write("a", 1)._replace(fence="no number")

    outcomes = memsync.runtime.store.write_entries([broken, write("b", 2), write("a", 3), write("b", 4)])

    assert statuses(outcomes) == ["error", "ok", "error", "ok"]
    assert other.read("a") is None


def test_second_try_reports_which_write_is_the_last(memsync):
    memsync.runtime.store.write_entries([write("a", 1), write("a", 2)])

    first, second = memsync.runtime.store.write_entries([write("a", 1), write("a", 2)])

    assert statuses([first, second]) == ["again", "again"]
    assert first.writes == second.writes == f"{memsync.runtime.store.token}.2"


def test_what_follows_from_other_entries_happens_if_one_is_refused(make_memsync, other, limited):
    memsync = make_memsync(url=limited.url, batch_interval=60.0)
    limited.refuse("hget")
    memsync.sync_worker_status("w1", "up")
    memsync.write("a", 1)
    memsync.sync_task_run("t1", TaskRun("STARTED"), run_key(0, 1))

    with pytest.raises(StoreUnavailable, match="workers/w1/status"):
        memsync.force_sync()

    assert other.search("a") == ["task-sentinel/a"]
    assert [task["id"] for task in other.get_tasks()] == ["t1"]
    assert other.get_queue()["processing"] == ["t1"] and other.get_coordination_metrics()["total"] == 1


@pytest.mark.parametrize("right", ["xadd", "zadd", "hincrby"])
def test_a_list_that_can_not_be_written_keeps_nothing_from_the_others(make_memsync, other, limited, right):
    memsync = make_memsync(url=limited.url, batch_interval=60.0)
    limited.refuse(right)
    memsync.write("a", 1)
    memsync.sync_task_run("t1", TaskRun("STARTED"), run_key(0, 1))

    memsync.force_sync()

    assert other.read("a") == 1 and other.get_task_state("t1")["status"] == "STARTED"
    assert (other.search("?") == []) == (right == "zadd")
    assert (other.get_tasks() == []) == (right == "xadd")


# -- a right to channels that is taken away

def test_what_may_not_be_published_is_stored_and_published_later(make_memsync, other, redis, limited):
    memsync, received = make_memsync(url=limited.url, batch_interval=0.01), {}
    other.subscribe("*", lambda key, value: received.__setitem__(key, value))
    redis.execute_command("ACL", "SETUSER", "limited", "resetchannels")
    memsync.write("a", 1)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_agent_coordination("t1", "coder", 7)
    memsync.force_sync()
    answers = (
        memsync.write("b", 2, expected_version=0), memsync.enqueue("q"),
        memsync.lock("l").acquire())
    unpublished = memsync.runtime.store.unpublished

    redis.execute_command("ACL", "SETUSER", "limited", "&*")

    eventually(lambda: memsync.runtime.store.unpublished == 0)
    eventually(lambda: len(received) >= 4)
    assert unpublished == 4 and answers[0].version == 1 and answers[1:] == (True, True)
    assert other.search("?") == ["task-sentinel/a", "task-sentinel/b"]
    assert {
        key.partition("/")[2]: value for key, value in received.items()
        if "coordination" not in key.split("/")[1]
    } == {
        "a": 1, "b": 2, "tasks/t1/state": {"x": 1}, "tasks/t1/agents/coder": 7}


# -- figures

@pytest.mark.parametrize("runtime", [float("nan"), float("inf"), -1.0, 1e300, "5", None])
def test_a_runtime_that_is_none_is_not_counted(memsync, runtime):
    change = StageChange(KEYS.task_location("t1", STAGE), TaskRun("SUCCESS", runtime=runtime), run_key(0, 1), 60.0)

    memsync.runtime.writer.put(change)
    memsync.force_sync()

    assert memsync.get_coordination_metrics() == {"total": 1, "succeeded": 1, "runtime": 0}
