"""Marks, fences and times of other programs, however far ahead they are: nothing breaks, and what follows is later."""
from __future__ import annotations

import time

import pytest

from tests.support.waiting import eventually

MARK, LOCK, KEY = "task-sentinel//{clock}", "task-sentinel/locks/{a}", "task-sentinel/k"

#: Near the limit of what scripts count exactly, and of what counts as ours.
NEAR_LIMITS = [2 ** 53, 2 ** 53 - 1, 2 ** 53 - 500, 2 ** 52, 2 ** 52 - 1, 2 ** 52 - 1500]

#: Ten years, in ms.
YEARS = 315_360_000_000


def now_ms():
    return round(time.time() * 1000)


@pytest.mark.parametrize("mark", NEAR_LIMITS)
def test_locks_and_writes_go_on_with_a_mark_near_the_limit(memsync, other, redis, mark):
    redis.set(MARK, mark)
    fences = []

    for number in range(4):
        with (memsync, other)[number % 2].lock("a") as lock:
            fences.append(lock.fence)
            assert not (memsync, other)[1 - number % 2].lock("a").acquire()
            (memsync, other)[number % 2].write(f"k{number}", number, expected_version=0)

    assert len(set(fences)) == 4 and all(10 ** 15 < fence < 2 ** 53 for fence in fences)
    # Those of a mark that another program has set end with it.
    assert fences[2:] == sorted(fences[2:]) and (mark < 2 ** 52 - 1000 or fences[1:] == sorted(fences[1:]))
    assert list(other.read_many([f"k{number}" for number in range(4)]).values()) == [0, 1, 2, 3]
    assert 10 ** 15 < int(redis.get(MARK)) < 2 ** 53


@pytest.mark.parametrize("fence", [number for number in NEAR_LIMITS if number < 2 ** 53])
def test_a_lock_excludes_others_after_a_fence_near_the_limit(memsync, other, redis, fence):
    redis.set(LOCK, f"7 - - {fence} {now_ms()} 0 0 someone.1 w\n")

    with memsync.lock("a") as lock:
        held = lock.owned, other.lock("a").acquire()

    assert held == (True, False)
    assert other.lock("a").acquire()


@pytest.mark.parametrize("time_ms, lag", [
    (now_ms() + YEARS, 0), (now_ms(), YEARS), (10 ** 15 - 1, 0), (0, 10 ** 15 - 1)], ids=["time", "lag", "last", "last lag"])
def test_an_entry_from_far_ahead_is_replaced_like_any_other(memsync, other, redis, time_ms, lag):
    received = []
    other.subscribe("k", lambda key, value, entry: received.append((value, entry.version)))
    redis.set(KEY, f'4 - - 0 {time_ms} {YEARS} {lag} someone.1 w\n"foreign"', px=60_000)

    for value in ("mine", "last"):
        memsync.write("k", value)
        memsync.force_sync()
    memsync.write("k", "cas", expected_version=6)

    assert eventually(lambda: received[-1:] == [("cas", 7)])
    assert other.read("k", consistent=True) == "cas"


def test_a_new_life_after_an_entry_from_far_ahead_is_received(memsync, other, redis, fast_polling):
    received = []
    redis.set(KEY, f'4 - - 0 {now_ms() + YEARS} {YEARS} 0 someone.1 w\n"foreign"')
    other.subscribe("k", lambda key, value: received.append(value))
    memsync.write("k", "old")
    memsync.force_sync()
    eventually(lambda: received == ["old"])

    redis.delete(KEY)
    memsync.write("k", "new")
    memsync.force_sync()

    assert eventually(lambda: received[-1] == "new")


@pytest.mark.parametrize("header", [
    f"4 - - 0 {10 ** 15 - 1} 5000 1 someone.1 w", f"4 - - 0 {10 ** 15} 5000 0 someone.1 w", "4 - - 0 5 5000 -6 someone.1 w",
])
def test_what_no_later_write_could_follow_is_no_entry(memsync, redis, header):
    redis.set(KEY, header + '\n"foreign"')

    seen = memsync.read("k", consistent=True)
    entry = memsync.write("k", "mine", expected_version=0)

    assert (seen, entry.version) == (None, 1)
