"""Writes of one key under different fences, in one batch of one process."""
from __future__ import annotations

import pytest


@pytest.mark.parametrize("resolver", ["last_write_wins", "merge_arrays"])
@pytest.mark.parametrize("fences", [[None, 5], [None, 5, 6], [5, 6, 7]])
def test_last_of_many_writes_is_stored_whatever_their_fences_are(make_memsync, other, resolver, fences):
    memsync = make_memsync(batch_interval=60.0, conflict_resolver=resolver)
    for number in range(40):
        memsync.write("a", [number], fence=fences[number % len(fences)] if number < 39 else fences[-1])

    memsync.force_sync()

    assert other.read("a", consistent=True) == [39]
    assert memsync.runtime.writer.pending == 0


def test_writes_under_locks_that_are_taken_in_turn_need_one_round_trip(memsync, other):
    for number in range(60):
        with memsync.lock(f"l{number % 3}") as lock:
            memsync.write("a", number, fence=lock)

    memsync.force_sync()

    assert memsync.read_entry("a").version == 1
    assert other.read("a", consistent=True) == 59
