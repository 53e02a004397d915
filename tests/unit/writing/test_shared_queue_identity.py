"""One call of the queue is one change, however often it is made until it is answered, and whatever happens in between."""
from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_memsync import ConflictError, StoreError, manager
from celery_memsync.store import MEMORY, scripts
from celery_memsync.writing import shared_queue, unanswered
from tests.support.lossy_proxy import LossyProxy
from tests.support.strikes import strike

KINDS = ("enqueue", "dequeue", "complete")

#: Bytecodes of a call after its last step, at which an interruption takes the answer from its caller.
LAST_STEPS = 7


@pytest.fixture(autouse=True)
def known_scripts(redis):
    """Redis knows the scripts, so the answer that is lost is not that of loading one."""
    for script in (scripts.QUEUE_ENQUEUE, scripts.QUEUE_DEQUEUE, scripts.QUEUE_COMPLETE):
        redis.script_load(script.text)


@pytest.fixture
def proxy(server):
    proxy = LossyProxy(server.port)
    yield proxy
    proxy.released.set()
    proxy.listener.close()


@pytest.fixture
def proxied(make_memsync, proxy, redis_url):
    """A patient manager behind the proxy, connected already."""
    memsync = make_memsync(url=proxy.url, batch_interval=60.0, backend_options={"socket_timeout": 10})
    memsync.get_queue()
    return memsync


def sha_of(kind):
    return getattr(scripts, f"QUEUE_{kind.upper()}").sha.encode()


def lose_answer(proxy, call, *args):
    """Make a call that is done, and not answered."""
    proxy.cut(sha_of(call.__name__), 1000)
    with pytest.raises(StoreError):
        call(*args)
    proxy.cut(b"", 0)


def in_thread(call, *args):
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call, *args).result(20)


def run_all(worker):
    """Take and complete all that is pending; return it."""
    taken = []
    while task_id := worker.dequeue():
        taken.append(task_id)
        worker.complete(task_id)
    return taken


@pytest.mark.parametrize("run", [in_thread, lambda call, *args: call(*args)], ids=["other-thread", "same-thread"])
@pytest.mark.parametrize("between", KINDS)
def test_a_task_is_put_once_whatever_is_called_before_its_second_try(proxied, other, proxy, between, run):
    lose_answer(proxy, proxied.enqueue, "a")
    taken = run_all(other)

    run(getattr(proxied, between), *(["z"] if between != "dequeue" else []))
    put = proxied.enqueue("a")

    assert put is True
    assert [task_id for task_id in taken + run_all(other) if task_id != "z"] == ["a"]


def test_a_second_try_may_be_made_by_another_thread(proxied, other, proxy):
    other.enqueue("a")
    lose_answer(proxy, proxied.complete, "a")

    completed = in_thread(proxied.complete, "a")

    assert completed is True


def test_calls_with_other_arguments_do_not_share_an_answer(proxied, proxy):
    proxied.enqueue("b")
    lose_answer(proxy, proxied.enqueue, "a")

    answers = [proxied.enqueue(task_id) for task_id in "cba"]

    assert answers == [True, False, True]
    assert proxied.get_queue()["pending"] == ["b", "a", "c"]


def test_equal_calls_at_the_same_time_are_two_calls(proxied):
    begin = threading.Barrier(8)

    def put():
        begin.wait(10)
        return proxied.enqueue("a")

    with ThreadPoolExecutor(8) as threads:
        answers = [work.result(20) for work in [threads.submit(put) for _ in range(8)]]

    assert sorted(answers) == [False] * 7 + [True]


def test_what_a_thread_took_without_an_answer_is_for_that_thread(proxied, other, proxy):
    for task_id in "ab":
        other.enqueue(task_id)
    lose_answer(proxy, proxied.dequeue)

    taken = in_thread(proxied.dequeue), proxied.dequeue()

    assert taken == ("b", "a")


def test_what_a_thread_took_without_an_answer_goes_to_another_when_it_has_ended(proxied, other, proxy):
    for task_id in "ab":
        other.enqueue(task_id)
    thread = threading.Thread(target=lose_answer, args=(proxy, proxied.dequeue))
    thread.start()
    thread.join(20)
    gc.collect()

    taken = [proxied.dequeue(), proxied.dequeue(), proxied.dequeue()]

    assert taken == ["a", "b", None]


@pytest.mark.slow
def test_twenty_threads_fail_within_one_timeout(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url, backend_options={"socket_timeout": 1.0, "socket_connect_timeout": 1.0})
    memsync.get_queue()
    seconds = []

    def take():
        began = time.monotonic()
        with pytest.raises(StoreError):
            memsync.dequeue()
        seconds.append(time.monotonic() - began)

    own_server.pause()
    with ThreadPoolExecutor(20) as threads:
        for work in [threads.submit(take) for _ in range(20)]:
            work.result(60)
    own_server.resume()

    # A connection that has waited is tried first, and then a new one.
    assert max(seconds) < 4.0


def test_what_twenty_threads_took_without_an_answer_is_had_by_their_second_try(make_memsync, other, proxy):
    memsync = make_memsync(url=proxy.url, batch_interval=60.0)
    ids = [f"{number}" for number in range(20)]
    for task_id in ids:
        other.enqueue(task_id)
    all_failed = threading.Barrier(20, lambda: proxy.cut(b"", 0))

    def take():
        with pytest.raises(StoreError):
            memsync.dequeue()
        all_failed.wait(20)
        return memsync.dequeue()

    proxy.cut(sha_of("dequeue"), 1000)
    with ThreadPoolExecutor(20) as threads:
        taken = [work.result(30) for work in [threads.submit(take) for _ in range(20)]]

    assert sorted(taken, key=int) == ids


@pytest.mark.slow
@pytest.mark.parametrize("kind, args", [("enqueue", ["a"]), ("dequeue", []), ("complete", ["p"])])
def test_what_redis_has_forgotten_is_an_error_and_not_done_again(proxied, other, proxy, kind, args):
    other.sync_queue({"pending": ["b", "c", "d"], "processing": ["p"]})
    other.force_sync()
    lose_answer(proxy, getattr(proxied, kind), *args)
    in_thread(lambda: [getattr(proxied, kind)(*([f"z{number}"] if args else [])) for number in range(128)])
    before = other.get_queue()

    with pytest.raises(StoreError, match="may or may not have been done") as caught:
        getattr(proxied, kind)(*args)

    assert caught.value.maybe_done is True
    assert other.get_queue() == before
    assert getattr(proxied, kind)(*args) in (False, None)


def test_call_older_than_the_serials_of_redis_raises_and_is_not_repeated(proxied, other, proxy):
    lose_answer(proxy, proxied.enqueue, "a")
    run_all(other)
    ((attempt,),) = proxied.runtime.coordination._attempts.values()
    attempt.since -= MEMORY + 1

    with pytest.raises(StoreError, match="may or may not have been done"):
        proxied.enqueue("a")

    assert other.get_queue()["pending"] == []
    assert proxied.enqueue("a") is True


def test_a_call_that_was_refused_can_be_made_again_after_any_time(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    memsync.get_queue()
    with own_server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="full"):
            memsync.enqueue("a")
        client.config_set("maxmemory", 0)
    ((attempt,),) = memsync.runtime.coordination._attempts.values()
    attempt.since -= MEMORY + 1

    put = memsync.enqueue("a")

    assert put is True
    assert memsync.get_queue()["pending"] == ["a"]


def test_calls_that_found_no_redis_are_not_remembered(make_memsync, own_server):
    memsync = make_memsync(url=own_server.url)
    memsync.get_queue()
    own_server.stop()
    with pytest.raises(StoreError):
        memsync.enqueue("warm")

    for number in range(50):
        with pytest.raises(StoreError):
            memsync.enqueue(f"{number}")

    assert len(memsync.runtime.coordination._attempts) <= 1


def test_a_call_that_was_interrupted_is_finished_by_the_same_call(proxied, other, proxy):
    def interrupt(*_):
        raise SoftTimeLimitExceeded

    def wait_and_interrupt():
        proxy.held.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    proxied.enqueue("first")
    proxy.hold(sha_of("enqueue"))
    before = signal.signal(signal.SIGUSR1, interrupt)
    interrupting = threading.Thread(target=wait_and_interrupt)
    interrupting.start()
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            proxied.enqueue("a")
    finally:
        interrupting.join(10)
        signal.signal(signal.SIGUSR1, before)
    proxy.released.set()
    taken = run_all(other)

    put = proxied.enqueue("a")

    assert (put, taken) == (True, ["first", "a"])
    assert other.get_queue()["pending"] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="where signals are handled differs")
@pytest.mark.parametrize("call, answer", [
    (lambda memsync, name: memsync.dequeue(), lambda name: name),
    (lambda memsync, name: memsync.complete(name), lambda name: True),
    (lambda memsync, name: memsync.enqueue(f"{name}-b"), lambda name: True),
    (lambda memsync, name: memsync.write(name, 1, expected_version=0).version, lambda name: 1),
])
def test_a_call_that_was_interrupted_anywhere_is_finished_by_the_same_call(memsync, redis, call, answer):
    answers, wrong, count, at = [], [], 0, 0
    while at <= count:
        at += 1
        redis.flushall()
        memsync.enqueue(f"{at}")
        answers.clear()
        count = strike(lambda: answers.append(call(memsync, f"{at}")), at, manager, shared_queue, unanswered)
        if not answers:
            with contextlib.suppress(ConflictError):
                answers.append(call(memsync, f"{at}"))
        if answers != [answer(f"{at}")]:
            wrong.append(at)

    # Once it is forgotten, at its very end, it can't be known whether the caller has the answer.
    assert [at for at in wrong if at < count - LAST_STEPS] == []


def test_no_more_calls_are_made_than_can_be_remembered(proxied, proxy, monkeypatch):
    monkeypatch.setattr("celery_memsync.writing.shared_queue.MAX_UNANSWERED", 2)
    for task_id in "ab":
        lose_answer(proxy, proxied.enqueue, task_id)

    with pytest.raises(StoreError, match="no answer yet"):
        proxied.enqueue("c")

    assert [proxied.enqueue(task_id) for task_id in "abc"] == [True, True, True]


def test_a_task_that_was_handed_out_again_is_completed_again(proxied, other, proxy):
    other.enqueue("a")
    proxied.dequeue()
    lose_answer(proxy, proxied.complete, "a")
    other.enqueue("a")
    taken = in_thread(lambda: (proxied.dequeue(), proxied.complete("a")))

    completed = proxied.complete("a")

    assert (taken, completed) == (("a", True), True)
    assert other.get_queue() == {"pending": [], "processing": []}
