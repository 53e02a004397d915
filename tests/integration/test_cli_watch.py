"""`celery memsync watch` and `celery memsync follow` as a user types them."""
from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.publishing import publish_state
from tests.support.shell import Shell, one_line, plain


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet without workers, on a Redis without other subscribers."""
    return make_fleet(store=own_store)


def write(fleet, key, value):
    fleet.reader.write(key, value)
    fleet.reader.force_sync()


# -- watch

def test_watch_shows_what_matches_and_ends_after_so_many(shell, fleet, client):
    command = shell.start("watch", "prices/*", "--limit", "2").wait_subscribed(client)

    for key, value in (("prices/eur", 1.08), ("sizes/x", 3), ("prices/usd", {"a\nb": "\x1b[31m"})):
        write(fleet, key, value)
    lines = plain(command.end()).splitlines()

    assert [line.split()[2:] for line in lines] == [
        ["v1", f"{fleet.name}/prices/eur", "1.08"],
        ["v1", f"{fleet.name}/prices/usd", '{"a\\nb":', '"\\u001b[31m"}'],
    ]


def test_watch_as_json_is_one_document_a_line(shell, fleet, client):
    command = shell.start("watch", "prices/*", "--limit", "2", "--json").wait_subscribed(client)

    write(fleet, "prices/eur", [1.08])
    entry = fleet.reader.read_entry("prices/eur")
    stored = json.loads(command.process.stdout.readline())
    fleet.reader.delete("prices/eur")
    fleet.reader.force_sync()
    deleted = json.loads(plain(command.end()))

    assert stored["value"] == [1.08]
    assert (stored["key"], stored["version"], stored["worker_id"]) == (entry.key, entry.version, "the-test")
    assert deleted == {"key": entry.key, "value": None}


def test_watch_shows_what_was_deleted(shell, fleet, client):
    write(fleet, "prices/eur", 1.08)
    command = shell.start("watch", "prices/*", "--limit", "2").wait_subscribed(client)
    write(fleet, "prices/usd", 1.0)
    assert "prices/usd" in command.process.stdout.readline()  # by now it knows what there is

    fleet.reader.delete("prices/eur")
    fleet.reader.force_sync()
    (line,) = plain(command.end()).splitlines()

    assert line.split()[-2:] == [f"{fleet.name}/prices/eur", "gone"]


def test_watch_ends_in_time(shell):
    assert plain(shell.run("watch", "--timeout", "0.2")) == ""


def test_watch_with_too_few_changes_is_exit_code_75(shell, fleet, client):
    command = shell.start("watch", "--limit", "2", "--timeout", "3").wait_subscribed(client)

    write(fleet, "prices/eur", 1.08)
    done = command.end()

    assert (done.returncode, done.stderr) == (75, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.acceptance
def test_watch_continues_when_redis_is_back_and_reports_it(shell, fleet, client, own_store):
    command = shell.start("watch", "prices/*", "--limit", "1").wait_subscribed(client)
    errors = command.process.stderr

    own_store.stop()
    first = errors.readline()
    own_store.start()
    second = errors.readline()
    write(fleet, "prices/eur", 1.08)
    done = command.end()

    assert first.lower().endswith("waiting for it.\n") and second == "Redis is back.\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{fleet.name}/prices/eur" in done.stdout


@pytest.mark.acceptance
def test_redis_away_at_the_end_is_exit_code_69(shell, client, own_store):
    command = shell.start("watch", "--timeout", "6").wait_subscribed(client)

    own_store.stop()
    done = command.end()

    assert done.returncode == 69
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 2


def test_ctrl_c_ends_watch_silently(shell, client):
    done = shell.start("watch").wait_subscribed(client).end(signal.SIGINT)

    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_closed_pipe_ends_watch_silently(shell, fleet, client):
    reading, writing = os.pipe()
    command = shell.start("watch", stdout=writing).wait_subscribed(client)
    os.close(writing)
    os.close(reading)

    write(fleet, "prices/eur", 1.08)
    done = command.end()

    assert done.returncode == 1
    assert done.stderr == ""


# -- follow

def test_a_task_is_followed_to_its_success(module_fleet):
    module_fleet.start_worker("-c", "1")
    shell = Shell(module_fleet.env())
    result = module_fleet.send("count_to", 7)

    lines = plain(shell.run("follow", result.id, "--timeout", "30")).splitlines()

    assert lines[-1].split() == ["SUCCESS", "100%,", "7", "of", "7"]


def test_follow_of_a_failed_task_is_exit_code_1_with_the_cause(shell, fleet, client):
    publish_state(fleet, "t1", "STARTED")
    command = shell.start("follow", "t1").wait_subscribed(client)

    fleet.reader.sync_task_progress("t1", 40, message="reading")
    fleet.reader.force_sync()
    publish_state(fleet, "t1", "FAILURE", exception={"type": "ValueError", "message": "the cup\x1b is empty"})
    done = command.end()

    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "FAILURE   40%, reading  ValueError: the cup? is empty"


def test_follow_waits_for_an_unknown_task(shell, fleet, client):
    command = shell.start("follow", "t1").wait_subscribed(client)

    publish_state(fleet, "t1", "SUCCESS")

    done = command.end()
    assert (done.returncode, done.stdout) == (0, "SUCCESS\n")


def test_a_task_that_has_ended_already_is_shown_at_once(shell, fleet):
    publish_state(fleet, "t1", "REVOKED")

    done = shell.run("follow", "t1")

    assert (done.returncode, done.stdout, done.stderr) == (1, "REVOKED\n", "")


def test_a_followed_task_as_json_is_a_document_for_each_change(shell, fleet, client):
    publish_state(fleet, "t1", "STARTED")
    command = shell.start("follow", "t1", "--json").wait_subscribed(client)
    first = json.loads(command.process.stdout.readline())

    publish_state(fleet, "t1", "SUCCESS")
    last = json.loads(plain(command.end()).splitlines()[-1])

    assert (first["state"]["status"], last["state"]["status"]) == ("STARTED", "SUCCESS")
    assert last == fleet.reader.get_task("t1")


def test_a_task_that_does_not_end_in_time_is_exit_code_75(shell, fleet):
    publish_state(fleet, "t1", "STARTED")

    done = shell.run("follow", "t1", "--timeout", "0.2")

    assert (done.returncode, done.stdout) == (75, "STARTED\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_task_that_is_forgotten_is_exit_code_1(shell, fleet, client):
    publish_state(fleet, "t1", "STARTED")
    command = shell.start("follow", "t1").wait_subscribed(client)
    assert command.process.stdout.readline() == "STARTED\n"

    client.flushall()
    done = command.end()

    assert done.returncode == 1
    assert "t1" in one_line(done)


def test_follow_of_a_task_removed_by_hand_is_exit_code_1(shell, fleet, client):
    publish_state(fleet, "t1", "STARTED")
    command = shell.start("follow", "t1").wait_subscribed(client)
    assert command.process.stdout.readline() == "STARTED\n"

    client.delete(fleet.reader.runtime.store.keys.task("t1"))
    done = command.end()

    assert done.returncode == 1
    assert "t1" in one_line(done)


def test_an_end_while_redis_was_away_from_the_command_is_not_missed(shell, fleet, client):
    publish_state(fleet, "t1", "STARTED")
    command = shell.start("follow", "t1").wait_subscribed(client)
    assert command.process.stdout.readline() == "STARTED\n"

    for kind in ("pubsub", "normal"):
        client.client_kill_filter(_type=kind, skipme=True)
    publish_state(fleet, "t1", "SUCCESS")
    done = command.end()

    assert (done.returncode, done.stdout) == (0, "SUCCESS\n")
