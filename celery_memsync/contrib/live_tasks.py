"""Tasks as an event loop shows them to many clients: each is subscribed to once, and read once for each change."""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ..aio import AsyncMemSync
from ..app import MemSync
from ..exceptions import StoreError
from .answers import document_of

#: Least seconds between two reads of a task, and so between two events of a stream.
READ_PAUSE = 0.2

#: Seconds between two looks whether Redis is there.
LOOK_INTERVAL = 1.0


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


class LiveTask:
    """One task, as all streams of it see it.

    Attributes:
        shown: What was read last; None: nothing yet.
        is_away: Whether it can't be read at the moment.
        streams: Those to set when one of these has changed.
        changed: Set when the task is to be read again.
        reading: Reads it; done after a shutdown of the manager, when no more comes.
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


class LiveTasks:
    """The tasks that streams of one event loop follow, each read by one task of asyncio, however many streams it has."""

    def __init__(self, memsync: MemSync, exceptions: bool) -> None:
        self._memsync = memsync
        self._aio = AsyncMemSync(memsync)
        self._exceptions = exceptions
        self._tasks: dict[str, LiveTask] = {}
        self._looking: asyncio.Task[None] | None = None
        #: Whether changes have been received since the first task was followed, and were not at the last look.  While that
        #: is so, nothing is read.
        self._has_connected = self._is_lost = False

    async def read(self, task_id: str) -> Shown:
        """Read what is shown of a task.

        Raises:
            StoreError: If Redis is away.
        """
        # In this order: the progress of a task whose end was seen is the last one.
        state = await self._aio.get_task_state(task_id)
        return Shown.of(document_of(state, await self._aio.get_task_progress(task_id), self._exceptions))

    @contextlib.contextmanager
    def follow(self, task_id: str, stream: asyncio.Event) -> Iterator[LiveTask]:
        """Return a task that sets an event during a block, whenever there is something else to show or no more to come."""
        task = self._tasks.get(task_id)
        if task is None or task.reading.done():  # those that receive nothing may not have left it yet
            task = self._tasks[task_id] = LiveTask()
            task.reading = asyncio.create_task(self._keep_read(task_id, task))
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
        task.streams.add(stream)
        try:
            yield task
        finally:
            task.streams.discard(stream)
            if not task.streams:
                if self._tasks.get(task_id) is task:
                    del self._tasks[task_id]
                task.reading.cancel()

    async def _keep_read(self, task_id: str, task: LiveTask) -> None:
        """Read a task, and again whenever it has changed."""
        watching = [asyncio.create_task(self._watch(f"tasks/{task_id}/{thing}", task))
                    for thing in ("state", "progress")]
        try:
            while True:
                task.changed.clear()
                try:
                    task.show(None if self._is_lost else await self.read(task_id))
                except StoreError:
                    task.show(None)
                await asyncio.sleep(READ_PAUSE)
                await task.changed.wait()
        finally:
            for one in watching:
                one.cancel()
            for stream in task.streams:
                stream.set()

    async def _watch(self, key: str, task: LiveTask) -> None:
        try:
            async with self._aio.watch(key) as changes:
                self._note_connection()
                task.changed.set()  # what changed before this was subscribed to may have been read too early
                async for _ in changes:
                    task.changed.set()
        finally:  # at a shutdown of the manager, too
            task.reading.cancel()

    async def _look(self) -> None:
        """Have tasks read again when Redis has gone away, when it is back, and while they could not be read."""
        while self._tasks:
            await asyncio.sleep(LOOK_INTERVAL)
            was_lost, self._is_lost = self._is_lost, not self._note_connection() and self._has_connected
            for task in self._tasks.values():
                if self._is_lost != was_lost or task.is_away and not self._is_lost:
                    task.changed.set()
        self._is_lost = self._has_connected = False

    def _note_connection(self) -> bool:
        """Return whether changes are received."""
        is_connected = self._memsync.runtime.subscriptions.is_connected
        self._has_connected = self._has_connected or is_connected
        return is_connected
