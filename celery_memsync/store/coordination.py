"""The queue and the metrics."""
from __future__ import annotations

from typing import Any, Sequence

from ..keys import is_id
from .errors import redis_call
from .script_caller import ScriptCaller, answers_of, ms, serial_of
from .scripts import COORDINATION_WRITE

#: Above any place in a list: no number of that size is exact in a sorted set.
MAX_SCORE = 2 ** 53


class CoordinationStore(ScriptCaller):
    """What is about what all do together."""

    @redis_call
    def change_coordination(self, lane: str, changes: Sequence[tuple[int, float, Sequence[Any]]]) -> list[list[str]]:
        """Change the queue or the metrics, each change once however often it is sent.

        Args:
            lane: Changes of one lane of a process come one after the other.
            changes: Serial number, seconds to keep what is told, what to do; see ``store/lua/coordination_write.lua``.

        Returns:
            The answers of each, as texts.
        """
        keys = self.keys
        names = [keys.pending, keys.processing, keys.metrics, keys.about, keys.done(self.token, lane)]
        calls = [
            (names, [self.worker_id, serial, ms(ttl), self.prefix, self._together, *what])
            for serial, ttl, what in changes
        ]
        answers = self._run(COORDINATION_WRITE, calls, publishes=True)
        return [
            [str(part) if type(part) is int else part.decode(errors="replace") for part in answer[1:]] for answer in answers]

    @redis_call
    def read_queue(self, limit: int) -> tuple[dict[str, list[str]], int]:
        """Return the ids of tasks that wait and that are at work, those that came first first.

        Also the number of the last change that this process told and that is in it.
        """
        keys = {"pending": self.keys.pending, "processing": self.keys.processing}
        lists: dict[str, list[str]] = {name: [] for name in keys}
        done, start = None, 0
        while keys:
            pipeline = self._pipeline(None)
            for key in keys.values():
                pipeline.zrange(key, start, start + limit - 1, withscores=True)
            pipeline.get(self.keys.done(self.token, "told"))
            *rows, last = answers_of(pipeline)
            done, start, now = done or last, start + limit, self.clock.now() * 1000
            for name, row in zip(list(keys), rows):
                ids = [task_id.decode(errors="replace") for task_id, score in row or () if score_expires_at(score) > now]
                lists[name] += filter(is_id, ids)
                # Of tasks that are over others may be behind.
                if len(row or ()) < limit or len(lists[name]) >= limit:
                    del keys[name]
        return {name: ids[:limit] for name, ids in lists.items()}, serial_of(done)

    @redis_call
    def queue_position(self, task_id: str) -> int | None:
        """Return before how many others a task waits, counted from 0, in all queues together; None if it does not."""
        pipeline = self._pipeline(None)
        pipeline.zrank(self.keys.pending, task_id)
        (rank,) = answers_of(pipeline)
        return None if rank is None else int(rank)

    @redis_call
    def scan_processing(self, cursor: int) -> tuple[int, list[str]]:
        """Return ids of tasks at work, a part of them at a time, some perhaps twice.

        Args:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and the ids.
        """
        after, names = self._scan(self.keys.processing, cursor)
        return after, list(filter(is_id, names))

    @redis_call
    def read_metrics(self) -> tuple[dict[str, bytes], int]:
        """Return all counters, each as JSON, and the number of the last change as :meth:`read_queue`."""
        pipeline = self._pipeline(None)
        pipeline.hgetall(self.keys.metrics)
        pipeline.get(self.keys.done(self.token, "told"))
        counters, done = answers_of(pipeline)
        return {name.decode(errors="replace"): body for name, body in (counters or {}).items()}, serial_of(done)


def score_expires_at(location: float) -> float:
    """Return when a place in a list is over, in ms, 0 if it is no place; see ``store/lua/queue_score.lua``."""
    if not 0 < location < MAX_SCORE:
        return 0.0
    order, stage = divmod(int(location), 256)
    return order / 10 + 500 * 1.07 ** stage
