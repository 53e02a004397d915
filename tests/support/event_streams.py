"""Streams of server-sent events, as a browser reads them."""
from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
from typing import NamedTuple

import httpx


class Event(NamedTuple):
    """An event as an ``EventSource`` dispatches it."""

    name: str
    data: str
    id: str

    @property
    def content(self):
        return json.loads(self.data)


class Parser:
    """Reads a stream as the HTML standard says, section 9.2.6.

    Attributes:
        events: What was dispatched.
        comments: How many comments came.
        retry: Milliseconds after which to connect again, if that was sent.
    """

    def __init__(self):
        self.events = []
        self.comments = 0
        self.retry = None
        self._id = ""
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begin()

    def _begin(self):
        self._name, self._data = "", []

    def feed(self, chunk):
        self._text += self._decoder.decode(chunk)
        # A CR at the end may be the first half of a line's end.
        *lines, self._text = re.split(r"\r\n|\n|\r(?!$)", self._text)
        for line in lines:
            self._take(line)

    def _take(self, line):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if self._data:
                self.events.append(Event(self._name or "message", "\n".join(self._data), self._id))
            self._begin()
        elif not field:
            self.comments += 1
        elif field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isdigit():
            self.retry = int(value)


class Request:
    """A request to an ASGI application in this event loop, which may go on.

    Attributes:
        status: Status code of the answer, None before it has begun.
        headers: Of the answer.
        body: What has come.
        received: Messages of the application that a slow client has received by now; None: it receives all.
    """

    def __init__(self, app, path, method="GET", accept="text/event-stream", query="", **headers):
        self.status = self.headers = None
        self.body = b""
        self.parser = Parser()
        self.reads = asyncio.Event()
        self.reads.set()
        self._gone = asyncio.Event()
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "scheme": "http",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in
                        {"accept": accept, **headers}.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
        self.task = asyncio.create_task(app(self._scope, self._receive, self._send))

    async def _receive(self):
        if not self._gone.is_set():
            self._gone.clear()
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            await self.reads.wait()
            self.body += message.get("body", b"")
            self.parser.feed(message.get("body", b""))

    @property
    def events(self):
        return self.parser.events

    async def wait_for(self, check, timeout=10):
        """Return the last event when it meets a condition."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not (self.events and check(self.events[-1])):
            assert asyncio.get_running_loop().time() < deadline, self.body
            assert not self.task.done() or self.task.result() is None
            await asyncio.sleep(0.01)
        return self.events[-1]

    async def end(self, timeout=10):
        """Return this when the application has answered."""
        await asyncio.wait_for(asyncio.shield(self.task), timeout)
        return self

    async def leave(self):
        """Close the connection; return when the application has ended."""
        self._gone.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(self.task, 10)

    @property
    def content(self):
        return json.loads(self.body)


def fetch(site, path, method="GET", **headers):
    """Return the answer to a request that ends."""
    async def request():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(request())
