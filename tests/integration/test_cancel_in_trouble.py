"""Cancelled tasks, while workers or Redis are away, and with what other programs put into the set."""
from __future__ import annotations

import json
import signal
import time

import pytest

from celery_memsync import StoreUnavailable
from celery_memsync.keys import Keys
from tests.support.cancels import CANCEL_TASKS, begun
from tests.support.fleet import TASKS
from tests.support.waiting import eventually


@pytest.fixture
def fleet(make_fleet, broker, own_store):
    """A fleet whose memory is its own."""
    return make_fleet(broker, own_store, include=[TASKS, CANCEL_TASKS], memsync_timeout=1.0)


def send(fleet, name, *args, **options):
    return fleet.app.tasks[f"{CANCEL_TASKS}.{name}"].apply_async(args, **options)


def test_worker_that_was_down_skips_what_was_cancelled_meanwhile(fleet):
    results = [send(fleet, "step") for _ in range(20)]
    for result in results[:-1]:
        fleet.reader.cancel(result.id, "while it was down")

    fleet.start_worker("-c", "2")

    fleet.wait(results[-1], "SUCCESS")
    assert [fleet.wait(result, "REVOKED")["exception"]["type"] for result in results[:-1]] == ["TaskCancelled"] * 19
    assert not any(fleet.notes("begin", result.id) for result in results[:-1])


def test_task_of_a_killed_worker_is_not_started_by_the_next_one(fleet):
    worker = fleet.start_worker("-c", "1")
    result = fleet.app.tasks[f"{TASKS}.hold_late"].apply_async((60.0,))
    begun(fleet, result)
    fleet.reader.cancel(result.id)
    worker.stop(signal.SIGKILL)

    fleet.start_worker("-c", "1")
    with fleet.broker.client() as client:
        eventually(lambda: give_back(fleet, client))

    fleet.wait(result, "REVOKED")
    assert len(fleet.notes("begin", result.id)) == 1


@pytest.mark.acceptance
def test_worker_that_was_paused_starts_nothing_that_was_cancelled_meanwhile(fleet):
    worker = fleet.start_worker("-c", "4")
    busy = [send(fleet, "hold", 1.0) for _ in range(4)]
    for result in busy:
        begun(fleet, result)
    waiting = [send(fleet, "step") for _ in range(4)]
    for result in waiting:
        fleet.wait(result, "RECEIVED")

    worker.pause()
    for result in waiting:
        fleet.reader.cancel(result.id)
    for result in busy:
        eventually(lambda result=result: fleet.notes("end", result.id))
    until = time.monotonic() + 1.2
    eventually(lambda: time.monotonic() > until)
    worker.process.send_signal(signal.SIGCONT)

    for result in waiting:
        fleet.wait(result, "REVOKED")
    assert not any(fleet.notes("begin", result.id) for result in waiting)


def give_back(fleet, client):
    """Put what a dead worker had back into its queue, as the broker does an hour later; return whether it was there."""
    for tag, body in client.hgetall("unacked").items():
        message, _, queue = json.loads(body)
        if queue == fleet.name:
            client.lpush(fleet.name, json.dumps(message))
            return client.hdel("unacked", tag)
    return False


def test_cancel_raises_while_redis_is_away_and_works_after(fleet, own_store):
    worker = fleet.start_worker("-c", "1")
    result = send(fleet, "check")
    begun(fleet, result)
    own_store.stop()

    with pytest.raises(StoreUnavailable):
        fleet.reader.cancel(result.id)

    own_store.start()
    eventually(lambda: fleet.reader.get_workers())
    fleet.reader.cancel(result.id, "after all")
    assert fleet.wait(result, "REVOKED")["exception"]["message"].endswith("after all")
    assert worker.process.poll() is None


def test_running_task_goes_on_while_redis_is_away_and_learns_of_it_after(fleet, own_store):
    fleet.start_worker("-c", "2")
    one, two = send(fleet, "check"), send(fleet, "track")
    begun(fleet, one), begun(fleet, two)
    other = fleet.manager()
    other.get_workers()
    own_store.stop()
    eventually(lambda: not raises_nothing(other.get_workers))
    assert not fleet.notes("cancelled", one.id)

    own_store.start()
    for result in (one, two):
        eventually(lambda result=result: raises_nothing(lambda: other.cancel(result.id, "it is back")))

    for result in (one, two):
        fleet.wait(result, "REVOKED")
        assert not fleet.notes("end", result.id)


def raises_nothing(call):
    try:
        call()
    except StoreUnavailable:
        return False
    return True


def test_worker_that_starts_while_redis_is_away_skips_when_it_is_back(fleet, own_store):
    result, root = send(fleet, "step", countdown=12.0), send(fleet, "step")
    fleet.app.memsync.force_sync()
    fleet.reader.cancel(result.id)
    own_store.stop()
    fleet.start_worker("-c", "1")
    begun(fleet, root)

    own_store.start()

    fleet.wait(result, "REVOKED", timeout=10)


def test_foreign_members_of_the_set_stop_no_worker_and_no_cancel(fleet, client):
    key = Keys(fleet.name).cancelled
    now = 1e3 * 2e9
    client.zadd(key, {b"\xff\xfe": now, b"[]": now, b"{}": now, b"null": now, b'["a/b",1,"w",null,null,false]': now,
                      b'["x","soon","w",null,null,false]': now, b'["x",1,7,null,null,1]': now, b"[" * 5000: now,
                      b'["forever",1,"w",null,null,false]': float("inf"), b"1": float("-inf")})
    fleet.start_worker("-c", "1")
    kept, result = send(fleet, "step"), send(fleet, "check")

    fleet.wait(kept, "SUCCESS")
    begun(fleet, result)
    fleet.reader.cancel(result.id)
    fleet.wait(result, "REVOKED")
    client.set(key, "a text")
    begun(fleet, another := send(fleet, "check"))
    fleet.reader.cancel(another.id)
    fleet.wait(another, "REVOKED")

    assert "Traceback" not in fleet.workers[0].output()


def test_foreign_messages_on_the_channel_are_harmless(fleet, client):
    fleet.start_worker("-c", "1")
    channel = f"0:{fleet.name}/coordination/cancelled"

    for _ in range(200):
        client.publish(channel, b"\xff" * 100)

    fleet.wait(send(fleet, "step"), "SUCCESS")
    assert "Traceback" not in fleet.workers[0].output()


def test_what_a_worker_knows_outlives_a_redis_that_lost_it(fleet, client):
    fleet.start_worker("-c", "1")
    busy = send(fleet, "hold", 1.5)
    begun(fleet, busy)
    result = send(fleet, "step")
    fleet.reader.cancel(result.id)
    fleet.wait(result, "REVOKED")

    client.flushall()

    fleet.wait(busy, "SUCCESS")
    eventually(lambda: fleet.notes("revoked", result.id))
    assert not fleet.notes("begin", result.id)


@pytest.mark.parametrize("pool", [["-c", "2"], ["-P", "gevent", "-c", "2"], ["-P", "threads", "-c", "2"]],
                         ids=["prefork", "gevent", "threads"])
def test_terminate_ends_the_processes_of_running_tasks_only(fleet, pool):
    fleet.start_worker(*pool)
    results = [send(fleet, "hold", 3.0) for _ in range(3)]
    eventually(lambda: sum(bool(fleet.notes("begin", result.id)) for result in results) == 2)

    for result in results:
        fleet.reader.cancel(result.id, "at once", terminate=True)

    ended = [fleet.wait(result, "REVOKED", "SUCCESS") for result in results]
    if "threads" in pool:
        assert sorted(state["status"] for state in ended) == ["REVOKED", "SUCCESS", "SUCCESS"]
    else:
        assert [state["status"] for state in ended] == ["REVOKED"] * 3
        assert all(state["exception"]["message"].endswith("at once") for state in ended)
        assert not any(fleet.notes("end", result.id) for result in results)
        assert eventually(lambda: not any(fleet.reader.get_lock(f"of-{result.id}") for result in results), timeout=40)
    fleet.wait(send(fleet, "step"), "SUCCESS")


def test_spawned_pool_process_learns_of_it(fleet):
    fleet.start_worker("-c", "1", worker_pool_start_method="spawn")
    result = send(fleet, "check")
    eventually(lambda: fleet.notes("begin", result.id), timeout=30)

    fleet.reader.cancel(result.id)

    fleet.wait(result, "REVOKED")


def test_cancel_of_one_namespace_leaves_the_same_id_of_another_alone(make_fleet, broker, own_store):
    one, other = (make_fleet(broker, own_store, include=[TASKS, CANCEL_TASKS]) for _ in range(2))
    one.start_all(one.worker("-c", "1"), other_worker := other.worker("-c", "1"))
    first, second = send(one, "check", task_id="the-same"), send(other, "check", 2.0, task_id="the-same")
    begun(one, first), begun(other, second)

    one.reader.cancel("the-same")

    one.wait(first, "REVOKED")
    other.wait(second, "SUCCESS")
    assert "Traceback" not in other_worker.output()
