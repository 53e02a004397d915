"""`celery memsync why`, `unlock`, `tasks` with filters, and abbreviated ids, as a user types them."""
from __future__ import annotations

import json

import pytest

from tests.support.shell import Shell, plain
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(module_fleet):
    """A fleet with a worker of one slot, a task in it, one that waits, one for another queue, one to begin later."""
    worker = module_fleet.start_worker("-c", "1")
    module_fleet.done = module_fleet.send("add", 1, 2)
    module_fleet.failed = module_fleet.send("fail")
    module_fleet.wait(module_fleet.done, "SUCCESS")
    module_fleet.wait(module_fleet.failed, "FAILURE")
    module_fleet.busy = module_fleet.send("sleep", 120)
    module_fleet.wait(module_fleet.busy, "STARTED")
    module_fleet.waiting = module_fleet.send("sleep", 0)
    module_fleet.elsewhere = module_fleet.send("add", 1, 2, queue="not-consumed")
    module_fleet.later = module_fleet.send("add", 1, 2, countdown=7200)
    module_fleet.wait(module_fleet.waiting, "RECEIVED")
    module_fleet.wait(module_fleet.later, "RECEIVED")
    module_fleet.wait_record(worker, lambda record: record.status == "busy")
    return module_fleet


@pytest.mark.parametrize("task, reason, part", [
    ("done", "succeeded", "It succeeded "),
    ("failed", "failed", "ValueError: it went wrong"),
    ("busy", "running", "It has run on w1-"),
    ("waiting", "reserved", "all its 1 slots are taken"),
    ("elsewhere", "no-consumer", "no worker consumes the queue not-consumed"),
    ("later", "eta", "not to start before"),
])
def test_why_prints_a_sentence_and_json(shell, fleet, task, reason, part):
    task_id = getattr(fleet, task).id

    text = plain(shell.run("why", task_id))
    found = json.loads(plain(shell.run("why", "--json", task_id)))

    assert part in text.splitlines()[0]
    assert (found["id"], found["reason"], part in found["answer"]) == (task_id, reason, True)
    assert found["evidence"]


def test_why_of_an_unknown_task_reports_that(shell):
    done = shell.run_process("why", "no-such-task")

    assert done.returncode == 1
    assert "never sent, or its record has expired" in done.stdout + done.stderr


def test_a_task_that_a_lock_holds_back_names_it(make_fleet):
    fleet = make_fleet(include=["tests.support.lock_tasks"])
    fleet.start_worker("-c", "1")
    held = fleet.reader.lock("the-lock", ttl=60)
    held.acquire()
    result = fleet.app.send_task("tests.support.lock_tasks.try_again", ("the-lock",))
    fleet.wait(result, "RETRY", "RECEIVED")
    shell = Shell(fleet.env())

    def held_back():
        found = json.loads(plain(shell.run("why", "--json", result.id)))
        return found if found["reason"] == "locked" else None  # now and then it is being tried

    found = eventually(held_back, timeout=60)

    assert "the lock the-lock on the-test" in found["answer"]
    assert found["evidence"]["lock"]["fence"] == held.fence


@pytest.mark.parametrize("command", ["task", "why", "agents", "follow"])
def test_an_id_may_be_abbreviated(shell, fleet, command):
    whole = shell.run(command, fleet.done.id, "--json")

    short = shell.run(command, fleet.done.id[:13], "--json")

    assert (short.returncode, whole.returncode) == (0, 0)
    assert json.loads(short.stdout).get("id") == json.loads(whole.stdout).get("id")
    assert command == "agents" or fleet.done.id in short.stdout


def test_an_abbreviation_of_several_is_refused_with_the_candidates(shell, fleet):
    for name in ("same-1", "same-2"):
        fleet.reader.sync_task_state(name, {"x": 1})
    fleet.reader.force_sync()

    done = shell.run("task", "same")

    assert done.returncode == 64
    assert "same-1" in done.stderr and "same-2" in done.stderr and done.stdout == ""
    assert json.loads(plain(shell.run("task", "same-1", "-j")))["id"] == "same-1"


def test_a_worker_may_be_abbreviated(shell, fleet):
    found = json.loads(plain(shell.run("workers", "--json", "w1-")))

    assert found["worker_id"] == fleet.workers[0].name


@pytest.mark.parametrize("options, expected", [
    (["--name", "*.add"], {"done", "elsewhere", "later"}),
    (["--name", "*.add", "--status", "success"], {"done"}),
    (["--worker", "w1-*", "--status", "STARTED"], {"busy"}),
    (["--since", "1h", "--name", "*.fail"], {"failed"}),
    (["--since", "0.001s", "--name", "*.fail"], set()),
    (["--worker", "unknown"], set()),
])
def test_tasks_are_chosen_by_what_they_are(shell, fleet, options, expected):
    found = json.loads(plain(shell.run("tasks", "--json", *options)))

    assert {one["id"] for one in found} == {getattr(fleet, name).id for name in expected}


def test_tasks_are_sorted_by_the_sort_option(shell, fleet):
    found = json.loads(plain(shell.run("tasks", "--json", "--sort", "finished", "--limit", "2", "--worker", "w1-*")))

    assert [one["id"] for one in found] == [fleet.failed.id, fleet.done.id]


@pytest.mark.parametrize("typed", ["10 minutes", "m", "-5m", "1e9"])
def test_a_span_that_is_none_is_refused(shell, typed):
    done = shell.run("tasks", f"--since={typed}")

    assert done.returncode == 64
    assert "no span of time" in done.stderr
