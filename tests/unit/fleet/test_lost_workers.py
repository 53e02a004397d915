"""Lost workers: each is told of once, and what it had with it."""
from __future__ import annotations

import time

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.simulated_worker import SILENCE, SimulatedWorker
from tests.support.waiting import eventually


@pytest.fixture
def make_worker(make_memsync):
    def make(worker_id, **options):
        return SimulatedWorker(make_memsync(worker_id, batch_interval=60.0), worker_id, **options)

    return make


def beat_until(check, *workers):
    """Let workers beat until something is true."""
    def checked():
        for worker in workers:
            worker.beat()
        return check()

    return eventually(checked)


def silence_until_lost(*workers, to):
    """Send heartbeats of other workers only, until they have reported these as lost."""
    names = {worker.worker_id for worker in workers}
    beat_until(lambda: names <= {one["worker_id"] for teller in to for one in teller.heard("worker-lost")}, *to)


def test_a_silent_worker_and_its_tasks_are_lost_and_told_once_by_one_worker(make_worker, other):
    silent, *others = [make_worker(f"w{number}") for number in range(4)]
    silent.has("t1")
    silent.beat()
    silent.has("t2")
    confirmed_at = silent.heartbeats[-1].at
    others[0].has("t3")

    silence_until_lost(silent, to=others)
    for one in others * 3:
        one.beat()

    assert [one for worker in others for one in worker.heard("worker-lost")] == [{"worker_id": "w0"}]
    lost = sorted((one for worker in others for one in worker.heard("task-lost")), key=lambda one: one["task_id"])
    assert [(one["task_id"], one["name"], one["worker_id"]) for one in lost] == \
        [("t1", "proj.add", "w0"), ("t2", "proj.add", "w0")]
    assert all(abs(one["since"] - confirmed_at) < 0.01 for one in lost)
    assert other.get_queue()["processing"] == ["t3"]
    state = other.get_task_state("t1")
    assert (state["status"], state["worker"], state["exception"]["type"]) == ("LOST", "w0", "WorkerLostError")
    assert other.get_task_state("t3")["status"] == "STARTED"
    assert other.get_coordination_metrics()["lost"] == 2


def test_only_what_ran_is_lost(make_worker, other):
    silent, watcher = make_worker("w1"), make_worker("w2")
    for task_id, status in (("waits", "RECEIVED"), ("runs", "STARTED"), ("failed", "FAILURE"), ("done", "SUCCESS")):
        silent.has(task_id, status)
    silent.beat()

    silence_until_lost(silent, to=[watcher])

    assert [one["task_id"] for one in watcher.heard("task-lost")] == ["runs"]
    assert {task_id: other.get_task_state(task_id)["status"] for task_id in silent.tasks} == \
        {"waits": "RECEIVED", "runs": "LOST", "failed": "FAILURE", "done": "SUCCESS"}


def test_a_task_that_is_no_longer_in_the_queue_is_lost_if_the_worker_told_of_it(make_worker, memsync):
    silent, watcher = make_worker("w1"), make_worker("w2")
    silent.has("t1")
    silent.beat()
    memsync.sync_queue({"pending": [], "processing": []})
    memsync.force_sync()

    silence_until_lost(silent, to=[watcher])

    assert [one["task_id"] for one in watcher.heard("task-lost")] == ["t1"]


@pytest.mark.parametrize("worker_id", ["w 1 2", "w%1", "wörk:er@häst", "-", "{w}"])
def test_a_worker_may_have_any_name(make_worker, other, worker_id):
    silent, watcher = make_worker(worker_id), make_worker("w2")
    silent.has("t %d {x}")
    silent.beat()

    silence_until_lost(silent, to=[watcher])

    assert watcher.heard("worker-lost") == [{"worker_id": worker_id}]
    assert watcher.heard("task-lost")[0]["worker_id"] == worker_id
    assert other.get_task_state("t %d {x}")["status"] == "LOST"


def test_the_tasks_of_a_worker_that_died_are_lost_though_another_process_has_its_name(make_worker, other):
    dead, watcher = make_worker("w1"), make_worker("w2")
    dead.has("old")
    dead.beat()
    heir = make_worker("w1")
    heir.has("new")

    beat_until(lambda: watcher.heard("task-lost") or heir.heard("task-lost"), heir, watcher)

    assert other.get_task_state("old")["status"] == "LOST"
    assert other.get_task_state("new")["status"] == "STARTED"
    assert other.get_active_workers() == ["w1", "w2"]


@pytest.mark.slow
def test_two_that_have_one_name_are_both_alive(make_worker, other):
    twins = [make_worker("w1"), make_worker("w1")]
    for number, twin in enumerate(twins):
        twin.has(f"t{number}")
    until = time.monotonic() + 2 * SILENCE

    beat_until(lambda: time.monotonic() > until, *twins)

    assert [twin.heard("worker-lost") + twin.heard("task-lost") for twin in twins] == [[], []]
    assert other.get_queue()["processing"] == ["t0", "t1"]


@pytest.mark.slow
def test_a_worker_that_said_goodbye_is_not_lost_and_is_shown_as_offline(make_worker, other):
    leaver, watcher = make_worker("w1"), make_worker("w2")
    leaver.beat()
    leaver.heartbeat.stop()
    until = time.monotonic() + 2 * SILENCE

    beat_until(lambda: time.monotonic() > until, watcher)

    assert watcher.heard("worker-lost") == []
    assert [(one.worker_id, one.status) for one in other.get_workers()] == [("w1", "offline"), ("w2", "active")]


@pytest.mark.slow
def test_those_that_are_gone_are_forgotten_after_their_time(make_worker, other, redis):
    leaver, silent, watcher = make_worker("w1", keep=1.0), make_worker("w2", keep=1.0), make_worker("w3", keep=1.0)
    for one in (leaver, silent):
        one.beat()
    leaver.heartbeat.stop()

    silence_until_lost(silent, to=[watcher])
    shown = {one.worker_id: one.status for one in make_worker("w4").manager.get_workers()}
    beat_until(lambda: len(other.get_workers()) == 1, watcher)

    assert shown == {"w1": "offline", "w2": "active", "w3": "active"}  # by a ttl of 15 s
    beat_until(lambda: redis.zcard("task-sentinel//{workers}/heartbeats") == 1, watcher)
    assert redis.exists("task-sentinel//{workers}/lost") == 0


def test_a_worker_that_is_back_has_its_tasks_again(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    for task_id in ("runs", "ends", "fails"):
        paused.has(task_id)
    paused.beat()
    silence_until_lost(paused, to=[watcher])
    paused.tell("ends", "SUCCESS")
    paused.tell("fails", "FAILURE")

    paused.beat()

    assert paused.heartbeats[-1].status == "back"
    assert paused.heard("worker-online") == [{"worker_id": "w1"}] * 2
    state = other.get_task_state("runs")
    assert (state["status"], "exception" in state, "finished_at" in state) == ("STARTED", False, False)
    assert other.get_task_state("ends")["status"] == "SUCCESS"
    assert other.get_task_state("fails")["status"] == "FAILURE"
    assert other.get_queue()["processing"] == ["runs"]
    counters = other.get_coordination_metrics()
    assert (counters["lost"], counters["succeeded"], counters["failed"]) == (0, 1, 1)
    paused.tell("runs", "SUCCESS", runtime=1.0)
    assert other.get_coordination_metrics()["succeeded"] == 2


@pytest.mark.slow
def test_a_worker_that_was_called_lost_may_be_called_so_again(make_worker):
    silent, watcher = make_worker("w1"), make_worker("w2")
    silent.has("t1")
    silent.beat()
    silence_until_lost(silent, to=[watcher])
    silent.beat()

    beat_until(lambda: len(watcher.heard("task-lost")) == 2, watcher)

    assert watcher.heard("worker-lost") == [{"worker_id": "w1"}] * 2


def test_of_a_worker_that_is_back_before_its_tasks_were_told_of_nothing_is_told(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    paused.has("t1")
    paused.beat()
    renew = watcher.losses.store.renew_losses
    watcher.losses.store.renew_losses = lambda *args: paused.beat() or renew(*args)

    silence_until_lost(paused, to=[watcher])

    assert watcher.heard("task-lost") == []
    assert other.get_task_state("t1")["status"] == "STARTED"


@pytest.mark.slow
def test_a_worker_that_is_back_sets_right_what_is_told_of_it_too_late(make_worker, other):
    paused, watcher = make_worker("w1"), make_worker("w2")
    key = paused.has("t1")
    paused.beat()
    silence_until_lost(paused, to=[watcher])
    paused.beat()

    watcher.manager.sync_task_run("t1", TaskRun("LOST", run=f"{paused.store.token}-t1"), key)
    watcher.manager.force_sync()
    overtaken = other.get_task_state("t1")["status"]
    paused.losses.settle()

    assert (overtaken, other.get_task_state("t1")["status"]) == ("LOST", "STARTED")
    eventually(lambda: paused.losses.settle() is None)


def test_a_later_run_is_not_undone_by_the_loss_of_an_earlier_one(make_worker, other):
    silent, watcher = make_worker("w1"), make_worker("w2")
    silent.has("t1")
    silent.beat()
    time.sleep(0.002)
    watcher.has("t1")

    silence_until_lost(silent, to=[watcher])

    assert other.get_task_state("t1")["status"] == "STARTED"
    assert other.get_task_state("t1")["worker"] == "w2"


def test_loss_is_logged_with_the_tasks_that_were_marked(make_worker, caplog):
    silent, watcher = make_worker("w1"), make_worker("w2")
    for number in range(12):
        silent.has(f"t{number:02}")
    silent.beat()

    silence_until_lost(silent, to=[watcher])

    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.message.startswith("Worker w1 lost (no heartbeat for 0.4")
    assert "; 12 running tasks marked LOST: t" in line.message and line.message.endswith(" and 2 more")


def test_loss_of_one_of_two_workers_with_a_name_is_logged_without_a_time(make_worker, caplog):
    silent, namesake, watcher = make_worker("w1"), make_worker("w1"), make_worker("w2")
    silent.beat()
    namesake.beat()

    silence_until_lost(silent, to=[namesake, watcher])

    (line,) = [message for message in caplog.messages if "lost (" in message]
    assert line == "Worker w1 lost (the time of its last heartbeat is not known); it had no running tasks"


def test_loss_without_tasks_and_the_return_are_logged(make_worker, caplog):
    caplog.set_level("INFO")
    silent, watcher = make_worker("w1"), make_worker("w2")
    silent.beat()

    silence_until_lost(silent, to=[watcher])
    silent.beat()

    first, second = caplog.messages
    assert first.startswith("Worker w1 lost (") and first.endswith("; it had no running tasks")
    assert second == "Worker w1 is back; other workers had declared it lost"
