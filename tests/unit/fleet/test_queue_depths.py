"""How many messages wait in the queues of a worker, and whether it lets them wait."""
from __future__ import annotations

import time

import pytest
from celery import Celery
from kombu import Connection

from celery_memsync.fleet.broker_connection import TIMEOUT
from celery_memsync.fleet.queue_depths import Idleness, QueueDepths
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually


@pytest.fixture
def make_app():
    made = []

    def make(url, **conf):
        app = Celery("proj", broker=url, set_as_current=False)
        app.conf.update(conf)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def depths_of(redis_url, make_app):
    def make(*queues, url=redis_url, interval=60.0):
        return QueueDepths(make_app(url), lambda: queues, interval, lambda: None)

    return make


def test_the_messages_that_wait_in_each_queue_are_counted(depths_of, make_app, redis_url):
    depths = depths_of("q1", "q2", "q3")
    with make_app(redis_url) as app:
        for number in range(5):
            app.send_task("proj.add", queue="q1" if number else "q2", priority=number * 2)

    depths.read()

    assert depths.known[1] == {"q1": 4, "q2": 1, "q3": 0}


def test_messages_under_a_prefix_of_the_broker_are_counted(make_app, redis_url):
    with make_app(redis_url, broker_transport_options={"global_keyprefix": "shop:"}) as app:
        for _ in range(3):
            app.send_task("proj.add", queue="q1")
        depths = QueueDepths(app, lambda: ["q1", "q2"], 60.0, lambda: None)

        depths.read()

    assert depths.known[1] == {"q1": 3, "q2": 0}


def test_queues_are_read_where_the_worker_is_connected(make_app, redis_url, own_server):
    urls = f"{redis_url};{own_server.url}"
    with make_app(urls) as app, make_app(own_server.url) as other, Connection(urls) as used:
        used.switch(own_server.url)
        other.send_task("proj.add", queue="q1")
        depths = QueueDepths(app, lambda: ["q1"], 60.0, lambda: used)

        depths.read()

    assert depths.known[1] == {"q1": 1}


def test_nothing_is_known_before_the_first_look_and_after_a_long_time(depths_of):
    depths = depths_of("q1", interval=0.05)
    before = depths.known
    depths.read()
    after = depths.known[1]

    time.sleep(0.2)

    assert (before[1], after, depths.known[1]) == ({}, {"q1": 0}, {})


def test_it_looks_when_it_is_time_and_in_a_thread_of_its_own(depths_of):
    depths = depths_of("q1", interval=60.0)

    for _ in range(3):
        depths.request()

    first = eventually(lambda: depths.known[1] and depths.known[0])
    depths.request()
    assert depths.known[0] == first
    depths.stop()


@pytest.mark.slow
def test_a_broker_that_is_away_or_hangs_costs_no_more_than_a_timeout(depths_of, tmp_path):
    server = RedisServer(tmp_path / "broker").start()
    depths = depths_of("q1", url=server.url, interval=0.01)
    depths.read()
    answered_at = depths.known[0]

    server.pause()
    began = time.monotonic()
    depths.read()
    took = time.monotonic() - began
    server.resume()
    server.stop()
    depths.read()
    server.start()

    assert took < 4 * TIMEOUT
    assert depths.known[0] == answered_at
    depths.read()
    assert depths.known[0] > answered_at
    server.stop()


@pytest.mark.parametrize("url", ["memory://", "filesystem://"])
def test_broker_of_another_kind_is_not_queried(make_app, url):
    depths = QueueDepths(make_app(url), lambda: ["q1"], 60.0, lambda: None)

    depths.read()

    assert depths.known[1] == {}


@pytest.mark.parametrize("heartbeats, idle", [
    ([(1, 5, 0, True), (2, 5, 0, True), (3, 5, 0, True)], True),
    ([(1, 5, 0, True), (1, 5, 0, True), (2, 5, 0, True)], False),
    ([(1, 0, 0, True), (2, 0, 0, True), (3, 0, 0, True)], False),
    ([(1, 5, 0, True), (2, 0, 0, True), (3, 5, 0, True)], False),
    ([(1, 5, 0, True), (2, 5, 1, True), (3, 5, 2, True), (4, 5, 3, True)], False),
    ([(1, 5, 0, False), (2, 5, 0, False), (3, 5, 0, False)], False),
    ([(1, 5, 0, True), (2, 5, 0, True), (3, 5, 0, True), (3, 5, 1, True)], False),
    ([(1, 5, 0, True), (2, 5, 0, True), (2, 5, 1, True), (3, 5, 1, True)], False),
    ([(1, 5, 0, True), (2, 5, 0, True), (2, 5, 1, True), (3, 5, 1, True), (4, 5, 1, True)], True),
])
def test_worker_with_room_is_idle_after_two_looks_without_new_messages(heartbeats, idle):
    idleness = Idleness()

    judged = [idleness.judge(*heartbeat) for heartbeat in heartbeats]

    assert judged[-1] is idle
