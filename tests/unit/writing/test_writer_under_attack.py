"""Many threads, handlers of signals, and callers that give up: nothing is lost, and no answer is."""
from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_memsync import LockLost
from celery_memsync.writing.changes import SetValue
from celery_memsync.writing.requests import FlushRequest
from tests.support.stress import stressed
from tests.support.waiting import eventually


class Limit(Exception):
    """What the handler of a signal raises."""


@pytest.fixture
def strike():
    """Makes a handler of SIGALRM, and the signal come again and again."""
    before = signal.getsignal(signal.SIGALRM)

    def begin(handler, first, interval=0.0):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, first, interval)

    yield begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_increments_of_many_threads_without_a_pause_are_exact(make_memsync):
    memsync, number = make_memsync(), 4000

    def add():
        for _ in range(number):
            memsync.increment_metrics(n=1)

    threads = [threading.Thread(target=add) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memsync.force_sync(timeout=20)

    assert memsync.get_coordination_metrics() == {"n": 20 * number}
    assert memsync.get_metrics()["dropped"] == 0


def test_a_write_that_is_interrupted_by_a_shutdown_is_written(make_memsync, strike):
    memsync, written, keys = make_memsync(), 0, 5000
    strike(lambda *_: memsync.shutdown(), 0.02, 0.0203)

    end = time.monotonic() + stressed(1.0)
    while time.monotonic() < end:
        memsync.write(f"k/{written % keys}", written)
        written += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    memsync.force_sync(timeout=10)
    time.sleep(0.3)  # one that was interrupted at the very end is written by a thread of its own

    found = memsync.read_many([f"k/{number % keys}" for number in range(max(0, written - keys), written)], consistent=True)
    lost = [number for number in range(max(0, written - keys), written) if found[f"k/{number % keys}"] != number]
    assert lost == []


def test_refused_write_is_raised_again_if_the_first_call_was_interrupted(make_memsync, monkeypatch):
    memsync = make_memsync(batch_interval=60.0)
    memsync.write("a", 1, fence=10)
    memsync.force_sync()
    memsync.write("a", 2, fence=9)
    wait = FlushRequest.wait

    def interrupted(request, timeout):
        assert wait(request, timeout)
        raise Limit

    with monkeypatch.context() as patch:
        patch.setattr(FlushRequest, "wait", interrupted)
        with pytest.raises(Limit):
            memsync.force_sync()

    with pytest.raises(LockLost):
        memsync.force_sync()


@pytest.mark.parametrize("first", ["author", "other"])
def test_refused_write_is_raised_once_and_once_in_its_thread(make_memsync, first):
    memsync = make_memsync(batch_interval=60.0)
    memsync.write("a", 1, fence=10)
    memsync.force_sync()
    author, other = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    author.submit(memsync.write, "a", 2, fence=9).result()
    threads = [author, other, author, other] if first == "author" else [other, other, author, author]

    raised = [
        isinstance(thread.submit(memsync.force_sync).exception(), LockLost) for thread in threads]

    assert raised == (
        [True, False, False, False] if first == "author" else [True, False, True, False])


def test_write_refused_after_others_of_its_key_is_raised_in_its_thread(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    memsync.write("a", 1, fence=10)
    memsync.force_sync()
    author = ThreadPoolExecutor(1)
    for number in range(3):
        author.submit(memsync.write, "a", number, fence=9).result()
    author.submit(memsync.sync_task_state, "t", {"x": 1}).result()
    with pytest.raises(LockLost):
        memsync.force_sync()

    with pytest.raises(LockLost):
        author.submit(memsync.force_sync).result()


def test_refused_write_of_an_ended_thread_is_not_kept(make_memsync):
    memsync = make_memsync(batch_interval=60.0)
    memsync.write("a", 1, fence=10)
    memsync.force_sync()
    with ThreadPoolExecutor(1) as author:
        author.submit(memsync.write, "a", 2, fence=9).result()
    with pytest.raises(LockLost):
        memsync.force_sync()

    memsync.force_sync()

    assert not memsync.runtime.writer._refusals._fenced


def test_a_loop_that_writes_to_a_closed_writer_leaves_no_crowd_of_threads(make_memsync, memsync):
    closed = make_memsync()
    closed.write("a", 0)
    writer, location = closed.runtime.writer, closed.runtime.keys.location("a")
    closed.shutdown()

    for number in range(300):
        writer.put(SetValue(location, b"%d" % number, 60.0))
    crowd = [thread for thread in threading.enumerate() if thread.name == "memsync-late"]

    assert len(crowd) < 50
    assert eventually(lambda: memsync.read("a", consistent=True) == 299)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "memsync-late"])
