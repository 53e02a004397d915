"""The set of cancelled ids is bounded, expires, and says when it is full."""
from __future__ import annotations

import pytest

from celery_memsync import StoreRefused, StoreUnavailable
from celery_memsync.keys import Keys
from celery_memsync.models.cancellation import Cancellation
from celery_memsync.store import cancelled
from tests.support.redis_calls import round_trips

KEY = Keys("task-sentinel").cancelled


def ids(memsync):
    found = memsync.runtime.store.read_cancelled()
    return [one.id for one, _ in found.rows]


def test_cancelled_id_is_kept_for_a_day(memsync, redis):
    memsync.cancel("t1", "no need")

    (row,) = redis.zrange(KEY, 0, -1, withscores=True)
    seconds, _ = redis.time()
    assert 86390 < redis.pttl(KEY) / 1000 <= 86400
    assert 86390 < row[1] / 1000 - seconds <= 86401
    assert Cancellation.parse(row[0])[0] == "t1"


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
    redis.zadd(KEY, {Cancellation("old", 1.0, "w1").encode(): 1000, Cancellation("new", 1.0, "w1").encode(): 1e300})

    memsync.cancel("t1")

    assert ids(memsync) == ["t1"]
    assert redis.zcard(KEY) == 1


def test_set_of_another_type_is_replaced(memsync, redis):
    redis.set(KEY, "a text")

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


@pytest.mark.parametrize("row", [
    b"", b"{}", b"null", b"[]", b'["t1"]', b'["a/b",1,"w",null,null,false]', b'["t1","1","w",null,null,false]',
    b'["t1",true,"w",null,null,false]', b'["t1",-1,"w",null,null,false]', b'["t1",1e300,"w",null,null,false]',
    b'["t1",1,null,null,null,false]', b'["t1",1,"w","a/b",null,false]', b'["t1",1,"w",null,7,false]',
    b'["t1",1,"w",null,null,1]', b"[" * 9999, b"\xff", b'["t1",1,"w",null,"' + b"x" * 1001 + b'",false]',
])
def test_member_that_is_none_of_ours_is_ignored(row):
    assert Cancellation.parse(row) is None


def test_member_of_a_newer_release_is_read():
    assert Cancellation.parse(b'["t1",1,"w",null,null,false,"more"]') == Cancellation("t1", 1, "w")


def test_cancel_raises_while_redis_is_away_and_notes_nothing(make_memsync):
    memsync = make_memsync(url="redis://127.0.0.1:1")

    with pytest.raises(StoreUnavailable):
        memsync.cancel("t1")

    assert memsync.runtime.cancelled.known == {}
