"""The queue and the metrics."""
from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence, Union

from ..keys import is_id
from .errors import redis_call
from .script_caller import Call, ScriptCaller, answers_of, ms, serial_of
from .scripts import METRICS_UPDATE, QUEUE_COMPLETE, QUEUE_DEQUEUE, QUEUE_ENQUEUE, QUEUE_REPLACE, Script

#: Above any score in a list: no number of that size is exact in a sorted set.
MAX_SCORE = 2 ** 53


class QueueReplacement(NamedTuple):
    """What lists of the queue are to be.

    Attributes:
        serial: Number of the change; a second try has the same.
        ttl: Seconds that the tasks stay.
        lists: Task ids by name of the list: ``pending``, ``processing``.
    """

    serial: int
    ttl: float
    lists: Mapping[str, Sequence[str]]


class MetricsUpdate(NamedTuple):
    """What counters are set to, and what is added to counters.

    Attributes:
        serial: Number of the change; a second try has the same.
        ttl: Seconds that the counters are kept.
        steps: By counter: what it is set to, as JSON (None: it is not set), and what is added to that.
    """

    serial: int
    ttl: float
    steps: Mapping[str, tuple[bytes | None, float]]


#: A change that is written together with others.
CoordinationChange = Union[QueueReplacement, MetricsUpdate]


class CoordinationStore(ScriptCaller):
    """What is about what all do together.

    Each change is made once however often it is sent.  For that each kind of
    change is numbered for itself, so that one of them does not depend on what
    becomes of another.
    """

    @redis_call
    def enqueue_task(self, serial: int, ttl: float, task_id: str) -> bool:
        """Put a task at the end of pending, unless it is in a list already; tell whether it was put there."""
        return self._change(self._queue_call(QUEUE_ENQUEUE, "enqueue", serial, ttl, task_id)) == ["1"]

    @redis_call
    def dequeue_task(self, serial: int, ttl: float) -> str | None:
        """Move the first task from pending to processing and return its id; None if nothing is pending."""
        answer = self._change(self._queue_call(QUEUE_DEQUEUE, "dequeue", serial, ttl))
        return answer[0] if answer else None

    @redis_call
    def complete_task(self, serial: int, ttl: float, task_id: str) -> bool:
        """Take a task out of both lists; tell whether it was there."""
        return self._change(self._queue_call(QUEUE_COMPLETE, "complete", serial, ttl, task_id)) == ["1"]

    def _change(self, call: Call) -> list[str]:
        return _texts(self._run([call], publishes=True)[0])

    @redis_call
    def change_coordination(self, changes: Sequence[CoordinationChange]) -> list[list[str]]:
        """Change queue and metrics in one round trip; return of each change the counters that could not be changed."""
        calls = [
            self._replacement(change) if isinstance(change, QueueReplacement) else self._update(change)
            for change in changes
        ]
        return [_texts(answer) for answer in self._run(calls, publishes=True)]

    def _replacement(self, change: QueueReplacement) -> Call:
        lists = [part for name, ids in change.lists.items() for part in (name, len(ids), *ids)]
        return self._queue_call(QUEUE_REPLACE, "queue", change.serial, change.ttl, *lists)

    def _update(self, change: MetricsUpdate) -> Call:
        steps: list[Any] = []
        for name, (body, more) in change.steps.items():
            steps += [] if body is None else ["=", name, body]
            steps += ["+", name, repr(more)] if more or body is None else []
        keys = [self.keys.metrics, self.keys.about, self.keys.done(self.token, "metrics")]
        return METRICS_UPDATE, keys, [*self._change_args(change.serial, change.ttl), *steps]

    def _queue_call(self, script: Script, kind: str, serial: int, ttl: float, *args: Any) -> Call:
        keys = [self.keys.pending, self.keys.processing, self.keys.about, self.keys.done(self.token, kind)]
        return script, keys, [*self._change_args(serial, ttl), *args]

    def _change_args(self, serial: int, ttl: float) -> tuple[Any, ...]:
        return self.worker_id, serial, ms(ttl), self.prefix, self._together

    @redis_call
    def read_queue(self, limit: int) -> tuple[dict[str, list[str]], int]:
        """Return the ids of tasks that wait and that are at work, those that came first first.

        Also the number of the last replacement by this process, which is in it.
        """
        keys = {"pending": self.keys.pending, "processing": self.keys.processing}
        lists: dict[str, list[str]] = {name: [] for name in keys}
        done, start = None, 0
        while keys:
            pipeline = self._pipeline(None)
            for key in keys.values():
                pipeline.zrange(key, start, start + limit - 1, withscores=True)
            pipeline.get(self.keys.done(self.token, "queue"))
            *rows, last = answers_of(pipeline)
            done, start, now = done or last, start + limit, self.clock.now() * 1000
            for name, row in zip(list(keys), rows):
                ids = [task_id.decode(errors="replace") for task_id, score in row or () if expires_at(score) > now]
                lists[name] += filter(is_id, ids)
                # Behind tasks that have expired there may be others.
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
        """Return all counters, each as JSON, and the number of the last update by this process."""
        pipeline = self._pipeline(None)
        pipeline.hgetall(self.keys.metrics)
        pipeline.get(self.keys.done(self.token, "metrics"))
        counters, done = answers_of(pipeline)
        return {name.decode(errors="replace"): body for name, body in (counters or {}).items()}, serial_of(done)


def expires_at(score: float) -> float:
    """Return when a task with that score expires, in ms, 0 if it is no score; see ``store/lua/queue_score.lua``."""
    if not 0 < score < MAX_SCORE:
        return 0.0
    order, stage = divmod(int(score), 256)
    return order / 10 + 500 * 1.07 ** stage


def _texts(answer: Sequence[Any]) -> list[str]:
    """Return an answer without its first word; a second try gets as texts what the first one gets as numbers."""
    return [str(part) if type(part) is int else part.decode(errors="replace") for part in answer[1:]]
