"""Lost workers, while Redis is away, the one who tells dies, and very many are lost at once."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync.fleet.heartbeat import MAX_RATE
from tests.support.lossy_proxy import LossyProxy
from tests.support.simulated_worker import INTERVAL, SILENCE, SimulatedWorker
from tests.support.stress import stressed
from tests.support.waiting import eventually


@pytest.fixture
def make_worker(make_memsync):
    def make(worker_id, url=None, **options):
        return SimulatedWorker(make_memsync(worker_id, url=url, batch_interval=60.0), worker_id, **options)

    return make


def settle_until(check, *workers):
    def checked():
        for worker in workers:
            worker.beat()
        return check()

    return eventually(checked, timeout=20)


def statuses(manager, task_ids):
    return [manager.get_task_state(task_id)["status"] for task_id in task_ids]


class Died(BaseException):
    """Nothing in a process that was killed goes on."""


def test_if_the_one_who_tells_dies_in_the_middle_another_does_the_rest(make_worker, other):
    silent, first, second = make_worker("w1"), make_worker("w2"), make_worker("w3")
    for number in range(3):
        silent.has(f"t{number}")
    silent.beat()

    emit = first.events.emit

    def die(name, /, **details):
        emit(name, **details)
        if name == "task-lost":
            first.losses.store.read_tasks = first.losses.store.write_entries = None
            raise Died

    first.events.emit = die
    with pytest.raises(Died):
        settle_until(lambda: False, first)
    settle_until(lambda: statuses(other, silent.tasks) == ["LOST"] * 3 and not second.losses._losses, second)

    assert first.heard("worker-lost") == [{"worker_id": "w1"}]
    assert {"worker_id": "w1"} not in second.heard("worker-lost")
    assert other.get_queue()["processing"] == []


@pytest.mark.slow
def test_if_the_one_who_tells_dies_before_it_told_anything_another_tells_all(make_worker, other):
    silent, first, second = make_worker("w1"), make_worker("w2"), make_worker("w3")
    silent.has("t1")
    silent.beat()
    first.losses.take_claims = lambda beat: None

    eventually(lambda: first.heartbeat.send() or first.heartbeats[-1].losses)
    settle_until(lambda: second.heard("task-lost"), second)

    assert {one["worker_id"] for one in second.heard("worker-lost")} == {"w1", "w2"}
    assert [one["task_id"] for one in second.heard("task-lost")] == ["t1"]
    assert first.heard("task-lost") == []


@pytest.mark.slow
def test_nobody_is_lost_because_redis_was_away(make_worker, own_server):
    workers = [make_worker(f"w{number}", url=own_server.url) for number in range(3)]
    workers[0].has("t1")
    settle_until(lambda: workers[0].heartbeats[-1].at - workers[0].heartbeats[0].at > SILENCE, *workers)

    own_server.pause()
    time.sleep(2 * SILENCE)
    own_server.resume()
    for _ in range(3):
        for one in workers[1:]:
            one.beat()
    workers[0].beat()

    assert [one.heard("worker-lost") for one in workers] == [[], [], []]
    assert workers[1].manager.get_task_state("t1")["status"] == "STARTED"
    settle_until(lambda: workers[1].heard("worker-lost"), workers[1])


@pytest.mark.slow
def test_a_new_worker_looks_on_before_it_calls_others_lost(make_worker):
    make_worker("w1").beat()
    time.sleep(1.5 * SILENCE)
    late = make_worker("w2")

    late.beat()

    assert late.heard("worker-lost") == []
    settle_until(lambda: late.heard("worker-lost") == [{"worker_id": "w1"}], late)
    assert late.heartbeats[-1].at - late.heartbeats[0].at >= SILENCE - 0.001  # Redis counts milliseconds here


@pytest.mark.parametrize("word, cut", [(b"w2/heartbeat", 2), (b"//{workers}/lost", 2), (b"WorkerLostError", 2)])
def test_what_redis_did_and_nobody_heard_is_told_once_all_the_same(make_worker, server, redis_url, other, word, cut):
    proxy = LossyProxy(server.port)
    silent, watcher = make_worker("w1"), make_worker("w2", url=proxy.url)
    task_ids = [f"t{number}" for number in range(5)]
    for task_id in task_ids:
        silent.has(task_id)
    silent.beat()

    def try_on():
        if watcher.heartbeats and watcher.heartbeats[-1].at - watcher.heartbeats[0].at > SILENCE * 0.8 and not cutting:
            cutting.append(proxy.cut(word, cut))
        try:
            watcher.beat()
        except Exception:
            errors.append(1)
        return watcher.heard("worker-lost") and len(watcher.heard("task-lost")) == 5 and not watcher.losses._losses

    cutting, errors = [], []
    eventually(try_on, timeout=20)

    assert watcher.heard("worker-lost") == [{"worker_id": "w1"}]
    assert sorted(one["task_id"] for one in watcher.heard("task-lost")) == task_ids
    assert statuses(other, task_ids) == ["LOST"] * 5
    assert other.get_coordination_metrics()["lost"] == 5


def test_five_hundred_running_tasks_are_lost_once_each(make_worker, other):
    silent, *watchers = [make_worker(f"w{number}") for number in range(4)]
    watchers[0].has("another")
    for number in range(500):
        silent.has(f"t{number}")
    silent.beat()

    settle_until(lambda: sum(len(one.heard("task-lost")) for one in watchers) >= 500, *watchers)
    for one in watchers:
        one.beat()

    told = [one["task_id"] for worker in watchers for one in worker.heard("task-lost")]
    assert len(told) == len(set(told)) == 500
    assert other.get_coordination_metrics()["lost"] == 500
    assert other.get_queue()["processing"] == ["another"]


@pytest.mark.slow
def test_of_many_workers_a_tenth_that_are_lost_at_once_are_told_of_once_each(make_memsync):
    manager = make_memsync(batch_interval=60.0)
    workers = [SimulatedWorker(manager, f"w{number:03}", f"token{number:03}", interval=2.0, timeout=4.0)
               for number in range(stressed(1000, 300))]
    lost, alive = workers[::10], [one for number, one in enumerate(workers) if number % 10]
    for one in lost:
        one.has(f"of-{one.worker_id}")
        one.beat()

    def all_told():
        for one in alive:
            one.beat()
        return sum(len(one.heard("worker-lost")) for one in alive) >= len(lost)

    eventually(all_told, timeout=40)
    for one in alive:
        one.beat()

    told = [event["worker_id"] for one in alive for event in one.heard("worker-lost")]
    tasks = [event["task_id"] for one in alive for event in one.heard("task-lost")]
    assert sorted(told) == [one.worker_id for one in lost]
    assert sorted(tasks) == sorted(f"of-{one.worker_id}" for one in lost)
    assert alive[0].heartbeats[-1].workers == len(alive)


@pytest.mark.slow
def test_a_handler_that_takes_its_time_does_not_stop_the_heart(make_worker):
    silent, watcher = make_worker("w1"), make_worker("w2")
    silent.beat()
    held = threading.Event()
    watcher.events.on("worker-lost", lambda **_: held.wait(10))
    watcher.heartbeat.on_reply = lambda beat: (watcher.heartbeats.append(beat), watcher.losses.note_reply(beat))
    watcher.heartbeat.start()
    eventually(lambda: watcher.heard("worker-lost"))
    seen = len(watcher.heartbeats)

    eventually(lambda: len(watcher.heartbeats) > seen + 5)

    held.set()
    watcher.losses.stop(1)
    watcher.heartbeat.stop(1)


def test_very_many_workers_beat_less_often_and_may_be_silent_for_longer(make_memsync, redis, make_worker):
    due = 1000 * (time.time() + 3600)
    fleet = {f"token{number:03} w{number}": due for number in range(int(MAX_RATE * INTERVAL * 5) - 1)}
    redis.zadd("task-sentinel//{workers}/heartbeats", fleet)
    one = make_worker("w1")

    for _ in range(3):
        one.beat()

    manager = make_memsync(heartbeat_interval=INTERVAL, worker_ttl=SILENCE)
    (record,) = manager.get_workers()
    due = redis.zscore("task-sentinel//{workers}/heartbeats", f"{one.store.token} w1") / 1000
    assert one.heartbeats[-1].workers == len(fleet) + 1
    assert record.stretch == pytest.approx(5.0)
    assert due - one.heartbeats[-1].at == pytest.approx(5 * SILENCE, abs=0.01)
    time.sleep(1.5 * SILENCE)
    assert manager.get_active_workers() == ["w1"]
