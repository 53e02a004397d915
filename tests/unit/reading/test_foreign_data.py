"""Foreign data under our keys: readers answer None or raise StoreError, and nothing else."""
from __future__ import annotations

import time

import pytest

from celery_memsync import StoreError
from celery_memsync.keys import Keys

keys = Keys("task-sentinel")

HEADER = f"1 - - 0 {round(time.time() * 1000)} 3600000 0 - w\n".encode()

#: Fields of hashes that are read.
FIELDS = ("", "/", "x", "a1", "w1/heartbeat", "w1/status", "w1/capacity")

FOREIGN = {
    "string": lambda redis, key: redis.set(key, "a string"),
    "list": lambda redis, key: redis.lpush(key, "a list"),
    "set": lambda redis, key: redis.sadd(key, "a set"),
    "stream": lambda redis, key: redis.xadd(key, {"x": 1}),
    "stream-of-bytes": lambda redis, key: redis.xadd(key, {"ids": b"\xff\xfe"}),
    "sorted-set": lambda redis, key: redis.zadd(key, {b"\xff": 5e15, "w": 1}),
    "fields-of-bytes": lambda redis, key: redis.hset(key, b"\xff\xfe", b"\xff\xfe"),
}

TEXTS = (
    b"", b"garbage", b"\xff\xfe\x00", b"1 - - 0 5 5 0 - \xff\nx", b"1 2 3\n4", b"\n\n", b'{"json": true}',
    HEADER + b"no json", HEADER + b"\xff\xfe", HEADER + b"[]", HEADER + b"5", HEADER + b"[[1],2,{}]",
    HEADER + b'{"status":[]}', HEADER + b'{"__type__":"x","__value__":1}',
)

#: Where one line more or less is than of one entry.
LONGER = (HEADER + b"5\n" + HEADER + b"6", HEADER + b" 5 \n", b"\n" + HEADER + b"5")

READS = [
    lambda memsync: memsync.read("a"),
    lambda memsync: memsync.read("tasks/t1/x"),
    lambda memsync: memsync.read("tasks/t1/state"),
    lambda memsync: memsync.read("tasks/t1/progress"),
    lambda memsync: memsync.read("workers/w1/heartbeat"),
    lambda memsync: memsync.get_task_state("t1"),
    lambda memsync: memsync.get_task_progress("t1"),
    lambda memsync: memsync.get_task("t1"),
    lambda memsync: memsync.get_task_agents("t1"),
    lambda memsync: memsync.get_agent_coordination("t1", "a1"),
    lambda memsync: memsync.get_tasks(),
    lambda memsync: memsync.get_workers(),
    lambda memsync: memsync.get_active_workers(),
    lambda memsync: memsync.get_worker_status("w1"),
    lambda memsync: memsync.get_worker_capacity("w1"),
]


HASHES = [keys.workers, keys.agents("t1")]
PAGES = [keys.location("a").key, keys.location("tasks/t1/x").key, keys.task("t1")]
KEYS = [*PAGES, *HASHES, keys.heartbeats, keys.task_index]


def garble(redis, text):
    """Put a text wherever entries are kept."""
    for key in HASHES:
        redis.hset(key, mapping=dict.fromkeys(FIELDS, text))
    for key in PAGES:
        redis.set(key, b"\n".join([text] * 3 + [b"1@" + text, b"3@" + text, b"x@" + text]))


def crashes_of(memsync):
    """Return the reads that raise anything but StoreError."""
    crashes = {}
    for number, read in enumerate(READS):
        try:
            read(memsync)
        except StoreError:
            pass
        except Exception as exc:
            crashes[number] = repr(exc)
    return crashes


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_kind_never_makes_a_reader_crash(memsync, redis, foreign, key):
    FOREIGN[foreign](redis, key)

    assert crashes_of(memsync) == {}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_of_another_kind_never_makes_a_reader_crash(memsync, redis, text):
    garble(redis, text)

    assert crashes_of(memsync) == {}


@pytest.mark.parametrize("text", [*TEXTS, *LONGER], ids=range(len(TEXTS + LONGER)))
def test_a_text_reads_the_same_alone_and_with_others(memsync, redis, text):
    memsync.read("warm")
    redis.set(keys.location("a").key, text)

    alone = memsync.read("a")

    assert alone == memsync.read_many(["a", "b"], consistent=True)["a"]
    assert memsync.read("a") == alone


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_key_of_another_kind_reads_as_nothing(memsync, redis, foreign):
    memsync.read("warm")
    FOREIGN[foreign](redis, keys.location("a").key)

    assert memsync.read("a") is None


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_of_another_kind_never_stops_the_writer(memsync, other, redis, text):
    garble(redis, text)
    memsync.sync_task_state("t1", {"x": 1})
    memsync.sync_task_progress("t1", 50)
    memsync.sync_worker_status("w1", "up")
    memsync.write("a", 1)
    memsync.write("fine", 2)

    try:
        memsync.force_sync()
    except StoreError:
        pass

    assert other.read("fine") == 2
