"""Changes of queue and metrics in any order, and while Redis refuses them: each is done once, and what is refused waits."""
from __future__ import annotations

import contextlib
import time

import pytest

from celery_memsync import StoreError
from celery_memsync.store import MEMORY, MetricsUpdate, QueueReplacement
from tests.support.redis_contents import remembered

REFUSALS = {
    "NOREPLICAS": ("min-replicas-to-write", 1, 0),
    "OOM": ("maxmemory", 1, 0),
    "READONLY": ("replicaof", "127.0.0.1 1", "no one"),
}


def add(serial, **amounts):
    return MetricsUpdate(serial, 60.0, {name: (None, amount) for name, amount in amounts.items()})


@contextlib.contextmanager
def refusing(server, how):
    """Let Redis refuse writes."""
    setting, begin, end = REFUSALS[how]

    def set_to(value):
        with server.client() as client:
            if setting == "replicaof":
                client.execute_command("REPLICAOF", *value.split())
            else:
                client.config_set(setting, value)

    set_to(begin)
    try:
        yield
    finally:
        set_to(end)


@pytest.fixture
def store(memsync, redis):
    memsync.get_queue()
    return memsync.runtime.store


@pytest.fixture
def own(make_memsync, own_server):
    """A manager on a Redis of its own; its writer's thread is as good as asleep."""
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    memsync.get_queue()
    return memsync


# -- numbers

def test_numbers_may_be_used_in_any_order(store, redis):
    serials = [5, 3, 128, 1, 100, 3, 5, 1]

    results = [store.change_coordination([add(serial, n=1)])[0] for serial in serials]

    assert [result.status for result in results] == ["ok"] * 5 + ["again"] * 3
    assert (store.read_metrics(), remembered(redis, store, "metrics")) == ({"n": b"5"}, {1, 3, 5, 100, 128})


def test_serial_that_redis_may_have_forgotten_is_not_used_again(store):
    for serial in (5, 5 + 128):
        store.change_coordination([add(serial, n=1)])

    (result,) = store.change_coordination([add(5, n=1)])

    assert (result.status, result.error.maybe_done) == ("forgotten", True)
    assert store.read_metrics() == {"n": b"2"}


def test_change_older_than_the_serials_kept_by_redis_is_not_sent(store, redis):
    changes = [add(1, n=1)._replace(since=time.monotonic() - MEMORY - 1), add(2, n=1)]

    results = store.change_coordination(changes)

    assert [result.status for result in results] == ["forgotten", "ok"]
    assert (store.read_metrics(), remembered(redis, store, "metrics")) == ({"n": b"1"}, {2})


def test_what_is_remembered_of_a_process_is_bounded_and_goes(store, redis):
    for serial in range(1, 400):
        store.change_coordination([add(serial, n=1)])
    key = store.keys.done(store.token, "metrics")

    assert redis.hlen(key) == 128
    assert 3_500_000 < redis.pttl(key) <= 3_600_000
    assert redis.memory_usage(key) < 4000


def test_a_second_try_names_the_counter_that_could_not_be_changed(store):
    store.change_coordination([MetricsUpdate(1, 60.0, {"text": (b'"text"', 0)})])

    results = [store.change_coordination([add(2, text=1, n=1)])[0] for _ in range(2)]

    assert [(result.status, result.answer) for result in results] == [
        ("ok", ["text"]), ("again", ["text"])]
    assert store.read_metrics() == {"text": b'"text"', "n": b"1"}


# -- refusals

@pytest.mark.parametrize("how", REFUSALS)
def test_what_redis_refuses_is_an_error_of_that_change_and_nothing_is_done(own, own_server, how):
    changes = [
        add(1, n=1, x=0.5), MetricsUpdate(2, 60.0, {"text": (b"5", 2)}),
        QueueReplacement(3, 60.0, {"pending": ["a"]}),
    ]

    with refusing(own_server, how):
        refused = own.runtime.store.change_coordination(changes)
        nothing = own.runtime.store.read_metrics(), own.runtime.store.read_queue(10)
        with own_server.client() as client:
            serials = remembered(client, own.runtime.store, "metrics") | remembered(client, own.runtime.store, "queue")
    done = own.runtime.store.change_coordination(changes)

    assert [(result.status, result.code) for result in refused] == [("error", how)] * 3
    assert all(isinstance(result.error, StoreError) for result in refused)
    assert (nothing, serials) == (({}, {"pending": [], "processing": []}), set())
    assert [result.status for result in done] == ["ok"] * 3
    assert own.runtime.store.read_metrics() == {"n": b"1", "x": b"0.5", "text": b"7"}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_was_refused_is_done_once_although_others_went_first(own, own_server, how):
    own.increment_metrics(n=1)
    own.force_sync()

    with refusing(own_server, how):
        for _ in range(5):
            own.increment_metrics(n=10)
            own.sync_metrics({"text": "before"})
            with pytest.raises(StoreError):
                own.force_sync()
    own.sync_queue({"pending": ["a"]})
    own.enqueue("b")
    own.force_sync()

    assert own.get_coordination_metrics() == {"n": 51, "text": "before"}
    assert own.get_queue()["pending"] == ["a", "b"]
    assert [own.runtime.writer.pending, own.get_metrics()["dropped"]] == [0, 0]


def test_what_was_refused_is_not_overtaken(own, own_server, monkeypatch):
    change = own.runtime.store.change_coordination

    def refuse_first(changes):
        with refusing(own_server, "NOREPLICAS"):
            return change(changes)

    own.sync_metrics({"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(own.runtime.store, "change_coordination", refuse_first)
        with pytest.raises(StoreError):
            own.force_sync()
    own.sync_metrics({"n": 2})
    own.increment_metrics(n=5)

    own.force_sync()

    assert own.runtime.store.read_metrics() == {"n": b"7"}


@pytest.mark.slow
def test_a_refusal_of_hours_keeps_one_change_waiting(own, own_server):
    with refusing(own_server, "NOREPLICAS"):
        for _ in range(300):
            own.increment_metrics(n=1)
            with pytest.raises(StoreError):
                own.force_sync()
        pending = own.runtime.writer.unsent(own.runtime.keys.coordination_location("metrics"))
    refused_since = [change.since for change in pending if change.serial is not None]

    own.force_sync()

    assert len(pending) == 2
    assert len(refused_since) == 1 and time.monotonic() - refused_since[0] < 10
    assert own.get_coordination_metrics() == {"n": 300}


def test_what_can_not_be_known_any_more_is_dropped_and_counted(own, caplog):
    own.increment_metrics(n=1)
    (change,) = own.runtime.writer.unsent(own.runtime.keys.coordination_location("metrics"))
    change.serial, change.since = 1, time.monotonic() - MEMORY - 1

    own.force_sync()

    assert [own.get_coordination_metrics(), own.get_metrics()["dropped"]] == [{}, 1]
    assert "may or may not have been done" in caplog.text
    assert "were pending" not in caplog.text
