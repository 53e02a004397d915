"""`celery memsync` views, and keys that are looked at and changed, as a user types them."""
from __future__ import annotations

import json
import threading
from dataclasses import asdict

import pytest

from tests.support.redis_server import free_port
from tests.support.shell import Shell, one_line, plain
from tests.support.waiting import eventually

#: Every command.
COMMANDS = (
    ["status"], ["tasks"], ["tasks", "--since", "1m", "--sort", "runtime"], ["task", "some-id"], ["why", "some-id"],
    ["unlock", "some-lock", "--yes"], ["workers"], ["workers", "some-id"], ["locks"], ["queue"], ["metrics"],
    ["agents", "some-id"], ["assignments"], ["search"], ["get", "some/key"],
    ["doctor"], ["watch", "-t", "0.1"], ["follow", "some-id", "-t", "0.1"],
)

#: Commands of Redis that a read-only command of ours may send.
LOOKING = {
    "client|setinfo", "client|setname", "client|id", "client|tracking", "get", "hget", "hgetall", "hello", "info",
    "llen", "ping", "psubscribe", "punsubscribe", "select", "subscribe", "time", "unsubscribe", "xrevrange", "zrange",
    "zcount", "zrangebyscore", "zrank", "zscan", "zscore", "client",
}

#: Commands that the test itself sends.
SENT_BY_THE_TEST = {"config", "config|resetstat"}


@pytest.fixture(scope="module")
def fleet(module_fleet):
    """A fleet with a worker that has one slot, a task in it, and one that waits."""
    worker = module_fleet.start_worker("-c", "1")
    module_fleet.busy = module_fleet.send("sleep", 60)
    module_fleet.wait(module_fleet.busy, "STARTED")
    module_fleet.waiting = module_fleet.send("sleep", 0)
    module_fleet.wait(module_fleet.waiting, "RECEIVED")
    module_fleet.wait_record(worker, lambda record: record.status == "busy" and record.capacity["reserved"])
    module_fleet.reader.write("prices/size", {"size": [1, 2], "colour": "\x1b[31mred", "unit": "円"})
    module_fleet.reader.force_sync()
    return module_fleet


@pytest.fixture
def empty(make_fleet):
    """A shell for an empty store."""
    return Shell(make_fleet().env())


def test_workers_shows_each_with_its_status_and_slots(shell, fleet):
    titles, row = plain(shell.run("workers")).splitlines()

    assert titles.split()[:4] == ["WORKER", "STATUS", "POOL", "FREE"]
    assert row.split()[:4] == [fleet.workers[0].name, "busy", "prefork", "0/1"]


def test_workers_as_json_is_what_get_workers_returns(shell, fleet):
    (shown,) = json.loads(plain(shell.run("workers", "--json")))

    record = fleet.record(fleet.workers[0]).as_dict()
    assert set(shown) == set(record)
    steady = ("worker_id", "status", "hostname", "pid", "pool", "concurrency", "queues", "versions")
    assert [shown[name] for name in steady] == [record[name] for name in steady]


@pytest.mark.parametrize("status, count", [("BUSY", 1), ("lost", 0)])
def test_workers_of_one_status_are_shown(shell, status, count):
    shown = json.loads(plain(shell.run("workers", "--status", status, "--json")))

    assert len(shown) == count


def test_worker_shows_what_it_runs_and_consumes(shell, fleet):
    shown = plain(shell.run("workers", fleet.workers[0].name))

    assert f"task {fleet.busy.id}  tests.support.tasks.sleep" in shown
    assert f"queue {fleet.name}" in shown
    assert "celery-memsync" in shown


def test_worker_as_json_is_its_record(shell, fleet):
    shown = json.loads(plain(shell.run("workers", fleet.workers[0].name, "-j")))

    assert shown["worker_id"] == fleet.workers[0].name
    assert [task["id"] for task in shown["running"]] == [fleet.busy.id]


def test_unknown_worker_is_exit_code_1(shell):
    done = shell.run("workers", "no-such-worker")

    assert done.returncode == 1
    assert "no-such-worker" in one_line(done)


def test_locks_shows_holder_fence_and_waiters(shell, fleet):
    lock = fleet.reader.lock("invoice:7")
    lock.acquire()
    waiter = fleet.manager().lock("invoice:7", wait=30, thread_local=False)
    thread = threading.Thread(target=waiter.acquire)
    thread.start()
    eventually(lambda: [one.waiters for one in fleet.reader.locks()] == [1])

    table, shown = plain(shell.run("locks")), json.loads(plain(shell.run("locks", "--json")))
    lock.release()
    thread.join(10)
    waiter.release()

    assert table.splitlines()[1].split()[:3] == ["invoice:7", "the-test", "-"]
    (row,) = shown
    assert (row["name"], row["worker_id"], row["fence"], row["waiters"]) == ("invoice:7", "the-test", lock.fence, 1)
    assert 0 < row["ttl"] <= 30


def test_queue_shows_running_tasks_before_pending_ones(shell, fleet):
    rows = [line.split() for line in plain(shell.run("queue")).splitlines()[1:]]

    assert rows == [
        ["processing", fleet.busy.id, fleet.workers[0].name],
        ["pending", fleet.waiting.id, "-"],
    ]


def test_queue_as_json_is_what_get_queue_returns(shell, fleet):
    shown = json.loads(plain(shell.run("queue", "--json")))

    assert shown == fleet.reader.get_queue() == {"pending": [fleet.waiting.id], "processing": [fleet.busy.id]}


def test_queue_limit_bounds_the_number_of_tasks(make_fleet):
    fleet = make_fleet()
    fleet.reader.sync_queue({"pending": ["a", "b", "c"]})
    fleet.reader.force_sync()

    shown = json.loads(plain(Shell(fleet.env()).run("queue", "--limit", "2", "--json")))

    assert shown == {"pending": ["a", "b"], "processing": []}


def test_counters_shows_the_counters(make_fleet):
    fleet = make_fleet()
    fleet.reader.sync_metrics({"region": "north"})
    fleet.reader.increment_metrics(pages=12)
    fleet.reader.force_sync()
    shell = Shell(fleet.env())

    table, shown = plain(shell.run("counters")), json.loads(plain(shell.run("counters", "--json")))

    assert [line.split() for line in table.splitlines()] == [["pages", "12"], ["region", '"north"']]
    assert shown == {"pages": 12, "region": "north"}


def test_keys_lists_those_that_match_one_a_line(shell, fleet):
    shown = plain(shell.run("search", "tasks/*/state")).splitlines()

    assert set(shown) == {f"{fleet.name}/tasks/{result.id}/state" for result in (fleet.busy, fleet.waiting)}


def test_keys_as_json_is_what_search_returns(shell, fleet):
    shown = json.loads(plain(shell.run("search", "prices/*", "--json")))

    assert shown == [f"{fleet.name}/prices/size"]


def test_search_reports_omitted_keys_on_stderr(shell):
    done = shell.run("search", "tasks/*", "--limit", "1")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "--limit" in done.stderr


def test_search_without_a_match_reports_it_on_stderr(shell):
    done = shell.run("search", "nothing/*")

    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing/*" in done.stderr


def test_key_shows_value_version_and_writer(shell, fleet):
    shown = plain(shell.run("get", "prices/size"))

    assert f"{fleet.name}/prices/size" in shown and "the-test" in shown
    assert json.loads(shown[shown.index("{"):]) == {"size": [1, 2], "colour": "\x1b[31mred", "unit": "円"}


def test_key_as_json_is_what_read_entry_returns(shell, fleet):
    shown = json.loads(plain(shell.run("get", f"{fleet.name}/prices/size", "--json")))

    assert shown == asdict(fleet.reader.read_entry("prices/size"))


def test_a_terminal_without_the_letters_of_a_value_shows_it_all_the_same(shell):
    shown = plain(shell.run_process("get", "prices/size", PYTHONIOENCODING="latin-1"))

    assert "\\u5186" in shown


def test_a_key_under_which_nothing_is_stored_is_exit_code_1(shell):
    done = shell.run("get", "prices/none")

    assert done.returncode == 1
    assert "prices/none" in one_line(done)


@pytest.mark.parametrize("command", [
    ["workers", "a/b"], ["get", "a//b"], ["get", "*"], ["search", "a\nb"], ["watch", "a\nb"],
])
def test_what_is_not_fit_for_a_key_is_exit_code_64(shell, command):
    done = shell.run(*command)

    assert done.returncode == 64
    assert len(one_line(done)) < 300


@pytest.mark.parametrize("command, text", [
    (["workers"], "No worker"), (["assignments"], "No worker"), (["agents", "t1"], "No agent"),
    (["locks"], "No lock"), (["queue"], "No task"), (["counters"], "Nothing"),
])
def test_empty_store_is_reported_in_one_line(empty, command, text):
    (line,) = plain(empty.run(*command)).splitlines()

    assert line.startswith(text)


@pytest.mark.parametrize("command", [
    ["workers"], ["workers", "some-id"], ["locks"], ["queue"], ["counters"], ["metrics"], ["search"], ["get", "some/key"],
    ["watch"], ["follow", "some-id"], ["doctor"],
])
def test_redis_away_is_exit_code_69_and_one_line_without_the_password(make_fleet, command):
    shell = Shell(make_fleet().env(memsync_backend=f"redis://user:hushhush@127.0.0.1:{free_port()}/0"))

    done = shell.run(*command)

    assert done.returncode == 69
    assert "Redis" in one_line(done)
    assert "hushhush" not in done.stderr


def test_no_command_changes_anything(make_fleet, own_store):
    shell = Shell(make_fleet(store=own_store).env())
    with own_store.client() as client:
        client.config_resetstat()

        for command in COMMANDS:
            if command != ["doctor"]:  # it tries what Redis allows
                shell.run(*command)

        sent = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
        shell.run("doctor")
        assert eventually(lambda: client.dbsize() == 0)
    assert "hgetall" in sent
    assert sent - LOOKING - SENT_BY_THE_TEST == set()


# -- what changes something

def test_a_value_is_set_read_and_deleted(shell, fleet):
    first = plain(shell.run("set", "notes/1", '{"a": [1, "b"]}', "--ttl", "60"))
    second = json.loads(plain(shell.run("set", "notes/1", '"text"', "--expected-version", "1", "--json")))
    deleted = plain(shell.run("delete", "notes/1", "--yes"))

    assert first == f"{fleet.name}/notes/1 is at version 1.\n"
    assert (second["value"], second["version"]) == ("text", 2)
    assert deleted == f"Deleted: {fleet.name}/notes/1\n"
    assert fleet.reader.read("notes/1", consistent=True) is None


@pytest.mark.parametrize("command, code, text", [
    (["set", "notes/2", "text"], 64, "quotes"),
    (["set", "notes/2", "1", "--ttl", "0"], 64, "ttl"),
    (["set", "notes/2", "1", "--expected-version", "7"], 1, "notes/2"),
    (["set", "coordination/queue", "1"], 64, "sync_queue"),
    (["delete", "notes/2", "--yes"], 1, "notes/2"),
    (["delete", "notes/2"], 64, "there is no terminal to ask on; --yes deletes the entry"),
    (["tasks", "--status", "failur"], 64, "did you mean FAILURE?"),
    (["tasks", "--status", "qqq", "--json"], 64, "there are: CANCELLED, FAILURE, IGNORED"),
    (["workers", "--status", "unknown"], 64, "'active', 'busy'"),
    (["no-such-command"], 64, "no-such-command"),
    (["tasks", "--limit", "0"], 64, "limit"),
    (["follow"], 64, "ID"),
])
def test_failed_command_prints_its_reason_and_exit_code(shell, command, code, text):
    done = shell.run(*command)

    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr and "Traceback" not in done.stderr


def test_agents_and_assignments_are_shown(shell, fleet):
    fleet.reader.sync_agent_coordination("a-task", "coder", {"files": 3})
    fleet.reader.sync_assignments({"by-hand": ["a-task"]})
    fleet.reader.force_sync()

    shown = plain(shell.run("agents", "a-task")).splitlines()
    assigned = json.loads(plain(shell.run("assignments", "--json")))

    assert shown == ["AGENT  DATA", 'coder  {"files": 3}']
    assert assigned["by-hand"] == ["a-task"]
