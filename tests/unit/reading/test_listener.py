"""The link to Redis: what it costs, what it may not do, how it breaks and comes back."""
from __future__ import annotations

import logging
import threading
import time

import pytest

from celery_memsync import StoreError
from celery_memsync.reading import listener
from tests.support.stress import stressed
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("fast_polling")

#: Seconds that a copy may stay valid after its connection broke, with room for a slow machine.
BOUND = 3.0


@pytest.fixture
def redis_url(own_server):
    """A Redis to which nothing else is connected."""
    return own_server.url


def write_now(memsync, **values):
    for key, value in values.items():
        memsync.write(key, value)
    eventually(lambda: memsync.force_sync(timeout=5) is None)


def listeners(redis):
    return [client["id"] for client in redis.client_list(_type="pubsub")]


def sources(redis):
    """Return the ids of tracked connections, each with the id of the one that gets its messages."""
    return [(int(client["redir"]), client["id"]) for client in redis.client_list()
            if int(client["redir"]) > 0 and client["redir"] != client["id"]]


def is_hit(memsync, key):
    before = memsync.get_metrics()["cache_hits"]
    memsync.read(key)
    return memsync.get_metrics()["cache_hits"] > before


def works(memsync, other, key="probe"):
    """Check that copies are kept, and that others' changes reach them in a moment."""
    write_now(other, **{key: "first"})
    eventually(lambda: memsync.read(key) == "first", timeout=2)
    eventually(lambda: is_hit(memsync, key), timeout=10)
    write_now(other, **{key: "second"})
    eventually(lambda: memsync.read(key) == "second", timeout=2)
    return True


def in_threads(number, act):
    threads = [threading.Thread(target=act, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- what it costs

def test_a_process_that_never_reads_has_no_listener(memsync, redis):
    write_now(memsync, a=1)
    memsync.sync_task_progress("t1", 1)
    memsync.get_metrics()
    memsync.clear_cache()

    assert listeners(redis) == []
    assert sources(redis) == []


@pytest.mark.parametrize("threads", [1, listener.MAX_SOURCES, 3 * listener.MAX_SOURCES])
def test_a_process_has_one_listener_and_few_readers_however_many_threads_it_has(memsync, redis, threads):
    answers = []

    in_threads(threads, lambda number: answers.extend(memsync.read(f"key-{number}-{i}") for i in range(100)))

    assert answers == [None] * threads * 100
    (own,) = listeners(redis)
    assert {redirect for redirect, _ in sources(redis)} == {int(own)}
    assert len(sources(redis)) <= min(threads, listener.MAX_SOURCES)


def test_redis_remembers_what_was_read_and_not_what_the_fleet_writes(memsync, other, redis):
    memsync.read("a")
    before = memsync.get_metrics()["cache"]

    write_now(other, **{f"key-{number}": number for number in range(2000)})

    assert redis.info("stats")["tracking_total_keys"] == 1
    assert redis.info("stats")["tracking_total_prefixes"] == 0
    assert memsync.get_metrics()["cache"] == before


@pytest.mark.slow
def test_a_process_that_reads_no_more_sends_nothing_after_a_while(memsync, other, redis, monkeypatch):
    monkeypatch.setattr(listener, "REST_AFTER", 0.2)
    write_now(other, a=1, b=1)
    memsync.read_many(["a", "b"])
    time.sleep(2 * listener.CHECK_INTERVAL + 0.5)
    redis.config_resetstat()

    time.sleep(listener.TRUST)
    sent = redis.info("commandstats").keys() - {"cmdstat_config", "cmdstat_config|resetstat", "cmdstat_info"}
    write_now(other, a=2)

    assert sent == set()
    assert eventually(lambda: memsync.read_many(["a", "b"]) == {"a": 2, "b": 1}, timeout=2)
    assert works(memsync, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_connection_lost_while_idle_is_noticed_before_a_copy_is_used(
    memsync, other, redis, monkeypatch, kind,
):
    monkeypatch.setattr(listener, "REST_AFTER", 0.2)
    write_now(other, a=1, b=1)
    memsync.read_many(["a", "b"])
    time.sleep(listener.REST_AFTER + listener.TRUST + 2 * listener.CHECK_INTERVAL)
    # The last look may be late on a machine under load, and its answer is believed for a while.
    eventually(lambda: memsync.runtime.cache.peek("a") is memsync.runtime.cache.peek("b") is None)

    redis.client_kill_filter(_type=kind, skipme=True)
    write_now(other, a=2, b=2)

    assert [memsync.read("a"), memsync.read("b"), memsync.read("a")] == [2, 2, 2]
    assert works(memsync, other)


def link_threads():
    return {thread for thread in threading.enumerate() if thread.name == "memsync-link"}


def test_shutdown_closes_every_connection_and_ends_the_thread(memsync, other, redis):
    others = link_threads()
    write_now(other, a=1)
    memsync.read("a")
    before = link_threads() - others

    memsync.shutdown()

    eventually(lambda: listeners(redis) == [] == sources(redis))
    assert len(before) == 1
    eventually(lambda: not any(thread.is_alive() for thread in before))
    assert memsync.read("a") == 1
    assert works(memsync, other)


# -- how it breaks

@pytest.mark.parametrize("kinds", [["pubsub"], ["normal"], ["pubsub", "normal"], ["normal", "pubsub"]])
def test_killed_connections_leave_old_copies_for_a_bounded_time(
    memsync, other, redis, kinds,
):
    write_now(other, **{f"key-{number}": 1 for number in range(10)})
    in_threads(8, lambda number: [memsync.read(f"key-{i}") for i in range(10)])

    for kind in kinds:
        redis.client_kill_filter(_type=kind, skipme=True)
    write_now(other, **{f"key-{number}": 2 for number in range(10)})
    keys = [f"key-{number}" for number in range(10)]
    eventually(lambda: set(memsync.read_many(keys).values()) == {2}, timeout=BOUND)

    assert {value for _ in range(20) for value in memsync.read_many(keys).values()} == {2}
    assert works(memsync, other)


def test_lost_listener_makes_all_copies_invalid(memsync, other, redis):
    write_now(other, **{f"key-{number}": 1 for number in range(100)})
    keys = [f"key-{number}" for number in range(100)]
    memsync.read_many(keys)

    redis.client_kill_filter(_type="pubsub", skipme=True)
    eventually(lambda: memsync.get_metrics()["cache"]["size"] == 0, timeout=1)
    write_now(other, **{key: 2 for key in keys})

    assert set(memsync.read_many(keys).values()) == {2}
    assert works(memsync, other)


@pytest.mark.slow
def test_copies_expire_when_the_listener_thread_is_blocked(memsync, other, redis):
    write_now(other, a=1, b=1)
    memsync.read_many(["a", "b"])
    listening, going_on = memsync.runtime.link, threading.Event()

    listening.on_look = going_on.wait
    time.sleep(listener.CHECK_INTERVAL)
    redis.client_kill_filter(_type="normal", skipme=True)
    write_now(other, a=2, b=2)
    time.sleep(listener.TRUST)
    answers = memsync.read("a"), memsync.read_many(["a", "b"])
    going_on.set()

    assert answers == (2, {"a": 2, "b": 2})
    assert works(memsync, other)


@pytest.mark.slow
def test_connections_may_be_killed_again_and_again(make_memsync, other, redis):
    memsync, wrong = make_memsync(), []
    end = time.monotonic() + stressed(10.0)

    def disturb():
        while time.monotonic() < end:
            for kind in ("pubsub", "normal"):
                redis.client_kill_filter(_type=kind, skipme=True)
                time.sleep(0.1)

    killer = threading.Thread(target=disturb)
    killer.start()
    while time.monotonic() < end:
        try:
            wrong += [value for value in (memsync.read("a"), memsync.read("b")) if value is not None]
        except StoreError:
            continue
    killer.join()

    assert wrong == []
    assert works(memsync, other)
    assert len(listeners(redis)) == 1


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
def test_when_redis_is_emptied_that_is_read_in_a_moment(memsync, other, redis, command):
    write_now(other, a=1)
    other.sync_task_state("t1", {"x": 1})
    other.force_sync()
    before = memsync.read("a"), memsync.get_task_state("t1")

    redis.execute_command(command)

    assert before == (1, {"x": 1})
    eventually(lambda: (memsync.read("a"), memsync.get_task_state("t1")) == (None, None), timeout=2)
    assert works(memsync, other)


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.0, 1.5])
def test_no_copy_is_read_after_redis_comes_back_empty(own_server, make_memsync, away):
    memsync, other = (make_memsync(url=own_server.url, batch_interval=60.0) for _ in range(2))
    write_now(other, a=1, b=1)
    memsync.read_many(["a", "b"])

    own_server.kill()
    time.sleep(0.1)
    with pytest.raises(StoreError):
        memsync.read("a")
    time.sleep(away)
    own_server.start()

    assert eventually(lambda: memsync.read_many(["a", "b"])) == {"a": None, "b": None}
    assert works(memsync, other)


@pytest.mark.slow
def test_copies_of_a_stopped_redis_are_valid_for_a_bounded_time(own_server, make_memsync):
    memsync, other = (make_memsync(url=own_server.url, batch_interval=60.0) for _ in range(2))
    write_now(other, a=1)
    memsync.read("a")
    before = memsync.read("a")

    own_server.pause()
    time.sleep(listener.TRUST + 0.2)
    hits = memsync.get_metrics()["cache_hits"]
    with pytest.raises(StoreError):
        memsync.read("a")
    after = memsync.get_metrics()["cache_hits"]
    own_server.resume()

    assert (before, after - hits) == (1, 0)
    assert eventually(lambda: works(memsync, other))


# -- users without the right to subscribe

@pytest.mark.slow
@pytest.mark.parametrize("rights", [
    ["-client"], ["-subscribe"], ["-client", "-subscribe", "-psubscribe"], ["resetchannels"],
    ["-client", "+client|id"], ["-client", "+client|tracking"],
], ids=" ".join)
def test_user_without_the_right_to_subscribe_reads_redis_each_time(
    own_server, make_memsync, caplog, rights,
):
    own_server.client().execute_command(
        "ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@all", *rights)
    memsync = make_memsync(url=own_server.url.replace("redis://", "redis://reader:secret@"), batch_interval=60.0)
    other = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.read("a")
    connections = own_server.client().info("stats")["total_connections_received"]

    answers, since = [], time.monotonic()
    for number in range(20):
        write_now(other, a=number)
        answers += [memsync.read("a"), memsync.read("a"), memsync.read_many(["a", "b"])["a"]]
    took = time.monotonic() - since

    assert answers == [number for number in range(20) for _ in range(3)]
    assert memsync.get_metrics()["cache_hits"] == 0
    assert own_server.client().info("stats")["total_connections_received"] - connections < 20
    assert took < 5
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 2


def test_the_private_redis_keeps_copies_true_too(tmp_path, make_memsync):
    memsync, other = (make_memsync(url=f"embedded://{tmp_path}/data", batch_interval=60.0) for _ in range(2))

    assert memsync.read("a") is None
    assert works(memsync, other)


def test_copies_of_one_database_are_not_those_of_another(make_memsync, redis_url):
    first, second = (make_memsync(url=redis_url.replace("/0", f"/{number}"), batch_interval=60.0) for number in (0, 5))
    write_now(first, a="in 0")
    write_now(second, a="in 5")

    answers = [(first.read("a"), second.read("a")) for _ in range(3)]

    assert answers == [("in 0", "in 5")] * 3
