"""No task is delivered twice because it lasts longer than the visibility timeout of a Redis broker; in real workers."""
from __future__ import annotations

import contextlib
import signal
import time
from typing import NamedTuple

import pytest

from tests.support.fleet import Fleet
from tests.support.redis_server import RedisServer
from tests.support.stress import stressed
from tests.support.sweeper import Sweeper
from tests.support.waiting import eventually

#: Seconds: after which the broker delivers again, that a task takes, until it starts by its eta, and that a stop takes.
TIMEOUT, LONG, ETA, STOP = stressed((10.0, 60.0, 120.0, 120.0), (1.5, 3.0, 3.0, 2.2))

pytestmark = pytest.mark.timeout(600)

#: Seconds between two sweeps that put back what is older than the timeout.
SWEEP = 0.3

POOLS = stressed(("prefork", "threads", "solo", "gevent"), ("prefork", "threads", "solo"))

#: Pools of workers without this package.
CONTROLS = stressed(POOLS, ("prefork",))


class Sent(NamedTuple):
    """Tasks of one worker with one slot."""

    runs: object
    prefetched: object
    eta: object

    @classmethod
    def to(cls, fleet, queue, seconds=LONG, eta=ETA):
        runs = fleet.send("sleep", seconds, queue=queue)
        eventually(lambda: fleet.notes("begin", runs.id), timeout=20)
        return cls(runs, fleet.send("sleep", 0.1, queue=queue), fleet.send("sleep", 0.1, queue=queue, countdown=eta))


@pytest.fixture(scope="module")
def kept_broker(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("visible"), keep=True).start()
    yield server
    server.stop()


@contextlib.contextmanager
def swept_fleet(folder, broker, store, **conf):
    """A fleet that acknowledges late, on a broker that delivers again what is older than the timeout."""
    options = {"visibility_timeout": TIMEOUT}
    fleet = Fleet(folder, broker, store, task_acks_late=True, broker_transport_options=options, **conf)
    try:
        with Sweeper(fleet.app, SWEEP):
            yield fleet
    finally:
        fleet.close()


def queue_of(fleet, pool):
    return f"{fleet.name}-{pool}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, kept_broker, store):
    """A fleet with a worker of each pool, which has one slot and a queue of its own, and some without this package."""
    with swept_fleet(tmp_path_factory.mktemp("visible"), kept_broker, store) as fleet:
        fleet.of = {pool: fleet.worker("-P", pool, "-c", "1", "-Q", queue_of(fleet, pool)) for pool in POOLS}
        fleet.controls = {
            pool: fleet.worker("-P", pool, "-c", "1", "-Q", queue_of(fleet, f"without-{pool}"), memsync_enabled=False)
            for pool in CONTROLS}
        fleet.start_all(*fleet.of.values(), *fleet.controls.values())
        yield fleet


@pytest.fixture(scope="module")
def sent(fleet):
    """What was sent to each worker, at the same time."""
    return {pool: Sent.to(fleet, queue_of(fleet, pool)) for pool in (*POOLS, *(f"without-{pool}" for pool in CONTROLS))}


def counts(fleet, task):
    return len(fleet.notes("begin", task.id)), len(fleet.notes("end", task.id))


def given_back(fleet, pool):
    """Return how many messages are in the queue of a worker."""
    with fleet.broker.client() as client:
        return client.llen(queue_of(fleet, pool))


def test_worker_reports_what_it_holds(fleet, sent):
    record = fleet.wait_record(fleet.of["prefork"], lambda one: one.held_messages.get("count") == 3)

    assert record.held_messages["visibility_timeout"] == TIMEOUT
    assert record.held_messages["interval"] == pytest.approx(TIMEOUT / 3)
    assert 0 <= record.last_beat - record.held_messages["renewed_at"] < TIMEOUT
    assert [one.get("held") for one in record.running] == [True]


@pytest.mark.parametrize("pool", POOLS)
def test_long_prefetched_and_eta_tasks_run_once(fleet, sent, pool):
    for task in sent[pool]:
        fleet.wait(task, "SUCCESS", timeout=2 * (LONG + ETA))

    assert [counts(fleet, task) for task in sent[pool]] == [(1, 1)] * 3
    assert given_back(fleet, pool) == 0


@pytest.mark.parametrize("pool", CONTROLS)
def test_without_this_package_such_a_task_runs_more_than_once(fleet, sent, pool):
    task = sent[f"without-{pool}"].runs

    eventually(lambda: len(fleet.notes("begin", task.id)) > 1, timeout=3 * LONG)

    fleet.controls[pool].stop(signal.SIGKILL)


def test_warm_stop_holds_its_messages_until_the_pool_has_finished(fleet, sent):
    fleet.wait(sent["prefork"].eta, "SUCCESS", timeout=2 * (LONG + ETA))
    last = Sent.to(fleet, queue_of(fleet, "prefork"), STOP, 10 * STOP)
    fleet.wait(last.eta, "RECEIVED")
    worker = fleet.of["prefork"]

    worker.signal(signal.SIGTERM)
    eventually(lambda: fleet.record(worker).status == "draining")
    before = counts(fleet, last.runs)
    eventually(lambda: fleet.notes("end", last.runs.id) or given_back(fleet, "prefork"), timeout=2 * STOP)
    back = given_back(fleet, "prefork") if not fleet.notes("end", last.runs.id) else 0
    code = worker.stop(signal.SIGTERM)

    assert (before, back, code) == ((1, 0), 0, 0)
    assert [counts(fleet, task)[0] for task in last] in ([1, 0, 0], [1, 1, 0])
    assert fleet.status(last.runs.id) == "SUCCESS"


def test_messages_of_a_killed_worker_come_back_and_end_once(fleet, sent):
    for pool in ("threads", "solo"):
        fleet.wait(sent[pool].eta, "SUCCESS", timeout=2 * (LONG + ETA))
    left = Sent.to(fleet, queue_of(fleet, "threads"), TIMEOUT, 2 * TIMEOUT)
    fleet.wait(left.eta, "RECEIVED")

    fleet.of["threads"].stop(signal.SIGKILL)
    fleet.app.control.add_consumer(queue_of(fleet, "threads"), destination=[fleet.of["solo"].name])

    for task in left:
        eventually(lambda task=task: fleet.notes("end", task.id), timeout=5 * TIMEOUT + 10)
    assert [counts(fleet, task) for task in left] == [(2, 1), (1, 1), (1, 1)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory, kept_broker, store):
    """A fleet with a worker that looks at its queues often, and waits in a soft shutdown."""
    conf = {"memsync_heartbeat_interval": 0.1, "worker_soft_shutdown_timeout": 600.0}
    with swept_fleet(tmp_path_factory.mktemp("watched"), kept_broker, store, **conf) as fleet:
        fleet.start_worker("-c", "2")
        yield fleet


def test_worker_that_takes_only_messages_without_a_task_consumes(watched):
    (worker,) = watched.workers
    watched.app.send_task("unknown", queue="unknown")
    with watched.broker.client() as client:
        client.lpush(watched.name, *[client.rpop("unknown")] * 5000)
    watched.wait_record(worker, lambda one: one.depths.get(watched.name))
    end, consuming = time.monotonic() + 2.0, set()

    while time.monotonic() < end:
        consuming.add(watched.record(worker).consuming)

    with watched.broker.client() as client:
        assert client.llen(watched.name)
        client.delete(watched.name)
    assert consuming == {True}


def test_worker_drains_while_it_waits_in_a_soft_shutdown(watched):
    (worker,) = watched.workers
    task = watched.send("sleep", 600)
    eventually(lambda: watched.notes("begin", task.id))

    worker.signal(signal.SIGQUIT)

    watched.wait_record(worker, lambda one: one.status == "draining" and one.held_messages["count"] == 1)
    assert counts(watched, task) == (1, 0)
    worker.stop(signal.SIGKILL)


@pytest.mark.acceptance
def test_cold_stop_leaves_its_messages_to_other_workers(tmp_path, kept_broker, store):
    with swept_fleet(tmp_path, kept_broker, store) as fleet:
        first, second = fleet.start_all(*(fleet.worker("-c", "1") for _ in range(2)))
        task = fleet.send("sleep", TIMEOUT)
        (begun,) = eventually(lambda: fleet.notes("begin", task.id))
        holder = first if begun["pid"] in first.children() else second

        holder.stop(signal.SIGQUIT)

        eventually(lambda: fleet.notes("end", task.id), timeout=5 * TIMEOUT + 10)
        assert counts(fleet, task) == (2, 1)


@pytest.mark.acceptance
def test_worker_that_takes_no_messages_any_more_loses_those_that_it_holds(tmp_path, kept_broker, store):
    with swept_fleet(tmp_path, kept_broker, store) as fleet:
        worker = fleet.start_worker("-c", "2")
        held = fleet.send("sleep", 100 * TIMEOUT)
        fleet.wait(held, "STARTED")

        fleet.app.control.broadcast("go_deaf", destination=[worker.name], reply=True)
        fleet.send("sleep", 0.1)

        with kept_broker.client() as client:
            eventually(lambda: client.llen(fleet.name) == 2, timeout=4 * TIMEOUT + 30)
        assert "Stopped renewing the messages of this worker" in worker.output()
        assert fleet.wait_record(worker, lambda one: not one.held_messages).consuming is False


@pytest.mark.acceptance
def test_broker_that_was_away_delivers_no_running_task_again(tmp_path, store):
    broker = RedisServer(tmp_path / "broker", keep=True).start()
    # Without remote control: Celery 5.7 ends a worker whose connection for that breaks first.
    with swept_fleet(tmp_path, broker, store, worker_enable_remote_control=False) as fleet:
        workers = fleet.start_all(*(fleet.worker("-P", pool, "-c", "1") for pool in ("prefork", "threads")))
        tasks = [fleet.send("sleep", LONG) for _ in workers]
        eventually(lambda: all(fleet.notes("begin", task.id) for task in tasks))

        broker.stop()
        time.sleep(TIMEOUT / 3)
        broker.start()

        for task in tasks:
            fleet.wait(task, "SUCCESS", timeout=2 * LONG)
        time.sleep(2 * TIMEOUT)
        assert [counts(fleet, task) for task in tasks] == [(1, 1)] * 2
        assert fleet.unacked() == 0
    broker.stop()
