"""Streams of progress to many clients: a real uvicorn, a real worker, a Redis that is killed."""
from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from celery_memsync.store.acl import rules
from tests.support.publishing import publish_state
from tests.support.waiting import eventually
from tests.support.web_server import Client, WebServer, until

#: Clients at the same time.
MANY = 500

#: Most threads of the web process: its main one, the link, and those of a few pools with at most eight each.
MAX_THREADS = 30

#: Most connections of the web process to Redis.
MAX_CONNECTIONS = 20

#: Seconds in which a server ends that has many streams.
END_LIMIT = 2.0


def add_user(fleet):
    """Give the web process a user of its own in Redis, with the documented rights, so that its connections are known."""
    with fleet.store.client() as client:
        client.execute_command("ACL", "SETUSER", "web", "on", ">secret", *rules(fleet.name))


@pytest.fixture
def fleet(make_fleet, own_store):
    """A fleet with a Redis of this test's own."""
    fleet = make_fleet(store=own_store)
    add_user(fleet)
    return fleet


@pytest.fixture
def make_server(fleet, tmp_path):
    """Starts uvicorn."""
    made = []

    def make(**env):
        url = fleet.store.url.replace("//", "//web:secret@")
        made.append(WebServer("tests.support.progress_app:app", tmp_path / "web.log", {
            **fleet.env(memsync_backend=url, memsync_batch_interval=0.01), **env}))
        return made[-1].wait_ready()

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def server(make_server):
    return make_server()


def connections_of_web(fleet):
    with fleet.store.client() as client:
        return [one for one in client.client_list() if one["user"] == "web"]


def path_of(fleet, task_id):
    return f"/progress/{fleet.app.memsync.token(task_id)}"


async def connect_all(fleet, server, ids):
    """Return clients that have all received that their tasks are unknown."""
    clients = [await Client.connect(server, path_of(fleet, task_id)) for task_id in ids]
    await until(lambda: all(client.names == ["progress"] for client in clients))
    return clients


def test_many_streams_share_threads_and_connections_and_all_receive_the_end(fleet, server):
    fleet.start_worker("-P", "threads", "-c", "4")
    ids = [str(uuid.uuid4()) for _ in range(MANY)]

    async def follow():
        clients = await connect_all(fleet, server, ids)
        numbers = await asyncio.to_thread(server.numbers)
        connections = len(connections_of_web(fleet))
        for task_id in ids:
            fleet.task("add").apply_async((1, 2), task_id=task_id)
        await until(lambda: all(client.has_ended for client in clients), timeout=60)
        return clients, numbers, connections

    clients, numbers, connections = asyncio.run(follow())

    assert numbers["streams"] == MANY
    assert len(numbers["threads"]) <= MAX_THREADS
    assert 0 < connections <= MAX_CONNECTIONS
    ends = [client.parser.events[-1] for client in clients]
    assert {(end.name, end.content["status"], end.content["percent"]) for end in ends} == {("end", "SUCCESS", None)}
    eventually(lambda: server.numbers()["streams"] == server.numbers()["subscriptions"] == 0)
    assert server.output() == ""


def test_server_with_many_streams_ends_in_two_seconds(fleet, server):
    async def end():
        clients = await connect_all(fleet, server, [f"never-{number}" for number in range(MANY)])
        code, seconds = await asyncio.to_thread(server.stop)
        await until(lambda: all(client.has_ended for client in clients))
        return code, seconds

    code, seconds = asyncio.run(end())

    assert code in (0, -15)
    assert seconds < END_LIMIT
    assert server.output() == ""


def test_client_that_leaves_leaves_no_subscription(fleet, server):
    async def come_and_go():
        clients = await connect_all(fleet, server, ["t1"] * 20 + ["t2"])
        both = await asyncio.to_thread(server.numbers)
        for client in clients[1:]:
            client.close()
        await until(lambda: server.numbers()["streams"] == 1)
        one = server.numbers()
        publish_state(fleet, "t1", "SUCCESS")
        await until(lambda: clients[0].has_ended)
        return both, one

    both, one = asyncio.run(come_and_go())

    assert (both["streams"], both["subscriptions"]) == (21, 4)
    assert one["subscriptions"] == 2
    eventually(lambda: server.numbers()["subscriptions"] == 0)
    with fleet.store.client() as client:
        eventually(lambda: client.pubsub_channels("*/tasks/*") == [])


def test_slow_clients_cost_bounded_memory(fleet, make_server):
    server, size = make_server(MEMSYNC_TEST_LONGEST_TEXT="200000"), 200_000

    async def dawdle():
        (quick,) = await connect_all(fleet, server, ["t1"])
        slow = [await Client.connect(server, path_of(fleet, "t1"), reads=False) for _ in range(5)]
        await until(lambda: server.numbers()["streams"] == 6)
        before = server.numbers()["rss"]
        for number in range(100):
            fleet.reader.sync_task_progress("t1", number / 2, message=f"{number} " * (size // 4))
            await asyncio.to_thread(fleet.reader.force_sync)
            await until(lambda: quick.parser.events[-1].content["percent"] == number / 2)
        after = server.numbers()["rss"]
        for client in slow:
            client.close()
        return after - before, quick

    grown, quick = asyncio.run(dawdle())

    assert len(quick.parser.events) > 100
    # Without a bound it were 5 times 20 MB.
    assert grown < 20 * 1024 * 1024


def kill(store):
    store.kill()
    return store.start


def pause(store):
    store.pause()
    return store.resume


@pytest.mark.parametrize("stop", [kill, pause])
def test_streams_survive_a_redis_that_stops(fleet, server, stop):
    async def outlive():
        clients = await connect_all(fleet, server, ["t1", "t2"])
        go_on = await asyncio.to_thread(stop, fleet.store)
        await until(lambda: all(client.names[-1] == "away" for client in clients))
        late = await Client.connect(server, path_of(fleet, "t1"))
        await until(lambda: late.names == ["away"])
        await asyncio.to_thread(go_on)
        add_user(fleet)
        await until(lambda: all(client.names[-1] == "progress" for client in (*clients, late)), timeout=40)
        await asyncio.to_thread(publish_state, fleet, "t1", "SUCCESS")
        await until(lambda: clients[0].has_ended and late.has_ended)
        return clients, late

    clients, late = asyncio.run(outlive())

    assert clients[0].names == ["progress", "away", "progress", "end"]
    assert (clients[1].names, late.names) == (["progress", "away", "progress"], ["away", "progress", "end"])
    away = clients[0].parser.events[1]
    assert json.loads(away.data) == {"error": "the progress is unknown at the moment"}
    assert "Traceback" not in server.output()
