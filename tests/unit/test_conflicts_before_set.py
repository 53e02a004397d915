"""A compare-and-set of a key of which this process's earlier write is in conflict."""
from __future__ import annotations

import contextlib
import threading

import pytest

from celery_memsync import ConflictError, Resolution, StoreUnavailable
from celery_memsync.conflicts import MAX_ROUNDS
from tests.support.unlucky import write_unlucky


@pytest.fixture
def slow(make_memsync):
    """A manager whose resolver runs until ``released`` is set, for a write of ``a`` in conflict."""
    began, released = threading.Event(), threading.Event()

    def resolve(entries):
        began.set()
        released.wait(10)
        return Resolution(entries[1].value, "slow")

    slow, other = make_memsync(batch_interval=0.01, conflict_resolver=resolve), make_memsync(batch_interval=60.0)
    slow.read("a")
    other.write("a", "theirs")
    other.force_sync()
    slow.write("a", "earlier")
    assert began.wait(10)
    yield slow, released
    released.set()


@pytest.mark.parametrize("expected, error, value", [(2, None, "later"), (1, ConflictError, "earlier")])
def test_compare_and_set_follows_what_a_resolver_makes_of_a_write(slow, expected, error, value):
    memsync, released = slow
    threading.Timer(0.2, released.set).start()

    with pytest.raises(error) if error else contextlib.nullcontext():
        memsync.write("a", "later", expected_version=expected)

    memsync.force_sync()
    assert memsync.read("a", consistent=True) == value


def test_compare_and_set_behind_a_resolver_that_hangs_is_not_done(slow):
    memsync, released = slow

    with pytest.raises(StoreUnavailable) as caught:
        memsync.write("a", "later", expected_version=1)

    released.set()
    memsync.force_sync()
    assert (caught.value.maybe_done, memsync.read("a", consistent=True)) == (False, "earlier")


def test_compare_and_set_does_not_overtake_a_write_that_lost_every_round(memsync, make_memsync):
    unlucky = write_unlucky(memsync, make_memsync)

    with pytest.raises(StoreUnavailable) as caught:
        unlucky.write("a", "later", expected_version=1 + MAX_ROUNDS)

    assert (caught.value.maybe_done, memsync.read_entry("a").version) == (False, 1 + MAX_ROUNDS)
