"""The one background loop."""
from __future__ import annotations

import ctypes
import threading
import time

import pytest

from celery_memsync.background_loop import BackgroundLoop
from celery_memsync.user_code import message_of
from tests.support.raising import ENDS
from tests.support.waiting import eventually


@pytest.fixture
def make_thread():
    made = []

    def make(action, interval=0.01, **options):
        made.append(BackgroundLoop("a-test", action, interval, **options))
        return made[-1]

    yield make
    for thread in made:
        thread.stop(1)


def test_the_action_is_called_again_and_again(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1))

    thread.start()

    eventually(lambda: len(calls) > 3)
    assert thread.running


def test_a_thread_on_demand_sleeps_until_it_is_woken(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1), on_demand=True)
    thread.start()
    time.sleep(0.1)
    before = len(calls)

    thread.wake()

    eventually(lambda: len(calls) == 1)
    assert before == 0


def test_waking_starts_the_thread(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1), on_demand=True)

    thread.wake()

    assert eventually(lambda: calls)


def test_what_comes_in_between_is_done_by_the_same_call(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1), interval=0.2, on_demand=True)

    for _ in range(50):
        thread.wake()
    eventually(lambda: calls)
    time.sleep(0.1)

    assert len(calls) == 1


def test_hurrying_does_not_wait_for_the_interval(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1), interval=60.0)
    thread.start()

    thread.run_now()

    assert eventually(lambda: calls)


def test_what_is_woken_after_a_hurried_call_waits_for_its_interval_again(make_thread):
    calls = []
    thread = make_thread(lambda: calls.append(1), interval=60.0, on_demand=True)

    for number in (1, 2, 3):
        thread.call_now()
        eventually(lambda: len(calls) == number)
        thread.wake()
        time.sleep(0.05)

    assert len(calls) == 3


@pytest.mark.slow
def test_a_failing_action_is_logged_once_and_once_more_when_it_works(make_thread, caplog):
    caplog.set_level("INFO")
    calls = []

    def act():
        calls.append(1)
        if len(calls) < 4:
            raise OSError("no way")

    make_thread(act).start()
    eventually(lambda: "works again" in caplog.text)

    assert len([line for line in caplog.messages if "no way" in line]) == 1
    assert len([line for line in caplog.messages if "works again after 3 failures" in line]) == 1


def test_an_action_that_fails_is_called_again_without_being_woken(make_thread):
    calls = []

    def act():
        calls.append(1)
        if len(calls) < 3:
            raise OSError("no way")

    make_thread(act, on_demand=True).wake()

    assert eventually(lambda: len(calls) == 3)


def test_a_failing_action_is_not_called_in_a_hot_loop(make_thread):
    calls = []

    def act():
        calls.append(1)
        thread.run_now()
        raise OSError("no way")

    thread = make_thread(act, interval=0.0)
    thread.start()
    time.sleep(0.3)

    assert 1 <= len(calls) < 10


@pytest.mark.parametrize("options", [{}, {"on_demand": True}, {"interval": 60.0}])
def test_stopping_is_prompt_and_final(make_thread, options):
    calls = []
    thread = make_thread(lambda: calls.append(1), **options)
    thread.start()

    thread.stop(5)
    after = len(calls)
    thread.start()
    thread.wake()
    time.sleep(0.05)

    assert not thread.running
    assert len(calls) == after


def test_stopping_waits_for_the_action(make_thread):
    begun, done = threading.Event(), []

    def act():
        begun.set()
        time.sleep(0.2)
        done.append(1)

    thread = make_thread(act)
    thread.start()
    begun.wait(5)

    thread.stop()

    assert done == [1]
    assert not thread.running


def test_stopping_does_not_wait_longer_than_its_timeout(make_thread):
    blocked = threading.Event()
    thread = make_thread(blocked.wait)
    thread.start()
    time.sleep(0.05)

    thread.stop(0.05)
    still_running = thread.running
    blocked.set()

    assert still_running
    eventually(lambda: not thread.running)


def test_the_action_may_stop_its_own_thread(make_thread):
    thread = make_thread(lambda: thread.stop())

    thread.start()

    eventually(lambda: not thread.running)


def test_the_thread_does_not_keep_a_process_alive(make_thread):
    thread = make_thread(lambda: None)

    thread.start()

    assert all(one.daemon for one in threading.enumerate() if one.name == "a-test")


# -- what an action raises

@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("on_demand", [True, False])
def test_whatever_an_action_raises_is_logged_and_it_is_called_again(make_thread, caplog, error, on_demand):
    caplog.set_level("INFO")
    calls = []

    def act():
        calls.append(1)
        if len(calls) < 3:
            raise error()

    thread = make_thread(act, on_demand=on_demand)
    thread.start()
    thread.wake()

    eventually(lambda: "works again after 2 failures" in caplog.text)
    assert f"a-test: {message_of(error())}; trying again until it works" in caplog.messages
    assert thread.running


def kill(thread):
    """Raise SystemExit in a thread, wherever it is as soon as it wakes."""
    (ident,) = [one.ident for one in threading.enumerate() if one.name == "a-test"]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
    thread.wake()


def test_a_thread_that_dies_while_it_is_woken_is_replaced_at_once(make_thread):
    calls, killed = [], []
    thread = make_thread(lambda: calls.append(1), on_demand=True)
    thread.start()

    class Runs(dict):
        def __bool__(self):
            """Let the thread end when a caller has just seen that it is there."""
            is_there = len(self) > 0
            if not killed:
                killed.extend(self.values())
                kill(thread)
                killed[0].ended.wait(5)
            return is_there

    thread._runs = Runs(thread._runs)
    thread.wake()

    assert killed and eventually(lambda: calls)


def test_dead_thread_is_logged_and_restarted_by_the_next_call(make_thread, caplog):
    calls = []
    thread = make_thread(lambda: calls.append(1), on_demand=True)
    thread.start()
    kill(thread)
    eventually(lambda: not thread.running)
    before = list(calls)

    thread.wake()

    assert eventually(lambda: calls) and before == []
    assert "a-test: its thread was ended by SystemExit" in caplog.text
    thread.stop(5)
    assert not thread.running


def test_thread_that_has_died_when_it_was_woken_is_started_again(make_thread, caplog):
    calls = []
    thread = make_thread(lambda: calls.append(1), interval=60.0, on_demand=True)
    thread.wake()
    eventually(thread.is_asleep)
    kill(thread)
    was_asleep = thread.is_asleep()
    thread.run_now()
    eventually(lambda: "its thread was ended by SystemExit" in caplog.text)

    thread.run_now()

    assert eventually(lambda: calls) and not was_asleep


def test_thread_that_could_not_be_started_is_started_by_the_next_call(make_thread, monkeypatch):
    calls, start = [], threading.Thread.start
    thread = make_thread(lambda: calls.append(1), on_demand=True)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread.wake()
    is_asleep = thread.is_asleep()
    monkeypatch.setattr(threading.Thread, "start", start)
    thread.wake()

    assert eventually(lambda: calls) and is_asleep


def test_only_one_of_several_started_threads_runs(make_thread):
    running, most = [], []

    def act():
        running.append(1)
        most.append(len(running))
        time.sleep(0.001)
        running.pop()

    thread = make_thread(act, on_demand=True, interval=0.0)
    barrier = threading.Barrier(16)

    def wake():
        barrier.wait(10)
        for _ in range(20):
            thread.wake()

    wakers = [threading.Thread(target=wake) for _ in range(16)]

    for waker in wakers:
        waker.start()
    for waker in wakers:
        waker.join(10)

    eventually(lambda: most and len([one for one in threading.enumerate() if one.name == "a-test"]) == 1)
    assert set(most) == {1}
