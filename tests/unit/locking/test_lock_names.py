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


def foreign_lock(redis, version="1", rank="60000", time=None, ttl="60000"):
    """Write the record of a lock whose holder is none of ours."""
    time = int(redis.time()[0]) * 1000 if time is None else time
    redis.set("task-sentinel/locks/{a}", f"{version} - {rank} 5 {time} {ttl} 0 x w\n{{}}")


@pytest.mark.parametrize("figures", [
    {"rank": "5000.5"}, {"rank": "1e3"}, {"rank": "inf"}, {"rank": "nan"}, {"rank": "-5"}, {"rank": "9" * 400},
    {"time": "9" * 15, "ttl": "9" * 14, "rank": "1e300"}, {"time": "9" * 15, "ttl": "9" * 14, "rank": "9" * 14},
])
def test_foreign_lease_is_waited_for_like_any_other(memsync, redis, figures):
    foreign_lock(redis, **figures)

    acquired = [memsync.lock("a").acquire(), memsync.lock("a", wait=0.1).acquire()]

    assert acquired == [False, False]
    assert memsync.free_lock("a", 5)
    assert memsync.lock("a").acquire()


@pytest.mark.parametrize("version", ["9" * 13 + "8", "9" * 14])
def test_lock_is_held_by_one_though_its_versions_come_to_their_end(memsync, other, redis, version):
    foreign_lock(redis, version, time=1)

    lock = memsync.lock("a")
    acquired = [lock.acquire(), other.lock("a").acquire()]

    assert acquired == [True, False]
    assert lock.release()
