"""The lock that all bars of a process share: who has it, and gives it back."""
from __future__ import annotations

import contextvars
import io
import os
import signal
import threading

import pytest
from tqdm import std

from celery_memsync.contrib.tqdm import tqdm, trange
from tests.support.threads import in_background

pytestmark = pytest.mark.usefixtures("own_lock")


class Full(io.StringIO):
    """A file that can't be written to."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.fixture
def hold_lock():
    """Lets another thread take the lock; returns what lets it go."""
    taken, go_on = threading.Event(), threading.Event()

    def hold():
        with tqdm.get_lock():
            taken.set()
            go_on.wait(30)

    def hold_lock():
        in_background(hold)
        assert taken.wait(5)
        return go_on.set

    yield hold_lock
    go_on.set()


def test_bar_of_a_task_does_not_use_a_lock_that_other_processes_share(run):
    def body():
        trange(3).close()

    before = tqdm.get_lock()
    run(body)

    assert isinstance(before, std.TqdmDefaultWriteLock)
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))


def test_first_bar_of_a_task_does_not_wait_for_the_lock_of_another_process(run):
    def body():
        context = contextvars.copy_context()
        with shared:  # as a process that was killed never releases it
            in_background(lambda: context.run(trange, 3))().close()

    shared = tqdm.get_lock()
    run(body)


def test_bar_of_a_fork_does_not_wait_for_a_thread_of_its_parent(run, hold_lock):
    def body():
        trange(3).close()
        hold_lock()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(5)
            trange(3).close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    run(body)


def test_fork_keeps_a_lock_that_the_program_has_set(run):
    def body():
        trange(3).close()
        mine = threading.RLock()
        tqdm.set_lock(mine)
        pid = os.fork()
        if pid == 0:
            os._exit(tqdm.get_lock() is not mine)
        assert os.waitpid(pid, 0)[1] == 0

    run(body)


def test_bar_that_can_not_be_drawn_leaves_the_lock_to_other_threads(run):
    def body():
        with pytest.raises(OSError, match="No space left"):
            tqdm(total=3, file=Full())

    run(body)

    in_background(lambda: trange(3, file=io.StringIO()))().close()


def test_bar_that_need_not_wait_for_the_lock_does_not(run, hold_lock):
    def body():
        bar = tqdm(total=3)
        assert bar.refresh(lock_args=(False,)) is True
        let_go = hold_lock()
        assert bar.refresh(lock_args=(False,)) is False
        let_go()

    run(body)
