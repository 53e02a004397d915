"""The start of a thread, and what interrupts it."""
from __future__ import annotations

import sys
import threading

import pytest

from celery_memsync.background_loop import BackgroundLoop, start_thread


@pytest.mark.skipif(sys.version_info[:2] > (3, 12), reason="threads are checked in another way")
def test_loop_whose_thread_an_exception_made_look_dead_is_still_running():
    called = threading.Event()
    loop = BackgroundLoop("test-loop", called.set, 0, on_demand=True)
    loop.wake()
    assert called.wait(5)
    run = next(iter(loop._runs.values()))
    run.thread._is_stopped = True  # as bpo-45274 leaves it

    assert loop.running

    called.clear()
    loop.wake()
    assert called.wait(5)
    run.thread._is_stopped = False
    loop.stop(5)


def test_what_interrupts_the_start_of_a_thread_is_raised_as_it_is():
    class Limit(Exception):
        pass

    class Interrupted(threading.Thread):
        def start(self):
            try:
                raise Limit
            except Limit:
                raise KeyError(self) from None  # like the one of CPython, which hides what came before

    with pytest.raises(Limit):
        start_thread(Interrupted())
