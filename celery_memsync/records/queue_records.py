"""The shared queue, as callers use it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..deadline import bounded
from ..keys import QUEUE, check_id
from ..reading.reader import Reader
from ..settings import Settings
from ..types import QueueLists
from ..writing.changes import SyncQueue
from ..writing.shared_queue import SharedQueue
from ..writing.unanswered import maybe_done_is
from .checks import check_count, check_queue


class QueueRecords:
    """Writes and reads the lists of the shared queue, and moves tasks through them.

    Args:
        queue: Makes the atomic operations, and repeats those that were not answered.
    """

    def __init__(self, settings: Settings, reader: Reader, queue: SharedQueue) -> None:
        self.settings = settings
        self.timeout = settings.timeout
        self.keys = reader.keys
        self.writer = reader.writer
        self.reader = reader
        self.queue = queue

    def replace(self, queue: Mapping[str, Any]) -> None:
        """Replace the lists that are given."""
        settings = self.settings
        lists = check_queue(queue, settings.max_value_size)
        self.writer.put(SyncQueue(self.keys.coordination_location(QUEUE), lists, settings.default_ttl))

    @bounded
    def lists(self, limit: int) -> QueueLists:
        """Return the ids of pending and of running tasks, at most ``limit`` each."""
        return self.reader.queue(check_count(limit, "limit"))

    @bounded
    def position(self, task_id: str) -> int | None:
        """Return how many tasks are before a pending one, or None if it is not pending."""
        return self.reader.queue_position(check_id(task_id, "task"))

    @bounded
    def enqueue(self, task_id: str) -> bool:
        """Put a task at the end; return whether it was in no list before."""
        self._send_replacements()
        return self.queue.enqueue(check_id(task_id, "task"))

    @bounded
    def dequeue(self) -> str | None:
        """Take the first pending task; return its id, or None if nothing is pending."""
        self._send_replacements()
        return self.queue.dequeue()

    @bounded
    def complete(self, task_id: str) -> bool:
        """Remove a task; return whether it was in a list."""
        self._send_replacements()
        return self.queue.complete(check_id(task_id, "task"))

    def _send_replacements(self) -> None:
        with maybe_done_is(False):
            self.writer.flush_for(self.keys.about)
