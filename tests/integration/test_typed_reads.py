"""Reads of real tasks return dicts of their types, and every key that is declared appears in some of them."""
from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from celery import chord, group

from celery_memsync import ListedTask, ProcessMetrics, QueueLists, TaskProgress, TaskRecord, TaskState, WorkerDict
from tests.support import locked_tasks
from tests.support.fleet import TASKS, Fleet
from tests.support.flows import FLOWS
from tests.support.typed_dicts import keys_of, mistakes


def send_all(fleet):
    """Send tasks that leave every key in their records; return their results by what becomes of them."""
    ok, bad = (fleet.app.tasks[f"{FLOWS}.{name}"].s for name in ("ok", "bad"))
    skip, try_again = (fleet.app.tasks[f"{locked_tasks.TASKS}.{name}"] for name in ("skip", "try_again"))
    traced = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    inner = chord([ok(), ok()], group([ok(), ok()]))
    return {
        "finished": fleet.send("count_to", 3, headers=traced),
        "failed": fleet.send("fail"),
        "retried": fleet.send("retry_once"),
        "waits": fleet.send("retry_in", 3600),
        "replaced": fleet.send("be_replaced", 0),
        "skipped": skip.delay("printer", value=1),
        "held back": try_again.delay("printer"),
        "later": fleet.send("add", 1, 2, countdown=3600),
        "stamped": ok().set(stamped_headers=["tenant"], tenant="acme").apply_async(),
        "lost": fleet.send("hold_again", "a"),
        "failed chain": (bad() | ok()).apply_async(),
        "chord": chord([inner, ok()], ok()).apply_async(),
        "not received": fleet.send("add", 1, 2, queue="no-worker"),
    }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, broker, store):
    """A fleet whose tasks have come to all that leaves a key in their records, one of them by the loss of a worker."""
    fleet = Fleet(
        tmp_path_factory.mktemp("typed"), broker, store, include=[TASKS, FLOWS, locked_tasks.TASKS], memsync_task_args=True,
        memsync_worker_ttl=2.0, memsync_heartbeat_interval=0.3)
    first = fleet.start_worker("-c", "8")
    fleet.lock = fleet.reader.lock("printer", ttl=60)
    fleet.lock.acquire()
    fleet.sent = sent = send_all(fleet)
    sent["not received"].revoke()
    fleet.reader.sync_task_state(sent["finished"].id, {"frames": 3})
    fleet.reader.sync_agent_coordination(sent["finished"].id, "coder", {"files": 3})
    fleet.wait(sent["lost"], "STARTED")
    for name in ("finished", "failed", "retried", "waits", "replaced", "skipped", "held back", "failed chain", "chord"):
        fleet.wait(sent[name], "SUCCESS", "FAILURE", "RETRY", "SKIPPED")
    fleet.wait_record(first, lambda record: record.held_messages)
    fleet.start_worker("-c", "2")
    first.signal(signal.SIGKILL)
    fleet.wait(sent["lost"], "SUCCESS", timeout=30)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def tasks(fleet):
    """All tasks, as `get_task` returns each."""
    return [fleet.reader.get_task(one["id"]) for one in fleet.reader.iter_tasks()]


def states_in(tasks) -> Iterator[dict]:
    for task in tasks:
        yield from filter(None, [task["state"], *task["runs"]])


def test_tasks_are_of_their_types(fleet, tasks):
    listed = [*fleet.reader.get_tasks(limit=1000), *fleet.reader.iter_tasks()]

    assert len(tasks) > len(fleet.sent)
    assert [mistakes(task, TaskRecord) for task in tasks] == [[]] * len(tasks)
    assert [mistakes(task, ListedTask) for task in listed] == [[]] * len(listed)
    assert {frozenset(task) for task in tasks} == {frozenset(keys_of(TaskRecord))}
    assert {frozenset(task) for task in listed} == {frozenset(keys_of(ListedTask))}


def test_states_have_all_keys_that_are_declared_and_those_of_users(fleet, tasks):
    seen = {name for state in states_in(tasks) for name in state}

    assert seen - {"frames"} == {*keys_of(TaskState)}
    assert fleet.reader.get_task_state(fleet.sent["finished"].id)["frames"] == 3


@pytest.mark.parametrize("key", ["exception", "lock", "cause"])
def test_what_is_in_a_state_has_all_keys_that_are_declared(tasks, key):
    seen = {name for state in states_in(tasks) for name in state.get(key) or ()}

    assert seen == {*keys_of(keys_of(TaskState)[key])}


def test_progress_has_all_keys_that_are_declared(fleet):
    plain = fleet.reader.get_task_progress(fleet.sent["finished"].id)
    after_another = fleet.reader.get_task_progress(fleet.sent["lost"].id)

    assert plain.keys() == TaskProgress.__required_keys__
    assert after_another.keys() == keys_of(TaskProgress).keys()
    assert mistakes(plain, TaskProgress) == mistakes(after_another, TaskProgress) == []


def test_workers_are_of_their_types(fleet):
    workers = [one.as_dict() for one in fleet.reader.get_workers()]

    assert len(workers) == 2
    assert [mistakes(one, WorkerDict) for one in workers] == [[], []]
    assert {frozenset(one) for one in workers} == {frozenset(keys_of(WorkerDict))}
    for key in ("capacity", "writer", "held_messages"):
        assert {name for one in workers for name in one[key]} == {*keys_of(keys_of(WorkerDict)[key])}


def test_queue_and_counters_are_of_their_types(fleet):
    queue, counted = fleet.reader.get_queue(), fleet.reader.get_metrics()

    assert (mistakes(queue, QueueLists), queue.keys()) == ([], keys_of(QueueLists).keys())
    assert (mistakes(counted, ProcessMetrics), counted.keys()) == ([], keys_of(ProcessMetrics).keys())


def test_workflow_and_group_are_of_their_types(fleet):
    workflow = fleet.reader.get_workflow(fleet.sent["failed chain"].id)
    group = fleet.reader.get_group(fleet.sent["chord"].parent.id)

    for record in (workflow, group):
        typed = keys_of(type(record).as_dict)["return"]
        assert (mistakes(record.as_dict(), typed), record.as_dict().keys()) == ([], keys_of(typed).keys())
