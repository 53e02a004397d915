"""The cache by itself: what it keeps, for how long, and what it forgets."""
from __future__ import annotations

import gc
import time
import tracemalloc
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_memsync.reading import cache as cache_module
from celery_memsync.reading.cache import CacheEntry, EntryCache, PendingRead, copier
from tests.support.cached_values import NEVER, Source, value_of


@pytest.fixture(autouse=True)
def always_looking(monkeypatch):
    """Every lookup checks whether an invalidation is pending."""
    monkeypatch.setattr(cache_module, "CHECK_PAUSE", -1)


@pytest.fixture
def cache():
    """A cache without pending invalidations."""
    return EntryCache(3, 60.0, lambda: False)


def keep(cache, name, value=1, keys=None, until=NEVER, source=None, age=0.0):
    """Keep something as a reader does."""
    keys = (name,) if keys is None else keys
    reading = cache.begin(keys, source or Source())
    reading.at -= age
    cache.keep(reading, name, value, keys, until)
    cache.finish(reading)


def change_all(value):
    """Change a value of JSON's kind wherever it can be changed."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in list(children):
        change_all(child)
    if isinstance(value, dict):
        value["changed"] = True
    elif isinstance(value, list):
        value.append("changed")


# -- copies

@pytest.mark.parametrize("value, kind", [
    (None, type(None)), (0, int), (False, bool), ("text", str), (1.5, float), (10 ** 20, int), ([], list), ({}, dict),
    ([1, "a", None], list), ({"a": 1, "b": None}, dict), ([[]], list), ({"a": {}}, dict),
    ({"at": datetime(2024, 5, 17), "id": [Decimal("1.50")]}, dict), ([10 ** 30, "\ud800", {"": 0.1}], list),
    ({"a": [1, {"b": [2, {"c": {}}]}], "d": "e"}, dict), ([[[[1]]], {"a": [{}]}], list), ([1, 2, []], list),
])
def test_what_is_taken_is_equal_and_changing_it_changes_no_other(value, kind):
    take = copier(value)
    text = repr(value)

    change_all(take())
    change_all(value)

    assert repr(take()) == text
    assert type(take()) is kind


def test_what_is_kept_is_recalled_with_all_that_is_remembered_of_it(cache):
    reading = cache.begin(("k1", "k2"), Source())

    cache.keep(reading, "a", [1], ("k1",), NEVER, make_entry=lambda value: [value])

    copy = cache.get("a")
    assert isinstance(copy, CacheEntry)
    assert (copy.take(), copy.make_entry(2), copy.keys) == ([1], [2], ("k1",))


@pytest.mark.parametrize("name", ["b", ("state", "a"), 1, None, b"a", ["a"], {"a": 1}])
def test_a_name_that_was_not_kept_is_not_recalled(cache, name):
    keep(cache, "a")

    assert cache.get(name) is None


# -- size

@pytest.mark.parametrize("size", [1, 2, 10])
def test_there_are_never_more_copies_than_the_size(size):
    cache = EntryCache(size, 60.0, lambda: False)

    lengths = []
    for number in range(30):
        keep(cache, f"key-{number}")
        lengths.append(len(cache))

    assert max(lengths) == size
    assert [cache.get(f"key-{number}") is not None for number in range(30)] == [False] * (30 - size) + [True] * size


def test_full_cache_evicts_the_least_recently_used_copy(cache):
    for name in "abc":
        keep(cache, name)
    for name in "bca":
        cache.get(name)

    keep(cache, "d")

    assert [name for name in "abcd" if cache.get(name)] == ["a", "c", "d"]


def test_keeping_a_thing_anew_pushes_nothing_out(cache):
    for name in "abc":
        keep(cache, name, 1)

    keep(cache, "a", 2)

    assert [value_of(cache, name) for name in "abc"] == [2, 1, 1]


@pytest.mark.parametrize("size, max_age, enabled", [(0, 60.0, False), (10, 0.0, False), (1, 0.1, True)])
def test_a_cache_without_room_or_time_is_off(size, max_age, enabled):
    cache = EntryCache(size, max_age, lambda: False)

    keep(cache, "a")

    assert cache.enabled is enabled
    assert (cache.get("a") is not None) is enabled
    assert len(cache) <= size


@pytest.mark.slow
def pending_reads():
    gc.collect()
    return sum(type(thing) is PendingRead for thing in gc.get_objects())


def test_evicted_copies_leave_no_memory_behind(cache):
    before = pending_reads()
    tracemalloc.start()
    sizes = []

    for number in range(6000):
        keep(cache, f"key-{number}", keys=(f"key-{number}", f"more-{number}"))
        if number % 2000 == 1000:
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()

    assert sizes[-1] - sizes[0] < 50_000
    assert pending_reads() - before == len(cache)


# -- how long

@pytest.mark.parametrize("until, vouched, age, max_age, valid", [
    (NEVER, NEVER, 0, None, True),
    (50, 50, 9, 10, True),
    (-1, NEVER, 0, None, False),
    (NEVER, -1, 0, None, False),
    (NEVER, -NEVER, 0, None, False),
    (NEVER, NEVER, 59, None, True),
    (NEVER, NEVER, 61, None, False),
    (NEVER, NEVER, 61, 100, False),
    (NEVER, NEVER, 9, 10, True),
    (NEVER, NEVER, 11, 10, False),
    (NEVER, NEVER, 0, 0, False),
    (-1, NEVER, 0, 100, False),
])
def test_copy_is_valid_until_the_first_of_its_limits(cache, until, vouched, age, max_age, valid):
    now = time.monotonic()

    keep(cache, "a", until=now + until, source=Source(now + vouched), age=age)

    assert (cache.get("a", max_age) is not None) is valid
    assert (cache.hits, cache.misses) == (int(valid), int(not valid))


def test_all_copies_of_a_source_go_when_it_vouches_no_more_and_no_others(cache):
    broken, sound = Source(), Source()
    keep(cache, "a", source=broken)
    keep(cache, "b", source=broken)
    keep(cache, "c", source=sound)

    broken.until = -NEVER

    assert [cache.get(name) is not None for name in "abc"] == [False, False, True]


def test_no_copy_is_valid_while_an_invalidation_is_pending():
    pending = []
    cache = EntryCache(3, 60.0, lambda: bool(pending))
    keep(cache, "a")
    before = value_of(cache, "a")

    pending.append("invalidation")
    meanwhile = value_of(cache, "a")
    pending.clear()

    assert (before, meanwhile, value_of(cache, "a")) == (1, None, 1)


# -- changes

def test_a_change_drops_all_that_was_read_of_it_and_nothing_else(cache):
    keep(cache, "a", keys=("k1",))
    keep(cache, "b", keys=("k1", "k2"))
    keep(cache, "c", keys=("k2",))

    dropped = cache.drop("k1")

    assert dropped == 2
    assert [name for name in "abc" if cache.get(name)] == ["c"]


@pytest.mark.parametrize("key", ["k1", "k2"])
def test_what_was_read_of_two_keys_goes_with_either(cache, key):
    keep(cache, "a", keys=("k1", "k2"))

    cache.drop(key)

    assert cache.get("a") is None
    assert cache.drop("k1") + cache.drop("k2") == 0


def test_only_invalidated_copies_are_counted_as_invalidated(cache):
    for name in "abcd":
        keep(cache, name)

    cache.invalidate("d")
    cache.invalidate("unknown")
    cache.drop("c")
    cache.clear()

    assert cache.invalidated == 1


def test_clear_returns_the_names_of_the_dropped_copies(cache):
    keep(cache, "a")
    keep(cache, ("state", "t1"), keys=("k1",))

    names = cache.clear()

    assert set(names) == {"a", ("state", "t1")}
    assert len(cache) == 0
    assert cache.get("a") is None


@pytest.mark.parametrize("overtake, kept", [
    (lambda cache: cache.drop("k1"), False),
    (lambda cache: cache.drop("k2"), False),
    (lambda cache: cache.invalidate("k1"), False),
    (lambda cache: cache.clear(), False),
    (lambda cache: cache.drop("k3"), True),
    (lambda cache: cache.finish(cache.begin(("k1",), Source())), True),
])
def test_an_answer_that_was_overtaken_is_not_kept(cache, overtake, kept):
    keep(cache, "a", "older", keys=("k1",))
    reading = cache.begin(("k1", "k2"), Source())

    overtake(cache)
    cache.keep(reading, "a", "answer", ("k1", "k2"), NEVER)
    cache.finish(reading)

    assert value_of(cache, "a") == ("answer" if kept else None)


def test_of_two_readings_only_the_one_that_was_overtaken_is_lost(cache):
    first = cache.begin(("k1",), Source())
    cache.drop("k1")
    second = cache.begin(("k1",), Source())

    cache.keep(second, "a", "new", ("k1",), NEVER)
    cache.keep(first, "b", "old", ("k1",), NEVER)

    assert (first.stale, second.stale) == (True, False)
    assert (value_of(cache, "a"), value_of(cache, "b")) == ("new", None)


STEPS = st.lists(st.tuples(
    st.sampled_from(["begin", "keep", "change", "recall", "recall", "clear"]), st.sampled_from("abcd")), max_size=60)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_in_any_order_of_steps_only_what_is_true_is_recalled(steps):
    cache, truth, readings = EntryCache(2, 60.0, lambda: False), dict.fromkeys("abcd", 0), []

    for step, key in steps:
        if step == "begin":
            readings.append((cache.begin((key,), Source()), key, truth[key]))
        elif step == "keep" and readings:
            reading, read, value = readings.pop(len(steps) % len(readings))
            cache.keep(reading, read, value, (read,), NEVER)
            cache.finish(reading)
        elif step == "change":
            truth[key] += 1
            cache.drop(key)
        elif step == "clear":
            cache.clear()

        assert len(cache) <= 2
        assert value_of(cache, key) in (None, truth[key])


def test_drop_without_the_mutex_wins_over_a_copy_that_is_kept_meanwhile(cache):
    source = Source()
    reading = cache.begin(["k1"], source)
    kept = cache_module.CacheEntry

    def drop_first(*args):
        cache.drop_for("k1")
        return kept(*args)

    cache_module.CacheEntry = drop_first
    try:
        cache.keep(reading, "a", 1, ("k1",), NEVER)
    finally:
        cache_module.CacheEntry = kept
    cache.finish(reading)

    assert cache.get("a") is None


def test_copy_that_is_kept_after_a_drop_without_the_mutex_goes_with_its_key(cache):
    keep(cache, "a", 1, keys=("k1", "k2"))
    cache.drop_for("k1")
    keep(cache, "a", 2, keys=("k1",))

    assert value_of(cache, "a") == 2
    assert cache.drop("k2") == 0
    assert cache.drop("k1") == 1
    assert not cache._names and not cache._dropped
