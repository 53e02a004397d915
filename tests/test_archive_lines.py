"""Lines of an archive that are none, and files that are no archives."""
from __future__ import annotations

import json

import pytest

from celery_memsync.archive import BadLine

from .test_archive import archive_of, archived

BAD = {
    "no JSON": b"{",
    "no JSON object": b"[]",
    "not in the namespace": b'{"key":"x/a"}',
    "a lock": {"key": "task-sentinel/locks/a"},
    "version": {"version": 0},
    "timestamp": {"timestamp": "now"},
    "left": {"left": -1},
    "rank": {"rank": "9 9"},
    "run": {"run": "\n"},
    "writes": {"writes": "a b"},
    "worker_id": {"worker_id": "a\nb"},
    "fence": {"fence": True},
    "a part": {"part": "life"},
    "earlier runs": {"former": True},
    "empty part": {"key": "task-sentinel/a//b"},
    "longer than 1000 bytes": {"value": "x" * 2000},
    "no JSON ": b'{"value":NaN}',
    "none that can be stored": b'{"key":"task-sentinel/a","version":1,"timestamp":1,"left":1,"worker_id":"w","value":1e999}',
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_line_is_told_with_its_number(memsync, why):
    memsync.write("a", 1)
    lines = archived(memsync).splitlines()
    bad = BAD[why]
    lines[1] = bad if isinstance(bad, bytes) else json.dumps({**json.loads(lines[1]), **bad}).encode()
    told = []

    for _ in archive_of(b"\n".join(lines) + b"\n", memsync, longest=1000).entries(told.append):
        pass

    assert [one.number for one in told] == [2]
    assert why.strip() in str(told[0])


def test_a_file_that_was_cut_off_is_told(memsync):
    memsync.write("a", 1)
    memsync.write("b", 1)
    lines = archived(memsync).splitlines(keepends=True)

    for rest in (lines[:-1], [*lines[:1], *lines[2:]], [*lines, lines[1]]):
        with pytest.raises(BadLine):
            list(archive_of(b"".join(rest), memsync).entries())


def test_something_else_than_an_archive_is_told_at_once(memsync):
    for data in (b"", b"hello\n", b"{}\n", b'{"format":"celery-memsync","version":2}\n', b"\x00\xff" * 100_000):
        with pytest.raises(BadLine, match="line 1: "):
            archive_of(data, memsync)


def test_a_line_that_is_too_long_is_not_read_as_a_whole(memsync):
    memsync.write("a", 1)
    head, one, last = archived(memsync).splitlines(keepends=True)
    told = []

    for _ in archive_of(head + b" " * 500_000 + one + one + last, memsync, longest=100_000).entries(told.append):
        pass

    assert [one.number for one in told] == [2, 4]
