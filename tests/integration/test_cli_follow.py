"""`celery memsync follow` with several tasks, and on a real terminal."""
from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from celery_memsync import encoding
from celery_memsync.models.worker import WorkerRecord
from tests.support.publishing import publish_state
from tests.support.shell import Shell, plain
from tests.support.stress import stressed
from tests.support.terminal import Terminal


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet without workers, on a Redis without other subscribers."""
    return make_fleet(store=own_store)


@pytest.fixture
def terminal(shell):
    """Starts `follow` on a terminal."""
    started = []

    def start(*args, **options):
        started.append(Terminal(shell, "follow", *args, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def count(fleet, task_id, current, total=10, message=None):
    fleet.reader.sync_task_progress(task_id, None, current=current, total=total, message=message)
    fleet.reader.force_sync()


def test_several_tasks_are_followed_at_once_and_the_worst_end_counts(shell, fleet, own_store):
    publish_state(fleet, "t1", "STARTED")
    publish_state(fleet, "task-2", "STARTED")
    with own_store.client() as client:
        command = shell.start("follow", "t1", "task-2", "t1").wait_subscribed(client)
    lines = [command.process.stdout.readline() for _ in range(2)]

    publish_state(fleet, "task-2", "FAILURE", exception={"type": "ValueError", "message": "no cup"})
    lines.append(command.process.stdout.readline())
    count(fleet, "t1", 5)
    lines.append(command.process.stdout.readline())
    publish_state(fleet, "t1", "SUCCESS")
    done = command.end()
    lines += done.stdout.splitlines(keepends=True)

    assert (done.returncode, done.stderr) == (1, "")
    # How much is left depends on how much time has passed.
    assert [re.sub(r", \d+m?s left", "", line) for line in lines] == [
        "t1      STARTED\n", "task-2  STARTED\n", "task-2  FAILURE   ValueError: no cup\n",
        "t1      STARTED   50%, 5 of 10\n", "t1      SUCCESS   100%, 10 of 10\n"]


def test_all_that_succeed_are_exit_code_0_in_whatever_order(shell, fleet):
    for task_id in ("t3", "t1", "t2"):
        publish_state(fleet, task_id, "SUCCESS")

    lines = plain(shell.run("follow", "t1", "t2", "t3")).splitlines()

    assert [line.split() for line in lines] == [["t1", "SUCCESS"], ["t2", "SUCCESS"], ["t3", "SUCCESS"]]


def test_those_that_do_not_end_in_time_are_named(shell, fleet):
    publish_state(fleet, "t1", "SUCCESS")
    publish_state(fleet, "t2", "STARTED")

    done = shell.run("follow", "t1", "t2", "t3", "--timeout", "0.3")

    assert done.returncode == 75
    assert done.stderr == "The tasks t2, t3 have not ended in time.\n"


def test_task_that_stays_lost_has_ended(shell, fleet):
    publish_state(fleet, "old", "LOST", finished_at=time.time() - 60)
    publish_state(fleet, "new", "LOST", finished_at=time.time())

    done = shell.run("follow", "old", "new", "--timeout", "3")

    assert done.stdout.splitlines() == ["old  LOST", "new  LOST"]
    assert (done.returncode, done.stderr) == (75, "The task new has not ended in time.\n")
    assert shell.run("follow", "old").returncode == 1


def test_task_that_runs_on_a_lost_worker_has_ended_although_no_worker_marks_it(make_fleet, own_store):
    fleet = make_fleet(store=own_store, memsync_worker_ttl=1.0, memsync_heartbeat_interval=0.3)
    record = WorkerRecord("w1").as_dict()
    fleet.reader.runtime.store.write_heartbeat("w1", encoding.dumps(record), 60.0)
    publish_state(fleet, "t1", "STARTED", worker="w1", started_at=time.time() - 60)
    shell = Shell(fleet.env())

    done = shell.run("follow", "t1", "--timeout", "30")

    assert (done.returncode, done.stdout.splitlines()) == (1, ["STARTED", "LOST"])
    status = plain(shell.run("status"))
    assert "Tasks: 1 LOST" in status and "RUNNING" not in status


def test_unknown_tasks_are_named_once_while_they_are_waited_for(shell, fleet):
    publish_state(fleet, "t1", "STARTED")

    done = shell.run("follow", "t1", "typo", "--timeout", "4")

    assert done.returncode == 75
    assert done.stderr.splitlines() == [
        "Unknown so far, and waited for: typo", "The tasks t1, typo have not ended in time."]


def test_json_documents_name_their_task(shell, fleet):
    publish_state(fleet, "t1", "SUCCESS")
    publish_state(fleet, "t2", "REVOKED")

    done = shell.run("follow", "t1", "t2", "--json")

    assert done.returncode == 1
    assert {one["id"]: one["state"]["status"] for one in map(json.loads, done.stdout.splitlines())} == {
        "t1": "SUCCESS", "t2": "REVOKED"}


def test_follow_accepts_more_tasks_than_it_subscribes_to(shell, fleet):
    ids = [f"t{number}" for number in range(60)]
    for task_id in ids[:59]:
        fleet.reader.sync_task_state(task_id, {"status": "SUCCESS"})
    publish_state(fleet, ids[59], "STARTED")
    command = shell.start("follow", *ids)
    lines = [command.process.stdout.readline().split() for _ in ids]

    publish_state(fleet, ids[59], "SUCCESS")
    done = command.end()

    assert lines[59] == ["t59", "STARTED"]
    assert (done.returncode, done.stdout.split()) == (0, ["t59", "SUCCESS"])


def test_a_terminal_shows_a_bar_for_each_task_until_it_has_ended(terminal, fleet):
    publish_state(fleet, "t1", "STARTED")
    publish_state(fleet, "t2", "STARTED")
    screen = terminal("t1", "t2").shows("t1", "t2", "STARTED")

    count(fleet, "t1", 3, message="reading")
    count(fleet, "t2", 8)
    screen.shows("30%", "3 of 10", "reading", "80%", "8 of 10")
    bars = [line for line in screen.lines if "━" in line]
    publish_state(fleet, "t1", "SUCCESS")
    screen.shows("SUCCESS")
    publish_state(fleet, "t2", "FAILURE", exception={"type": "ValueError", "message": "no [bold]cup"})

    assert screen.end() == 1
    assert [line.split()[0] for line in bars] == ["t1", "t2"]
    lines = [line for line in screen.lines if line]
    assert [line.split()[:2] for line in lines] == [["t1", "SUCCESS"], ["t2", "FAILURE"]]
    assert "8 of 10, ValueError: no [bold]cup" in screen.text
    assert screen.restored
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("how, code", stressed([(signal.SIGINT, 130), (signal.SIGTERM, 143)], [(signal.SIGINT, 130)]))
def test_a_signal_leaves_the_terminal_as_it_was(terminal, fleet, how, code):
    publish_state(fleet, "t1", "STARTED")
    screen = terminal("t1").shows("STARTED")

    assert screen.end(how) == code
    assert screen.restored and b"Traceback" not in screen.raw


@pytest.mark.acceptance
def test_bars_go_on_when_redis_was_away(terminal, fleet, own_store):
    publish_state(fleet, "t1", "STARTED")
    screen = terminal("t1").shows("STARTED")

    own_store.stop()
    screen.shows("aiting for it")
    own_store.start()
    screen.shows("Redis is back")
    publish_state(fleet, "t1", "SUCCESS")

    assert screen.shows("SUCCESS").end() == 0


def test_more_tasks_than_lines_do_not_disturb_the_terminal(terminal, fleet):
    ids = [f"task-{number:02}" for number in range(40)]
    for task_id in ids:
        fleet.reader.sync_task_state(task_id, {"status": "STARTED"})
    fleet.reader.force_sync()
    screen = terminal(*ids, size=(80, 10)).shows("task-00")

    for task_id in ids:
        fleet.reader.sync_task_state(task_id, {"status": "SUCCESS"})
    fleet.reader.force_sync()

    assert screen.end() == 0
    assert screen.raw.count(b"SUCCESS") >= 40 and screen.restored


def test_terminal_without_rich_gets_lines_and_a_hint(terminal, fleet, tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('rich')")
    publish_state(fleet, "t1", "SUCCESS")

    screen = terminal("t1", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.getcwd()}").shows("SUCCESS", "celery-memsync[cli]")

    assert screen.end() == 0
