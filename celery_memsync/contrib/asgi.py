"""An endpoint of ASGI that shows how far the task of a token is, once or as a stream; for Starlette and FastAPI."""
from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..aio import AsyncMemSync
from ..app import MemSync
from ..exceptions import InvalidToken, StoreError
from .answers import HEADERS, UNKNOWN, Answer, document_of, refusal_of

#: Most streams of a process, unless it is given another number.
MAX_STREAMS = 1000

#: Least seconds between two reads of a task, and so between two events of a stream.
READ_PAUSE = 0.2

#: Seconds between two looks whether Redis is there.
LOOK_INTERVAL = 1.0

#: Seconds without an event after which a stream sends a comment, so that no proxy takes it for dead, and checks its token.
KEEP_ALIVE = 15.0

#: Milliseconds after which a client connects again; any number of these, so that not all come at once.
RETRY_MS = range(2000, 5000)

#: Seconds after which a stream ends whose client receives nothing.
SEND_TIMEOUT = 30.0

#: Seconds that streams have to end when the server stops.
END_TIMEOUT = 1.0


class Shown(NamedTuple):
    """What is shown of a task at one time.

    Attributes:
        id: The same for equal data in all processes.
        data: A line of JSON.
        ended: Whether that is the last.
    """

    id: str
    data: str
    ended: bool

    @classmethod
    def of(cls, document: dict[str, Any]) -> Shown:
        """Return a document as it is sent; in ASCII, so that no character of it ends a line."""
        data = json.dumps(document, separators=(",", ":"), allow_nan=False)
        return cls(sha256(data.encode()).hexdigest()[:16], data, document["ended"])


class Feed:
    """One task, as all streams of it see it.

    Attributes:
        shown: What was read last; None: nothing yet.
        is_away: Whether it can't be read at the moment.
        streams: Those to set when one of these has changed.
        changed: Set when the task is to be read again.
        reading: Reads it.
    """

    reading: asyncio.Task[None]

    def __init__(self) -> None:
        self.shown: Shown | None = None
        self.is_away = False
        self.streams: set[asyncio.Event] = set()
        self.changed = asyncio.Event()

    def show(self, shown: Shown | None) -> None:
        """Have streams send what was read; None: that it can't be read."""
        before = self.shown, self.is_away
        self.shown, self.is_away = shown or self.shown, shown is None
        if before != (self.shown, self.is_away):
            for stream in self.streams:
                stream.set()


class Feeds:
    """The tasks that streams of one event loop follow, each read by one task of asyncio, however many streams it has."""

    def __init__(self, memsync: MemSync, exceptions: bool) -> None:
        self._memsync = memsync
        self._aio = AsyncMemSync(memsync)
        self._exceptions = exceptions
        self._feeds: dict[str, Feed] = {}
        self._looking: asyncio.Task[None] | None = None
        #: Whether Redis was not there at the last look; then nothing is read.
        self._is_lost = False

    async def read(self, task_id: str) -> Shown:
        """Read what is shown of a task.

        Raises:
            StoreError: If Redis is away.
        """
        # In this order: the progress of a task whose end was seen is the last one.
        state = await self._aio.get_task_state(task_id)
        return Shown.of(document_of(state, await self._aio.get_task_progress(task_id), self._exceptions))

    @contextlib.contextmanager
    def follow(self, task_id: str, stream: asyncio.Event) -> Iterator[Feed]:
        """Return the feed of a task, which sets an event during a block."""
        feed = self._feeds.get(task_id)
        if feed is None:
            feed = self._feeds[task_id] = Feed()
            feed.reading = asyncio.create_task(self._keep_read(task_id, feed))
            self._looking = self._looking or asyncio.create_task(self._look())
        feed.streams.add(stream)
        try:
            yield feed
        finally:
            feed.streams.discard(stream)
            if not feed.streams:
                del self._feeds[task_id]
                feed.reading.cancel()

    async def _keep_read(self, task_id: str, feed: Feed) -> None:
        """Read a task, and again whenever it has changed."""
        watching = [asyncio.create_task(self._watch(f"tasks/{task_id}/{thing}", feed.changed))
                    for thing in ("state", "progress")]
        try:
            while True:
                feed.changed.clear()
                try:
                    feed.show(None if self._is_lost else await self.read(task_id))
                except StoreError:
                    feed.show(None)
                await asyncio.sleep(READ_PAUSE)
                await feed.changed.wait()
        finally:
            for one in watching:
                one.cancel()

    async def _watch(self, key: str, changed: asyncio.Event) -> None:
        async with self._aio.watch(key) as changes:
            changed.set()  # what changed before this was subscribed to may have been read too early
            async for _ in changes:
                changed.set()

    async def _look(self) -> None:
        """Have tasks read again when Redis has gone away, when it is back, and while they could not be read."""
        while self._feeds:
            await asyncio.sleep(LOOK_INTERVAL)
            was_lost, self._is_lost = self._is_lost, not self._memsync.runtime.subscriptions.is_connected
            for feed in self._feeds.values():
                if self._is_lost != was_lost or feed.is_away and not self._is_lost:
                    feed.changed.set()
        self._looking, self._is_lost = None, False


class Stream:
    """What one client receives of a task.

    Args:
        sent: The id of the last event that it has received.
    """

    def __init__(self, feeds: Feeds, memsync: MemSync, token: str, sent: str | None) -> None:
        self._feeds = feeds
        self._memsync = memsync
        self._token = token
        self._sent = sent
        self._is_away = False
        self._is_stopped = False
        self._news = asyncio.Event()

    def set(self) -> None:
        """End it; sse-starlette calls this when the server stops."""
        self._is_stopped = True
        self._news.set()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield events until the task has ended, the token has expired or the server stops."""
        task_id = self._memsync.check_token(self._token)
        yield ServerSentEvent(comment="", retry=random.choice(RETRY_MS))  # noqa: S311 - it is no secret
        with self._feeds.follow(task_id, self._news) as feed:
            while self._goes_on():
                self._news.clear()
                for event in self._events_of(feed):
                    yield event
                if feed.shown is not None and feed.shown.id == self._sent and feed.shown.ended:
                    return
                try:
                    await asyncio.wait_for(self._news.wait(), KEEP_ALIVE)
                except asyncio.TimeoutError:
                    yield ServerSentEvent(comment="")

    def _goes_on(self) -> bool:
        try:
            self._memsync.check_token(self._token)
        except InvalidToken:
            return False
        return not self._is_stopped

    def _events_of(self, feed: Feed) -> Iterator[ServerSentEvent]:
        """Yield what the client does not know."""
        shown, was_away, self._is_away = feed.shown, self._is_away, feed.is_away
        if feed.is_away:
            if not was_away:
                yield ServerSentEvent(json.dumps(UNKNOWN), event="away")
        elif shown is not None and (shown.id != self._sent or shown.ended or was_away):
            self._sent = shown.id
            yield ServerSentEvent(shown.data, event="end" if shown.ended else "progress", id=shown.id)


class Progress:
    """The endpoint; made by :func:`progress`.

    Attributes:
        streams: How many there are in this process.
    """

    def __init__(self, memsync: MemSync, exceptions: bool, max_streams: int) -> None:
        self.streams = 0
        self._memsync = memsync
        self._exceptions = exceptions
        self._max_streams = max_streams
        self._feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, Feeds] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        response = await self._response(Request(scope))
        if not isinstance(response, EventSourceResponse):
            await response(scope, receive, send)
            return
        self.streams += 1
        try:
            await response(scope, receive, send)
        except SendTimeoutError:  # the client receives nothing
            pass
        finally:
            self.streams -= 1

    async def _response(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _json(Answer(405, {"error": "only GET is allowed"}, {**HEADERS, "Allow": "GET, HEAD"}))
        token = request.path_params.get("token") or request.query_params.get("token") or ""
        sent = request.headers.get("last-event-id")
        wants_stream = request.method == "GET" and "text/event-stream" in request.headers.get("accept", "")
        feeds = self._feeds_of_loop()
        try:
            task_id = self._memsync.check_token(token)
            shown = await feeds.read(task_id) if sent or not wants_stream else None
        except InvalidToken as exc:
            return _json(refusal_of(token, exc))
        except StoreError:
            shown = None
        if wants_stream:
            return self._stream(feeds, token, sent, shown)
        return _json(Answer(200, json.loads(shown.data)) if shown else Answer.later(UNKNOWN))

    def _stream(self, feeds: Feeds, token: str, sent: str | None, shown: Shown | None) -> Response:
        if shown is not None and shown.ended and shown.id == sent:
            return Response(status_code=204, headers=HEADERS)  # a browser does not connect again
        if self.streams >= self._max_streams:
            return _json(Answer.later({"error": "there are too many streams at the moment"}))
        stream = Stream(feeds, self._memsync, token, sent)
        return EventSourceResponse(
            stream.events(), headers=HEADERS, ping=0, send_timeout=SEND_TIMEOUT, shutdown_event=cast(Any, stream),
            shutdown_grace_period=END_TIMEOUT)

    def _feeds_of_loop(self) -> Feeds:
        loop = asyncio.get_running_loop()
        if loop not in self._feeds:
            self._feeds[loop] = Feeds(self._memsync, self._exceptions)
        return self._feeds[loop]


def progress(memsync: MemSync, *, exceptions: bool = False, max_streams: int = MAX_STREAMS) -> Progress:
    """Return an endpoint that shows the progress of a task to the bearer of its token.

    A request that accepts ``text/event-stream``, as those of an ``EventSource`` do, gets a stream; any other gets JSON.
    The token is the parameter ``token`` of path or query.  All streams of a process share one connection to Redis and few
    threads.  Usage::

        app = FastAPI()                                             # or Starlette()
        app.add_route("/progress/{token}", progress(memsync))

    Args:
        exceptions: Whether type and message of the exception of a task are shown.
        max_streams: Most streams of this process; more requests for one get status 503.
    """
    return Progress(memsync, exceptions, max_streams)


def _json(answer: Answer) -> Response:
    return JSONResponse(answer.content, answer.status, answer.headers)
