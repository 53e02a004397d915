"""Locks requested over so slow a line to Redis that the caller did not wait for the answer."""
from __future__ import annotations

import threading

import pytest

from celery_memsync import StoreError
from tests.support.proxy import Proxy
from tests.support.stress import stressed
from tests.support.waiting import eventually


@pytest.mark.slow
@pytest.mark.parametrize("wait", stressed([0, 60], [60]))
def test_a_lock_whose_question_arrives_after_it_was_given_back_is_free_soon(server, make_memsync, wait):
    with Proxy(server.port) as proxy:
        slow, other = make_memsync(url=proxy.url), make_memsync()
        with slow.lock("b", ttl=60):
            pass
        proxy.hold_questions(b"EVALSHA")

        with pytest.raises(StoreError):
            slow.lock("a", ttl=60, wait=wait).__enter__()
        threading.Timer(0.5, proxy.release).start()

        assert eventually(lambda: other.locks(), timeout=5)
        assert eventually(lambda: not other.locks(), timeout=10)
        assert other.lock("a").acquire()
