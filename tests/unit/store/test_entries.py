"""Entries: their ttl, their end, and compare-and-set."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync import ConflictError


def test_deleted_entry_is_not_read_and_its_version_counts_on(memsync, other):
    memsync.write("a", 1)
    memsync.force_sync()

    memsync.delete("a")
    memsync.force_sync()
    deleted = other.read_entry("a")
    memsync.write("a", 2)
    memsync.force_sync()

    assert deleted is None
    assert other.read_entry("a").version == 3


def test_delete_event_is_emitted(memsync):
    emitted = []
    memsync.on("delete", lambda **details: emitted.append(details))

    memsync.delete("a")
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert emitted == [{"key": "task-sentinel/a"}]


def test_entry_expires_after_its_ttl(memsync, other, redis):
    memsync.write("a", 1, ttl=0.2)
    memsync.force_sync()

    before = other.read("a")
    time.sleep(0.3)

    assert before == 1
    assert other.read("a") is None
    assert not redis.exists("task-sentinel/a")


def test_an_expired_key_can_be_written_again(memsync, other):
    memsync.write("a", 1, ttl=0.05)
    memsync.sync_task_state("t1", {"x": 1}, ttl=0.05)
    memsync.force_sync()
    time.sleep(0.1)

    memsync.write("a", 2)
    memsync.sync_task_state("t1", {"y": 2})
    memsync.force_sync()

    assert other.read("a") == 2
    assert other.get_task_state("t1") == {"y": 2}


def test_a_short_ttl_ends_an_entry_whose_task_lives_on(memsync, other):
    memsync.sync_task_progress("t1", 50)
    memsync.sync_task_state("t1", {"x": 1}, ttl=0.2)
    memsync.force_sync()

    time.sleep(0.3)

    assert other.get_task_state("t1") is None
    assert other.get_task_progress("t1")["progress"] == 50


def test_a_short_ttl_does_not_end_what_was_written_before(memsync, other):
    memsync.sync_agent_coordination("t1", "coder", 1)
    memsync.force_sync()
    memsync.write("tasks/t1/agents/tester", 2, ttl=0.1)
    memsync.force_sync()

    time.sleep(0.2)

    assert other.get_task_agents("t1") == ["coder"]


def test_expected_version_lets_the_first_writer_win(memsync, other):
    first = memsync.write("a", "mine", expected_version=0)

    with pytest.raises(ConflictError, match="task-sentinel/a.*version 1") as caught:
        other.write("a", "theirs", expected_version=0)
    second = other.write("a", "theirs", expected_version=caught.value.version)

    assert (first.value, first.version, first.worker_id) == ("mine", 1, "worker-1")
    assert (second.value, second.version) == ("theirs", 2)
    assert memsync.read("a") == "theirs"


def test_expected_version_comes_after_pending_writes(memsync):
    memsync.write("a", "pending")

    entry = memsync.write("a", "new", expected_version=1)

    assert entry.version == 2
    assert memsync.read("a") == "new"


@pytest.mark.parametrize("leave", [
    lambda memsync: (memsync.write("tasks/t1/note", 1), memsync.force_sync(), memsync.delete("tasks/t1/note")),
    lambda memsync: (memsync.write("tasks/t1/note", 1, ttl=0.01), memsync.force_sync(), time.sleep(0.05)),
])
def test_expected_version_0_writes_a_deleted_key(memsync, other, leave):
    memsync.sync_task_progress("t1", 1)
    leave(memsync)
    memsync.force_sync()
    before = other.read_entry("tasks/t1/note")

    other.write("tasks/t1/note", "new", expected_version=0)

    assert before is None
    assert memsync.read("tasks/t1/note") == "new"


def test_expected_version_counts_up_under_contention(make_memsync):
    managers = [make_memsync(batch_interval=60.0) for _ in range(4)]
    managers[0].write("counter", 0, expected_version=0)

    def add(memsync):
        for _ in range(25):
            while True:
                entry = memsync.read_entry("counter")
                try:
                    memsync.write("counter", entry.value + 1, expected_version=entry.version)
                    break
                except ConflictError:
                    pass

    threads = [threading.Thread(target=add, args=(memsync,)) for memsync in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    entry = managers[0].read_entry("counter")
    assert (entry.value, entry.version) == (100, 101)


def test_a_big_state_and_its_progress_share_a_page_without_harm(memsync, other):
    state = {f"field-{number}": "x" * 1000 for number in range(500)}
    memsync.sync_task_state("t1", state)
    memsync.force_sync()

    for number in range(1, 6):
        memsync.sync_task_progress("t1", number * 20)
        memsync.force_sync()
    memsync.delete("tasks/t1/state")
    memsync.force_sync()

    assert other.get_task_state("t1") is None
    assert other.get_task_progress("t1")["progress"] == 100


@pytest.mark.parametrize("deleted", ["tasks/t1/state", "tasks/t1/progress"])
def test_what_is_deleted_leaves_its_neighbours(memsync, other, deleted):
    written = {"tasks/t1/state", "tasks/t1/progress", "tasks/t1/agents/coder", "tasks/t1/note"}
    left = written - {deleted}
    memsync.sync_task_state("t1", {"x": "1\n2\n\n3"})
    memsync.sync_task_progress("t1", 50, message="a\n\nb")
    memsync.sync_agent_coordination("t1", "coder", "c\n")
    memsync.write("tasks/t1/note", "\n")
    memsync.force_sync()

    memsync.delete(deleted)
    memsync.force_sync()

    found = other.read_many([*left, deleted])
    assert {key for key, value in found.items() if value is not None} == left
    assert other.read("tasks/t1/note") == "\n"


@pytest.mark.parametrize("version", [b"9" * 13 + b"8", b"9" * 14, b"1" + b"0" * 14])
def test_entry_whose_versions_come_to_their_end_is_written_as_any_other(memsync, redis, version):
    memsync.write("k", 0)
    memsync.force_sync()
    redis.set("task-sentinel/k", redis.get("task-sentinel/k").replace(b"1", version, 1))
    memsync.clear_cache()

    written = []
    for value in range(3):
        stored = memsync.read_entry("k", consistent=True)
        memsync.write("k", value, expected_version=0 if stored is None else stored.version)
        written.append(memsync.read("k", consistent=True))

    assert written == [0, 1, 2]


def test_fields_are_merged_into_an_entry_whose_versions_come_to_their_end(memsync, redis):
    memsync.sync_task_state("t1", {"a": 1})
    memsync.force_sync()
    key = "task-sentinel/tasks/{t1}/"
    redis.set(key, redis.get(key).replace(b"1", b"9" * 14, 1))
    memsync.clear_cache()

    for value in range(3):
        memsync.sync_task_state("t1", {"b": value})
        memsync.force_sync()

    assert memsync.get_task_state("t1") == {"a": 1, "b": 2}
