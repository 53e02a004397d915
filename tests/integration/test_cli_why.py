"""`celery memsync why`, `unlock`, `tasks` with filters, and abbreviated ids, as a user types them."""
from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from ..helpers import eventually
from .shell import Shell, one_line, plain


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
    module_fleet.elsewhere = module_fleet.send("add", 1, 2, queue="nobody-takes-this")
    module_fleet.later = module_fleet.send("add", 1, 2, countdown=7200)
    module_fleet.wait(module_fleet.waiting, "RECEIVED")
    module_fleet.wait(module_fleet.later, "RECEIVED")
    module_fleet.wait_record(worker, lambda record: record.status == "busy")
    return module_fleet


@pytest.fixture(scope="module")
def shell(fleet):
    return Shell(fleet.env())


@pytest.mark.parametrize("task, reason, part", [
    ("done", "success", "It has succeeded."),
    ("failed", "failure", "ValueError: it went wrong"),
    ("busy", "running", "It runs on w1-"),
    ("waiting", "received", "0 of 1 free"),
    ("elsewhere", "no-consumer", "start one with -Q nobody-takes-this"),
    ("later", "scheduled", "from now"),
])
def test_why_tells_in_words_and_for_programs(shell, fleet, task, reason, part):
    task_id = getattr(fleet, task).id

    words = plain(shell.run("why", task_id))
    found = json.loads(plain(shell.run("why", "--json", task_id)))

    assert part in words.splitlines()[0]
    assert (found["id"], found["reason"], part in found["answer"]) == (task_id, reason, True)
    assert found["evidence"]


def test_of_a_task_that_nobody_told_of_that_is_said(shell):
    done = shell.run("why", "no-such-task")

    assert done.returncode == 1
    assert "Nobody has told of this task" in done.stdout


def test_a_task_that_a_lock_holds_back_names_it(make_fleet):
    fleet = make_fleet(include=["tests.integration.lock_tasks"])
    fleet.start_worker("-c", "1")
    held = fleet.reader.lock("the-lock", ttl=60)
    held.acquire()
    result = fleet.app.send_task("tests.integration.lock_tasks.try_again", ("the-lock",))
    fleet.wait(result, "RETRY", "RECEIVED")
    eventually(lambda: "RETRY" in fleet.runs(result.id))

    found = json.loads(plain(Shell(fleet.env()).run("why", "--json", result.id)))

    assert found["reason"] == "held-back"
    assert "lock the-lock is held by the-test" in found["answer"]
    assert found["evidence"]["lock"]["fence"] == held.fence


@pytest.mark.parametrize("command", ["task", "why", "agents", "follow"])
def test_an_id_may_be_abbreviated(shell, fleet, command):
    whole = shell.run(command, fleet.done.id, "--json")

    short = shell.run(command, fleet.done.id[:13], "--json")

    assert (short.returncode, short.stdout) == (0, whole.stdout)
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
    (["--worker", "w1-", "--status", "STARTED"], {"busy"}),
    (["--since", "1h", "--name", "*.fail"], {"failed"}),
    (["--since", "0s"], set()),
    (["--worker", "nobody"], set()),
])
def test_tasks_are_chosen_by_what_they_are(shell, fleet, options, expected):
    found = json.loads(plain(shell.run("tasks", "--json", *options)))

    assert {one["id"] for one in found} == {getattr(fleet, name).id for name in expected}


def test_tasks_are_sorted_as_asked_for(shell, fleet):
    found = json.loads(plain(shell.run("tasks", "--json", "--sort", "finished", "--limit", "2", "--worker", "w1-")))

    assert [one["id"] for one in found] == [fleet.failed.id, fleet.done.id]


@pytest.mark.parametrize("typed", ["10 minutes", "m", "-5m", "1e9"])
def test_a_span_that_is_none_is_refused(shell, typed):
    done = shell.run("tasks", f"--since={typed}")

    assert done.returncode == 64
    assert "no span of time" in done.stderr


# -- unlock

@pytest.fixture
def held(fleet):
    """A lock that this process holds."""
    lock = fleet.reader.lock("a-lock", ttl=60)
    lock.acquire()
    yield lock
    lock.release()


def test_nobody_is_asked_who_is_not_there(shell, held):
    done = shell.run("unlock", "a-lock")

    assert done.returncode == 64
    assert "--yes" in done.stderr
    assert held.owned


def test_a_lock_is_taken_away_by_its_fence(shell, fleet, held):
    wrong = shell.run("unlock", "a-lock", "--yes", "--fence", str(held.fence + 1))
    right = json.loads(plain(shell.run("unlock", "a-lock", "--yes", "--json", "--fence", str(held.fence))))
    again = shell.run("unlock", "a-lock", "--yes")

    assert wrong.returncode == 1 and str(held.fence) in one_line(wrong)
    assert (right["name"], right["fence"], right["worker_id"]) == ("a-lock", held.fence, "the-test")
    assert again.returncode == 1 and "Nobody holds" in one_line(again)
    assert fleet.reader.locks() == []


@pytest.mark.parametrize("answer, freed", [("y", True), ("n", False), ("", False)])
def test_on_a_terminal_it_is_asked(fleet, shell, held, answer, freed):
    master, terminal = pty.openpty()

    process = subprocess.Popen(shell._command("tests.integration.proj", ["unlock", "a-lock"]), env=shell.env, stdin=terminal,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(master, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)

    assert "the-test holds it" in err and str(held.fence) in err
    assert (process.returncode == 0, fleet.reader.locks() == []) == (freed, freed)
    os.close(master)
    os.close(terminal)
