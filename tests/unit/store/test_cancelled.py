"""The set of cancelled ids is bounded, expires, and says when it is full."""
from __future__ import annotations

import pytest

from celery_memsync import StoreRefused, StoreUnavailable
from celery_memsync.keys import Keys
from celery_memsync.models.cancellation import Cancellation
from celery_memsync.store import cancelled
from tests.support.redis_calls import round_trips

KEY = Keys("task-sentinel").cancelled


def ids(memsync, mark=None):
    found = memsync.runtime.store.read_cancelled(mark)
    return [] if found is None else [one.id for one, _ in found.rows]


def test_cancelled_id_is_kept_for_a_day(memsync, redis):
    memsync.cancel("t1", "no need")

    (row,) = redis.zrange(KEY, 0, -1, withscores=True)
    seconds, _ = redis.time()
    assert 86390 < redis.pttl(KEY) / 1000 <= 86400
    assert 86390 < row[1] / 1000 - seconds <= 86401
    assert row[0] == b"t1"
    assert redis.pttl(f"{KEY}/causes") / 1000 > 86390
    assert Cancellation.parse(b"t1", redis.hget(f"{KEY}/causes", "t1")).reason == "no need"


def test_same_cancel_twice_answers_as_the_first_one(memsync, other):
    memsync.cancel("t1", "the first")
    other.cancel("t1", "the second")

    other.runtime.cancelled.known.clear()
    other.runtime.cancelled.read()

    assert other.runtime.cancelled.known["t1"].reason == "the first"


def test_set_that_is_full_refuses_and_keeps_what_it_has(memsync, monkeypatch):
    monkeypatch.setattr(cancelled, "MAX_CANCELLED", 2)
    memsync.cancel("t1")
    memsync.cancel("t2")

    with pytest.raises(StoreRefused, match="2 ids were cancelled within 24 hours; cancel the root or the group"):
        memsync.cancel("t3")

    assert ids(memsync) == ["t1", "t2"]
    assert "t3" not in memsync.runtime.cancelled.known


def test_forgotten_ids_and_those_kept_too_long_make_room(memsync, redis, monkeypatch):
    monkeypatch.setattr(cancelled, "MAX_CANCELLED", 2)
    redis.zadd(KEY, {"old": 1000, "new": 1e300})
    redis.hset(f"{KEY}/causes", mapping={"old": "[]", "new": "[]"})

    memsync.cancel("t1")

    assert ids(memsync) == ["t1"]
    assert redis.zcard(KEY) == redis.hlen(f"{KEY}/causes") == 1


def test_set_of_another_type_is_replaced(memsync, redis):
    redis.set(KEY, "a text")
    redis.set(f"{KEY}/causes", "another")

    assert ids(memsync) == []
    memsync.cancel("t1")

    assert ids(memsync) == ["t1"]


def test_read_of_what_has_not_changed_returns_nothing(memsync):
    memsync.cancel("t1")
    found = memsync.runtime.store.read_cancelled()

    assert memsync.runtime.store.read_cancelled(found.mark) is None
    memsync.cancel("t2")
    assert memsync.runtime.store.read_cancelled(found.mark) is not None


def test_cancel_takes_two_round_trips(memsync):
    memsync.cancel("t1")

    assert round_trips(memsync, lambda: memsync.cancel("t2")) == 2


def test_id_that_is_cancelled_again_and_again_takes_one_place(memsync, other, monkeypatch):
    monkeypatch.setattr(cancelled, "MAX_CANCELLED", 2)
    memsync.cancel("t1", "first")
    memsync.cancel("t2")

    for _ in range(5):
        other.cancel("t1", "again")

    (_, first) = memsync.runtime.store.read_cancelled().rows
    assert (first[0].id, first[0].reason) == ("t1", "first")


def test_cancel_that_terminates_replaces_one_that_does_not_and_no_other(memsync):
    memsync.cancel("t1", "please")
    memsync.cancel("t1", "now", terminate=True)
    memsync.cancel("t1", "please")

    ((found, _),) = memsync.runtime.store.read_cancelled().rows
    assert (found.reason, found.terminate) == ("now", True)


def test_reader_reads_only_what_was_cancelled_since(memsync, redis):
    for number in range(5):
        memsync.cancel(f"t{number}")
        redis.zincrby(KEY, 1000 * (number - 5), f"t{number}")
    mark = memsync.runtime.store.read_cancelled().mark

    memsync.cancel("t5")
    memsync.cancel("t3")

    assert set(ids(memsync, mark)) == {"t5", "t3"}


def test_reader_reads_only_what_is_new_although_the_clock_was_set_back(memsync, redis):
    memsync.cancel("t1")
    redis.zadd(KEY, {"t1": redis.zscore(KEY, "t1") + 3e6})
    mark = memsync.runtime.store.read_cancelled().mark

    memsync.cancel("t2")

    assert ids(memsync, mark) == ["t2"]


@pytest.mark.parametrize("lose", [lambda redis: redis.flushall(), lambda redis: redis.zrem(KEY, "t2")], ids=["all", "last"])
def test_reader_reads_all_if_what_it_read_last_is_lost(memsync, redis, lose):
    memsync.cancel("t1")
    memsync.cancel("t2")
    mark = memsync.runtime.store.read_cancelled().mark

    lose(redis)
    memsync.cancel("t0")

    assert ids(memsync, mark)[-1] == "t0"


@pytest.mark.parametrize("cause", [
    None, b"", b"{}", b"null", b"[]", b'["t1"]', b'["1","w",null,null,false]', b'[true,"w",null,null,false]',
    b'[-1,"w",null,null,false]', b'[1e300,"w",null,null,false]', b'[1,null,null,null,false]',
    b'[1,"w","a/b",null,false]', b'[1,"w",null,7,false]', b'[1,"w",null,null,1]', b"[" * 9999, b"\xff",
    b'[1,"w",null,"' + b"x" * 1001 + b'",false]',
])
def test_cause_that_is_none_of_ours_is_ignored(cause):
    assert Cancellation.parse(b"t1", cause) is None


@pytest.mark.parametrize("name", [b"", b"a/b", b"\xff", b"*", b"x" * 513])
def test_id_that_is_none_is_ignored(name):
    assert Cancellation.parse(name, b'[1,"w",null,null,false]') is None


def test_cause_of_a_newer_release_is_read():
    assert Cancellation.parse(b"t1", b'[1,"w",null,null,false,"more"]') == Cancellation("t1", 1, "w")


def test_cancel_raises_while_redis_is_away_and_notes_nothing(make_memsync):
    memsync = make_memsync(url="redis://127.0.0.1:1")

    with pytest.raises(StoreUnavailable):
        memsync.cancel("t1")

    assert memsync.runtime.cancelled.known == {}
