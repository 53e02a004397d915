"""Events of writes: their details, when and how often they come; handlers do no harm."""
from __future__ import annotations

import functools
import threading
import time

import pytest

from celery_memsync import Resolution, StoreError
from celery_memsync.conflicts import Resolvers
from celery_memsync.events import EVENTS
from celery_memsync.models.task import TaskRun
from tests.support.publishing import publish
from tests.support.runs import run_key
from tests.support.waiting import eventually

#: What is written holds this, so that it can be looked for in Redis.
MARK = "mark-8c1f"

WRITES = {
    "state": (
        lambda memsync: memsync.sync_task_state("t1", {"x": MARK}),
        "task-state-synced", {"task_id": "t1", "state": {"x": MARK}}),
    "stage": (
        lambda memsync: memsync.sync_task_run("t1", TaskRun(status="STARTED", name=MARK)),
        "task-state-synced", {"task_id": "t1", "state": {"status": "STARTED", "name": MARK, "retries": 0}}),
    "worker": (
        lambda memsync: memsync.sync_worker_status("w1", {"mood": MARK}),
        "worker-status-synced", {"worker_id": "w1", "status": {"mood": MARK}}),
    "agent": (
        lambda memsync: memsync.sync_agent_coordination("t1", "coder", [MARK]),
        "agent-coordinated", {"task_id": "t1", "agent_id": "coder", "data": [MARK]}),
    "agent by its path": (
        lambda memsync: memsync.write("tasks/t1/agents/coder", [MARK]),
        "agent-coordinated", {"task_id": "t1", "agent_id": "coder", "data": [MARK]}),
    "queue": (
        lambda memsync: memsync.sync_queue({"pending": [MARK], "processing": []}),
        "queue-synced", {"queue": {"pending": [MARK], "processing": []}}),
    "value": (
        lambda memsync: memsync.write("a", {"x": MARK}),
        "write", {"key": "task-sentinel/a", "value": {"x": MARK}}),
    "task's own key": (
        lambda memsync: memsync.write("tasks/t1/note", MARK),
        "write", {"key": "task-sentinel/tasks/t1/note", "value": MARK}),
    "compare-and-set": (
        lambda memsync: memsync.write("a", MARK, expected_version=0),
        "write", {"key": "task-sentinel/a", "value": MARK}),
    "delete": (
        lambda memsync: memsync.write("b", MARK) or memsync.force_sync() or memsync.delete("b"),
        "delete", {"key": "task-sentinel/b"}),
}
WAITING = [name for name in WRITES if name not in ("compare-and-set", "delete")]
SYNCED = sorted({event for _, event, _ in WRITES.values()})


def holds(redis, text):
    """Whether Redis holds a text, under whatever key and in whatever way."""
    found = []
    for key in redis.keys("*"):
        read = {
            b"string": redis.get, b"hash": redis.hgetall, b"stream": redis.xrange,
            b"zset": lambda key: redis.zrange(key, 0, -1)}[redis.type(key)]
        found.append(repr(read(key)))
    return text in "".join(found)


def listen(memsync, *events):
    """Return the list to which the emitted events are added."""
    emitted = []
    for event in events:
        memsync.on(event, lambda event=event, **details: emitted.append((event, details)))
    return emitted


def write_all(memsync):
    for name in WAITING:
        WRITES[name][0](memsync)


@pytest.fixture
def separate(own_server, make_memsync):
    """A Redis, and a manager in it whose user can be forbidden something."""
    with own_server.client() as redis:
        redis.execute_command("ACL", "SETUSER", "second", "on", "nopass", "~*", "&*", "+@all")
        yield redis, make_memsync(url=own_server.url.replace("//", "//second:x@"), batch_interval=60.0)


# -- with what, and when

@pytest.mark.parametrize("name", WRITES)
def test_an_event_comes_with_its_details_when_the_data_are_in_redis(memsync, redis, name):
    act, event, details = WRITES[name]
    emitted, in_redis = listen(memsync, event), []
    memsync.on(event, lambda **details: in_redis.append(holds(redis, MARK)))

    act(memsync)
    if name == "compare-and-set":
        assert memsync.events.wait_idle(5)
    before = list(emitted)
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert (before, emitted) == ([] if name != "compare-and-set" else emitted, [(event, details)])
    assert set(details) == set(EVENTS[event])
    assert in_redis == [event != "delete"]


@pytest.mark.parametrize("name", WAITING)
def test_an_event_comes_from_the_background_too(make_memsync, redis, name):
    memsync = make_memsync(batch_interval=0.01)
    act, event, details = WRITES[name]
    emitted, in_redis = listen(memsync, event), []
    memsync.on(event, lambda **details: in_redis.append(holds(redis, MARK)))

    act(memsync)

    assert eventually(lambda: emitted and in_redis) == [True]
    assert emitted == [(event, details)]


@pytest.mark.parametrize("act, key", [
    (lambda memsync: memsync.sync_task_progress("t1", 50, message="half"), "tasks/t1/progress"),
    (lambda memsync: memsync.sync_task_state("t1", {"x": [1]}), "tasks/t1/state"),
    (lambda memsync: memsync.sync_worker_capacity("w1", 3), "workers/w1/capacity"),
    (lambda memsync: memsync.sync_assignments({"w1": ["t1"]}), "coordination/assignments"),
    (lambda memsync: memsync.sync_metrics({"x": 1}), "coordination/metrics"),
    (lambda memsync: memsync.write("a", "é"), "a"),
])
def test_the_value_of_a_write_is_what_a_reader_sees(memsync, other, act, key):
    emitted = listen(memsync, "write")

    act(memsync)
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert emitted == [("write", {"key": f"task-sentinel/{key}", "value": other.read(key)})]


def test_repeated_writes_emit_the_last_in_order_of_the_writes(memsync):
    emitted = listen(memsync, "write", "task-state-synced")

    for turn in range(3):
        for number in range(10):
            memsync.write("a", [turn, number])
            memsync.sync_task_state("t1", {f"{turn}": number})
        memsync.force_sync()
    assert memsync.events.wait_idle(5)

    values = [row["value"] for _, row in emitted if row.get("key", "").endswith("/a")]
    assert values == [[turn, 9] for turn in range(3)]
    states = [row["state"] for event, row in emitted if event == "task-state-synced"]
    assert [state[f"{turn}"] for turn, state in enumerate(states)] == [9, 9, 9]


def test_write_that_was_not_stored_emits_no_event(memsync, other):
    memsync.sync_task_run("t1", TaskRun(status="SUCCESS"), run_key(0, 1.0))
    memsync.force_sync()
    other.write("a", "older")
    time.sleep(0.02)
    memsync.write("a", "newer")
    memsync.force_sync()
    emitted = listen(other, *SYNCED)

    other.sync_task_run("t1", TaskRun(status="STARTED"), run_key(0, 1.0))
    other.force_sync()
    assert other.events.wait_idle(5)

    assert emitted == []
    assert other.read("a") == "newer"
    assert other.get_metrics()["conflicts"] == 1


def test_event_of_a_field_has_the_value_stored_last(memsync, other):
    emitted = listen(other, "task-state-synced")
    other.sync_task_state("t2", {"x": "older"})
    publish(memsync, {"tasks/t2/state": {"x": "newer"}})
    other.force_sync()
    assert other.events.wait_idle(5)
    states = [row["state"] for _, row in emitted]
    assert states == [memsync.get_task_state("t2")] == [{"x": "older"}]


# -- how often

def test_events_are_emitted_once_when_failed_writes_are_stored(own_server, make_memsync):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0)
    emitted = listen(memsync, *SYNCED)
    write_all(memsync)
    own_server.kill()

    for _ in range(2):
        with pytest.raises(StoreError):
            memsync.force_sync()
    before = list(emitted)
    own_server.start()
    memsync.force_sync()
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert before == []
    assert sorted(map(repr, emitted)) == sorted(map(repr, expected_of(WAITING)))


def expected_of(names):
    """Return the events of some of the writes, if each is another key."""
    own = [(WRITES[name][1], WRITES[name][2]) for name in names if name not in ("stage", "agent")]
    stage = WRITES["stage"][2]["state"]
    paths = {
        "tasks/t1/state": {"x": MARK}, "workers/w1/status": {"mood": MARK}, "tasks/t1/agents/coder": [MARK],
        "coordination/queue": WRITES["queue"][2]["queue"],
    }
    writes = [("write", {"key": f"task-sentinel/{key}", "value": value}) for key, value in paths.items()]
    return [
        *own, *writes, ("task-state-synced", WRITES["stage"][2]),
        ("write", {"key": "task-sentinel/tasks/t1/state", "value": stage}),
    ]


@pytest.mark.parametrize("number", [1, 250])
def test_batch_whose_answer_was_lost_emits_events_once(own_server, make_memsync, number):
    memsync = make_memsync(url=own_server.url, batch_interval=60.0, backend_options={"socket_timeout": 0.5})
    memsync.force_sync()
    memsync.read("a")
    emitted = listen(memsync, "write")
    for n in range(number):
        memsync.write(f"k{n}", n)

    own_server.pause()
    with pytest.raises(StoreError):
        memsync.force_sync()
    before = list(emitted)
    own_server.resume()
    memsync.force_sync(timeout=10)
    assert memsync.events.wait_idle(5)

    assert before == []
    assert sorted(details["value"] for _, details in emitted) == list(range(number))
    assert memsync.get_metrics()["writes"] == number


def test_write_beside_an_unsettled_conflict_emits_events_once(separate, own_server, make_memsync):
    redis, second = separate
    first = make_memsync(url=own_server.url, batch_interval=60.0)
    first.write("disputed", 1)
    first.force_sync()
    emitted = listen(second, *SYNCED)
    forbid = functools.partial(redis.execute_command, "ACL", "SETUSER", "second", "-evalsha")
    second.runtime.writer.settler.resolvers = Resolvers(lambda entries: forbid() and Resolution("settled"), "task-sentinel")

    second.write("a", MARK)
    second.sync_task_state("t1", {"x": MARK})
    second.write("disputed", 2)
    with pytest.raises(StoreError):
        second.force_sync()
    redis.execute_command("ACL", "SETUSER", "second", "+evalsha")
    second.runtime.writer.settler.resolvers = Resolvers(lambda entries: Resolution("settled"), "task-sentinel")
    second.force_sync()
    assert second.events.wait_idle(5)

    assert [details["value"] for event, details in emitted if event == "write"].count(MARK) == 1
    assert [event for event, _ in emitted].count("task-state-synced") == 1
    assert second.get_metrics()["writes"] == 3


def test_queue_written_when_the_rest_was_not_emits_events_once(separate):
    redis, memsync = separate
    memsync.read("a")
    emitted = listen(memsync, "queue-synced", "agent-coordinated")
    memsync.sync_queue({"pending": [MARK]})
    memsync.sync_agent_coordination("t1", "coder", MARK)

    redis.execute_command("ACL", "SETUSER", "second", "resetkeys", "~task-sentinel//{coordination}*")
    with pytest.raises(StoreError):
        memsync.force_sync()
    redis.execute_command("ACL", "SETUSER", "second", "allkeys")
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    assert sorted(event for event, _ in emitted) == ["agent-coordinated", "queue-synced"]
    assert memsync.get_queue() == {"pending": [MARK], "processing": []}
    assert memsync.get_metrics()["writes"] == 2


def test_threads_that_flush_at_once_emit_every_event_once(make_memsync):
    memsync = make_memsync(batch_interval=0.0)
    emitted = listen(memsync, "write")

    def hammer(name):
        for number in range(150):
            memsync.write(f"{name}-{number}", number)
            memsync.force_sync()

    threads = [threading.Thread(target=hammer, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    memsync.force_sync()
    assert memsync.events.wait_idle(5)

    keys = [details["key"] for _, details in emitted]
    assert sorted(keys) == sorted(f"task-sentinel/{name}-{number}" for name in "abcd" for number in range(150))


# -- handlers

def harm(memsync):
    """Return what handlers do that one would not expect of them."""
    return {
        "raise": lambda **details: 1 / 0,
        "take something else": lambda: None,
        "write": lambda **details: memsync.write("from-handler", 1),
        "write at once": lambda **details: memsync.write("counted", 1, expected_version=0),
        "flush": lambda **details: memsync.force_sync(),
        "read": lambda **details: memsync.read_many(["a", "tasks/t1/state"], consistent=True),
        "search": lambda **details: memsync.search("*"),
        "listen": lambda **details: memsync.on("write", lambda **details: None),
        "subscribe": lambda **details: memsync.unsubscribe(memsync.subscribe("a", print)),
        "spoil": lambda **details: [value.clear() for value in details.values() if hasattr(value, "clear")],
        "list": lambda **_: (memsync.get_metrics(), memsync.clear_cache(), memsync.get_tasks()),
    }


@pytest.mark.parametrize("interval", [60.0, 0.01])
@pytest.mark.parametrize("what", harm(None))
def test_a_handler_does_no_harm_to_the_writer_or_to_others(make_memsync, other, what, interval):
    memsync = make_memsync(batch_interval=interval)
    done = set()

    def handle(event, **details):
        if event not in done:
            done.add(event)
            harm(memsync)[what](**details)

    for event in SYNCED:
        memsync.on(event, functools.partial(handle, event))
    emitted = listen(memsync, *SYNCED)

    write_all(memsync)
    memsync.delete("b")
    eventually(lambda: {*dict(emitted)} == {*SYNCED} or interval > 1 and memsync.force_sync())
    memsync.write("later", 1)
    memsync.force_sync()

    assert {event for event, _ in emitted} == set(SYNCED)
    assert other.get_task_state("t1") == {"status": "STARTED", "name": MARK, "retries": 0, "x": MARK}
    assert other.read("a") == {"x": MARK}
    assert other.get_queue()["pending"] == [MARK]
    assert other.read("later") == 1
