"""The endpoint of ASGI: whom it answers, what it streams, when it ends."""
from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from celery_memsync.contrib import asgi
from tests.support.event_streams import Parser, Request, fetch
from tests.support.progress_pages import path_of, publish


def test_stream_sends_each_change_and_the_end(app, site):
    async def follow():
        stream = Request(site, path_of(app))
        await stream.wait_for(lambda event: event.name == "progress")
        await asyncio.to_thread(publish, app, percent=40, status="STARTED")
        await stream.wait_for(lambda event: event.content["percent"] == 40)
        await asyncio.to_thread(publish, app, status="SUCCESS")
        return await stream.end()

    stream = asyncio.run(follow())

    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
    shown = [(event.name, event.content["status"], event.content["percent"]) for event in stream.events]
    assert (shown[0], shown[-1]) == (("progress", "PENDING", None), ("end", "SUCCESS", 100))
    assert ("progress", "STARTED", 40) in shown
    assert stream.parser.retry in asgi.RETRY_MS
    assert len({event.id for event in stream.events}) == len(stream.events)


def test_ended_task_is_one_event(app, site):
    publish(app, percent=100, status="SUCCESS")

    body = fetch(site, path_of(app), accept="text/event-stream").content

    parser = Parser()
    parser.feed(body)
    assert [event.name for event in parser.events] == ["end"]


@pytest.mark.parametrize("site_of, path", [
    (lambda endpoint: Starlette(routes=[Route("/progress/{token}", endpoint)]), "/progress/{}"),
    (lambda endpoint: Starlette(routes=[Mount("/progress", endpoint)]), "/progress/?token={}"),
    (lambda endpoint: added(FastAPI(), "add_route", "/progress/{token}", endpoint), "/progress/{}"),
    (lambda endpoint: added(FastAPI(), "mount", "/progress", endpoint), "/progress/?token={}")])
def test_endpoint_is_a_route_or_mounted_in_starlette_and_fastapi(app, site_of, path):
    publish(app, percent=40, status="STARTED")

    answer = fetch(site_of(asgi.progress(app)), path.format(app.token("t1")))

    assert answer.json()["percent"] == 40


def added(site, method, path, endpoint):
    getattr(site, method)(path, endpoint)
    return site


def test_request_for_json_gets_what_a_stream_sends(app, site):
    publish(app, percent=40, status="STARTED")

    answer = fetch(site, f"/progress?token={app.token('t1')}")
    unknown = fetch(site, path_of(app, "never-sent"))

    assert (answer.status_code, answer.json()["percent"], answer.json()["message"]) == (200, 40, "at 40")
    assert answer.headers["cache-control"] == "no-store"
    assert (unknown.status_code, unknown.json()["status"]) == (200, "PENDING")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_request_without_a_valid_token_is_refused_with_json(app, site, accept):
    good = app.token("t1")

    missing, forged, cut, expired = (fetch(site, path, accept=accept) for path in (
        "/progress", f"/progress/0{good[1:] if good[0] != '0' else '1' + good[1:]}", f"/progress/{good[:-1]}",
        path_of(app, max_age=1e-6)))

    assert (missing.status_code, missing.json()) == (401, {"error": "the token is missing"})
    assert {(one.status_code, one.json()["error"]) for one in (forged, cut)} == {(403, "the token is not valid")}
    assert (expired.status_code, expired.json()["error"]) == (403, "the token has expired; a new one is needed")


def test_other_methods_are_not_allowed(app, site):
    assert fetch(site, path_of(app), "POST").status_code == 405
    assert fetch(site, path_of(app), "HEAD", accept="text/event-stream").status_code == 200


def test_websocket_is_closed(app):
    sent = []

    async def connect():
        async def send(message):
            sent.append(message["type"])

        await asgi.progress(app)({"type": "websocket"}, None, send)

    asyncio.run(connect())

    assert sent == ["websocket.close"]


# -- how long a stream goes on

@pytest.mark.usefixtures("quick")
def test_stream_ends_when_its_token_expires(app, site):
    async def follow():
        return await Request(site, path_of(app, max_age=0.3)).end()

    stream = asyncio.run(follow())

    assert [event.name for event in stream.events] == ["progress"]
    assert stream.parser.comments > 1


def test_client_that_knows_the_end_is_not_to_connect_again(app, site):
    publish(app, percent=40, status="STARTED")

    async def connect(**headers):
        stream = Request(site, path_of(app), **headers)
        while not stream.events and not stream.task.done():
            await asyncio.sleep(0.01)
        await stream.leave()
        return stream

    first = asyncio.run(connect())
    publish(app, status="SUCCESS")
    later = asyncio.run(connect(last_event_id=first.events[-1].id))
    again = asyncio.run(connect(last_event_id=later.events[-1].id))
    odd = asyncio.run(connect(last_event_id="\x7f" * 5000))

    assert [event.name for event in (*first.events, *later.events, *odd.events)] == ["progress", "end", "end"]
    assert (again.status, again.body) == (204, b"")


def test_client_that_knows_the_present_state_is_not_sent_it_again(app, site):
    async def follow():
        first = Request(site, path_of(app))
        await first.wait_for(lambda event: True)
        await first.leave()
        second = Request(site, path_of(app), last_event_id=first.events[-1].id)
        while not site.progress.streams:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(publish, app, percent=40, status="STARTED")
        await second.wait_for(lambda event: event.content["percent"] == 40)
        await second.leave()
        return second

    assert "PENDING" not in {event.content["status"] for event in asyncio.run(follow()).events}


def test_more_streams_than_allowed_are_turned_away(app):
    endpoint = asgi.progress(app, max_streams=2)
    site = Starlette(routes=[Route("/progress/{token}", endpoint)])

    async def crowd():
        streams = [Request(site, path_of(app)) for _ in range(2)]
        for stream in streams:
            await stream.wait_for(lambda event: True)
        third = await Request(site, path_of(app)).end()
        single = await Request(site, path_of(app), accept="*/*").end()
        await streams[0].leave()
        fourth = Request(site, path_of(app))
        await fourth.wait_for(lambda event: True)
        for stream in (streams[1], fourth):
            await stream.leave()
        return third, single

    third, single = asyncio.run(crowd())

    assert (third.status, third.headers["retry-after"]) == (503, "5")
    assert third.content == {"error": "there are too many streams at the moment"}
    assert single.status == 200
    assert endpoint.streams == 0


def test_streams_of_one_task_share_its_subscriptions_and_leave_none(app, site):
    subscriptions = app.runtime.subscriptions

    async def come_and_go():
        streams = [Request(site, path_of(app)) for _ in range(5)] + [Request(site, path_of(app, "t2"))]
        for stream in streams:
            await stream.wait_for(lambda event: True)
        while len(subscriptions) < 4:
            await asyncio.sleep(0.01)
        counted = len(subscriptions)
        for stream in streams:
            await stream.leave()
        while len(subscriptions):
            await asyncio.sleep(0.01)
        return counted

    assert asyncio.run(asyncio.wait_for(come_and_go(), 20)) == 4
    assert site.progress.streams == 0
