"""Lost workers: each one, and each of its running tasks, is reported once."""
from __future__ import annotations

import time

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.simulated_worker import TIMEOUT, SimulatedWorker
from tests.support.waiting import eventually


@pytest.fixture
def make_worker(make_memsync):
    def make(worker_id, **options):
        return SimulatedWorker(make_memsync(worker_id, batch_interval=60.0), worker_id, **options)

    return make


def send_heartbeats_until(check, *workers):
    """Let workers send heartbeats until something is true."""
    def checked():
        for worker in workers:
            worker.send_heartbeat()
        return check()

    return eventually(checked)


def wait_until_lost(*workers, by):
    """Send heartbeats of other workers only, until they have reported these as lost."""
    names = {worker.worker_id for worker in workers}
    send_heartbeats_until(
        lambda: names <= {
            event["worker_id"] for worker in by for event in worker.events_of("worker-lost")},
        *by)


def test_stopped_worker_and_its_tasks_are_reported_lost_once(make_worker, other):
    stopped, *others = [make_worker(f"w{number}") for number in range(4)]
    stopped.has("t1")
    stopped.send_heartbeat()
    stopped.has("t2")
    confirmed_at = stopped.heartbeats[-1].at
    others[0].has("t3")

    wait_until_lost(stopped, by=others)
    for one in others * 3:
        one.send_heartbeat()

    assert [one for worker in others for one in worker.events_of("worker-lost")] == [
        {"worker_id": "w0"}]
    lost = sorted(
        (one for worker in others for one in worker.events_of("task-lost")),
        key=lambda one: one["task_id"])
    assert [(one["task_id"], one["name"], one["worker_id"]) for one in lost] == \
        [("t1", "proj.add", "w0"), ("t2", "proj.add", "w0")]
    assert all(abs(one["since"] - confirmed_at) < 0.01 for one in lost)
    assert other.get_queue()["processing"] == ["t3"]
    state = other.get_task_state("t1")
    assert (state["status"], state["worker"], state["exception"]["type"]) == ("LOST", "w0", "WorkerLostError")
    assert other.get_task_state("t3")["status"] == "STARTED"
    assert other.get_coordination_metrics()["lost"] == 2
    assert other.runtime.store.read_totals().workers_lost == 1


def test_only_what_ran_is_lost(make_worker, other):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    for task_id, status in (("waits", "RECEIVED"), ("runs", "STARTED"), ("failed", "FAILURE"), ("done", "SUCCESS")):
        stopped.has(task_id, status)
    stopped.send_heartbeat()

    wait_until_lost(stopped, by=[watcher])

    assert [one["task_id"] for one in watcher.events_of("task-lost")] == ["runs"]
    assert {task_id: other.get_task_state(task_id)["status"] for task_id in stopped.tasks} == \
        {"waits": "RECEIVED", "runs": "LOST", "failed": "FAILURE", "done": "SUCCESS"}


def test_task_removed_from_the_queue_is_lost_if_its_worker_reported_it(make_worker, memsync):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    stopped.has("t1")
    stopped.send_heartbeat()
    memsync.sync_queue({"pending": [], "processing": []})
    memsync.force_sync()

    wait_until_lost(stopped, by=[watcher])

    assert [one["task_id"] for one in watcher.events_of("task-lost")] == ["t1"]


@pytest.mark.parametrize("worker_id", ["w 1 2", "w%1", "wörk:er@häst", "-", "{w}"])
def test_a_worker_may_have_any_name(make_worker, other, worker_id):
    stopped, watcher = make_worker(worker_id), make_worker("w2")
    stopped.has("t %d {x}")
    stopped.send_heartbeat()

    wait_until_lost(stopped, by=[watcher])

    assert watcher.events_of("worker-lost") == [{"worker_id": worker_id}]
    assert watcher.events_of("task-lost")[0]["worker_id"] == worker_id
    assert other.get_task_state("t %d {x}")["status"] == "LOST"


def test_the_tasks_of_a_worker_that_died_are_lost_though_another_process_has_its_name(make_worker, other):
    dead, watcher = make_worker("w1"), make_worker("w2")
    dead.has("old")
    dead.send_heartbeat()
    heir = make_worker("w1")
    heir.has("new")

    send_heartbeats_until(
        lambda: watcher.events_of("task-lost") or heir.events_of("task-lost"), heir, watcher)

    assert other.get_task_state("old")["status"] == "LOST"
    assert other.get_task_state("new")["status"] == "STARTED"
    assert other.get_active_workers() == ["w1", "w2"]


@pytest.mark.slow
def test_two_that_have_one_name_are_both_alive(make_worker, other):
    twins = [make_worker("w1"), make_worker("w1")]
    for number, twin in enumerate(twins):
        twin.has(f"t{number}")
    until = time.monotonic() + 2 * TIMEOUT

    send_heartbeats_until(lambda: time.monotonic() > until, *twins)

    lost = [twin.events_of("worker-lost") + twin.events_of("task-lost") for twin in twins]
    assert lost == [[], []]
    assert other.get_queue()["processing"] == ["t0", "t1"]


@pytest.mark.slow
def test_worker_that_shut_down_is_offline_and_not_lost(make_worker, other):
    leaver, watcher = make_worker("w1"), make_worker("w2")
    leaver.send_heartbeat()
    leaver.heartbeat.stop()
    until = time.monotonic() + 2 * TIMEOUT

    send_heartbeats_until(lambda: time.monotonic() > until, watcher)

    assert watcher.events_of("worker-lost") == []
    assert [(one.worker_id, one.status) for one in other.get_workers()] == [("w1", "offline"), ("w2", "active")]


@pytest.mark.slow
def test_offline_and_lost_workers_expire_after_their_ttl(make_worker, other, redis):
    leaver, stopped, watcher = (make_worker(name, keep=1.0) for name in ("w1", "w2", "w3"))
    for one in (leaver, stopped):
        one.send_heartbeat()
    leaver.heartbeat.stop()

    wait_until_lost(stopped, by=[watcher])
    shown = {one.worker_id: one.status for one in make_worker("w4").manager.get_workers()}
    send_heartbeats_until(lambda: len(other.get_workers()) == 1, watcher)

    assert shown == {"w1": "offline", "w2": "active", "w3": "active"}  # by a ttl of 15 s
    send_heartbeats_until(lambda: redis.zcard("task-sentinel//{workers}/heartbeats") == 1, watcher)
    assert redis.exists("task-sentinel//{workers}/lost") == 0


def test_a_worker_that_is_back_has_its_tasks_again(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    for task_id in ("runs", "ends", "fails"):
        paused.has(task_id)
    paused.send_heartbeat()
    wait_until_lost(paused, by=[watcher])
    paused.record_stage("ends", "SUCCESS")
    paused.record_stage("fails", "FAILURE")

    paused.send_heartbeat()

    assert paused.heartbeats[-1].status == "back"
    assert paused.events_of("worker-online") == [{"worker_id": "w1"}] * 2
    state = other.get_task_state("runs")
    assert (state["status"], "exception" in state, "finished_at" in state) == ("STARTED", False, False)
    assert other.get_task_state("ends")["status"] == "SUCCESS"
    assert other.get_task_state("fails")["status"] == "FAILURE"
    assert other.get_queue()["processing"] == ["runs"]
    counters = other.get_coordination_metrics()
    assert (counters["lost"], counters["succeeded"], counters["failed"]) == (0, 1, 1)
    paused.record_stage("runs", "SUCCESS", runtime=1.0)
    assert other.get_coordination_metrics()["succeeded"] == 2


@pytest.mark.slow
def test_returned_worker_may_be_lost_again(make_worker):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    stopped.has("t1")
    stopped.send_heartbeat()
    wait_until_lost(stopped, by=[watcher])
    stopped.send_heartbeat()

    send_heartbeats_until(lambda: len(watcher.events_of("task-lost")) == 2, watcher)

    assert watcher.events_of("worker-lost") == [{"worker_id": "w1"}] * 2


def test_worker_that_returns_early_has_no_lost_tasks(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    paused.has("t1")
    paused.send_heartbeat()
    renew = watcher.losses.store.renew_losses
    watcher.losses.store.renew_losses = lambda *args: paused.send_heartbeat() or renew(*args)

    wait_until_lost(paused, by=[watcher])

    assert watcher.events_of("task-lost") == []
    assert other.get_task_state("t1")["status"] == "STARTED"


@pytest.mark.slow
def test_returned_worker_corrects_a_late_lost_status(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    key = paused.has("t1")
    paused.send_heartbeat()
    wait_until_lost(paused, by=[watcher])
    paused.send_heartbeat()

    watcher.manager.sync_task_run("t1", TaskRun("LOST", run=f"{paused.store.token}-t1"), key)
    watcher.manager.force_sync()
    overtaken = other.get_task_state("t1")["status"]
    paused.losses.settle()

    assert (overtaken, other.get_task_state("t1")["status"]) == ("LOST", "STARTED")
    eventually(lambda: paused.losses.settle() is None)


def test_a_later_run_is_not_undone_by_the_loss_of_an_earlier_one(make_worker, other):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    stopped.has("t1")
    stopped.send_heartbeat()
    time.sleep(0.002)
    watcher.has("t1")

    wait_until_lost(stopped, by=[watcher])

    assert other.get_task_state("t1")["status"] == "STARTED"
    assert other.get_task_state("t1")["worker"] == "w2"


def test_loss_is_logged_with_the_tasks_that_were_marked(make_worker, caplog):
    stopped, watcher = make_worker("w1"), make_worker("w2")
    for number in range(12):
        stopped.has(f"t{number:02}")
    stopped.send_heartbeat()

    wait_until_lost(stopped, by=[watcher])

    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.message.startswith("Worker w1 lost (no heartbeat for 0.4")
    assert "; 12 running tasks marked LOST: t" in line.message and line.message.endswith(" and 2 more")


def test_loss_of_one_of_two_workers_with_a_name_is_logged_without_a_time(make_worker, caplog):
    stopped, namesake, watcher = make_worker("w1"), make_worker("w1"), make_worker("w2")
    stopped.send_heartbeat()
    namesake.send_heartbeat()

    wait_until_lost(stopped, by=[namesake, watcher])

    (line,) = [message for message in caplog.messages if "lost (" in message]
    assert line == "Worker w1 lost (the time of its last heartbeat is not known); it had no running tasks"


def test_loss_without_tasks_and_the_return_are_logged(make_worker, caplog):
    caplog.set_level("INFO")
    stopped, watcher = make_worker("w1"), make_worker("w2")
    stopped.send_heartbeat()

    wait_until_lost(stopped, by=[watcher])
    stopped.send_heartbeat()

    first, second = caplog.messages
    assert first.startswith("Worker w1 lost (") and first.endswith("; it had no running tasks")
    assert second == "Worker w1 is back; other workers had declared it lost"
