"""Streams of slow clients, without Redis, after a shutdown, and of hostile tasks."""
from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from celery_memsync.aio import watch
from celery_memsync.contrib import asgi
from celery_memsync.contrib.answers import MAX_TEXT
from tests.support.event_streams import Parser, Request, fetch
from tests.support.poison import HOSTILE
from tests.support.progress_pages import path_of, publish
from tests.support.waiting import eventually

# -- clients that do not read

@pytest.mark.usefixtures("quick")
def test_client_that_reads_slowly_gets_the_newest_state_only(app, site):
    async def dawdle():
        stream, quick = Request(site, path_of(app)), Request(site, path_of(app))
        await stream.wait_for(lambda event: True)
        stream.reads.clear()
        for percent in range(1, 51):
            await asyncio.to_thread(publish, app, percent=percent, status="STARTED")
            await quick.wait_for(lambda event: event.content["percent"] == percent)
        await asyncio.to_thread(publish, app, status="SUCCESS")
        await quick.end()
        stream.reads.set()
        return await stream.end(), quick

    stream, quick = asyncio.run(dawdle())

    assert len(quick.events) > 50
    assert len(stream.events) <= 3
    assert (stream.events[-1].name, stream.events[-1].content["percent"]) == ("end", 100)


@pytest.mark.usefixtures("quick")
def test_client_that_reads_nothing_is_left(app, site, monkeypatch):
    monkeypatch.setattr(asgi, "SEND_TIMEOUT", 0.2)

    async def dawdle():
        stream = Request(site, path_of(app))
        await stream.wait_for(lambda event: True)
        stream.reads.clear()
        return await stream.end()

    asyncio.run(dawdle())

    assert (site.progress.streams, len(app.runtime.subscriptions)) == (0, 0)


def test_shutdown_of_the_manager_ends_its_streams(app, site):
    async def follow():
        stream = Request(site, path_of(app))
        await stream.wait_for(lambda event: True)
        while len(app.runtime.subscriptions) < 2:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(app.shutdown)
        return await stream.end()

    assert asyncio.run(follow()).events[-1].name == "progress"


@pytest.mark.usefixtures("quick")
def test_stream_begins_anew_after_a_shutdown_though_a_client_that_reads_nothing_has_not_left(app, site):
    async def follow():
        stuck = Request(site, path_of(app))
        await stuck.wait_for(lambda event: True)
        while len(app.runtime.subscriptions) < 2:
            await asyncio.sleep(0.01)
        stuck.reads.clear()
        await asyncio.sleep(0.2)  # it is sending a comment
        await asyncio.to_thread(app.shutdown)
        new = Request(site, path_of(app))
        await new.wait_for(lambda event: True)
        stuck.reads.set()
        await stuck.end()
        await asyncio.to_thread(publish, app, status="SUCCESS")
        await new.end()
        return stuck, new

    stuck, new = asyncio.run(follow())

    assert [event.name for event in stuck.events] == ["progress"]
    assert [event.name for event in new.events] == ["progress", "end"]


@pytest.mark.parametrize("leaves", [True, False])
def test_event_loop_that_has_ended_is_collected(app, site, leaves):
    async def follow():
        stream = Request(site, path_of(app))
        await stream.wait_for(lambda event: True)
        if leaves:
            await stream.leave()
        return weakref.ref(asyncio.get_running_loop())

    find = asyncio.run(follow())

    eventually(lambda: gc.collect() is not None and find() is None)
    eventually(lambda: len(app.runtime.subscriptions) == 0)


# -- Redis is away

def test_stream_says_that_redis_is_away_and_names_no_address(make_app):
    away = make_app("redis://:hunter2@127.0.0.1:1/0", timeout=0.2)
    site = Starlette(routes=[Route("/progress/{token}", asgi.progress(away))])

    async def follow():
        stream = Request(site, path_of(away))
        event = await stream.wait_for(lambda event: True)
        await stream.leave()
        return stream, event, await Request(site, path_of(away), accept="*/*").end()

    stream, event, single = asyncio.run(follow())

    assert (stream.status, event.name, event.content) == (200, "away", {"error": "the progress is unknown at the moment"})
    assert (single.status, single.content) == (503, event.content)
    assert b"127.0.0.1" not in stream.body + single.body and b"hunter2" not in stream.body + single.body


@pytest.mark.usefixtures("quick")
def test_stream_that_began_without_redis_goes_on_when_redis_is_there(make_app, own_server, monkeypatch):
    monkeypatch.setattr(watch, "CONFIRM_TIMEOUT", 0.0)  # when the watches have begun, nothing else has the task read
    own_server.stop()
    app = make_app(own_server.url)
    site = Starlette(routes=[Route("/progress/{token}", asgi.progress(app))])

    async def follow():
        stream = Request(site, path_of(app, "never-sent"))
        await stream.wait_for(lambda event: event.name == "away")
        await asyncio.to_thread(own_server.start)
        event = await stream.wait_for(lambda event: event.name == "progress")
        await stream.leave()
        return event

    assert asyncio.run(follow()).content["status"] == "PENDING"


# -- hostile data

@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(text=st.text(alphabet="\r\n\0:daetvn \u2028\u0085\ufeffx", min_size=1, max_size=60))
def test_no_text_of_a_task_breaks_the_framing(app, site, text):
    app.sync_task_progress("t1", 50, message=text)
    app.sync_task_state("t1", {"status": "SUCCESS"})
    app.force_sync()

    body = fetch(site, path_of(app), accept="text/event-stream").content

    parser = Parser()
    parser.feed(body)
    (event,) = parser.events
    assert (event.name, event.content["message"]) == ("end", text)
    assert json.dumps(text).encode() in body


def test_hostile_fields_of_a_task_are_one_line_of_ascii(app, site, redis):
    for name in ("status", "note", "args", HOSTILE.replace("\ud800", "")):
        app.sync_task_state("t1", {name: "\r\n\r\ndata: forged\r\nevent: end\r\n\r\n", "exception": {"type": "\nid: 1"}})
    app.sync_task_progress("t1", 50, status="\n\ndata: x", message="\r\rdata: x\n" * MAX_TEXT)
    app.force_sync()

    async def follow():
        stream = Request(site, path_of(app))
        await stream.wait_for(lambda event: True)
        await stream.leave()
        return stream

    stream = asyncio.run(follow())

    (event,) = stream.events
    assert event.name == "progress" and "forged" in event.content["status"]
    assert stream.body.isascii() and len(stream.body) < 10 * MAX_TEXT
    assert not [line for line in stream.body.split(b"\r\n") if b"\r" in line or b"\n" in line or b"\0" in line]
