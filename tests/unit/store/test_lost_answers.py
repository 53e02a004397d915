"""Answers that are lost, or late: what all do together is done once all the same, and is read as it is."""
from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_memsync import StoreError
from celery_memsync.models.task import TaskRun
from celery_memsync.store import scripts
from tests.support.runs import run_key
from tests.support.threads import in_background


def persist(call, raised=None):
    """Return what a call answers as soon as it does not raise StoreError."""
    for _ in range(100):
        try:
            return call()
        except StoreError as exc:
            if raised is not None:
                raised.append(exc)
    raise AssertionError("it never worked")


def version(memsync, thing="queue"):
    entry = memsync.read_entry(f"coordination/{thing}")
    return 0 if entry is None else entry.version


# -- lost

ATOMIC = {
    "enqueue": (lambda memsync: memsync.enqueue("c"), True, {"pending": ["a", "b", "c"], "processing": ["p"]}),
    "dequeue": (lambda memsync: memsync.dequeue(), "a", {"pending": ["b"], "processing": ["p", "a"]}),
    "complete": (lambda memsync: memsync.complete("p"), True, {"pending": ["a", "b"], "processing": []}),
}


@pytest.mark.parametrize("times", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ATOMIC)
def test_atomic_operation_is_done_once_despite_lost_answers(proxied, other, proxy, kind, times):
    act, answer, queue = ATOMIC[kind]
    raised = []
    other.sync_queue({"pending": ["a", "b"], "processing": ["p"]})
    other.force_sync()
    before = version(other)
    proxy.cut(getattr(scripts, f"QUEUE_{kind.upper()}").sha.encode(), times)

    answers = persist(lambda: act(proxied), raised)

    assert proxy.cuts == 0
    assert bool(raised) == (times > 1)
    assert answers == answer
    assert other.get_queue() == queue
    assert version(other) == before + 1


BUFFERED = {
    "queue": (
        scripts.QUEUE_REPLACE, lambda memsync: memsync.sync_queue({"pending": ["a"], "processing": ["b"]}), ["a"], {}),
    "metrics": (
        scripts.METRICS_UPDATE, lambda memsync: memsync.increment_metrics(n=7, x=0.5), [], {"n": 7, "x": 0.5}),
}


@pytest.mark.parametrize("times", [1, 2, 3, 5])
@pytest.mark.parametrize("thing", BUFFERED)
def test_buffered_write_is_done_once_despite_lost_answers(proxied, other, proxy, thing, times):
    script, act, pending, metrics = BUFFERED[thing]
    raised = []
    act(proxied)
    proxy.cut(script.sha.encode(), times)

    persist(proxied.force_sync, raised)

    assert proxy.cuts == 0
    assert bool(raised) == (times > 3)
    assert other.get_queue()["pending"] == pending
    assert other.get_coordination_metrics() == metrics
    assert version(other, thing) == 1


def test_write_whose_answer_was_lost_is_not_repeated_with_later_ones(proxied, other, proxy):
    proxied.increment_metrics(n=1)
    proxied.sync_queue({"processing": ["x"]})
    proxy.cut(b"EVALSHA", 2)
    proxied.force_sync()
    other.complete("x")

    proxied.increment_metrics(n=10)
    proxied.sync_queue({"pending": ["b"]})
    shown = proxied.get_coordination_metrics(), proxied.get_queue()["pending"]
    proxied.force_sync()

    assert shown == ({"n": 11}, ["b"])
    assert other.get_coordination_metrics() == {"n": 11}
    assert other.get_queue() == {"pending": ["b"], "processing": []}


def test_read_without_an_answer_leaves_no_doubt_what_was_changed(proxied, proxy):
    proxied.read("k", consistent=True)
    proxy.cut(b"GET\r\n", 10)

    with pytest.raises(StoreError) as raised:
        proxied.read("k", consistent=True)

    assert proxy.cuts < 9
    assert not raised.value.maybe_done
    assert proxied.runtime.store.resent == 0


def test_stages_are_counted_once_although_the_answer_was_lost(proxied, other, proxy):
    raised = []
    for number in range(150):
        proxied.sync_task_run(f"s{number}", TaskRun("SUCCESS", runtime=0.5), run_key(0, 1))
        proxied.sync_task_run(f"w{number}", TaskRun("RECEIVED"), run_key(0, 1))
        proxied.sync_task_run("again", TaskRun("RETRY"), run_key(number % 4, 1))
    proxy.cut(b"EVALSHA", 30)

    persist(proxied.force_sync, raised)

    assert raised
    assert other.get_coordination_metrics() == {"total": 301, "succeeded": 150, "retried": 4, "runtime": 75}
    assert len(other.get_queue()["pending"]) == 151


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice_while_answers_are_lost_all_the_time(make_memsync, other, proxy, redis_url):
    ids = [f"{number}" for number in range(300)]
    makers = [make_memsync(url=proxy.url, batch_interval=0.01) for _ in range(4)]
    makers[0].get_queue()
    proxy.cut(b"EVALSHA", 10_000, chance=0.15)

    with ThreadPoolExecutor() as threads:
        filling = threads.submit(fill, makers[0], ids)
        draining = [threads.submit(drain, memsync, len(ids), other) for memsync in makers[1:]]
        rows = [work.result(60) for work in draining]
    for memsync in makers:
        persist(memsync.force_sync)

    assert proxy.cuts < 10_000 - 50
    assert filling.result() == [True] * len(ids)
    assert sorted(task_id for row in rows for task_id in row) == sorted(ids)
    assert all(row == sorted(row, key=int) for row in rows)
    assert other.get_queue() == {"pending": [], "processing": []}
    assert other.get_coordination_metrics() == {"put": len(ids), "taken": len(ids)}


def fill(memsync, ids):
    """Put tasks into the queue and count them; return what each call answered."""
    answers = []
    for task_id in ids:
        answers.append(persist(lambda: memsync.enqueue(task_id)))
        memsync.increment_metrics(put=1)
    return answers


def drain(memsync, count, other):
    """Take tasks out of the queue and count them until all are done; return those that were taken here."""
    taken = []
    deadline = time.monotonic() + 40
    while other.get_coordination_metrics().get("taken", 0) < count and time.monotonic() < deadline:
        task_id = persist(memsync.dequeue)
        if task_id is not None:
            taken.append(task_id)
            assert persist(lambda: memsync.complete(task_id)) is True
            memsync.increment_metrics(taken=1)
    return taken


def test_a_task_is_out_of_the_queue_after_complete_whatever_became_of_an_earlier_answer(proxied, other, proxy):
    other.enqueue("a")
    proxied.dequeue()
    proxy.cut(scripts.QUEUE_COMPLETE.sha.encode(), 2)
    with pytest.raises(StoreError):
        proxied.complete("a")
    other.enqueue("a")
    proxied.dequeue()

    proxied.complete("a")

    assert other.get_queue() == {"pending": [], "processing": []}


# -- late

def test_a_handler_of_a_signal_may_use_the_queue_in_the_middle_of_its_use(proxied, other, proxy):
    answers = []

    def handler(*_):
        answers.append(proxied.enqueue("inner"))
        proxy.released.set()

    def interrupt():
        proxy.held.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    proxied.enqueue("first")
    proxy.hold(scripts.QUEUE_ENQUEUE.sha.encode())
    before = signal.signal(signal.SIGUSR1, handler)
    interrupting = threading.Thread(target=interrupt)

    interrupting.start()
    try:
        answers.append(proxied.enqueue("outer"))
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)

    assert answers == [True, True]
    assert other.get_queue()["pending"] == ["first", "outer", "inner"]


def test_own_counts_that_are_under_way_are_waited_for_and_read_once(proxied, other, proxy):
    proxied.increment_metrics(n=1)
    proxy.hold(scripts.METRICS_UPDATE.sha.encode())
    flush = in_background(lambda: proxied.force_sync() or "done")
    assert proxy.held.wait(10)

    reads = [
        in_background(proxied.get_coordination_metrics),
        in_background(lambda: proxied.read("coordination/metrics"))]
    time.sleep(0.2)
    proxy.released.set()

    assert [answer() for answer in reads] == [{"n": 1}] * 2
    assert flush() == "done"
    assert other.get_coordination_metrics() == {"n": 1}


def test_own_counts_that_do_not_arrive_in_time_are_an_error_and_are_counted_once(proxied, other, proxy):
    proxied.increment_metrics(n=1)
    proxied.runtime.writer.timeout = 0.1
    proxy.hold(scripts.METRICS_UPDATE.sha.encode())
    with pytest.raises(StoreError, match="within 0.1 s"):
        proxied.force_sync()

    with pytest.raises(StoreError, match="within 0.1 s"):
        proxied.get_coordination_metrics()
    proxy.released.set()
    proxied.runtime.writer.timeout = 10

    assert proxied.get_coordination_metrics() == {"n": 1}
    assert other.get_coordination_metrics() == {"n": 1}


@pytest.mark.parametrize("command, read, answer", [
    (b"HGETALL", lambda memsync: memsync.get_coordination_metrics(), {"n": 1}),
    (b"ZRANGE", lambda memsync: memsync.get_queue(), {"pending": ["a"], "processing": []}),
])
def test_own_writes_are_read_although_they_arrive_after_the_answer(
    proxied, proxy, command, read, answer,
):
    answers = []
    proxied.increment_metrics(n=1)
    proxied.sync_queue({"pending": ["a"]})
    proxy.hold(command)

    reading = threading.Thread(target=lambda: answers.append(read(proxied)))
    reading.start()
    assert proxy.held.wait(10)
    proxied.force_sync()
    proxy.released.set()
    reading.join(10)

    assert answers == [answer]


@pytest.mark.acceptance
def test_own_counts_are_exact_whenever_they_are_read(make_memsync):
    memsync = make_memsync(batch_interval=0.001)
    shown = []

    for _ in range(3000):
        memsync.increment_metrics(n=1)
        shown.append(memsync.get_coordination_metrics()["n"])

    assert shown == list(range(1, 3001))
