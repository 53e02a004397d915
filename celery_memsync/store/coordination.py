"""The queue and the metrics."""
from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from ..exceptions import StoreError, StoreUnavailable
from ..keys import is_id
from ..types import QueueLists
from .errors import code_of, forgotten, redis_call, store_error
from .queue_reading import LISTS, PIECE_OF_LIST, QueueReading
from .script_caller import Call, ScriptCaller, answers_of, in_chunks, ms, raise_first
from .scripts import METRICS_UPDATE, QUEUE_COMPLETE, QUEUE_DEQUEUE, QUEUE_ENQUEUE, QUEUE_REPLACE, Script

#: How often a list is read again because it was replaced while it was read in pieces.
READ_TRIES = 20

#: Seconds for which Redis remembers a change, so that it can be tried again: SHORTEST_MEMORY in
#: ``store/lua/coordination_change.lua``, less what clocks may differ in their pace and a call may be on its way.
MEMORY = 3000.0


class QueueReplacement(NamedTuple):
    """What lists of the queue are to be.

    Attributes:
        serial: Number of the change; a second try has the same.
        ttl: Seconds that the tasks stay.
        lists: Task ids by name of the list: ``pending``, ``processing``.
        since: Monotonic time of the first try; infinite for the first.
    """

    serial: int
    ttl: float
    lists: Mapping[str, Sequence[str]]
    since: float = math.inf


class MetricsUpdate(NamedTuple):
    """What counters are set to, and what is added to counters.

    Attributes:
        serial: Number of the change; a second try has the same.
        ttl: Seconds that the counters are kept.
        steps: By counter: what it is set to, as JSON (None: it is not set), and what is added to that.
        since: Monotonic time of the first try; infinite for the first.
    """

    serial: int
    ttl: float
    steps: Mapping[str, tuple[bytes | None, float]]
    since: float = math.inf


#: A change that is written together with others.
CoordinationChange = QueueReplacement | MetricsUpdate


class CoordinationResult(NamedTuple):
    """What became of a change.

    Attributes:
        status: ``ok``; ``again``: an earlier try did it; ``error``: Redis refuses it, and nothing is done;
            ``forgotten``: an earlier try may have done it, which can't be known any more.
        answer: Counters that hold something to which nothing can be added; of an earlier try the first of them.
        code: The word by which Redis's error begins, such as ``OOM``; "" without an error.
        error: What to raise, or to log.
    """

    status: str
    answer: list[str]
    code: str = ""
    error: StoreError | None = None


class CoordinationStore(ScriptCaller):
    """What is about what all do together.

    Each change has a number, and is made once however often it is sent under
    it, whatever is changed between the tries: the numbers of one kind of change
    may be used in any order, as long as they are not more than 128 apart.
    """

    @redis_call
    def enqueue_task(self, serial: int, ttl: float, task_id: str) -> bool:
        """Put a task at the end of pending, unless it is in a list already; return whether it was put there."""
        return self._change(self._queue_call(QUEUE_ENQUEUE, "enqueue", serial, ttl, task_id)) == ["1"]

    @redis_call
    def dequeue_task(self, serial: int, ttl: float) -> str | None:
        """Move the first task from pending to processing and return its id; None if nothing is pending."""
        answer = self._change(self._queue_call(QUEUE_DEQUEUE, "dequeue", serial, ttl))
        return answer[0] if answer else None

    @redis_call
    def complete_task(self, serial: int, ttl: float, task_id: str) -> bool:
        """Take a task out of both lists; return whether it was there."""
        return self._change(self._queue_call(QUEUE_COMPLETE, "complete", serial, ttl, task_id)) == ["1"]

    def _change(self, call: Call) -> list[str]:
        answer = self._run([call], publishes=True)[0]
        if answer[0] == b"forgotten":
            raise forgotten("a call that changes the queue")
        return _texts(answer)

    @redis_call
    def change_coordination(self, changes: Sequence[CoordinationChange]) -> list[CoordinationResult]:
        """Change queue and metrics in one round trip, in the order given; what became of each change.

        Raises:
            StoreError: If Redis is away.  Then each change may have been made or not, and is tried again under its number.
        """
        latest = time.monotonic() - MEMORY
        rows = [[] if change.since < latest else list(self._calls(change)) for change in changes]
        answers = self._try([call for row in rows for call in row], publishes=True)
        # Of a cluster, that a node is away is an answer, too.
        raise_first([answer for answer in answers if not isinstance(answer, redis.ResponseError)])
        rest = iter(answers)
        return [_result([next(rest) for _ in row]) for row in rows]

    def _calls(self, change: CoordinationChange) -> Iterator[Call]:
        if isinstance(change, MetricsUpdate):
            yield self._update(change)
            return
        lists = {name: list(dict.fromkeys(ids)) for name, ids in change.lists.items()}
        if sum(map(len, lists.values())) > PIECE_OF_LIST:
            for name, ids in lists.items():
                for piece in in_chunks(ids, PIECE_OF_LIST):
                    yield self._replacement(change, False, [(name, len(ids), piece)])
            yield self._replacement(change, True, [(name, len(ids), []) for name, ids in lists.items()])
        else:
            yield self._replacement(change, True, [(name, len(ids), ids) for name, ids in lists.items()])

    def _replacement(self, change: QueueReplacement, last: bool, parts: Iterable[tuple[str, int, Sequence[str]]]) -> Call:
        """Return a call that adds to new lists, and if it is the last one puts them in their place."""
        words = [word for name, size, ids in parts for word in (name, size, len(ids), *ids)]
        script, keys, args = self._queue_call(QUEUE_REPLACE, "queue", change.serial, change.ttl, int(last), *words)
        return script, [*keys, *(self.keys.new_list(self.token, change.serial, name) for name in LISTS)], args

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
    def read_queue(self, limit: int) -> QueueLists:
        """Return the ids of pending and of running tasks, in the order in which they came.

        A queue that is replaced meanwhile is read anew, so that it is the old or the new one.

        Args:
            limit: Most ids of each list.
        """
        for _ in range(READ_TRIES):
            reading = QueueReading(limit)
            while reading.parts and reading.is_whole:
                self._read_pieces(reading)
            if reading.is_whole:
                return reading.lists()
        raise StoreUnavailable("The queue could not be read as a whole: it was replaced again and again while it was read")

    def _read_pieces(self, reading: QueueReading) -> None:
        pipeline = self._pipeline()
        for name, part in reading.parts.items():
            key = self.keys.pending if name == "pending" else self.keys.processing
            pipeline.zrangebyscore(key, part.score, "+inf", part.seen, reading.size, withscores=True)
        pipeline.hget(self.keys.about, "replaced")
        *pieces, replaced = self._answers(pipeline)
        reading.take(pieces, replaced, self.clock.now() * 1000)

    @redis_call
    def read_queue_position(self, task_id: str) -> int | None:
        """Return before how many others a task waits, counted from 0, in all queues together; None if it does not."""
        pipeline = self._pipeline()
        pipeline.zrank(self.keys.pending, task_id)
        (rank,) = answers_of(pipeline)
        return None if rank is None else int(rank)

    @redis_call
    def scan_processing(self, cursor: int) -> tuple[int, list[str]]:
        """Return ids of running tasks, a part of them at a time, some perhaps twice.

        Args:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and the ids.
        """
        after, names = self._scan(self.keys.processing, cursor)
        return after, list(filter(is_id, names))

    @redis_call
    def read_metrics(self) -> dict[str, bytes]:
        """Return all counters, each as JSON."""
        pipeline = self._pipeline()
        pipeline.hgetall(self.keys.metrics)
        (counters,) = answers_of(pipeline)
        return {name.decode(errors="replace"): body for name, body in (counters or {}).items()}


def _result(answers: Sequence[Any]) -> CoordinationResult:
    """Return what became of a change that was sent in one or several calls, the last of which makes it; none: too late."""
    for answer in answers:
        if isinstance(answer, Exception):
            return CoordinationResult("error", [], code_of(answer), store_error("change coordination", answer))
    status = answers[-1][0].decode() if answers else "forgotten"
    if status == "forgotten":
        return CoordinationResult(status, [], "", forgotten("a change of queue or metrics"))
    return CoordinationResult(status, _texts(answers[-1]))


def _texts(answer: Sequence[Any]) -> list[str]:
    """Return an answer without its first word; a second try gets as texts what the first one gets as numbers."""
    return [str(part) if type(part) is int else part.decode(errors="replace") for part in answer[1:]]
