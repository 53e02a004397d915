"""An endpoint of ASGI that shows how far the task of a token is, once or as a stream; for Starlette and FastAPI."""
from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

try:
    from sse_starlette.event import ServerSentEvent
    from sse_starlette.sse import EventSourceResponse, SendTimeoutError
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocketClose
except ImportError as exc:
    raise ImportError(f"{exc}; install the extra: pip install 'celery-memsync[asgi]'", name=exc.name) from exc

from ..aio.loops import PerLoop
from ..app import MemSync
from ..exceptions import InvalidToken, StoreError
from .answers import HEADERS, UNKNOWN, Answer, refusal_of
from .live_tasks import LiveTask, LiveTasks, Shown

#: Most streams of a process, unless it is given another number.
MAX_STREAMS = 1000

#: Seconds without an event after which a stream sends a comment, so that no proxy takes it for dead, and checks its token.
KEEP_ALIVE = 15.0

#: Milliseconds after which a client connects again; any number of these, so that not all come at once.
RETRY_MS = range(2000, 5000)

#: Seconds after which a stream ends whose client receives nothing.
SEND_TIMEOUT = 30.0

#: Seconds that streams have to end when the server stops.
END_TIMEOUT = 1.0


class Stream:
    """What one client receives of a task.

    Args:
        sent: The id of the last event that it has received.
    """

    def __init__(self, tasks: LiveTasks, memsync: MemSync, token: str, task_id: str, sent: str | None) -> None:
        self._tasks = tasks
        self._memsync = memsync
        self._token = token
        self._task_id = task_id
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
        yield ServerSentEvent(comment="", retry=random.choice(RETRY_MS))  # noqa: S311 - it is no secret
        with self._tasks.follow(self._task_id, self._news) as task:
            while self._goes_on() and not task.reading.done():
                self._news.clear()
                for event in self._events_of(task):
                    yield event
                if task.shown is not None and task.shown.id == self._sent and task.shown.ended:
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

    def _events_of(self, task: LiveTask) -> Iterator[ServerSentEvent]:
        """Yield what the client does not know."""
        shown, was_away, self._is_away = task.shown, self._is_away, task.is_away
        if task.is_away:
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
        self._max_streams = max_streams
        self._tasks = PerLoop(lambda _: LiveTasks(memsync, exceptions))

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
        try:
            task_id = self._memsync.check_token(token)
        except InvalidToken as exc:
            return _json(refusal_of(token, exc))
        if request.method == "GET" and "text/event-stream" in request.headers.get("accept", ""):
            return await self._stream(token, task_id, request.headers.get("last-event-id"))
        shown = await self._read(task_id)
        if shown is None:
            return _json(Answer.later(UNKNOWN))
        return Response(shown.data, headers=HEADERS, media_type="application/json")

    async def _stream(self, token: str, task_id: str, sent: str | None) -> Response:
        shown = await self._read(task_id) if sent else None
        if shown is not None and shown.ended and shown.id == sent:
            return Response(status_code=204, headers=HEADERS)  # a browser does not connect again
        if self.streams >= self._max_streams:
            return _json(Answer.later({"error": "there are too many streams at the moment"}))
        stream = Stream(self._tasks_of_loop(), self._memsync, token, task_id, sent)
        return EventSourceResponse(
            stream.events(), headers=HEADERS, ping=0, send_timeout=SEND_TIMEOUT, shutdown_event=cast(Any, stream),
            shutdown_grace_period=END_TIMEOUT)

    async def _read(self, task_id: str) -> Shown | None:
        """Return what is shown of a task, or None while Redis is away."""
        try:
            return await self._tasks_of_loop().read(task_id)
        except StoreError:
            return None

    def _tasks_of_loop(self) -> LiveTasks:
        return self._tasks.of(asyncio.get_running_loop())


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
