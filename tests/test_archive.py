"""The memory as lines of JSON, and back: nothing is lost, nothing newer is overwritten, nothing goes backward."""
from __future__ import annotations

import io
import json
import time

import pytest

from celery_memsync.archive import Archive, Report, lines_of, restore
from celery_memsync.records import TaskRun, run_key

from .helpers import eventually
from .test_search import populate


@pytest.fixture
def memsync(make_memsync):
    return make_memsync("w1", batch_interval=60.0)


@pytest.fixture
def elsewhere(make_memsync):
    """A memory in another namespace, of which nobody has told anything."""
    return make_memsync("there", namespace="elsewhere", batch_interval=60.0)


def archived(memsync):
    memsync.force_sync()
    return b"".join(lines_of(memsync.store))


def archive_of(data, memsync, longest=2**20):
    return Archive(io.BytesIO(data), memsync.store, longest, memsync.settings.worker_ttl)


def put_back(data, memsync):
    report = Report()
    restore(memsync.store, archive_of(data, memsync).entries(), report)
    return report


def rows_of(data):
    return [json.loads(line) for line in data.splitlines()]


def stage(memsync, task_id, status, retries=0, since=1_000.0, **facts):
    memsync.sync_task_run(task_id, TaskRun(status=status, retries=retries, run=f"r-{retries}", **facts),
                          run_key(retries, since))
    memsync.force_sync()


def entries(memsync):
    """All that is stored, by path without the namespace."""
    found = {}
    for path in memsync.search("*", limit=10_000):
        entry = memsync.read_entry(path, consistent=True)
        found[path.partition("/")[2]] = (entry.value, entry.version, entry.timestamp, entry.worker_id)
    return found


def test_all_that_is_told_comes_back_as_it_was(memsync, elsewhere):
    populate(memsync)
    memsync.write("big", {"number": 12345678901234567890, "list": [], "text": "\u2028é\n", "figure": 1e300})
    memsync.increment_metrics(runtime=1.5)
    memsync.force_sync()
    before = entries(memsync)

    report = put_back(archived(memsync), elsewhere)

    after = entries(elsewhere)
    queue = before.pop("coordination/queue"), after.pop("coordination/queue")
    assert after == before
    assert queue[0][0] == queue[1][0]
    assert set(report.counts) == {"ok"}
    assert elsewhere.get_coordination_metrics() == memsync.get_coordination_metrics()
    assert elsewhere.get_task("t1") == memsync.get_task("t1")


def test_what_is_left_of_a_ttl_is_what_is_left_there(memsync, elsewhere, redis):
    memsync.write("short", 1, ttl=50.0)

    data = archived(memsync)
    time.sleep(0.05)
    put_back(data, elsewhere)

    left = next(row["left"] for row in rows_of(data) if row.get("key") == "task-sentinel/short")
    there = redis.pttl("elsewhere/short") / 1000
    assert 0 < left <= 50.0
    assert 0 < there <= left + 0.01
    assert left - there < 5


def test_what_is_over_is_not_archived(memsync):
    memsync.write("short", 1, ttl=0.05)
    memsync.force_sync()

    eventually(lambda: memsync.read("short", consistent=True) is None)

    assert [row for row in rows_of(archived(memsync)) if row.get("key") == "task-sentinel/short"] == []


def test_runs_of_a_task_come_back_with_their_order(memsync, elsewhere):
    for retries, status in enumerate(("RETRY", "RETRY", "SUCCESS")):
        stage(memsync, "t1", "STARTED", retries)
        stage(memsync, "t1", status, retries)

    put_back(archived(memsync), elsewhere)
    again = put_back(archived(memsync), elsewhere)

    assert [run["status"] for run in elsewhere.get_task("t1")["runs"]] == ["RETRY", "RETRY", "SUCCESS"]
    assert elsewhere.get_task("t1") == memsync.get_task("t1")
    assert set(again.counts) == {"same"}


def test_tasks_are_listed_in_the_order_in_which_they_were(memsync, elsewhere):
    for number in range(120):
        memsync.sync_task_state(f"t{number}", {"number": number})
        memsync.force_sync()

    put_back(archived(memsync), elsewhere)

    assert [task["id"] for task in elsewhere.get_tasks(200)] == [task["id"] for task in memsync.get_tasks(200)]


def test_the_lists_of_the_queue_hold_what_waits_and_what_runs(memsync, elsewhere):
    now = memsync.store.clock.now()
    for number, status in enumerate(("PENDING", "STARTED", "SUCCESS", "PENDING", "RETRY")):
        stage(memsync, f"t{number}", status, published_at=now - 10 + number)
    memsync.enqueue("by-hand")

    put_back(archived(memsync), elsewhere)

    assert elsewhere.get_queue() == memsync.get_queue()
    assert elsewhere.get_queue()["processing"] == ["t1"]
    assert elsewhere.dequeue() == memsync.dequeue()


def test_lists_are_made_of_stages_alone_too(memsync, elsewhere):
    now = memsync.store.clock.now()
    stage(memsync, "t1", "PENDING", published_at=now - 2)
    stage(memsync, "t2", "PENDING", published_at=now - 3)
    stage(memsync, "t3", "STARTED")
    rows = [row for row in rows_of(archived(memsync)) if "coordination" not in row.get("key", "")]
    rows[-1]["entries"] = len(rows) - 2

    put_back(b"".join(json.dumps(row).encode() + b"\n" for row in rows), elsewhere)

    assert elsewhere.get_queue() == {"pending": ["t2", "t1"], "processing": ["t3"]}


def test_nothing_is_counted_again(memsync, elsewhere):
    stage(memsync, "t1", "SUCCESS")
    data = archived(memsync)

    put_back(data, elsewhere)
    put_back(data, elsewhere)

    assert elsewhere.get_coordination_metrics() == memsync.get_coordination_metrics()
    assert elsewhere.get_coordination_metrics()["succeeded"] == 1


def test_what_is_there_already_is_passed_over(memsync):
    populate(memsync)
    before = entries(memsync)

    report = put_back(archived(memsync), memsync)

    assert set(report.counts) == {"same"}
    assert entries(memsync) == before


def test_what_is_newer_stays_and_is_told(memsync, other):
    memsync.write("a", "old")
    memsync.write("b", "same")
    data = archived(memsync)
    other.write("a", "new")
    other.force_sync()

    report = put_back(data, memsync)

    assert (report.counts["newer"], report.newer) == (1, ["task-sentinel/a"])
    assert memsync.read_entry("a", consistent=True).value == "new"
    assert memsync.read_entry("a", consistent=True).version == 2


def test_a_stage_that_is_further_along_stays_whatever_the_times(memsync, elsewhere):
    stage(memsync, "t1", "STARTED")
    data = archived(memsync)
    stage(elsewhere, "t1", "SUCCESS")

    report = put_back(data, elsewhere)

    assert "elsewhere/tasks/t1/state" in report.newer
    assert elsewhere.get_task_state("t1")["status"] == "SUCCESS"
    assert elsewhere.get_queue() == {"pending": [], "processing": []}


def test_a_stage_that_is_further_along_in_the_archive_is_taken(memsync, elsewhere):
    stage(elsewhere, "t1", "STARTED")
    stage(memsync, "t1", "FAILURE")

    report = put_back(archived(memsync), elsewhere)

    assert report.counts["newer"] <= 2  # the counters and the queue
    assert elsewhere.get_task_state("t1")["status"] == "FAILURE"
    assert elsewhere.get_queue()["processing"] == []


def test_what_was_deleted_comes_back_and_its_version_goes_on(memsync):
    memsync.write("a", "old")
    data = archived(memsync)
    memsync.delete("a")
    memsync.force_sync()

    report = put_back(data, memsync)

    entry = memsync.read_entry("a", consistent=True)
    assert (entry.value, entry.version) == ("old", 3)
    assert report.counts["newer"] == 0
    assert put_back(data, memsync).counts["newer"] == 0


def test_a_version_does_not_go_backward_where_an_older_entry_has_a_higher_one(memsync, elsewhere):
    memsync.write("a", "later")
    data = archived(memsync)
    head, row, last = rows_of(data)
    older = {**row, "version": 5, "timestamp": row["timestamp"] - 10, "value": "older"}
    put_back(b"".join(json.dumps(one).encode() + b"\n" for one in (head, older, last)), elsewhere)
    assert elsewhere.read_entry("a", consistent=True).version == 5

    put_back(data, elsewhere)

    entry = elsewhere.read_entry("a", consistent=True)
    assert (entry.value, entry.version) == ("later", 6)


def test_copies_and_subscribers_elsewhere_hear_of_what_is_put_back(make_memsync, memsync):
    reader = make_memsync("reader")
    memsync.write("a", 1)
    data = archived(memsync)
    heard = []
    reader.subscribe("a", lambda key, value, entry: heard.append((value, entry.version)), lambda key: heard.append(None))
    memsync.delete("a")
    memsync.force_sync()
    eventually(lambda: None in heard)
    assert reader.read("a") is None

    put_back(data, memsync)

    eventually(lambda: reader.read("a") == 1)
    eventually(lambda: heard[-1] == (1, 3))


def test_a_writer_that_saw_the_entry_before_does_not_overwrite_what_was_put_back_unseen(make_memsync, memsync, elsewhere):
    writer = make_memsync("writer", namespace="elsewhere", batch_interval=60.0, conflict_resolver="merge_arrays")
    writer.write("a", ["mine"])
    writer.force_sync()
    for value in (["earlier"], ["archived"]):
        memsync.write("a", value)
        memsync.force_sync()

    put_back(archived(memsync), elsewhere)
    writer.write("a", ["mine", "again"])
    writer.force_sync()

    assert set(elsewhere.read("a", consistent=True)) == {"archived", "mine", "again"}


def test_a_worker_that_never_beats_here_is_called_lost_by_another(make_memsync, memsync, elsewhere, redis):
    memsync.store.beat_worker("w1", json.dumps({"worker_id": "w1", "status": "active"}).encode(), 60.0)
    memsync.store.beat_worker("w2", json.dumps({"worker_id": "w2", "status": "offline"}).encode(), 60.0, leaving=True)

    put_back(archived(memsync), elsewhere)

    due = dict(redis.zrange("elsewhere//{workers}/beats", 0, -1, withscores=True))
    token = memsync.store.token.encode()
    now = time.time() * 1000
    assert 0 < due[token + b" w1"] - now <= elsewhere.settings.worker_ttl * 1000
    assert due[token + b" w2"] < 0
    assert {one.worker_id: one.status for one in elsewhere.get_workers()} == {"w1": "active", "w2": "offline"}


def test_foreign_data_in_the_way_is_refused_and_the_others_are_put_back(memsync, elsewhere, redis):
    memsync.write("a", 1)
    memsync.write("b", 2)
    memsync.sync_task_state("t1", {"x": 1})
    data = archived(memsync)
    redis.lpush("elsewhere/a", "foreign")
    redis.lpush("elsewhere/tasks/{t1}/", "foreign")

    report = put_back(data, elsewhere)

    assert sorted(key for key, _ in report.errors) == ["elsewhere/a", "elsewhere/tasks/t1/state"]
    assert elsewhere.read("b") == 2


def test_what_others_have_put_into_the_namespace_is_no_reason_for_a_bad_line(memsync, elsewhere, redis):
    populate(memsync)
    memsync.force_sync()
    keys, text = memsync.store.keys, "7 - - 0 1790000000000 90000000000 0 - "
    for task_id in ("a/b", "*", "", "\udcff", "ok"):
        raw = task_id.encode(errors="surrogateescape")
        redis.xadd(keys.task_index, {"id": raw})
        redis.set(b"task-sentinel/tasks/{" + raw + b"}/", f'\n\n{text}x\n{{"x":1}}')
        redis.zadd(keys.pending, {raw: -5})
    redis.hset(keys.workers, mapping={"x": text + "x\n1", "a/b/c": text + "\x07\n1", "w/status": "7" * 18 + text + "x\n1"})
    paths = ["task-sentinel/a//b", "other/a", "task-sentinel/locks/x", "task-sentinel/own"]
    redis.zadd(keys.names, dict.fromkeys(paths, 9e15))
    redis.set("task-sentinel/own", text + "x\nnot JSON")
    redis.hset(keys.metrics, mapping={"strange": "{", "\udcff".encode(errors="surrogateescape"): "1"})

    report = put_back(b"".join(lines_of(memsync.store)), elsewhere)

    assert set(report.counts) == {"ok"}
    assert elsewhere.get_task_state("ok") == {"x": 1}
    assert elsewhere.get_task("t1") == memsync.get_task("t1")


def test_locks_and_what_waits_for_them_are_not_archived(memsync):
    with memsync.lock("printer"), memsync.task_lock("t1"):
        memsync.write("a", 1)

        data = archived(memsync)

    assert b"printer" not in data
    assert [row["key"] for row in rows_of(data) if "key" in row] == ["task-sentinel/a"]


def test_an_archive_is_read_in_bounded_round_trips(memsync, redis):
    for number in range(300):
        memsync.sync_task_state(f"t{number}", {"number": number})
        memsync.write(f"own/{number}", number)
    memsync.force_sync()
    redis.config_resetstat()

    count = sum(1 for _ in lines_of(memsync.store))

    calls = {name: one["calls"] for name, one in redis.info("commandstats").items()}
    assert count == 602
    assert calls.get("cmdstat_keys", 0) + calls.get("cmdstat_scan", 0) == 0
    assert calls["cmdstat_xrange"] <= 8
