"""What Redis refuses, and what is too much: the others go on, and nothing is lost unpublished."""
from __future__ import annotations

import pytest

from celery_memsync import StoreError
from celery_memsync.keys import Keys
from tests.support.waiting import eventually

TASK = Keys("task-sentinel").task("t1")

BROKEN = [
    lambda redis: redis.lpush(TASK, "a list"),
    lambda redis: redis.hset(TASK, "state", "a hash"),
    lambda redis: redis.set(TASK, "garbage"),
    lambda redis: redis.set(TASK, "\n\n\ngarbage\n\n\n"),
    lambda redis: redis.set(TASK, b"\xff\xfe\x00\n\xff\n\xff\xfe\x00\n\xff"),
    lambda redis: redis.set(TASK, b"\n\n1 - - 0 5 5 - \xff\xfe\nbody"),
    lambda redis: redis.set(TASK, b"\n\n1 - - 0 4102444800000 60000 - \xff\xfe\n{}"),
    lambda redis: redis.set(TASK, b"\n\n9 - - 0 4102444800000 60000 - w\nno json"),
    lambda redis: redis.set(TASK, ""),
]


@pytest.fixture
def memsync(make_memsync, limited):
    """A manager of that user."""
    return make_memsync(url=limited.url, batch_interval=60.0)


def away(make_memsync, own_server, max_pending):
    """Return a manager whose Redis is away since a moment ago."""
    memsync = make_memsync(url=own_server.url, batch_interval=60.0, max_pending=max_pending)
    memsync.read("a")
    own_server.stop()
    return memsync


# -- poison

@pytest.mark.parametrize("poison", BROKEN)
def test_foreign_page_is_replaced_by_the_next_write(memsync, other, redis, poison):
    poison(redis)
    memsync.write("before", 1)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.write("after", 2)

    memsync.force_sync()

    assert other.read_many(["before", "after"]) == {"before": 1, "after": 2}
    assert other.get_task_state("t1") == {"x": 1}


def test_refused_write_is_named_and_written_when_allowed(memsync, other, limited):
    limited.refuse("get")
    memsync.sync_task_state("t1", {"x": 1})
    with pytest.raises(StoreError, match="task-sentinel/tasks/t1/state"):
        memsync.force_sync()
    still_pending = memsync.runtime.writer.pending

    limited.allow("get")
    memsync.force_sync()

    assert still_pending == 1
    assert other.get_task_state("t1") == {"x": 1}
    assert memsync.runtime.writer.pending == 0


def test_refused_write_is_retried_by_the_thread(make_memsync, other, limited, monkeypatch):
    for module in ("writer", "pending"):
        monkeypatch.setattr(f"celery_memsync.writing.{module}.REFUSED_PAUSE", 0.05)
    memsync = make_memsync(url=limited.url, batch_interval=0.01)
    limited.refuse("get")
    memsync.sync_task_state("t1", {"x": 1})
    eventually(lambda: memsync.runtime.writer.is_stuck(TASK))

    limited.allow("get")

    assert eventually(lambda: other.get_task_state("t1"), timeout=5) == {"x": 1}


def test_refused_write_is_not_overtaken_by_a_newer_one_of_its_key(memsync, other, limited):
    limited.refuse("get")
    memsync.sync_task_state("t1", {"x": 1})
    with pytest.raises(StoreError):
        memsync.force_sync()

    limited.allow("get")
    memsync.sync_task_state("t1", {"y": 2})
    memsync.runtime.writer.flush()
    memsync.force_sync()

    assert other.get_task_state("t1") == {"x": 1, "y": 2}


def test_newer_value_wins_over_a_refused_one(memsync, other, limited):
    limited.refuse("set")
    memsync.write("a", "old")
    with pytest.raises(StoreError):
        memsync.force_sync()

    limited.allow("set")
    memsync.write("a", "new")
    memsync.runtime.writer.flush()
    memsync.force_sync()

    assert other.read("a") == "new"


def test_refused_write_does_not_stop_atomic_operations_of_others(memsync, limited):
    limited.refuse("hget")
    memsync.sync_worker_status("w1", "up")

    entry = memsync.write("fine", 1, expected_version=0)

    assert entry.version == 1


def test_refused_writes_are_bounded(make_memsync, limited):
    memsync = make_memsync(url=limited.url, batch_interval=60.0, max_pending=3)
    limited.refuse("set")
    for number in range(3):
        memsync.write(f"key-{number}", number)
    with pytest.raises(StoreError, match="key-0 and 2 more"):
        memsync.force_sync()

    for number in range(3, 5):
        memsync.write(f"key-{number}", number)
    with pytest.raises(StoreError, match="key-2 and 2 more"):
        memsync.force_sync()

    assert memsync.runtime.writer.pending == 3
    assert memsync.get_metrics()["dropped"] == 2


def test_refusal_is_logged_once(memsync, limited, caplog):
    limited.refuse("set")

    for number in range(3):
        memsync.write("a", number)
        with pytest.raises(StoreError):
            memsync.force_sync()

    assert len([line for line in caplog.messages if "refuses to write" in line]) == 1
    limited.allow("set")
    assert memsync.read("b") is None


def test_process_reads_its_own_refused_writes(memsync, limited):
    limited.refuse("set")
    memsync.write("a", 1)
    with pytest.raises(StoreError):
        memsync.force_sync()

    assert memsync.read("a") == 1


# -- pressure

def test_above_max_pending_the_oldest_progress_goes_first(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0, max_pending=6)
    counts = []
    memsync.on("writes-dropped", lambda count: counts.append(count))
    memsync.read("a")
    own_server.stop()
    for number in (1, 2, 3):
        memsync.sync_task_progress(f"p{number}", 50)
        memsync.write(f"w{number}", number)

    for number in (4, 5, 6, 7):
        memsync.write(f"w{number}", number)
    dropped = memsync.get_metrics()["dropped"]
    with pytest.raises(StoreError):
        memsync.force_sync()
    own_server.start()
    memsync.force_sync(timeout=5)
    assert memsync.events.wait_idle(5)

    assert dropped == 4
    assert counts == [4]
    assert [memsync.get_task_progress(f"p{number}") for number in (1, 2, 3)] == [None] * 3
    assert memsync.read_many([f"w{number}" for number in range(1, 8)]) == {
        "w1": None, **{f"w{number}": number for number in range(2, 8)}}


def test_what_could_not_be_written_counts_too(make_memsync, own_server):
    memsync = away(make_memsync, own_server, 3)
    for number in range(3):
        memsync.write(f"old-{number}", number)
    with pytest.raises(StoreError):
        memsync.force_sync()

    for number in range(3):
        memsync.write(f"new-{number}", number)

    assert memsync.runtime.writer.pending == 3
    assert memsync.get_metrics()["dropped"] == 3
    own_server.start()
    memsync.force_sync(timeout=5)
    assert memsync.read_many([f"{age}-{number}" for age in ("old", "new") for number in range(3)]) == {
        **{f"old-{number}": None for number in range(3)}, **{f"new-{number}": number for number in range(3)}}


def test_many_changes_of_one_key_are_not_too_many(make_memsync, own_server):
    memsync = away(make_memsync, own_server, 2)

    for number in range(100):
        memsync.write("a", number)
        memsync.sync_task_progress("t1", number)

    assert memsync.get_metrics()["dropped"] == 0


def test_dropped_progress_can_be_reported_again(make_memsync, own_server):
    memsync = away(make_memsync, own_server, 2)
    memsync.sync_task_progress("t1", 50)
    memsync.write("a", 1)
    memsync.write("b", 1)
    dropped = memsync.get_metrics()["dropped"]

    own_server.start()
    memsync.force_sync(timeout=5)
    memsync.sync_task_progress("t1", 70)
    memsync.force_sync()

    assert dropped == 1
    assert memsync.get_task_progress("t1")["progress"] == 70


def test_flood_of_writes_is_logged_with_one_warning(make_memsync, own_server, caplog):
    memsync = away(make_memsync, own_server, 2)

    for number in range(50):
        memsync.write(f"key-{number}", number)
        if number % 10 == 0:
            with pytest.raises(StoreError):
                memsync.force_sync()

    assert len([line for line in caplog.messages if "more than 2 entries were pending" in line]) == 1
    assert memsync.get_metrics()["dropped"] == 48
