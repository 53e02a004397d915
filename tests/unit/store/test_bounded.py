"""Sockets that keep deadlines: an answer that comes alone is read without redis-py's parser if it is a string."""
from __future__ import annotations

import contextlib
import gc
import socket

import pytest
import redis

from celery_memsync.store.bounded import RECEIVED_AT_ONCE, BoundedSocket
from celery_memsync.store.pool import packed_command


@pytest.fixture
def pool(memsync):
    return memsync.runtime.store.redis.connection_pool


@pytest.fixture
def ends():
    """A socket that keeps deadlines, and the end that Redis has of it."""
    near, far = socket.socketpair()
    with near, far:
        yield BoundedSocket(near, 0.2), far


@pytest.mark.parametrize("command", [
    ("ECHO", ""), ("ECHO", "text"), ("ECHO", "$1\r\na\r\n"), ("ECHO", "x" * 3 * RECEIVED_AT_ONCE), ("GET", "missing"),
    ("PING",), ("DBSIZE",), ("EVAL", "return { 'a', { 1, false } }", 0), ("TIME", "wrong")], ids=lambda words: words[0])
def test_only_answer_is_the_one_that_redis_py_reads(pool, command):
    packed = packed_command(*command)
    (expected,) = pool.execute_packed([packed])

    for _ in range(2):  # nothing of the first answer is left for the second
        try:
            answer = pool.execute_one(packed)
        except redis.ResponseError as exc:
            answer = exc
        assert (type(answer), str(answer)) == (type(expected), str(expected))


@pytest.mark.parametrize("arrived", [
    b"-ERR it is wrong\r\n", b"$4\r\nte", b":12345\r\n", b"$4\r\ntext\r\n+OK\r\n", b"$x\r\n\r\n"])
def test_what_is_no_whole_string_is_received_again(ends, arrived):
    near, far = ends
    far.sendall(arrived)
    buffer = bytearray(3)

    assert near.receive_string() is None
    pieces = [near.recv(2), bytes(buffer[:near.recv_into(buffer)]), near.recv(100)]
    far.sendall(b"$4\r\nnext\r\n")

    assert b"".join(pieces) == arrived
    assert near.receive_string() == b"next"


def test_error_of_receiving_is_raised_to_the_next_that_receives(ends):
    near, far = ends

    assert near.receive_string() is None
    with pytest.raises(TimeoutError):
        near.recv(100)
    far.close()

    assert near.receive_string() is None
    assert near.recv(100) == b""


def test_error_of_receiving_leaves_nothing_to_the_garbage_collector(ends):
    near, _ = ends
    gc.collect()

    near.receive_string()
    with contextlib.suppress(TimeoutError):
        near.recv(100)

    assert gc.collect() == 0
