"""Redis goes back in time: it comes back with an older snapshot, or empty."""
from __future__ import annotations

import time

import pytest

from celery_memsync.store import FIRST_HEARTBEAT
from tests.support.redis_server import RedisServer
from tests.support.simulated_worker import TIMEOUT, SimulatedWorker


@pytest.fixture
def lasting(tmp_path):
    """A redis-server whose data survive a restart."""
    server = RedisServer(tmp_path / "lasting", keep=True).start()
    yield server
    server.stop()


@pytest.fixture
def worker_of(make_memsync, lasting):
    """Makes simulated workers."""
    def make(worker_id):
        return SimulatedWorker(make_memsync(worker_id, url=lasting.url, batch_interval=60.0), worker_id)

    return make


def restart(server):
    """Kill a server and start it with what it has saved."""
    server.kill()
    server.start()


def send_heartbeats_for(seconds, *workers):
    """Send heartbeats of all workers for so long that each may judge others."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for worker in workers:
            worker.send_heartbeat()
        time.sleep(0.02)


def test_no_worker_is_lost_by_an_older_snapshot(lasting, worker_of):
    one, other = worker_of("one"), worker_of("other")
    send_heartbeats_for(TIMEOUT, one, other)
    lasting.client().save()
    send_heartbeats_for(2 * TIMEOUT, one, other)

    restart(lasting)
    one.send_heartbeat()
    lost_at_once = one.events_of("worker-lost")
    send_heartbeats_for(TIMEOUT, one, other)

    assert one.heartbeats[-1].since > one.heartbeats[0].since
    assert lost_at_once == one.events_of("worker-lost") == other.events_of("worker-lost") == []


def test_a_worker_that_does_not_come_back_is_lost_after_the_timeout(lasting, worker_of):
    one, other = worker_of("one"), worker_of("other")
    send_heartbeats_for(TIMEOUT, one, other)
    lasting.client().save()
    restart(lasting)
    send_heartbeats_for(2.5 * TIMEOUT, one)

    assert one.events_of("worker-lost") == [{"worker_id": "other"}]


@pytest.mark.parametrize("harm, went_back", [
    (lambda server: None, False), (lambda server: server.client().flushall(), True), (restart, True),
])
def test_a_heartbeat_notices_what_redis_has_lost(lasting, worker_of, harm, went_back):
    worker = worker_of("one")
    worker.send_heartbeat()
    lasting.client().save()

    harm(lasting)
    worker.send_heartbeat()
    worker.send_heartbeat()

    assert [reply.went_back for reply in worker.heartbeats] == [False, went_back, False]


def test_a_heartbeat_whose_answer_was_lost_is_no_loss_of_data(worker_of):
    store = worker_of("one").store
    first = store.write_heartbeat("one", b"{}", 60.0, last=FIRST_HEARTBEAT)
    store.write_heartbeat("one", b"{}", 60.0, last=first)

    assert not store.write_heartbeat("one", b"{}", 60.0, last=first).went_back


def test_a_user_without_the_right_to_info_notices_an_emptied_redis(limited, redis, make_memsync):
    store = make_memsync(url=limited.url).runtime.store
    limited.refuse("info")
    first = store.write_heartbeat("one", b"{}", 60.0)
    second = store.write_heartbeat("one", b"{}", 60.0, last=first)
    redis.flushall()
    third = store.write_heartbeat("one", b"{}", 60.0, last=second)

    assert (first.run_id, second.went_back, third.went_back) == ("", False, True)
