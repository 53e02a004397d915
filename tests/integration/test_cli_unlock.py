"""`celery memsync unlock`, `why`, `tasks` with its filters, and abbreviated ids, as a user types them."""
from __future__ import annotations

import json
import os
import pty
import threading

import pytest

from celery_memsync.locking.lease import Owner
from tests.support.shell import one_line, plain
from tests.support.stress import stressed
from tests.support.waiting import eventually


@pytest.fixture
def fleet(make_fleet):
    return make_fleet()


@pytest.fixture
def lock(fleet):
    """A lock that is held."""
    lock = fleet.reader.lock("invoice:7", ttl=30)
    lock.acquire()
    return lock


def write_state(fleet, task_id, **state):
    fleet.reader.sync_task_state(task_id, state)
    fleet.reader.force_sync()


def test_unlock_releases_the_lock_of_its_holder(shell, fleet, lock):
    shown = plain(shell.run("unlock", "invoice:7", "--yes", "--fence", str(lock.fence)))

    assert shown.startswith("Freed: the lock invoice:7 of the-test")
    assert fleet.reader.locks() == []
    assert lock.release() is False


def test_waiter_gets_the_lock_that_is_freed(shell, fleet, lock):
    waiter = fleet.manager().lock("invoice:7", wait=60, thread_local=False)
    thread = threading.Thread(target=waiter.acquire)
    thread.start()
    eventually(lambda: [one.waiters for one in fleet.reader.locks()] == [1])

    shown = json.loads(plain(shell.run("unlock", "invoice:7", "--yes", "--json")))
    thread.join(30)

    assert (shown["freed"], shown["fence"], shown["waiters"]) == (True, lock.fence, 1)
    assert waiter.fence > lock.fence
    waiter.release()


def test_a_lock_with_another_fence_stays(shell, fleet, lock):
    done = shell.run_process("unlock", "invoice:7", "--yes", "--fence", str(lock.fence + 1))

    assert done.returncode == 1
    assert str(lock.fence) in one_line(done)
    assert fleet.reader.free_lock("invoice:7", lock.fence + 1) is False
    assert lock.release() is True
    assert fleet.reader.free_lock("invoice:7", lock.fence) is False


def test_the_lock_of_a_task_is_freed_by_its_name(fleet):
    assert fleet.reader.acquire_task_lock("t1")
    held = fleet.reader.get_lock("tasks/t1")

    freed = fleet.manager().free_lock("tasks/t1", held.fence)

    assert freed is True
    assert fleet.reader.get_lock("tasks/t1") is None


@pytest.mark.parametrize("args, code, text", [
    (["unlock", "invoice:7"], 64, "--yes"),
    *stressed([(["unlock", "no-lock", "--yes"], 1, "no-lock"), (["unlock", "a/b", "--yes"], 64, "lock id")], []),
])
def test_failed_unlock_prints_its_reason_and_exit_code(shell, lock, args, code, text):
    done = shell.run_process(*args)

    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr and "Traceback" not in done.stderr
    assert lock.release() is True


@pytest.mark.parametrize("answer, code, held", [(b"n\n", 1, True), *stressed([(b"y\n", 0, False)], [])])
def test_unlock_on_a_terminal_asks_for_confirmation(shell, fleet, lock, answer, code, held):
    master, slave = pty.openpty()
    os.write(master, answer)

    done = shell.start("unlock", "invoice:7", stdin=slave).end(timeout=60)
    os.close(slave)
    os.close(master)

    assert done.returncode == code
    assert f"fence {lock.fence}" in done.stderr
    assert lock.release() is held


@pytest.mark.parametrize("answer, code, left", [*stressed([(b"n\n", 1, 5)], []), (b"y\n", 0, None)])
def test_delete_on_a_terminal_asks_for_confirmation(shell, fleet, answer, code, left):
    fleet.reader.write("notes/1", 5)
    fleet.reader.force_sync()
    master, slave = pty.openpty()
    os.write(master, answer)

    done = shell.start("delete", "notes/1", stdin=slave).end(timeout=60)
    os.close(slave)
    os.close(master)

    assert done.returncode == code
    assert "notes/1, version 1, written " in done.stderr and "the-test: 5" in done.stderr
    assert fleet.reader.read("notes/1", consistent=True) == left


def test_why_names_the_lock_a_task_waits_for_and_its_holder(shell, fleet, lock):
    fleet.reader.sync_task_state("t-waits", {"status": "STARTED", "worker": "w1"})
    fleet.reader.force_sync()
    manager = fleet.manager()
    manager.environment.lock_owner = lambda locks: Owner("t-waits", "run-1")
    waiter = manager.lock("invoice:7", wait=60, thread_local=False)
    thread = threading.Thread(target=waiter.acquire)
    thread.start()
    eventually(lambda: fleet.reader.get_awaited_lock("t-waits"))

    shown = json.loads(plain(shell.run("why", "t-waits", "--json")))
    lock.release()
    thread.join(30)
    waiter.release()

    assert (shown["id"], shown["reason"]) == ("t-waits", "locked")
    assert "the lock invoice:7" in shown["answer"] and "the-test" in shown["answer"]
    assert shown["evidence"]["lock"]["fence"] == lock.fence


def test_why_of_a_task_that_was_never_seen_is_exit_code_1(shell):
    done = shell.run("why", "no-such-task", "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"] == "unknown"


def test_why_reports_a_queue_without_consumers(shell, fleet):
    result = fleet.send("sleep", 1)
    eventually(lambda: fleet.reader.get_queue_position(result.id) == 0)

    shown = json.loads(plain(shell.run("why", result.id, "--json")))

    assert shown["reason"] == "no-worker"
    assert shown["evidence"]["position"] == 0


def test_the_begin_of_an_id_stands_for_it(shell, fleet):
    write_state(fleet, "abc-1", status="SUCCESS")
    write_state(fleet, "abd-2", status="FAILURE")

    assert json.loads(plain(shell.run("task", "abc", "--json")))["id"] == "abc-1"
    assert json.loads(plain(shell.run("why", "abd", "--json")))["reason"] == "failed"
    assert shell.run("follow", "abc", "--timeout", "20").returncode == 0


def test_the_begin_of_several_ids_is_exit_code_64_and_names_them(shell, fleet):
    write_state(fleet, "abc-1", status="SUCCESS")
    write_state(fleet, "abc-2", status="FAILURE")

    done = shell.run("task", "abc")

    assert done.returncode == 64
    assert "abc-1" in one_line(done) and "abc-2" in one_line(done)


def test_an_id_that_others_begin_with_is_that_one(shell, fleet):
    write_state(fleet, "abc", status="SUCCESS")
    write_state(fleet, "abc-2", status="FAILURE")

    assert json.loads(plain(shell.run("task", "abc", "--json")))["id"] == "abc"


def test_tasks_are_picked_and_sorted(shell, fleet):
    write_state(fleet, "a", status="SUCCESS", name="shop.pay", worker="w1@x", runtime=1.0)
    write_state(fleet, "b", status="SUCCESS", name="shop.ship", worker="w2@x", runtime=3.0)
    write_state(fleet, "c", status="FAILURE", name="mail.send", worker="w1@x", runtime=2.0)

    def ids(*args):
        return [one["id"] for one in json.loads(plain(shell.run("tasks", "--json", *args)))]

    assert ids("--name", "shop.*") == ["b", "a"]
    assert ids("--worker", "w1@*", "--sort", "oldest") == ["a", "c"]
    assert ids("--sort", "runtime", "--limit", "2") == ["b", "c"]
    assert ids("--since", "10m", "--status", "failure") == ["c"]
    assert ids("--since", "0s") == []


@pytest.mark.parametrize("args", [["--since", "soon"], ["--sort", "size"], ["--name", "["]])
def test_what_can_not_be_picked_is_exit_code_64(shell, args):
    done = shell.run("tasks", *args)

    assert (done.returncode, done.stdout) == (64, "")
    assert "Traceback" not in done.stderr
