"""The format of what is shared: a process writes the newest that all live workers know."""
from __future__ import annotations

import pytest

from celery_memsync import encoding
from celery_memsync.cli.doctor import examine_formats
from celery_memsync.fleet.kept_messages import KeptMessage
from celery_memsync.keys import PROGRESS, Keys
from celery_memsync.models import formats
from celery_memsync.models.order import delivered_key, published_key
from celery_memsync.models.task import RUN_FIELDS, TaskRun
from celery_memsync.models.worker import WorkerRecord
from celery_memsync.store import FIRST_HEARTBEAT
from celery_memsync.store.clock import Clock
from celery_memsync.writing.progress import ProgressChange
from tests.support.runs import run_key
from tests.support.waiting import eventually

KEY = "task-sentinel//{workers}/formats"


@pytest.fixture
def release(monkeypatch):
    """Lets this process be one of the release with a format."""
    def release(number):
        monkeypatch.setattr(formats, "FORMAT", number)
    return release


@pytest.fixture
def send_heartbeat(make_memsync, release):
    """Sends the heartbeat of a worker of a release."""
    managers, replies = {}, {}

    def send(worker_id, number, **options):
        release(number)
        if worker_id not in managers:
            managers[worker_id] = make_memsync(worker_id, batch_interval=60.0)
        store, last = managers[worker_id].runtime.store, replies.get(worker_id, FIRST_HEARTBEAT)
        replies[worker_id] = store.write_heartbeat(worker_id, b"{}", 60.0, last=last, until=last.at + 5, **options)
        return store.format.number
    return send


def read_format(store):
    """Return the format of a store when its next batch has read that of the fleet anew."""
    store.format.number
    store.format._read_at = float("-inf")
    store.connect()
    return store.format.number


def test_worker_writes_the_older_format_while_an_older_worker_lives(send_heartbeat):
    alone = send_heartbeat("old", 1)
    beside = send_heartbeat("new", 2)
    send_heartbeat("old", 1, leaving=True)

    after = send_heartbeat("new", 2)

    assert (alone, beside, after) == (1, 1, 2)


def test_worker_writes_the_newer_format_when_the_older_one_is_lost(send_heartbeat):
    send_heartbeat("old", 1, timeout=0.05)
    beside = send_heartbeat("new", 2, timeout=0.05)

    eventually(lambda: send_heartbeat("new", 2, timeout=0.05) == 2)

    assert beside == 1


def test_worker_that_starts_with_an_older_release_lowers_the_format(send_heartbeat):
    before = send_heartbeat("new", 2)
    send_heartbeat("old", 1)

    after = send_heartbeat("new", 2)

    assert (before, after) == (2, 1)


def test_other_process_learns_the_format_with_its_next_batch(send_heartbeat, memsync, release):
    send_heartbeat("old", 1)
    release(2)
    unknown = memsync.runtime.store.format.number

    memsync.write("a", 1)
    memsync.force_sync()
    beside = memsync.runtime.store.format.number
    send_heartbeat("old", 1, leaving=True)
    send_heartbeat("new", 2)
    after = read_format(memsync.runtime.store)

    assert (unknown, beside, after) == (1, 1, 2)


def test_process_without_workers_writes_its_own_format(memsync, release):
    release(2)

    assert read_format(memsync.runtime.store) == 2


@pytest.mark.parametrize("score, expected", [(-5, 1), (0, 1), ("inf", 2), ("-inf", 2), (1e300, 2), (1.5, 1)])
def test_no_stored_number_makes_a_format_that_a_release_cannot_write(memsync, redis, release, score, expected):
    release(2)
    redis.zadd(KEY, {"stranger": score})

    assert read_format(memsync.runtime.store) == expected


def test_foreign_member_does_not_hold_the_format_down(send_heartbeat, redis):
    redis.zadd(KEY, {"junk": 0, "abcdefgh ended": 1})

    number = send_heartbeat("new", 2)

    assert number == 2
    assert redis.zcard(KEY) == 1


def test_value_of_another_type_is_replaced_by_the_next_heartbeat(send_heartbeat, memsync, redis, release):
    redis.set(KEY, "junk")
    release(2)

    before = read_format(memsync.runtime.store)
    number = send_heartbeat("new", 2)

    assert (before, number) == (2, 2)
    assert redis.type(KEY) == b"zset"


def test_formats_of_workers_that_ended_are_removed(send_heartbeat, redis):
    for number in range(20):
        send_heartbeat(f"w{number}", 1, leaving=True)

    send_heartbeat("last", 1)

    assert redis.zcard(KEY) == 1
    assert redis.pttl(KEY) > 0


def test_format_is_read_only_by_a_process_that_uses_it(memsync, redis):
    memsync.runtime.store.connect()
    redis.config_resetstat()
    memsync.write("a", 1)

    memsync.force_sync()

    assert "cmdstat_zrange" not in redis.info("commandstats")


def test_doctor_reports_mixed_formats_of_live_workers():
    workers = [
        WorkerRecord("old", format=1), WorkerRecord("new", format=2),
        WorkerRecord("ended", "lost", format=0)]

    (finding,) = examine_formats(workers)

    assert not finding.fine
    assert "1 (old); 2 (new)" in finding.what
    assert "format 1 is written until all know 2" in finding.advice


@pytest.mark.parametrize("others", [[], [1], [None], ["2"], [[3]]])
def test_doctor_reports_nothing_when_all_formats_are_equal(others):
    records = [WorkerRecord.from_dict(f"w{at}", {"format": number}) for at, number in enumerate([1, *others])]

    assert list(examine_formats(records)) == []


def test_doctor_reports_a_skipped_release():
    (finding,) = examine_formats([WorkerRecord("old", format=1), WorkerRecord("new", format=3)])

    assert "one release at a time" in finding.advice


def test_record_with_fields_of_a_newer_release_is_read(memsync, other):
    record = {**WorkerRecord("w1", format=9, pid=7).as_dict(), "invented_later": {"a": [1]}}
    memsync.runtime.store.write_heartbeat("w1", encoding.dumps(record), 60.0)

    (read,) = other.get_workers()

    assert (read.format, read.pid) == (9, 7)


def test_progress_with_fields_of_a_newer_release_travels_with_a_retry():
    location = Keys("ns").task_location("t1", PROGRESS)
    row = [50, 5, 10, "half", 1000, 1000, "run", None, None, None, None, None, None]

    change = ProgressChange.from_row(location, [*row, "invented", {"later": 1}], run_key(0, 1), 60.0, Clock())

    assert change.row == ProgressChange.from_row(location, row, run_key(0, 1), 60.0, Clock()).row


def test_kept_message_with_fields_of_a_newer_release_is_read():
    key = delivered_key(published_key("eFgH5678-1"), "aBcD1234-1")
    message = KeptMessage("t1", "aBcD1234-1", key, 0, 1.0, "q", "[]", {"id": "t1", "task": "proj.add"}, "application/json",
                          "utf-8", 0, 2, {})

    read = KeptMessage.decode(encoding.dumps([*message, "invented", {"later": 1}]))

    assert read == message


def test_run_with_fields_of_a_newer_release_is_read():
    run = TaskRun("STARTED", name="proj.add", max_retries=1)
    row = encoding.decode(run.encode("t1"))

    read = TaskRun.from_row([*row, *[None] * (len(RUN_FIELDS) - len(row)), "invented"], "t1")

    assert read == run
