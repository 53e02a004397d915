"""Which names and times a lock may have."""
from __future__ import annotations

import pytest

from celery_memsync import InvalidKey, InvalidValue


@pytest.mark.parametrize("name", ["", "a/b", "a*", "a\nb", "x" * 513, None, 7])
def test_a_name_that_is_not_fit_is_refused(memsync, name):
    with pytest.raises(InvalidKey):
        memsync.lock(name)


@pytest.mark.parametrize("name", ["{a}", "}a{", "ä b", "a|b", "'\"$%", "tasks", "a:b.c-d@e"])
def test_odd_names_are_names(memsync, other, name):
    with memsync.lock(name, ttl=5) as lock:
        assert not other.lock(name).acquire()
        assert [record.name for record in other.locks()] == [name]
        assert other.read(f"locks/{name}")["worker_id"] == "worker-1"
        lock.extend(6)


@pytest.mark.parametrize("options", [{"ttl": 0}, {"ttl": -1}, {"ttl": "5"}, {"ttl": True}, {"wait": -1}, {"wait": "x"}])
def test_times_that_are_none_are_refused(memsync, options):
    with pytest.raises(InvalidValue):
        memsync.lock("a", **options)
    with pytest.raises(InvalidValue):
        memsync.acquire_task_lock("a", **options)


def test_lock_is_acquired_in_place_of_foreign_data(memsync, redis):
    redis.set("task-sentinel/locks/{a}", "something else")
    redis.rpush("task-sentinel/locks/{b}", "a list")
    listed = memsync.locks()

    locks = [memsync.lock(name) for name in "ab"]
    taken = [lock.acquire() for lock in locks]

    assert listed == []
    assert taken == [True, True]
    assert [record.name for record in memsync.locks()] == ["a", "b"]
