"""Workers: their heartbeats, those that are lost, and the messages that they keep."""
from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis

from ..keys import is_id
from ..models import formats
from ..models.entry import StoredEntry
from .clock import UNNOTICED
from .errors import redis_call
from .script_caller import SCRIPT_SIZE, ScriptCaller, answers_of, in_chunks, ms, stored_of
from .scripts import HEARTBEAT_CUT, HEARTBEAT_WRITE, LOST_WORKER_CLAIM

#: Messages that Redis returns in one round trip, about; each may have ``memsync_max_value_size`` bytes.
MESSAGES_PER_SCAN = 50


class LostWorkerClaim(NamedTuple):
    """A worker without heartbeats for too long, whose tasks this process is to record.

    Attributes:
        name: What Redis calls the loss.
        token: Of the worker's process.
        worker_id: Its name, which another process may have by now.
        at: When it was lost, in seconds of Redis's clock.
        score: What Redis knows the lease by.
        until: Monotonic time until when no other process does so.
    """

    name: bytes
    token: str
    worker_id: str
    at: float
    score: bytes
    until: float

    @property
    def fresh(self) -> bool:
        """Whether the loss itself is to be reported, too."""
        return self.score.startswith(b"-")

    @classmethod
    def parse(cls, name: bytes, score: bytes, until: float) -> LostWorkerClaim:
        """Read what ``store/lua/heartbeat_write.lua`` answers; it has checked the name."""
        token, at, worker_id = name.decode(errors="replace").split(" ", 2)
        return cls(name, token, worker_id, int(at) / 1000, score, until)


class HeartbeatReply(NamedTuple):
    """The reply to a heartbeat.

    Attributes:
        status: ``ok``, ``online`` (this worker was not there) or ``back`` (it was lost or offline).
        at: Time of the heartbeat, in seconds of Redis's clock.
        since: Since when this worker has sent heartbeats without a gap.
        workers: How many there are.
        score: What Redis keeps of this heartbeat, in milliseconds.
        run_id: Redis's run id; "" if this user may not read it.
        went_back: Whether Redis may lack what it had at the heartbeat before.
        losses: The lost workers that this worker is to report.
        version: How often the record under its name was written, by whatever process.
    """

    status: str
    at: float
    since: float
    workers: int
    score: int = 0
    run_id: str = ""
    went_back: bool = False
    losses: tuple[LostWorkerClaim, ...] = ()
    version: int = 0


#: Stands for the answer before the first heartbeat.
FIRST_HEARTBEAT = HeartbeatReply("", 0.0, 0.0, 0)


class WorkerStore(ScriptCaller):
    """What is about workers."""

    @redis_call
    def write_heartbeat(
        self, worker_id: str, body: bytes, ttl: float, leaving: bool = False, *,
        timeout: float | None = None, last: HeartbeatReply = FIRST_HEARTBEAT, until: float = 0.0, pulse: str = "-",
    ) -> HeartbeatReply:
        """Store a worker's record, or that it leaves; take on the reports of lost workers.

        Args:
            ttl: Seconds that anything of a worker without heartbeats is kept.
            timeout: Seconds without a heartbeat after which this one is lost, and another goes on with what it was to
                report.  None: half of ``ttl``.
            last: The answer before.
            until: When it would be a gap, in seconds of Redis's clock.
            pulse: Shows readers whether it is alive, as :meth:`~celery_memsync.models.worker.WorkerRecord.pulse` does.
        """
        asked = time.monotonic()
        timeout = ttl / 2 if timeout is None else timeout
        location = self.keys.worker_location(worker_id, "heartbeat")
        args = [worker_id, self.token, self.prefix + location.path, int(leaving), ms(ttl), ms(timeout),
                round(last.since * 1000), round(until * 1000), pulse, body, last.score, last.run_id, formats.FORMAT]
        keys = [self.keys.workers, self.keys.heartbeats, self.keys.lost, self.keys.formats, self.keys.worker_totals]
        answer = self._run([(HEARTBEAT_WRITE, keys, args)])[0]
        status, version, seconds, micros, steady, workers, score, run_id, went_back, lowest, *claims = answer
        self.format.note(lowest)
        self._sync_clock(seconds, micros, asked)
        losses = tuple(LostWorkerClaim.parse(name, its_score, asked + timeout)
                       for name, its_score in zip(claims[::2], claims[1::2]))
        return HeartbeatReply(status.decode(), seconds + micros / 1e6, int(steady) / 1000, workers, int(score),
                              run_id.decode(), bool(went_back), losses, version)

    @redis_call
    def is_worker_lost(self, token: str, worker_id: str) -> bool:
        """Return whether a process that was a worker is lost, or went offline; see ``store/lua/heartbeat_write.lua``."""
        pipeline = self._pipeline()
        pipeline.zscore(self.keys.heartbeats, f"{token} {worker_id}")
        (score,) = answers_of(pipeline)
        return score is not None and score < 0

    @redis_call
    def read_worker_processes(self) -> dict[str, int]:
        """Return how many live processes each worker id has; more than one: they have the same name."""
        now = round(self.clock.now() * 1000)
        pipeline = self._pipeline()
        pipeline.zrangebyscore(self.keys.heartbeats, now, "+inf")
        (members,) = answers_of(pipeline)
        names = (member.decode(errors="replace").partition(" ")[2] for member in members or ())
        return dict(Counter(filter(is_id, names)))

    @redis_call
    def renew_losses(self, losses: Sequence[LostWorkerClaim], lease: float) -> list[LostWorkerClaim]:
        """Note that losses were reported, and go on with them for ``lease`` seconds; return those that are ours still."""
        asked = time.monotonic()
        scores = self._renew(losses, ms(lease))
        return [loss._replace(score=score, until=asked + lease) for loss, score in zip(losses, scores) if score]

    @redis_call
    def close_losses(self, losses: Sequence[LostWorkerClaim]) -> None:
        """Note that nothing is left to do about losses, if they are ours still."""
        self._renew(losses, 0)

    def _renew(self, losses: Sequence[LostWorkerClaim], lease_ms: int) -> list[bytes]:
        if not losses:
            return []
        args = [lease_ms, *(part for loss in losses for part in (loss.name, loss.score))]
        return self._run([(LOST_WORKER_CLAIM, [self.keys.lost], args)])[0][1:]

    @redis_call
    def keep_messages(self, token: str, messages: Mapping[str, bytes | None], ttl: float) -> None:
        """Keep the messages of a worker's tasks by run, and delete those that are None.

        Args:
            token: Of the worker's process.
            ttl: Seconds that all of them are kept from now on.
        """
        key = self.keys.messages(token)
        answers = answers_of(self._messages_pipeline(key, messages, ttl))
        if None in answers:  # foreign data of another type is there
            pipeline = self._pipeline()
            pipeline.delete(key)
            answers_of(pipeline)
            answers_of(self._messages_pipeline(key, messages, ttl))

    def _messages_pipeline(self, key: str, messages: Mapping[str, bytes | None], ttl: float) -> Any:
        pipeline = self._pipeline()
        for run, body in messages.items():
            name = run.encode(errors="surrogateescape")
            if body is None:
                pipeline.hdel(key, name)
            else:
                pipeline.hset(key, name, body)
        pipeline.pexpire(key, ms(ttl))
        return pipeline

    @redis_call
    def read_messages(self, token: str, cursor: int = 0) -> tuple[int, dict[str, bytes]]:
        """Return a part of the messages that are kept of a worker's tasks, by run.

        Args:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and messages, some perhaps twice.
        """
        pipeline = self._pipeline()
        pipeline.hscan(self.keys.messages(token), cursor, None, MESSAGES_PER_SCAN)
        (answer,) = answers_of(pipeline)
        after, rows = answer or (0, {})
        return int(after), {run.decode(errors="surrogateescape"): body for run, body in rows.items()}

    @redis_call
    def read_workers(self) -> dict[str, StoredEntry]:
        """Return all records of workers, by ``<worker_id>/<thing>``, be it readable or not.

        What is of a time still to come, because Redis's clock was set back, counts from now on: if no worker is left
        to see to it, the last ones would seem to be alive until the clock has caught up.
        """
        pipeline = self._reads()
        pipeline.hgetall(self.keys.workers)
        (rows,), now = self._answers(pipeline), self.clock.now()
        claims = {name: stored_of(text) for name, text in (rows or {}).items()}
        self._cut_times([name for name, stored in claims.items()
                         if stored is not None and stored.header.time > (now + UNNOTICED) * 1000])
        named = ((name.decode(errors="replace"), stored) for name, stored in claims.items())
        return {name: stored for name, stored in named
                if stored is not None and not stored.ended(now) and is_id(name.rpartition("/")[0])}

    def _cut_times(self, names: Sequence[bytes]) -> None:
        with contextlib.suppress(redis.ResponseError):  # who may not write sees them as they are
            self._run([(HEARTBEAT_CUT, [self.keys.workers], chunk) for chunk in in_chunks(names, SCRIPT_SIZE)])
