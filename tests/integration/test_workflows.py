"""Chains, groups and chords: what is known of their tasks agrees with Celery's result backend."""
from __future__ import annotations

import json
import signal

import pytest
from celery import chain, chord, group
from celery.result import GroupResult
from celery.signals import before_task_publish

from tests.support.fleet import TASKS
from tests.support.flows import FLOWS, sig
from tests.support.waiting import eventually

ENDED = {"SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "CANCELLED"}


@pytest.fixture(scope="module")
def fleet(flow_fleet):
    return flow_fleet


def ids_of(result):
    """Return the ids of all tasks of a workflow, from what its sender was given."""
    rows = [result] if not isinstance(result, GroupResult) else result.results
    found = [result.id] if rows == [result] else [task_id for row in rows for task_id in ids_of(row)]
    return list(dict.fromkeys([*found, *(ids_of(result.parent) if result.parent is not None else [])]))


#: Our status and Celery's, where Celery has no name for it, or is wrong: it sends a retry before it stores that, so what it
#: stores of an attempt may replace the success of the next one in another process.
DIFFERENCES = {("REJECTED", "FAILURE"), ("SUCCESS", "RETRY")}


def agree(states):
    """Return whether our status and Celery's are the same, but for known differences."""
    ours, backend = states
    return ours == backend or states in DIFFERENCES


#: Workflows, and how each is made.
FLOWS_THAT_AGREE = {
    "chain": lambda s: chain(s("ok"), s("ok"), s("ok")),
    "chain that fails": lambda s: chain(s("bad"), s("ok"), s("ok")),
    "chain that fails later": lambda s: chain(s("ok"), s("bad"), s("ok")),
    "chain whose child is killed": lambda s: chain(s("killed"), s("ok")),
    "chain with a retry": lambda s: chain(s("retried"), s("ok")),
    "chain that is replaced": lambda s: chain(s("replaced"), s("ok")),
    "group": lambda s: group(s("ok"), s("bad")),
    "group of chains": lambda s: group(chain(s("ok"), s("ok")), chain(s("bad"), s("ok"))),
    "chord": lambda s: chord([s("ok"), s("ok")], s("ok")),
    "chord of one": lambda s: chord([s("ok")], s("ok")),
    "chord that fails": lambda s: chord([s("ok"), s("bad")], s("ok")),
    "chord with a retry": lambda s: chord([s("ok"), s("retried")], s("ok")),
    "chord that grows": lambda s: chord([s("ok"), s("adding")], s("ok")),
    "chord that fails before a chain": lambda s: chord([s("bad"), s("ok")], chain(s("ok"), s("ok"))),
    "chord that fails before a group": lambda s: chord([s("bad"), s("ok")], group(s("ok"), s("ok"))),
    "chord of chains that fails": lambda s: chord([chain(s("bad"), s("ok")), s("ok")], s("ok")),
    "chain, group, chain": lambda s: chain(s("ok"), group(s("ok"), s("ok")), s("ok"), s("ok")),
    "chain that ends in a group": lambda s: chain(s("ok"), group(s("ok"), s("ok"))),
    "chords of chords": lambda s: chord([chord([s("ok"), s("ok")], s("ok")), s("ok")], s("ok")),
    "rejected": lambda s: chain(s("rejected"), s("ok")),
}


@pytest.mark.parametrize("make", FLOWS_THAT_AGREE.values(), ids=list(FLOWS_THAT_AGREE))
def test_every_task_of_a_workflow_ends_as_in_the_result_backend(fleet, make):
    result = make(lambda *args: sig(fleet, *args)).apply_async()
    ids = ids_of(result)
    known_at_once = [fleet.app.memsync.get_task_state(task_id) for task_id in ids]

    def both():
        states = {task_id: (fleet.status(task_id), fleet.app.AsyncResult(task_id).state) for task_id in ids}
        return states if {ours for ours, _ in states.values()} <= ENDED and all(map(agree, states.values())) else None

    assert None not in known_at_once
    assert eventually(both, 40)


def test_steps_before_a_chord_that_fail_leave_nothing_pending(fleet):
    result = chain(sig(fleet, "bad"), group(sig(fleet, "ok"), sig(fleet, "ok")), sig(fleet, "ok")).apply_async()
    ids = ids_of(result)

    eventually(lambda: {fleet.status(task_id) for task_id in ids} == {"FAILURE"})

    # Celery stores it for the body only.
    assert fleet.app.AsyncResult(result.id).state == "FAILURE"
    group_id = result.parent.id
    eventually(lambda: fleet.reader.get_group(group_id).failed == 2)
    assert fleet.reader.get_group(group_id).percent == 100


def test_chord_around_a_chord_that_fails_fails(fleet):
    inner = chord([sig(fleet, "bad"), sig(fleet, "ok")], sig(fleet, "ok"))
    result = chord([inner, sig(fleet, "ok")], sig(fleet, "ok")).apply_async()

    # Celery 5.7 never sends the body, and says PENDING of it.
    assert fleet.wait(result, "FAILURE")["never_ran"]


def test_step_of_a_chain_is_known_before_it_is_sent(fleet):
    result = chain(sig(fleet, "wait"), sig(fleet, "ok"), sig(fleet, "bad")).apply_async()
    last, middle, first = result, result.parent, result.parent.parent
    fleet.wait(first, "STARTED")
    fleet.wait(last, "PENDING")

    states = fleet.state(middle.id), fleet.state(last.id)
    queue = fleet.reader.get_queue()
    first.revoke(terminate=True)

    assert [state["status"] for state in states] == ["PENDING", "PENDING"]
    assert [state["name"] for state in states] == [f"{FLOWS}.ok", f"{FLOWS}.bad"]
    assert [state["depends_on"] for state in states] == [[first.id], [middle.id]]
    assert {state["workflow"] for state in states} == {first.id}
    assert not {middle.id, last.id} & {*queue["pending"], *queue["processing"]}
    state = fleet.wait(last, "CANCELLED")
    assert state["never_ran"]
    assert state["cause"] == {"task_id": first.id, "status": "REVOKED", "name": f"{FLOWS}.wait"}


def test_step_after_a_failure_has_its_exception_and_its_cause(fleet):
    result = chain(sig(fleet, "bad"), sig(fleet, "ok")).apply_async()

    state = fleet.wait(result, "FAILURE")

    assert state["never_ran"]
    assert state["cause"] == {"task_id": result.parent.id, "status": "FAILURE", "name": f"{FLOWS}.bad"}
    assert state["exception"] == {"type": "ValueError", "message": "bad"}
    assert "started_at" not in state


def test_body_of_a_chord_that_fails_has_the_exception_of_celery(fleet):
    result = chord([sig(fleet, "bad"), sig(fleet, "ok")], sig(fleet, "ok")).apply_async()

    exception = fleet.wait(result, "FAILURE")["exception"]
    eventually(lambda: result.state == "FAILURE")

    assert exception == {"type": type(result.result).__name__, "message": str(result.result)}


@pytest.mark.parametrize("make", [
    lambda s: chain(s("ignored"), s("ok"), s("ok")),
    lambda s: chord([s("ignored"), s("ok")], s("ok")),
], ids=["chain", "chord"])
def test_step_after_an_ignored_task_is_cancelled_where_celery_waits_for_ever(fleet, make):
    result = make(lambda *args: sig(fleet, *args)).apply_async()

    state = fleet.wait(result, "CANCELLED")

    assert state["never_ran"]
    assert state["cause"]["status"] == "IGNORED"
    assert result.state == "PENDING"


def test_chain_that_is_revoked_in_its_queue_is_cancelled(fleet):
    steps = chain(sig(fleet, "ok").set(queue=f"{fleet.name}-later"), sig(fleet, "ok"), sig(fleet, "ok"))
    result = steps.apply_async()
    first = result.parent.parent
    fleet.wait(first, "PENDING")

    first.revoke()

    assert fleet.wait(result, "CANCELLED")["cause"]["status"] == "REVOKED"
    assert fleet.wait(first, "REVOKED")


def test_step_that_is_revoked_before_it_is_sent_is_revoked(fleet):
    result = chain(sig(fleet, "wait"), sig(fleet, "ok")).apply_async()
    fleet.wait(result.parent, "STARTED")

    result.revoke()

    fleet.wait(result, "REVOKED")
    result.parent.revoke(terminate=True)
    fleet.wait(result.parent, "REVOKED")
    assert fleet.state(result.id)["status"] == "REVOKED"


def test_group_is_counted_while_it_runs(fleet):
    result = group(sig(fleet, "ok"), sig(fleet, "bad"), sig(fleet, "wait"), sig(fleet, "wait")).apply_async()
    eventually(lambda: (one := fleet.reader.get_group(result.id)) and one.running == 2)

    found = eventually(lambda: (one := fleet.reader.get_group(result.id)).done == 2 and one)
    for one in result.results[2:]:
        one.revoke(terminate=True)
    ended = eventually(lambda: (one := fleet.reader.get_group(result.id)).done == 4 and one)

    assert (found.total, found.succeeded, found.failed, found.running, found.percent) == (4, 1, 1, 2, 50)
    assert found.eta > 0
    assert (ended.succeeded, ended.failed, ended.running, ended.percent, ended.eta) == (1, 1, 0, 100, 0)


def test_group_knows_its_total_before_its_members_are_sent(fleet):
    chains = [chain(sig(fleet, "wait", seconds=0.5), sig(fleet, "ok")) for _ in range(4)]
    result = group(chains).apply_async()

    found = eventually(lambda: fleet.reader.get_group(result.id))

    assert (found.total, found.done) == (4, 0)
    eventually(lambda: fleet.reader.get_group(result.id).succeeded == 4, 20)


def test_group_knows_its_total_before_its_sender_has_recorded_it(fleet):
    wait = fleet.producer(memsync_batch_interval=60.0).tasks[f"{FLOWS}.wait"]
    # More than the worker takes at once.
    result = group([wait.s(seconds=0.1) for _ in range(20)]).apply_async()

    totals = set()
    eventually(lambda: (found := fleet.reader.get_group(result.id)) and (totals.add(found.total) or found.done == 20))

    assert totals == {20}


def test_group_from_a_generator_is_sent_while_it_is_made(fleet):
    sent, seen = [], []

    def members():
        for _ in range(4):
            yield sig(fleet, "ok")
        # As Celery does it: the first ones run before the last one is made.
        eventually(lambda: sent and (one := fleet.reader.get_group(sent[0][1])) and one.done)
        seen.append(fleet.reader.get_group(sent[0][1]))
        yield sig(fleet, "ok")

    def on_publish(headers, **_):
        sent.append((headers["id"], headers["group"]))

    before_task_publish.connect(on_publish)
    try:
        result = chord(members())(sig(fleet, "ok"))
    finally:
        before_task_publish.disconnect(on_publish)
    fleet.wait(result, "SUCCESS")
    found = eventually(lambda: (one := fleet.reader.get_group(sent[0][1])).done == 5 and one)

    assert (seen[0].percent, seen[0].eta, seen[0].done < seen[0].total < 5) == (0, None, True)
    assert (found.total, found.succeeded, found.percent) == (5, 5, 100)


def test_group_from_chunks_is_counted(fleet):
    result = fleet.task("add").chunks([(number, 1) for number in range(10)], 4).apply_async()

    found = eventually(lambda: (one := fleet.reader.get_group(result.id)) and one.done == 3 and one)

    assert (found.total, found.succeeded) == (3, 3)


def test_eager_workflow_ends_as_it_runs(fleet):
    result = chain(sig(fleet, "ok"), sig(fleet, "ok")).apply()
    fleet.app.memsync.force_sync()

    assert {fleet.status(task_id) for task_id in ids_of(result)} == {"SUCCESS"}


def test_chain_that_is_lost_with_its_worker_is_cancelled_until_its_task_runs_again(make_fleet):
    fleet = make_fleet(include=[TASKS, FLOWS], memsync_worker_ttl=2.0, task_acks_late=True)
    worker = fleet.start_worker("-c", "1")
    result = chain(sig(fleet, "wait"), sig(fleet, "ok"), sig(fleet, "ok")).apply_async()
    first = result.parent.parent
    fleet.wait(first, "STARTED")

    worker.stop(signal.SIGKILL)
    fleet.start_worker("-c", "1")

    state = fleet.wait(result, "CANCELLED", timeout=30)
    assert state["cause"] == {"task_id": first.id, "status": "LOST", "name": f"{FLOWS}.wait"}
    deliver_again(fleet)
    for step in (result, result.parent):
        assert "cause" not in fleet.wait(step, "PENDING")
    first.revoke(terminate=True)
    assert fleet.wait(result, "CANCELLED")["cause"]["status"] == "REVOKED"


def deliver_again(fleet):
    """Put what a dead worker had back into its queue, as the broker does an hour later."""
    with fleet.broker.client() as client:
        for tag, body in client.hgetall("unacked").items():
            message, _, queue = json.loads(body)
            if queue == fleet.name:
                message["properties"]["delivery_info"]["redelivered"] = True
                client.lpush(fleet.name, json.dumps(message))
                client.hdel("unacked", tag)


@pytest.mark.parametrize("first", ["ok", "bad"])
def test_last_step_of_a_long_chain_is_known_at_once(fleet, first):
    result = chain(sig(fleet, first), *(sig(fleet, "ok") for _ in range(69))).apply_async()

    known_at_once = fleet.app.memsync.get_task_state(result.id)

    assert known_at_once["name"] == f"{FLOWS}.ok"
    fleet.wait(result, "SUCCESS" if first == "ok" else "FAILURE", timeout=30)


@pytest.mark.parametrize("pool", ["threads", "solo", pytest.param("gevent", marks=pytest.mark.acceptance)])
def test_chain_that_fails_fails_in_any_pool(make_fleet, pool):
    fleet = make_fleet(include=[TASKS, FLOWS])
    fleet.start_worker("-P", pool, "-c", "2")

    result = chain(sig(fleet, "bad"), sig(fleet, "ok"), sig(fleet, "ok")).apply_async()
    body = chord([sig(fleet, "bad"), sig(fleet, "ok")], sig(fleet, "ok")).apply_async()

    assert fleet.wait(result, "FAILURE")["never_ran"]
    assert fleet.wait(body, "FAILURE")["never_ran"]


def test_replacement_is_the_later_run_if_it_is_recorded_before_the_run_that_it_replaces(make_fleet):
    fleet = make_fleet(include=[TASKS, FLOWS], memsync_batch_interval=0.5)
    fleet.start_worker("-c", "4")
    # So nothing is recorded of the first run before its process does, half a second after it has begun.
    task = fleet.producer(memsync_batch_interval=60.0).tasks[f"{FLOWS}.replaced_by_failure"]

    results = [task.apply_async() for _ in range(2)]
    for result in results:
        eventually(lambda: result.state == "FAILURE")

    for result in results:
        fleet.wait_runs(result, ["IGNORED", "FAILURE"])
        assert fleet.status(result.id) == "FAILURE"
