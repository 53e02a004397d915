"""Lost workers while Redis is away, while the reporting worker dies, and very many at once."""
from __future__ import annotations

import threading
import time

import pytest

from celery_memsync.fleet.heartbeat import MAX_RATE
from tests.support.lossy_proxy import LossyProxy
from tests.support.simulated_worker import INTERVAL, TIMEOUT, SimulatedWorker
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
            worker.send_heartbeat()
        return check()

    return eventually(checked, timeout=20)


def statuses(manager, task_ids):
    return [manager.get_task_state(task_id)["status"] for task_id in task_ids]


class Died(BaseException):
    """Nothing in a process that was killed goes on."""


def test_other_worker_reports_the_rest_when_the_reporting_one_dies(make_worker, other):
    stopped, first, second = make_worker("w1"), make_worker("w2"), make_worker("w3")
    for number in range(3):
        stopped.has(f"t{number}")
    stopped.send_heartbeat()

    emit = first.events.emit

    def die(name, /, **details):
        emit(name, **details)
        if name == "task-lost":
            first.losses.store.read_tasks = first.losses.store.write_entries = None
            raise Died

    first.events.emit = die
    with pytest.raises(Died):
        settle_until(lambda: False, first)
    settle_until(
        lambda: statuses(other, stopped.tasks) == ["LOST"] * 3 and not second.losses._losses,
        second)

    assert first.events_of("worker-lost") == [{"worker_id": "w1"}]
    assert {"worker_id": "w1"} not in second.events_of("worker-lost")
    assert other.get_queue()["processing"] == []


@pytest.mark.slow
def test_other_worker_reports_all_when_the_claiming_one_dies_first(make_worker, other):
    stopped, first, second = make_worker("w1"), make_worker("w2"), make_worker("w3")
    stopped.has("t1")
    stopped.send_heartbeat()
    first.losses.take_claims = lambda reply: None

    eventually(lambda: first.heartbeat.send() or first.heartbeats[-1].losses)
    settle_until(lambda: second.events_of("task-lost"), second)

    assert {one["worker_id"] for one in second.events_of("worker-lost")} == {"w1", "w2"}
    assert [one["task_id"] for one in second.events_of("task-lost")] == ["t1"]
    assert first.events_of("task-lost") == []


@pytest.mark.slow
def test_no_worker_is_lost_because_redis_was_away(make_worker, own_server):
    workers = [make_worker(f"w{number}", url=own_server.url) for number in range(3)]
    workers[0].has("t1")
    settle_until(
        lambda: workers[0].heartbeats[-1].at - workers[0].heartbeats[0].at > TIMEOUT, *workers)

    own_server.pause()
    time.sleep(2 * TIMEOUT)
    own_server.resume()
    for _ in range(3):
        for one in workers[1:]:
            one.send_heartbeat()
    workers[0].send_heartbeat()

    assert [one.events_of("worker-lost") for one in workers] == [[], [], []]
    assert workers[1].manager.get_task_state("t1")["status"] == "STARTED"
    settle_until(lambda: workers[1].events_of("worker-lost"), workers[1])


@pytest.mark.slow
def test_new_worker_waits_one_timeout_before_it_reports_lost_workers(make_worker):
    make_worker("w1").send_heartbeat()
    time.sleep(1.5 * TIMEOUT)
    late = make_worker("w2")

    late.send_heartbeat()

    assert late.events_of("worker-lost") == []
    settle_until(lambda: late.events_of("worker-lost") == [{"worker_id": "w1"}], late)
    # Redis counts milliseconds here
    assert late.heartbeats[-1].at - late.heartbeats[0].at >= TIMEOUT - 0.001


@pytest.mark.parametrize(
    "text, cut", [(b"w2/heartbeat", 2), (b"//{workers}/lost", 2), (b"WorkerLostError", 2)])
def test_loss_is_reported_once_when_answers_of_redis_are_lost(
    make_worker, server, redis_url, other, text, cut,
):
    proxy = LossyProxy(server.port)
    stopped, watcher = make_worker("w1"), make_worker("w2", url=proxy.url)
    task_ids = [f"t{number}" for number in range(5)]
    for task_id in task_ids:
        stopped.has(task_id)
    stopped.send_heartbeat()

    def try_on():
        replies = watcher.heartbeats
        if replies and replies[-1].at - replies[0].at > TIMEOUT * 0.8 and not cutting:
            cutting.append(proxy.cut(text, cut))
        try:
            watcher.send_heartbeat()
        except Exception:
            errors.append(1)
        tasks = watcher.events_of("task-lost")
        return watcher.events_of("worker-lost") and len(tasks) == 5 and not watcher.losses._losses

    cutting, errors = [], []
    eventually(try_on, timeout=20)

    assert watcher.events_of("worker-lost") == [{"worker_id": "w1"}]
    assert sorted(one["task_id"] for one in watcher.events_of("task-lost")) == task_ids
    assert statuses(other, task_ids) == ["LOST"] * 5
    assert other.get_coordination_metrics()["lost"] == 5
    assert other.runtime.store.read_totals().workers_lost == 1


def test_five_hundred_running_tasks_are_lost_once_each(make_worker, other):
    stopped, *watchers = [make_worker(f"w{number}") for number in range(4)]
    watchers[0].has("another")
    for number in range(500):
        stopped.has(f"t{number}")
    stopped.send_heartbeat()

    settle_until(lambda: sum(len(one.events_of("task-lost")) for one in watchers) >= 500, *watchers)
    for one in watchers:
        one.send_heartbeat()

    reported = [one["task_id"] for worker in watchers for one in worker.events_of("task-lost")]
    assert len(reported) == len(set(reported)) == 500
    assert other.get_coordination_metrics()["lost"] == 500
    assert other.get_queue()["processing"] == ["another"]


@pytest.mark.slow
def test_many_workers_lost_at_once_are_reported_once_each(make_memsync):
    manager = make_memsync(batch_interval=60.0)
    workers = [SimulatedWorker(manager, f"w{number:03}", f"token{number:03}", interval=2.0, timeout=4.0)
               for number in range(stressed(1000, 300))]
    lost, alive = workers[::10], [one for number, one in enumerate(workers) if number % 10]
    for one in lost:
        one.has(f"of-{one.worker_id}")
        one.send_heartbeat()

    def all_are_reported():
        for one in alive:
            one.send_heartbeat()
        return sum(len(one.events_of("worker-lost")) for one in alive) >= len(lost)

    eventually(all_are_reported, timeout=40)
    for one in alive:
        one.send_heartbeat()

    reported = [event["worker_id"] for one in alive for event in one.events_of("worker-lost")]
    tasks = [event["task_id"] for one in alive for event in one.events_of("task-lost")]
    assert sorted(reported) == [one.worker_id for one in lost]
    assert sorted(tasks) == sorted(f"of-{one.worker_id}" for one in lost)
    assert alive[0].heartbeats[-1].workers == len(alive)


@pytest.mark.slow
def test_slow_event_handler_does_not_delay_heartbeats(make_worker):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    stopped.send_heartbeat()
    held = threading.Event()
    watcher.events.on("worker-lost", lambda **_: held.wait(10))
    watcher.heartbeat.on_reply = lambda reply: (
        watcher.heartbeats.append(reply), watcher.losses.note_reply(reply))
    watcher.heartbeat.start()
    eventually(lambda: watcher.events_of("worker-lost"))
    seen = len(watcher.heartbeats)

    eventually(lambda: len(watcher.heartbeats) > seen + 5)

    held.set()
    watcher.losses.stop(1)
    watcher.heartbeat.stop(1)


def test_very_many_workers_send_heartbeats_less_often(make_memsync, redis, make_worker):
    due = 1000 * (time.time() + 3600)
    fleet = {f"token{number:03} w{number}": due for number in range(int(MAX_RATE * INTERVAL * 5) - 1)}
    redis.zadd("task-sentinel//{workers}/heartbeats", fleet)
    one = make_worker("w1")

    for _ in range(3):
        one.send_heartbeat()

    manager = make_memsync(heartbeat_interval=INTERVAL, worker_ttl=TIMEOUT)
    (record,) = manager.get_workers()
    due = redis.zscore("task-sentinel//{workers}/heartbeats", f"{one.store.token} w1") / 1000
    assert one.heartbeats[-1].workers == len(fleet) + 1
    assert record.stretch == pytest.approx(5.0)
    assert due - one.heartbeats[-1].at == pytest.approx(5 * TIMEOUT, abs=0.01)
    time.sleep(1.5 * TIMEOUT)
    assert manager.get_active_workers() == ["w1"]
