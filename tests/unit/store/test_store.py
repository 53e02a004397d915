"""The store and its scripts: what one call does in Redis, and that doing it twice does nothing more."""
from __future__ import annotations

import itertools
import time

import pytest

from celery_memsync import StoreError
from celery_memsync import keys as names
from celery_memsync.keys import Keys
from celery_memsync.models.entry import Header, StoredEntry
from celery_memsync.store import EntryWrite, MetricsUpdate, QueueReplacement, Store, ms, scripts
from celery_memsync.store.client import connect
from celery_memsync.store.errors import explain
from tests.support.publishing import published
from tests.support.redis_contents import remembered

keys = Keys("task-sentinel")
A = keys.location("a")
LIFE = keys.task_location("t1", names.STAGE)
STATE = keys.task_location("t1", names.STATE)
RUN_1, RUN_2 = "chain.0.a", "chain.1.b"


@pytest.fixture
def make_store(redis_url):
    made = []

    def make(token="tokenone", url=redis_url):
        made.append(Store(connect(url, {}), keys, f"worker of {token}", token, 60.0))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def write(location=A, body=b"1", *, seen="*", run="", rank="-", serial=1, ttl_ms=60_000, fence=0):
    return EntryWrite(location, seen, run, rank, fence, time.monotonic(), ttl_ms, serial, body)


def outcomes(store, *writes):
    return [(outcome.status, outcome.version) for outcome in store.write_entries(writes)]


def test_entry_is_stored_versioned_published_and_given_its_ttl(store, redis):
    one = write(body=b"[1]")

    messages = published(redis, lambda: store.write_entries([one]))

    stored = store.read_entries([A])[0]
    made, lag = round(store.clock.at(one.at) * 1000), stored.header.lag
    assert abs(stored.header.time - made) < 1000
    assert stored == StoredEntry(
        Header(1, "-", "-", 0, stored.header.time, 60_000, lag, "tokenone.1", "worker of tokenone"), b"[1]")
    assert 0 <= lag < 5_000
    assert 0 < redis.pttl(A.key) <= 60_000
    assert messages == [("0:" + A.path, b"1\n" + redis.get(A.key).strip(b"\n"))]


def test_message_is_the_slot_and_the_stored_text(store, redis):
    ((channel, data),) = published(redis, lambda: store.write_entries([write(STATE, b"{}")]))

    assert channel == "0:" + STATE.path
    assert data.startswith(b"2\n1 - - 0 ")
    assert data[2:] == redis.get(STATE.key).strip(b"\n")


def test_batch_sent_twice_is_stored_and_published_once(store, redis):
    batch = [write(A, serial=1), write(STATE, b"{}", seen="0", serial=2), write(LIFE, b"[]", seen="run", run=RUN_1,
                                                                                rank="2", serial=3)]

    messages = published(redis, lambda: [store.write_entries(batch), store.write_entries(batch)])

    assert len([channel for channel, _ in messages if "/coordination/" not in channel]) == 3
    assert len(messages) == 5
    assert [store.read_entries([one.location])[0].header.version for one in batch] == [1, 1, 1]


def test_a_second_try_is_known_after_others_have_written(make_store):
    stores = [make_store(f"token00{number}") for number in range(3)]
    for number, store in enumerate(stores):
        store.write_entries([write(body=b"%d" % number, serial=1)])

    again = outcomes(stores[0], write(body=b"0", serial=1))

    assert again == [("again", 3)]
    assert stores[0].read_entries([A])[0].body == b"2"


def test_each_write_of_a_writer_counts(store):
    answers = [outcomes(store, write(serial=serial))[0] for serial in (1, 2, 3)]

    assert answers == [("ok", 1), ("ok", 2), ("ok", 3)]


def test_writes_of_one_key_in_one_batch_are_stored_in_order(store):
    batch = [write(body=b"%d" % serial, serial=serial) for serial in range(1, 6)]

    assert outcomes(store, *batch) == [("ok", version) for version in range(1, 6)]
    assert store.read_entries([A])[0].body == b"5"


@pytest.mark.parametrize("seen, status", [("0", "conflict"), ("1", "ok"), ("2", "conflict"), ("*", "ok")])
def test_a_write_is_stored_if_the_version_it_saw_is_there(make_store, seen, status):
    make_store("tokenone").write_entries([write(body=b"first")])

    (outcome,) = make_store("tokentwo").write_entries([write(body=b"second", seen=seen)])

    assert outcome.status == status
    assert (outcome.stored.body if outcome.stored else None) == (b"first" if status == "conflict" else None)


def test_version_of_a_deleted_entry_is_a_conflict_with_nothing(store):
    (outcome,) = store.write_entries([write(seen="5")])

    assert (outcome.status, outcome.version, outcome.stored) == ("conflict", 0, None)


def test_a_lower_fence_is_refused(make_store):
    make_store("tokenone").write_entries([write(fence=5)])

    answers = [outcomes(make_store(f"token{fence:03}"), write(fence=fence))[0] for fence in (4, 5, 0, 6)]

    assert answers == [("fenced", 1), ("ok", 2), ("ok", 3), ("ok", 4)]


@pytest.mark.parametrize("stored, later, status", [
    ((RUN_1, "2"), (RUN_1, "4"), "ok"), ((RUN_1, "4"), (RUN_1, "2"), "kept"), ((RUN_1, "2"), (RUN_1, "2"), "kept"),
    ((RUN_1, "5"), (RUN_2, "0"), "ok"), ((RUN_2, "0"), (RUN_1, "5"), "kept"), ((RUN_2, "2"), (RUN_1, "9"), "ok"),
    ((RUN_1, "9"), (RUN_2, "2"), "kept"), ((RUN_1, "2"), ("", "4"), "ok"),
])
def test_run_and_rank_order_the_stages(make_store, stored, later, status):
    make_store("tokenone").write_entries([write(LIFE, seen="run", run=stored[0], rank=stored[1])])

    answers = outcomes(make_store("tokentwo"), write(LIFE, seen="run", run=later[0], rank=later[1]))

    assert answers[0][0] == status


@pytest.mark.parametrize("order", list(itertools.permutations([(RUN_1, "4"), (RUN_2, "2")])))
def test_both_runs_of_a_task_are_kept_in_every_order(make_store, order):
    for number, (run, rank) in enumerate(order):
        make_store(f"token00{number}").write_entries([write(LIFE, b'"%s"' % run.encode(), seen="run", run=run, rank=rank)])

    task = make_store("tokenall").read_tasks(["t1"])[0]

    assert task.slots[names.STAGE].value == RUN_2
    assert [former.value for former in task.former[names.STAGE]] == [RUN_1]


def test_value_of_a_foreign_type_is_replaced_by_a_write(store, redis):
    redis.lpush(keys.task("t1"), "a list")

    outcomes = store.write_entries([write(STATE, serial=1), write(A, serial=2)])

    assert [(one.status, one.version) for one in outcomes] == [("ok", 1), ("ok", 1)]


def test_the_longest_ttl_of_a_task_keeps_its_page(store, redis):
    for slot, ttl_ms in ((names.STAGE, 1_000), (names.STATE, 90_000), (names.PROGRESS, 5_000)):
        store.write_entries([write(keys.task_location("t1", slot), serial=slot, ttl_ms=ttl_ms)])

    assert redis.pttl(STATE.key) > 80_000


def test_a_task_comes_into_the_index_once(store, redis):
    store.write_entries([write(LIFE, serial=1), write(STATE, serial=2)])
    store.write_entries([write(LIFE, serial=3)])

    assert store.read_recent_tasks(10).task_ids == ["t1"]
    assert 0 < redis.pttl(keys.task_index) <= 60_000


def test_what_is_no_task_is_not_in_the_index(store):
    store.write_entries([write(A, serial=1), write(keys.worker_location("w1", "status"), serial=2)])

    assert store.read_recent_tasks(10) == ([], None)


def test_index_pages_go_back_in_time(store):
    for number in range(5):
        store.write_entries([write(keys.task_location(f"t{number}", names.STAGE), serial=number + 1)])

    first = store.read_recent_tasks(2)
    second = store.read_recent_tasks(9, before=first.before)

    assert [*first.task_ids, *second.task_ids] == ["t4", "t3", "t2", "t1", "t0"]
    assert second.before is None


def test_index_pages_end_in_the_middle_of_an_item(store, redis):
    for first in range(0, 40, 20):
        store.write_entries([
            write(keys.task_location(f"t{number}", names.STAGE), serial=number + 1) for number in range(first, first + 20)])

    assert redis.xlen(keys.task_index) < 10
    ids, before = [], "+"
    while before:
        page, before = store.read_recent_tasks(7, before)
        assert len(page) <= 7
        ids += page

    assert ids == [f"t{number}" for number in reversed(range(40))]


def test_scripts_are_taught_once_and_again_when_they_are_forgotten(store, redis):
    store.write_entries([write(serial=1)])

    redis.script_flush()
    store.write_entries([write(serial=serial) for serial in range(2, 250)])

    assert redis.script_exists(scripts.ENTRY_WRITE.sha) == [True]
    assert store.read_entries([A])[0].header.version == 249


@pytest.mark.parametrize("known", [[], ["QUEUE_REPLACE"], ["METRICS_UPDATE"]])
def test_changes_by_several_scripts_are_all_made_whichever_of_them_redis_has_forgotten(store, redis, known):
    redis.script_flush()
    for name in known:
        redis.script_load(getattr(scripts, name).text)

    answers = store.change_coordination([
        MetricsUpdate(1, 60.0, {"n": (b"5", 0)}), QueueReplacement(2, 60.0, {"pending": ["a", "b"]}),
        MetricsUpdate(3, 60.0, {"n": (None, 2)}), QueueReplacement(4, 60.0, {"pending": ["b"], "processing": ["a"]}),
    ])

    assert [(answer.status, answer.answer) for answer in answers] == [("ok", [])] * 4
    assert store.read_queue(10) == {"pending": ["b"], "processing": ["a"]}
    assert store.read_metrics() == {"n": b"7"}
    assert (remembered(redis, store, "queue"), remembered(redis, store, "metrics")) == ({2, 4}, {1, 3})


@pytest.mark.parametrize("name", ["ENTRY_WRITE", "HEARTBEAT_WRITE", "QUEUE_REPLACE"])
def test_redis_calls_a_script_by_the_name_that_we_do(redis, name):
    script = getattr(scripts, name)

    assert redis.script_load(script.text) == script.sha


# -- errors

def test_store_error_names_what_was_tried_while_redis_is_away(make_store):
    store = make_store(url="unix:///nowhere/redis.sock")

    with pytest.raises(StoreError, match="Could not read entries .*its socket is not there") as caught:
        store.read_entries([A])[0]

    assert "Redis at /nowhere/redis.sock, database 0)" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_refusal_is_explained_without_the_rest(redis):
    try:
        redis.eval("return redis.error_reply('ODD command not allowed script: f_1')", 0)
    except Exception as exc:
        text = explain(exc)

    assert text == "it answers: ODD command not allowed"


@pytest.mark.parametrize("seconds, milliseconds", [(1.0, 1000), (0.0004, 1), (0, 1), (2.0006, 2001), (3600, 3_600_000)])
def test_seconds_are_milliseconds_in_scripts(seconds, milliseconds):
    assert ms(seconds) == milliseconds


def test_a_closed_store_opens_anew(store):
    store.write_entries([write()])

    store.close()
    store.close()

    assert store.read_entries([A])[0].body == b"1"


def test_ids_of_many_writers_do_not_pile_up_in_an_entry(make_memsync, redis):
    used = []

    for number in range(12):
        manager = make_memsync(batch_interval=60.0)
        manager.sync_task_state("t1", {"x": number})
        manager.force_sync()
        used.append(redis.strlen(keys.task("t1")))

    assert used[11] <= used[3] + 8
