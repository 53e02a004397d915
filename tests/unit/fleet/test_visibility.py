"""What a worker holds at a Redis broker is renewed, and nothing else."""
from __future__ import annotations

import logging
import time

import pytest
from kombu.transport.redis import Channel
from redis.sentinel import MasterNotFoundError

from celery_memsync import MemSyncError
from celery_memsync.fleet import visibility
from celery_memsync.fleet.broker_connection import TIMEOUT, bounded_copy, place_of
from celery_memsync.fleet.unacked import PRIVATE_NAMES, channel_class
from celery_memsync.fleet.visibility import interval_of
from tests.support.topologies import SentinelServer
from tests.support.waiting import eventually


def ready(renewal):
    """Return a renewal that the test calls by hand."""
    renewal.configure()
    return renewal


def is_fresh(score):
    return abs(score - time.time()) < 10


# -- what is renewed at all

def test_missing_name_is_reported_once_and_nothing_is_renewed(deliveries, monkeypatch, caplog):
    monkeypatch.setitem(PRIVATE_NAMES, "QoS", ("_delivered", "_renamed"))

    renewal = ready(deliveries.renewal())

    assert renewal.timeout is None
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no QoS._renamed" in warning.getMessage()


@pytest.mark.parametrize("url, options", [
    ("memory://", {}), ("redis://", {"ack_emulation": False}),
    *(("redis://", {"visibility_timeout": value})
      for value in (0, -1, None, "60", True, float("nan"), float("inf"), 10 ** 400))])
def test_broker_whose_messages_do_not_come_back_is_left_alone(make_deliveries, caplog, url, options):
    renewal = ready(make_deliveries(url, **options).renewal())

    assert renewal.timeout is None
    assert caplog.records == []


def test_other_brokers_have_no_channel_of_redis(make_deliveries):
    assert channel_class(make_deliveries("amqp://").app.connection_for_read()) is None


# -- renewing

def test_held_messages_become_young_again(deliveries, redis):
    held = deliveries.take(3)
    deliveries.age(redis)

    ready(deliveries.renewal()).renew()

    scores = deliveries.scores(redis)
    assert set(scores) == {message.delivery_tag for message in held}
    assert all(map(is_fresh, scores.values()))


def test_message_that_was_acknowledged_meanwhile_stays_away(deliveries, redis):
    message, other = deliveries.take(2)
    renewal = ready(deliveries.renewal())
    renewal.held = lambda: [message, other]
    message.ack()

    renewal.renew()

    assert list(deliveries.scores(redis)) == [other.delivery_tag]


def test_renewal_is_never_an_earlier_time(deliveries, redis):
    deliveries.take()
    deliveries.age(redis, -1000.0)
    before = deliveries.scores(redis)

    ready(deliveries.renewal()).renew()

    assert deliveries.scores(redis) == before


def test_keys_with_a_prefix_and_another_name_are_renewed(make_deliveries, redis):
    deliveries = make_deliveries(global_keyprefix="shop:", unacked_index_key="taken")
    deliveries.take()
    deliveries.age(redis, key="shop:taken")

    ready(deliveries.renewal()).renew()

    assert all(map(is_fresh, deliveries.scores(redis, "shop:taken").values()))
    assert not redis.exists("taken", "unacked_index")


def test_messages_of_several_channels_are_renewed(deliveries, redis):
    deliveries.take()
    deliveries.take(channel=deliveries.connection.channel())
    deliveries.age(redis)

    ready(deliveries.renewal()).renew()

    assert [is_fresh(score) for score in deliveries.scores(redis).values()] == [True, True]


def test_many_messages_are_renewed_in_pieces(deliveries, redis, monkeypatch):
    monkeypatch.setattr(visibility, "MESSAGES_PER_COMMAND", 10)
    deliveries.take(25)
    deliveries.age(redis)
    renewal = ready(deliveries.renewal())
    redis.config_resetstat()

    renewal.renew()

    assert redis.info("commandstats")["cmdstat_zadd"]["calls"] == 3
    assert all(map(is_fresh, deliveries.scores(redis).values()))
    assert renewal.last.messages == 25


def test_worker_without_messages_sends_nothing(deliveries, redis):
    renewal = ready(deliveries.renewal())
    redis.config_resetstat()

    renewal.renew()

    assert "cmdstat_zadd" not in redis.info("commandstats")
    assert renewal.last.messages == 0


@pytest.mark.parametrize("timeout, interval", [(3600, 60.0), (60, 20.0), (10, 10 / 3), (0.01, 0.1)])
def test_interval_is_a_third_of_the_timeout_and_a_minute_at_most(timeout, interval):
    assert interval_of(timeout) == pytest.approx(interval)


def test_thread_renews_by_itself_until_it_is_stopped(make_deliveries, redis):
    deliveries = make_deliveries(visibility_timeout=0.3)
    deliveries.take()
    renewal = deliveries.renewal()
    renewal.start()
    first = eventually(lambda: renewal.last and renewal.last.at)
    eventually(lambda: renewal.last.at > first)

    renewal.stop()

    eventually(lambda: not renewal._loop.running)
    assert renewal.last is None


# -- connections

def test_own_connection_is_as_that_of_the_channel_but_bounded(make_deliveries):
    options = {"visibility_timeout": 5, "global_keyprefix": "a:", "client_name": "b", "socket_timeout": 100}
    used = make_deliveries("rediss://user:secret@broker:1/2", **options).connection
    used.ssl = {"ssl_ca_certs": "ca.pem"}

    copy = bounded_copy(used)

    same = ("hostname", "port", "userid", "password", "virtual_host", "ssl", "transport_cls", "alt")
    assert [getattr(copy, name) for name in same] == [getattr(used, name) for name in same]
    assert copy.transport_options == {**options, "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    assert copy is not used and copy.connect_timeout == TIMEOUT


@pytest.mark.parametrize("url, place", [
    ("redis://user:secret@broker:1/2", "broker:1/2"), ("redis://:secret@broker", "broker:6379/0"),
    ("redis+socket://:secret@/run/redis.sock?virtual_host=2", "/run/redis.sock"),
    ("sentinel://:secret@one:26380/0;sentinel://:secret@two:26380/0", "one:26380/0")])
def test_place_of_a_broker_has_no_password(make_deliveries, url, place):
    assert place_of(make_deliveries(url).connection) == place


def test_messages_are_renewed_at_the_master_that_sentinels_name(make_deliveries, own_server, tmp_path):
    sentinel = SentinelServer(tmp_path / "sentinel", own_server.port, quorum=1).start()
    try:
        deliveries = make_deliveries(f"sentinel://127.0.0.1:{sentinel.port}/0", master_name="mymaster")
        deliveries.take()
        with own_server.client() as client:
            deliveries.age(client)

            ready(deliveries.renewal()).renew()

            assert all(map(is_fresh, deliveries.scores(client).values()))
        deliveries.close()
    finally:
        sentinel.stop()


def test_other_urls_of_the_broker_are_not_tried(make_deliveries, own_server, redis_url):
    deliveries = make_deliveries(f"{own_server.url};{redis_url}")
    deliveries.take()
    renewal = ready(deliveries.renewal())
    own_server.stop()

    for _ in range(2):
        with pytest.raises(MemSyncError, match=f"127.0.0.1:{own_server.port}"):
            renewal.renew()


def test_messages_of_a_closed_channel_are_renewed_where_they_came_from(make_deliveries, own_server, redis_url):
    deliveries = make_deliveries(f"{redis_url};{own_server.url}")
    deliveries.connection.switch(own_server.url)
    (message,) = deliveries.take()
    renewal = ready(deliveries.renewal())
    renewal.held = lambda: [message]
    renewal.renew()
    own_server.stop()
    with pytest.raises(MemSyncError):
        renewal.renew()

    message.channel.closed = True
    own_server.start()
    renewal.renew()

    message.channel.closed = False
    assert renewal._own.connection.port == own_server.port


def test_failure_names_the_broker_without_its_password(make_deliveries, own_server):
    with own_server.client() as client:
        client.config_set("requirepass", "geheim")
    deliveries = make_deliveries(own_server.url.replace("redis://", "redis://:geheim@"))
    deliveries.take(2)
    renewal = ready(deliveries.renewal())
    renewal.renew()
    own_server.stop()

    with pytest.raises(MemSyncError) as caught:
        renewal.renew()

    assert f"(2) at the broker (127.0.0.1:{own_server.port}/0)" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_text_of_an_error_of_user_code_is_not_shown(make_deliveries, monkeypatch):
    deliveries = make_deliveries()
    deliveries.take()
    renewal = ready(deliveries.renewal())
    monkeypatch.setattr(Channel, "conn_or_acquire", lambda *_: {}["geheim"])

    with pytest.raises(MemSyncError, match="KeyError") as caught:
        renewal.renew()

    assert "geheim" not in str(caught.value)


def test_options_of_sentinels_are_not_shown(make_deliveries, monkeypatch):
    def fail(*_):
        raise MasterNotFoundError("No master found for 'm' : <redis.client.Redis(<ConnectionPool(password=geheim)>)>")

    deliveries = make_deliveries()
    deliveries.take()
    renewal = ready(deliveries.renewal())
    monkeypatch.setattr(Channel, "conn_or_acquire", fail)

    with pytest.raises(MemSyncError, match="No master found for 'm'. What is not") as caught:
        renewal.renew()

    assert "geheim" not in str(caught.value)


@pytest.mark.slow
def test_outage_of_the_broker_is_one_warning_and_its_end_one_line(make_deliveries, own_server, caplog):
    caplog.set_level(logging.INFO)
    deliveries = make_deliveries(own_server.url, visibility_timeout=0.3)
    deliveries.take()
    renewal = deliveries.renewal()
    renewal.start()
    eventually(lambda: renewal.last)

    own_server.stop()
    eventually(lambda: renewal._loop._failures > 2)
    own_server.start()

    eventually(lambda: not renewal._loop._failures)
    lines = [record.getMessage() for record in caplog.records if "visibility" in record.getMessage()]
    assert [line.partition(": ")[2][:11] for line in lines] == ["Could not r", "works again"]


# -- a worker that takes no messages

def test_worker_that_is_stuck_for_a_timeout_gives_up_its_messages(make_deliveries, redis, caplog):
    caplog.set_level(logging.INFO)
    deliveries, stuck = make_deliveries(visibility_timeout=60), [True]
    deliveries.take()
    renewal = ready(deliveries.renewal(lambda: stuck[0]))
    renewal.renew()
    soon = renewal.last

    renewal._taking_at -= 61.0
    deliveries.age(redis)
    renewal.renew()
    late, scores = renewal.last, deliveries.scores(redis)
    stuck.clear()
    stuck.append(False)
    renewal.renew()

    assert soon is not None and late is None and not any(map(is_fresh, scores.values()))
    assert all(map(is_fresh, deliveries.scores(redis).values()))
    said = [record.getMessage()[:18] for record in caplog.records if "renewing" in record.getMessage().lower()]
    assert said == ["Stopped renewing t", "Renewing the messa"]


def test_outage_does_not_count_as_being_stuck(make_deliveries, own_server):
    deliveries = make_deliveries(own_server.url, visibility_timeout=60)
    deliveries.take()
    renewal = ready(deliveries.renewal(lambda: True))
    renewal._taking_at -= 50.0
    own_server.stop()

    with pytest.raises(MemSyncError):
        renewal.renew()

    assert time.monotonic() - renewal._taking_at < 10


def test_worker_without_messages_has_nothing_to_give_up(make_deliveries, caplog):
    renewal = ready(make_deliveries(visibility_timeout=60).renewal(lambda: True))
    renewal._taking_at -= 100.0

    renewal.renew()

    assert (renewal.last.messages, caplog.records) == (0, [])
