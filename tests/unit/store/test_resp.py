"""Redis's answers as they come over the wire."""
from __future__ import annotations

import pytest
import redis

from celery_memsync.store.resp import Incomplete, parse_answer

ANSWERS = [
    (b"+PONG\r\n", b"PONG"), (b"+\r\n", b""), (b":-5\r\n", -5), (b"$0\r\n\r\n", b""), (b"$-1\r\n", None),
    (b"$4\r\na\r\nb\r\n", b"a\r\nb"), (b"*0\r\n", []), (b"*-1\r\n", None), (b"*2\r\n$-1\r\n:1\r\n", [None, 1]),
    (b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n", [b"message", b"x", [b"a", b"b"]]),
    (b"*2\r\n*0\r\n*1\r\n*1\r\n:7\r\n", [[], [[7]]]),
]


@pytest.mark.parametrize("data, answer", ANSWERS)
def test_answer_is_parsed_to_its_end(data, answer):
    assert parse_answer(b"before" + data + b"+after\r\n", 6) == (answer, 6 + len(data))


@pytest.mark.parametrize("data, answer", ANSWERS)
def test_part_of_an_answer_is_incomplete_until_all_is_there(data, answer):
    for length in range(len(data)):
        with pytest.raises(Incomplete) as part:
            parse_answer(data[:length], 0)

        assert length < part.value.length <= len(data)


def test_error_is_an_answer_with_all_its_words():
    error, end = parse_answer(b"-NOPERM no \xff rights\r\n", 0)

    assert isinstance(error, redis.ResponseError)
    assert str(error) == "NOPERM no \ufffd rights"
    assert end == 21


@pytest.mark.parametrize("data", [b"garbage\r\n", b"\r\n", b"\x00\x01\r\n", b"$x\r\n", b"*x\r\n", b":x\r\n", b"*1\r\n!\r\n"])
def test_what_is_no_answer_raises(data):
    with pytest.raises(ValueError):
        parse_answer(data, 0)


def test_depth_of_lists_does_not_exhaust_the_stack():
    answer, _ = parse_answer(b"*1\r\n" * 100_000 + b":1\r\n", 0)

    assert isinstance(answer, list)
