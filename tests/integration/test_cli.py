"""`celery memsync ...` as a user types it."""
from __future__ import annotations

import json
import time

import pytest

from tests.support.redis_server import free_port
from tests.support.shell import Shell, one_line, plain
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(module_fleet):
    """A fleet with a worker."""
    worker = module_fleet.start_worker("-c", "2")
    module_fleet.wait_record(worker, lambda record: record.status == "active")
    return module_fleet


@pytest.fixture(scope="module")
def sent(fleet):
    """Tasks of each kind, by status."""
    sent = {"SUCCESS": fleet.send("count_to", 7), "FAILURE": fleet.send("fail", "the cup is empty")}
    for status, result in sent.items():
        fleet.wait(result, status)
    sent["STARTED"] = fleet.send("sleep", 60)
    fleet.wait(sent["STARTED"], "STARTED")
    fleet.wait_running(fleet.workers[0], sent["STARTED"])
    return sent


@pytest.fixture(scope="module")
def shell(fleet, sent):
    """A shell that is set up for that fleet."""
    return Shell(fleet.env())


def test_status_shows_redis_workers_and_tasks(shell, fleet, sent):
    shown = plain(shell.run_process("status"))

    assert fleet.workers[0].name in shown
    assert fleet.name in shown
    assert "1 SUCCESS" in shown and "1 FAILURE" in shown and "1 STARTED" in shown
    assert sent["STARTED"].id in shown


def test_status_as_json_holds_the_same(shell, fleet, sent):
    shown = json.loads(plain(shell.run("status", "--json")))

    (worker,) = shown["workers"]
    assert worker["worker_id"] == fleet.workers[0].name
    assert worker["status"] == "active"
    assert worker["capacity"]["total"] == 2
    assert [running["id"] for running in worker["running"]] == [sent["STARTED"].id]
    assert shown["tasks"] == {"SUCCESS": 1, "FAILURE": 1, "STARTED": 1}
    assert [task["id"] for task in shown["running"]] == [sent["STARTED"].id]


def test_tasks_shows_all_of_them_newest_first(shell, sent):
    lines = plain(shell.run("tasks")).splitlines()

    assert lines[0].startswith("ID")
    assert [line.split()[:2] for line in lines[1:]] == [
        [sent[status].id, status] for status in ("STARTED", "FAILURE", "SUCCESS")]


def test_tasks_of_one_status_are_shown(shell, sent):
    shown = plain(shell.run("tasks", "--status", "FAILURE"))

    assert sent["FAILURE"].id in shown
    assert sent["SUCCESS"].id not in shown and sent["STARTED"].id not in shown


@pytest.mark.parametrize("status", ["SUCCESS", "failure"])
def test_tasks_of_one_status_as_json(shell, sent, status):
    (shown,) = json.loads(plain(shell.run("tasks", "--status", status, "--json")))

    assert shown["id"] == sent[status.upper()].id
    assert shown["state"]["status"] == status.upper()


def test_tasks_limit_bounds_the_number_of_tasks(shell, sent):
    shown = json.loads(plain(shell.run("tasks", "--limit", "1", "--json")))

    assert [task["id"] for task in shown] == [sent["STARTED"].id]


def test_tasks_of_a_status_without_tasks_print_a_line_or_an_empty_list(shell):
    text = shell.run("tasks", "--status", "REVOKED")
    shown = shell.run("tasks", "--status", "REVOKED", "--json")

    assert len(plain(text).splitlines()) == 1
    assert json.loads(plain(shown)) == []


def test_task_shows_all_that_is_known(shell, sent):
    shown = plain(shell.run("task", sent["FAILURE"].id))

    assert "FAILURE" in shown
    assert "ValueError: the cup is empty" in shown
    assert "tests.support.tasks.fail" in shown


def test_task_as_json_is_what_get_task_returns(shell, fleet, sent):
    shown = json.loads(plain(shell.run("task", sent["SUCCESS"].id, "--json")))

    assert shown == fleet.reader.get_task(sent["SUCCESS"].id)
    assert shown["progress"]["current"] == 7


def test_unknown_task_is_exit_code_1(shell):
    done = shell.run_process("task", "no-such-task")

    assert done.returncode == 1
    assert "no-such-task" in one_line(done)


@pytest.mark.parametrize("task_id", ["a/b", "*", "", "x" * 600])
def test_an_id_that_can_not_be_is_exit_code_64(shell, task_id):
    done = shell.run("task", task_id)

    assert done.returncode == 64
    assert "task id" in one_line(done)


@pytest.mark.parametrize("command", [["status"], ["tasks"], ["task", "some-id"], ["status", "--json"]])
def test_redis_away_is_exit_code_69_and_one_line_without_the_password(make_fleet, command):
    fleet = make_fleet()
    shell = Shell(fleet.env(memsync_backend=f"redis://user:hushhush@127.0.0.1:{free_port()}/0"))

    done = (shell.run_process if command == ["status"] else shell.run)(*command)

    assert done.returncode == 69
    assert "Redis" in one_line(done)
    assert "hushhush" not in done.stderr


def test_redis_that_does_not_answer_is_exit_code_69_in_a_while(make_fleet, own_store):
    fleet = make_fleet(store=own_store)
    own_store.pause()
    began = time.monotonic()

    done = Shell(fleet.env()).run_process("status")

    assert done.returncode == 69
    assert "did not answer within 3.0 s" in one_line(done)
    assert time.monotonic() - began < 12


def test_what_a_terminal_would_act_on_is_not_shown(make_fleet):
    fleet = make_fleet()
    result = fleet.task("fail").apply(["\x1b[31mred\nand a line"])
    fleet.wait(result, "FAILURE")

    shown = plain(Shell(fleet.env()).run("task", result.id))

    assert "ValueError: ?[31mred?and a line" in shown


def test_a_wrong_setting_is_exit_code_78_and_one_line(make_fleet):
    fleet = make_fleet()
    shell = Shell(fleet.env(memsync_batch_size=-1))

    done = shell.run_process("status")

    assert done.returncode == 78
    assert "memsync_batch_size" in one_line(done)


def test_a_misspelt_setting_is_exit_code_78_and_one_line(make_fleet):
    fleet = make_fleet()
    shell = Shell(fleet.env(memsync_namespase="x"))

    done = shell.run_process("tasks")

    assert done.returncode == 78
    assert "did you mean memsync_namespace?" in one_line(done)


def test_no_redis_anywhere_is_exit_code_78_and_one_line(make_fleet):
    fleet = make_fleet()
    shell = Shell(fleet.env(memsync_backend=None, result_backend=None, broker_url="memory://"))

    done = shell.run_process("status")

    assert done.returncode == 78
    assert "memsync_backend" in one_line(done)


def test_the_commands_work_for_an_app_that_has_only_the_setting(shell, sent):
    shown = json.loads(plain(shell.run_process("tasks", "--json", app="tests.support.bare")))

    assert {task["id"] for task in shown} == {result.id for result in sent.values()}


def test_empty_store_is_no_error(make_fleet):
    fleet = make_fleet()
    shell = Shell(fleet.env())

    status, tasks = plain(shell.run("status")), plain(shell.run("tasks"))

    assert "No worker" in status
    assert "No task" in tasks


def test_killed_worker_is_shown_as_lost(make_fleet):
    fleet = make_fleet(memsync_worker_ttl=1.0)
    worker = fleet.start_worker("-c", "1")
    fleet.wait_record(worker, lambda record: record.status == "active")
    worker.process.kill()
    eventually(lambda: fleet.record(worker).status == "lost")

    shown = json.loads(plain(Shell(fleet.env()).run("status", "--json")))

    assert [one["status"] for one in shown["workers"]] == ["lost"]


def test_the_commands_are_listed_with_what_they_do(shell):
    shown = plain(shell.run_process("--help"))

    assert "status" in shown and "tasks" in shown and "task " in shown
