"""What Redis does for us: each method is one round trip, and nothing else talks to Redis."""
from __future__ import annotations

import time
from collections import deque
from itertools import count
from typing import Any, Mapping, NamedTuple, Sequence, TypeVar

import redis

from .clock import Clock
from .connections import MAX_IDLE, Announcements, Ear, Source, Wires, ask_apart, packed, redis_call
from .exceptions import StoreError
from .keys import COORDINATION, FORMER, SLOTS, Keys, Place
from .records import WAITING, Header, Stored
from .rights import missing, probes
from .scripts import (COORDINATION_RESTORE, COORDINATION_WRITE, ENTRY_RESTORE, ENTRY_WRITE, LOCK_PASS, LOCK_RENEW,
                      LOSS_RENEW, WORKER_BEAT, Script)

#: Writes in one script call: a hundred hold Redis for a quarter of a millisecond.
SCRIPT_SIZE = 100

#: Entries of earlier runs that are kept of a task.
MAX_FORMER = 12

#: How often Redis is asked for its time at first, and the error in seconds that is good enough.
CLOCK_TRIES = 3
CLOCK_ERROR = 0.001

#: Names of the counters by the first digit of the rank of the stage that is counted.
TALLIES = ("", "", "", "lost", "retried", "failed", "revoked", "ignored", "skipped", "succeeded")

#: Seconds that replicas may take to get what the master has.
REPLICA_TIMEOUT = 1.0

#: Names that Redis looks at in one round trip of a search through a sorted set.
NAMES_AT_ONCE = 1000

#: Most of those who wait for one lock that are looked at.
MAX_WAITERS = 100

#: Locks of which is remembered how they are spelled.
MAX_LOCK_WORDS = 1000

K = TypeVar("K")


class EntryWrite(NamedTuple):
    """One write as the script takes it; see ``lua/entry_write.lua``.

    Attributes:
        place: Where it goes.
        seen: What the writer saw: ``"<version>@<ms>"`` or ``"<version>"``;
            ``"*"``: whatever is there; ``"run"``: run and rank decide.
        serial: Its number in this process; a second try has the same.
        figure: Of a stage: when its task was published, or how long its run took; see there.
    """

    place: Place
    seen: str
    run: str
    rank: str
    fence: int
    time: int
    ttl_ms: int
    serial: int
    body: bytes
    figure: int = 0


class Outcome(NamedTuple):
    """What became of one write.

    Attributes:
        status: ``ok``, ``again`` (it was stored by an earlier try), ``kept``
            (what is there is further along), ``conflict``, ``fenced`` or ``error``.
        version: The version that is stored now.
        stored: With ``conflict``: what is stored.
        error: With ``error``: what Redis said.
        stored_at: With ``ok``: when Redis took it, in milliseconds.
    """

    status: str
    version: int = 0
    stored: Stored | None = None
    error: str = ""
    stored_at: int = 0


class Saved(NamedTuple):
    """An entry that is to be put back; see ``lua/entry_restore.lua``.

    Attributes:
        place: Where it goes.
        stored: What was stored there.
        left: Seconds that it lives from now on.
        former: Whether an earlier run of its task told it.
        published: Of a stage: when the task was published, in seconds; 0 if that is not known.
        due: Of a heartbeat: seconds from now after which its worker is lost unless it beats; negative: when it was lost,
            or has said goodbye, in seconds of Redis's clock.  None: it is no heartbeat.
    """

    place: Place
    stored: Stored
    left: float
    former: bool = False
    published: float = 0.0
    due: float | None = None


class LockAsk(NamedTuple):
    """Who asks for a lock; see ``lua/lock_pass.lua``.

    Attributes:
        place: Where the lock is kept.
        holder: Names one acquisition: a second try has the same.
        ttl: Its lease, in seconds.
        run: Id of the run of a task that asks; "-" for none.
        body: What readers are to know of who holds it, as JSON.
        channel: Where who waits hears that it is its turn; "-" for who does not wait.
    """

    place: Place
    holder: str
    ttl: float
    run: str
    body: bytes
    channel: str = "-"


class LockAnswer(NamedTuple):
    """What became of asking.

    Attributes:
        status: ``ok`` (it is the holder's), ``busy`` or ``lost``.
        fence: Of this acquisition, or with ``busy`` of the present one.
        lease: Seconds until the holder's lease ends, whoever that is.
        stored: With ``busy``: the lock as it is stored.
    """

    status: str
    fence: int = 0
    lease: float = 0.0
    stored: Stored | None = None


class Task(NamedTuple):
    """All that is stored of a task.

    Attributes:
        slots: What Celery's signals told, what users told, how far it is; by slot.
        former: Entries of earlier runs, oldest first, by slot.
        agents: What agents share, by agent id.
    """

    slots: dict[int, Stored]
    former: dict[int, list[Stored]]
    agents: dict[str, Stored]


class Loss(NamedTuple):
    """A worker that was silent for too long, and of whose tasks this process is to tell.

    Attributes:
        name: What Redis calls the loss.
        token: Of the worker's process.
        worker_id: Its name, which another process may have by now.
        at: When it was lost, in seconds of Redis's clock.
        score: What Redis knows the lease by.
        until: Monotonic time until when nobody else does so.
    """

    name: bytes
    token: str
    worker_id: str
    at: float
    score: bytes
    until: float

    @property
    def fresh(self) -> bool:
        """Whether the loss itself is to be told, too."""
        return self.score.startswith(b"-")

    @classmethod
    def parse(cls, name: bytes, score: bytes, until: float) -> Loss:
        """Read what ``lua/worker_beat.lua`` answers."""
        token, at, worker_id = name.decode(errors="replace").split(" ", 2)
        return cls(name, token, worker_id, int(at) / 1000, score, until)


class Beat(NamedTuple):
    """What Redis says to a beat.

    Attributes:
        word: ``ok``, ``online`` (this worker was not there) or ``back`` (it was called lost, or had said goodbye).
        at: When Redis heard it, in seconds of Redis's clock.
        since: Since when this worker has beaten without a gap.
        workers: How many there are.
        losses: What this worker is to tell of.
    """

    word: str
    at: float
    since: float
    workers: int
    losses: tuple[Loss, ...] = ()


class Store:
    """The shared memory in one Redis.

    Arguments:
        client: Of redis-py.
        keys: The keys of one namespace.
        worker_id: Who writes.
        token: Eight letters and digits that no other process has; with a
            write's serial they make the id of the write.
        default_ttl: Seconds that index entries live.
    """

    def __init__(
        self, client: Any, keys: Keys, worker_id: str, token: str, default_ttl: float,
    ) -> None:
        self.keys = keys
        self.clock = Clock()
        self.worker_id = worker_id
        self.token = token
        self._client = client
        #: What is the same in all that is sent of a lock, by its key.
        self._lock_words: dict[str, bytes] = {}
        self._ears: deque[Ear] = deque()
        self._ear_numbers = count(1)
        self._horizon = ms(default_ttl)
        #: Put before a path to make its channel: channels know no database numbers.
        self.prefix = f"{self._prepare(client)}:"
        self._together = keys.full(COORDINATION) + "/"

    def _prepare(self, client: Any) -> int:
        """Make what is kept beside the client; return the number of its database."""
        self._wires = Wires(client)
        return client.connection_pool.connection_kwargs.get("db") or 0

    @property
    def redis(self) -> Any:
        """The client of redis-py; Redis's time is known once it is used."""
        if not self.clock.measured:
            for _ in range(CLOCK_TRIES):
                self._learn_time(self._client)
                if self.clock.error < CLOCK_ERROR:
                    break
        return self._client

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._wires.close()
        while self._ears:
            self._ears.pop().close()
        self._client.close()
        self._client.connection_pool.disconnect()

    def twin(self, token: str) -> Store:
        """Return a store that writes under a token of its own, for a second writer in this process."""
        twin = type(self)(self._client, self.keys, self.worker_id, token, self._horizon / 1000)
        twin.clock = self.clock
        return twin

    # -- entries

    @redis_call
    def write_entries(self, writes: Sequence[EntryWrite]) -> list[Outcome]:
        """Store, version and tell entries; what each came to, in the same order."""
        if not writes:
            return []
        calls = [
            self._entry_call(writes[start:start + SCRIPT_SIZE])
            for start in range(0, len(writes), SCRIPT_SIZE)
        ]
        asked = time.monotonic()
        outcomes: list[Outcome] = []
        for answer in self._run(ENTRY_WRITE, calls, tells=True):
            outcomes.extend(outcomes_of(answer))
        if len(outcomes) != len(writes):
            raise ValueError("not every write is answered")
        self._learn(answer[0], answer[1], asked)
        return outcomes

    @redis_call
    def read_entries(self, places: Sequence[Place], source: Source | None = None) -> list[Stored | None]:
        """Return entries, None for what is not there; those that are deleted or over have a version still.

        Arguments:
            source: The connection to ask over.  None: any.
        """
        pages = dict.fromkeys(place.key for place in places if place.slot)
        fields = [place for place in places if not place.slot]
        pipeline = self._pipeline(source)
        for key in pages:
            pipeline.get(key)
        for place in fields:
            pipeline.hget(place.key, place.field)
        answers = _answers(pipeline) if places else []
        by_page = {key: _split_page(page) for key, page in zip(pages, answers)}
        by_field = dict(zip(fields, answers[len(pages):]))
        return [
            _parse(_slot_of(by_page[place.key], place.slot) if place.slot else by_field[place])
            for place in places
        ]

    def _pipeline(self, source: Source | None) -> Any:
        client = self.redis
        return client.pipeline(transaction=False) if source is None else source.pipeline()

    @redis_call
    def connect(self) -> None:
        """Learn Redis's time, unless it is known."""
        self.redis

    @redis_call
    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        self._learn_time(self._client)

    @redis_call
    def server_info(self) -> dict[str, Any]:
        """Return what Redis tells of itself (INFO), {} if its user may not ask."""
        try:
            return dict(self.redis.info())
        except redis.exceptions.NoPermissionError:
            return {}

    @redis_call
    def missing_rights(self) -> list[str]:
        """Return what this user may not do of what is needed: commands, ``keys``, ``channels``; see :mod:`.rights`."""
        asked = probes(self.keys.scratch, self.prefix + self.keys.scratch)
        answers = ask_apart(self._node(), [probe.command for probe in asked])
        return sorted({
            missing(probe.right, str(answer)) for probe, answer in zip(asked, answers)
            if isinstance(answer, redis.exceptions.NoPermissionError)})

    def _node(self) -> Any:
        """Return the client of one server."""
        return self._client

    # -- tasks

    @redis_call
    def read_tasks(
        self, task_ids: Sequence[str], agents: bool = False, source: Source | None = None,
    ) -> list[Task]:
        """Return all that is stored of tasks; what their agents share only if asked for."""
        pipeline = self._pipeline(source)
        for task_id in task_ids:
            pipeline.get(self.keys.task(task_id))
            if agents:
                pipeline.hgetall(self.keys.agents(task_id))
        answers = _answers(pipeline) if task_ids else []
        pages = answers[::2] if agents else answers
        shared: Sequence[dict[bytes, bytes] | None] = answers[1::2] if agents else [{}] * len(pages)
        return [self._task(_split_page(page), fields) for page, fields in zip(pages, shared)]

    def _task(self, texts: list[bytes], fields: dict[bytes, bytes] | None) -> Task:
        slots = {slot: _parse(_slot_of(texts, slot)) for slot in range(1, SLOTS + 1)}
        former: dict[int, list[Stored]] = {}
        for text in texts[SLOTS:]:
            mark, _, rest = text.partition(FORMER)
            stored = _parse(rest)
            if stored is not None and mark.isdigit() and not stored.gone(self.clock.now()):
                former.setdefault(int(mark), []).append(stored)
        for row in former.values():
            row.sort(key=lambda stored: stored.header.run)
        agents = {name.decode(errors="replace"): _parse(text) for name, text in (fields or {}).items()}
        return Task(self._present(slots), former, self._present(agents))

    @redis_call
    def recent_tasks(self, limit: int, before: str = "+", since: float | None = None) -> list[tuple[str, str]]:
        """Return ids of tasks, newest first.

        Arguments:
            limit: Most ids to return.
            before: Position up to which to look, from an earlier answer.
            since: When the first of them was told of, in seconds of Redis's clock.  None: however long ago.

        Returns:
            Pairs of position and task id; an id may come twice.
        """
        after = "-" if since is None else str(max(0, int(since * 1000)))
        rows = self.redis.xrevrange(self.keys.task_index, before, after, limit)
        return [(position.decode(), item.get(b"id", b"").decode(errors="replace")) for position, item in rows]

    # -- workers

    @redis_call
    def beat_worker(
        self, worker_id: str, body: bytes, ttl: float, leaving: bool = False, *,
        silence: float | None = None, since: float = 0.0, until: float = 0.0,
    ) -> Beat:
        """Store what a worker tells of itself, or its goodbye; take on what is to be told of those that are lost.

        Arguments:
            ttl: Seconds that anything of a silent worker is kept.
            silence: Seconds without a beat after which this one is lost, and another goes on with what it was to
                tell.  None: half of ``ttl``.
            since: From the answer before: since when it has beaten without a gap.
            until: When it would be a gap, in seconds of Redis's clock.
        """
        asked = time.monotonic()
        silence = ttl / 2 if silence is None else silence
        place = self.keys.worker_place(worker_id, "heartbeat")
        args = [worker_id, self.token, self.prefix + place.path, int(leaving), ms(self.clock.now()), ms(ttl),
                ms(silence), round(since * 1000), round(until * 1000), body]
        answer = self._run(WORKER_BEAT, [([self.keys.workers, self.keys.beats, self.keys.lost], args)])[0]
        word, _, seconds, micros, steady, workers, *told = answer
        self._learn(seconds, micros, asked)
        losses = tuple(Loss.parse(name, score, asked + silence) for name, score in zip(told[::2], told[1::2]))
        return Beat(word.decode(), seconds + micros / 1e6, int(steady) / 1000, workers, losses)

    @redis_call
    def renew_losses(self, losses: Sequence[Loss], lease: float) -> list[Loss]:
        """Note that losses were told of, and go on with them for ``lease`` seconds; return those that are ours still."""
        asked = time.monotonic()
        scores = self._renew(losses, ms(lease))
        return [loss._replace(score=score, until=asked + lease) for loss, score in zip(losses, scores) if score]

    @redis_call
    def close_losses(self, losses: Sequence[Loss]) -> None:
        """Note that nothing is left to do about losses, if they are ours still."""
        self._renew(losses, 0)

    def _renew(self, losses: Sequence[Loss], lease_ms: int) -> list[bytes]:
        if not losses:
            return []
        args = [lease_ms, *(part for loss in losses for part in (loss.name, loss.score))]
        return self._run(LOSS_RENEW, [([self.keys.lost], args)])[0][1:]

    @redis_call
    def keep_messages(self, token: str, messages: Mapping[str, bytes | None], ttl: float) -> None:
        """Keep the messages of a worker's tasks by run, and forget those that are None.

        Arguments:
            token: Of the worker's process.
            ttl: Seconds that all of them are kept from now on.
        """
        key = self.keys.messages(token)
        pipeline = self._pipeline(None)
        for run, body in messages.items():
            if body is None:
                pipeline.hdel(key, run)
            else:
                pipeline.hset(key, run, body)
        pipeline.pexpire(key, ms(ttl))
        _answers(pipeline)

    @redis_call
    def read_messages(self, token: str) -> dict[str, bytes]:
        """Return the messages that are kept of a worker's tasks, by run."""
        return {run.decode(errors="replace"): body for run, body in self.redis.hgetall(self.keys.messages(token)).items()}

    @redis_call
    def read_workers(self) -> dict[str, Stored]:
        """Return all that is told of workers, by ``<worker_id>/<thing>``."""
        rows = self.redis.hgetall(self.keys.workers).items()
        return self._present({name.decode(errors="replace"): _parse(text) for name, text in rows})

    def _present(self, entries: Mapping[K, Stored | None]) -> dict[K, Stored]:
        now = self.clock.now()
        return {name: stored for name, stored in entries.items() if stored is not None and not stored.gone(now)}

    # -- what all do together

    @redis_call
    def change_coordination(self, lane: str, changes: Sequence[tuple[int, float, Sequence[Any]]]) -> list[list[str]]:
        """Change the queue or the metrics, each change once however often it is sent.

        Arguments:
            lane: Changes of one lane of a process come one after the other.
            changes: Serial number, seconds to keep what is told, what to do; see ``lua/coordination_write.lua``.

        Returns:
            The answers of each, as texts.
        """
        keys = self.keys
        names = [keys.pending, keys.processing, keys.metrics, keys.about, keys.done(self.token, lane)]
        calls = [
            (names, [self.worker_id, serial, ms(ttl), self.prefix, self._together, *what])
            for serial, ttl, what in changes
        ]
        answers = self._run(COORDINATION_WRITE, calls, tells=True)
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
            *rows, last = _answers(pipeline)
            done, start, now = done or last, start + limit, self.clock.now() * 1000
            for name, row in zip(list(keys), rows):
                lists[name] += [task_id.decode(errors="replace") for task_id, place in row or () if over_at(place) > now]
                # Of tasks that are over others may be behind.
                if len(row or ()) < limit or len(lists[name]) >= limit:
                    del keys[name]
        return {name: ids[:limit] for name, ids in lists.items()}, _serial(done)

    @redis_call
    def queue_position(self, task_id: str) -> int | None:
        """Return before how many others a task waits, counted from 0, in all queues together; None if it does not."""
        pipeline = self._pipeline(None)
        pipeline.zrank(self.keys.pending, task_id)
        (rank,) = _answers(pipeline)
        return None if rank is None else int(rank)

    @redis_call
    def scan_processing(self, cursor: int) -> tuple[int, list[str]]:
        """Return ids of tasks at work, a part of them at a time, some perhaps twice.

        Arguments:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and the ids.
        """
        return self._scan(self.keys.processing, cursor)

    @redis_call
    def read_metrics(self) -> tuple[dict[str, bytes], int]:
        """Return all counters, each as JSON, and the number of the last change as :meth:`read_queue`."""
        pipeline = self._pipeline(None)
        pipeline.hgetall(self.keys.metrics)
        pipeline.get(self.keys.done(self.token, "told"))
        counters, done = _answers(pipeline)
        return {name.decode(errors="replace"): body for name, body in (counters or {}).items()}, _serial(done)

    # -- locks

    @redis_call
    def take_lock(self, ask: LockAsk) -> LockAnswer:
        """Take a lock if it is free and nobody waits for it."""
        return _lock_answer(self._pass_lock("take", ask))

    @redis_call
    def wait_for_lock(self, ask: LockAsk) -> LockAnswer:
        """Take a lock, or stand in the queue, where one's place is kept, and hear on the channel when it is one's turn."""
        return _lock_answer(self._pass_lock("wait", ask))

    @redis_call
    def leave_lock(self, ask: LockAsk) -> bool:
        """Give a lock back, or leave its queue; tell whether it was held until now."""
        return bool(self._pass_lock("leave", ask).startswith(b"ok"))

    @redis_call
    def free_lock(self, place: Place, fence: int) -> bool:
        """Give a lock back for whoever holds it; False if nobody holds it with that fence."""
        return self._pass_lock("free", LockAsk(place, str(fence), 1.0, "-", b"")).startswith(b"ok")

    @redis_call
    def read_waiters(self, names: Sequence[str]) -> list[list[Stored]]:
        """Return of locks what is told of those who wait, each as the lock would be told if it were theirs.

        Of many waiters those are left out who came after the first :data:`MAX_WAITERS`.
        """
        pipeline = self._pipeline(None)
        for name in names:
            pipeline.lrange(self.keys.lock_place(name).key + "/queue/", 0, MAX_WAITERS - 1)
        return [_waiters(rows or ()) for rows in (_answers(pipeline) if names else ())]

    def _pass_lock(self, what: str, ask: LockAsk) -> bytes:
        key = ask.place.key
        begin = self._lock_words.get(key)
        if begin is None:
            if len(self._lock_words) >= MAX_LOCK_WORDS:
                self._lock_words.clear()
            begin = self._lock_words[key] = packed(
                3, key, key + "/queue/", self.keys.locks, ask.place.path, self.prefix, self.worker_id)
        words = begin + packed(what, ask.holder, ms(ask.ttl), ask.run, ask.body, ask.channel)
        answer: bytes = self._run_quickly(LOCK_PASS, 13, words)
        return answer

    @redis_call
    def renew_locks(self, asks: Sequence[LockAsk], replicas: int = 0) -> list[bool]:
        """Let leases begin anew; tell of each lock whether it was still held.

        Arguments:
            replicas: How many replicas of Redis must have taken note.

        Raises:
            StoreError: Also if fewer have within :data:`REPLICA_TIMEOUT`.
        """
        calls = []
        for start in range(0, len(asks), SCRIPT_SIZE):
            keys, args = renewal(asks[start:start + SCRIPT_SIZE])
            calls.append(([*keys, self.keys.locks], args))
        if not calls:
            return []
        answers = self._run(LOCK_RENEW, calls, replicas=replicas)
        return [bool(held) for answer in answers for held in answer]

    @redis_call
    def held_locks(self) -> list[str]:
        """Return the names of all locks whose lease is not over."""
        client = self.redis
        paths = client.zrangebyscore(self.keys.locks, f"({self.clock.now() * 1000:.0f}", "+inf")
        names = (self.keys.lock_name(path.decode(errors="replace")) for path in paths)
        return [name for name in names if name is not None]

    @redis_call
    def read_locks(self, names: Sequence[str]) -> list[tuple[Stored | None, int]]:
        """Return locks as they are stored, and how many wait for each."""
        pipeline = self._pipeline(None)
        for name in names:
            key = self.keys.lock_place(name).key
            pipeline.get(key)
            pipeline.llen(key + "/queue/")
        answers = _answers(pipeline) if names else []
        return [(_parse(text), waiters or 0) for text, waiters in zip(answers[::2], answers[1::2])]

    @redis_call
    def borrow_ear(self, place: Place) -> Ear:
        """Return a connection on which to hear that it is one's turn; it is to be given back, or closed.

        Arguments:
            place: Where the lock is kept.
        """
        try:
            return self._ears.pop()
        except IndexError:
            return Ear(self._client, self._turn())

    def _turn(self) -> str:
        return self.prefix + self.keys.turn(self.token, next(self._ear_numbers))

    def give_back_ear(self, ear: Ear) -> None:
        """Take a connection back that is not broken."""
        if len(self._ears) < MAX_IDLE:
            self._ears.append(ear)
        else:
            ear.close()

    # -- searching

    @redis_call
    def find_names(self, pattern: str, cursor: int) -> tuple[int, list[str]]:
        """Return users' keys whose paths match a pattern, a part of them at a time.

        Arguments:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and paths, some perhaps twice, some of keys that are gone.
        """
        return self._scan(self.keys.names, cursor, pattern)

    def _scan(self, key: str, cursor: int, pattern: str | None = None) -> tuple[int, list[str]]:
        pipeline = self._pipeline(None)
        pipeline.zscan(key, cursor, pattern, NAMES_AT_ONCE)
        (answer,) = _answers(pipeline)
        after, rows = answer or (0, [])
        return int(after), [name.decode(errors="replace") for name, _ in rows]

    # -- moving

    @redis_call
    def first_tasks(self, limit: int, after: str, until: float) -> list[tuple[str, str]]:
        """Return ids of tasks, oldest first, as :meth:`recent_tasks` has them.

        Arguments:
            after: Position behind which to look, from an earlier answer; "" to begin.
            until: Redis's time, in seconds: those first written later are left out.
        """
        rows = self.redis.xrange(self.keys.task_index, f"({after}" if after else "-", f"{until * 1000:.0f}", limit)
        return [(position.decode(), item.get(b"id", b"").decode(errors="replace")) for position, item in rows]

    @redis_call
    def scan_list(self, name: str, cursor: int) -> tuple[int, list[tuple[str, float, float]]]:
        """Return a part of a list of the queue: task ids, when they came, when they are over, in seconds.

        Arguments:
            name: ``"pending"`` or ``"processing"``.
            cursor: As :meth:`scan_processing` has it.
        """
        pipeline = self._pipeline(None)
        pipeline.zscan({"pending": self.keys.pending, "processing": self.keys.processing}[name], cursor, None, NAMES_AT_ONCE)
        (answer,) = _answers(pipeline)
        after, rows = answer or (0, [])
        return int(after), [
            (task_id.decode(errors="replace"), int(place) // 256 / 1e4, over_at(place) / 1000) for task_id, place in rows]

    @redis_call
    def restore_entries(self, entries: Sequence[Saved]) -> list[Outcome]:
        """Put entries back unless newer ones are there: ``ok``, ``same``, ``newer`` or ``error`` for each."""
        own = self.keys
        calls = []
        for start in range(0, len(entries), SCRIPT_SIZE):
            chunk = entries[start:start + SCRIPT_SIZE]
            keys = [one.place.key for one in chunk]
            keys += (own.task_index, own.names, own.pending, own.processing, own.about, own.beats)
            args: list[Any] = [len(chunk), self._horizon, SLOTS, MAX_FORMER, self.prefix, self._together]
            for place, stored, left, former, published, due in chunk:
                header = stored.header
                args += (f"{place.slot}@" if former else place.where, place.path, place.task_id, header.version, header.run,
                         header.rank, header.fence, header.time, ms(left), header.writes, header.worker_id,
                         round(published * 1e4) if header.rank in WAITING else 0,
                         "-" if due is None else round(due * 1000), stored.body)
            calls.append((keys, args))
        answers = self._run(ENTRY_RESTORE, calls, tells=True) if calls else []
        return [_restored(one) for answer in answers for one in answer[2:]]

    @redis_call
    def restore_together(self, thing: str, header: Header, left: float, rest: Sequence[Any]) -> Outcome:
        """Put a part of the queue or of the metrics back, as :meth:`restore_entries`.

        Arguments:
            rest: As ``lua/coordination_restore.lua`` has it.
        """
        own = self.keys
        args = [thing, header.version, header.time, ms(left), header.worker_id, self.prefix, self._together, *rest]
        names = [own.pending, own.processing, own.metrics, own.about]
        return _restored(self._run(COORDINATION_RESTORE, [(names, args)], tells=True)[0])

    # -- hearing

    @redis_call
    def listen(self) -> Announcements:
        """Return a connection on which Redis speaks unasked; it is not open yet."""
        return Announcements(self._client)

    def source(self, redirect: int) -> Source:
        """Return a connection whose reads Redis remembers, to tell another one when they are old.

        Arguments:
            redirect: Redis's id of that other one.
        """
        return Source(self._client, redirect)

    # -- how scripts are called

    def _entry_call(self, writes: Sequence[EntryWrite]) -> tuple[list[str], list[Any]]:
        keys = [write.place.key for write in writes]
        args: list[Any] = [
            len(writes), self.worker_id, self.token, self._horizon, SLOTS, MAX_FORMER,
            self.prefix, self._together, "".join(name + "," for name in TALLIES),
        ]
        for (_, slot, field, path, task_id), seen, run, rank, fence, time_ms, ttl_ms, serial, body, figure in writes:
            where = slot or ":" + field
            # One text: eleven arguments take three times as long.
            known = f"{where}\n{path}\n{task_id}\n{seen} {run} {rank} {fence} {time_ms} {ttl_ms} {serial} {figure}"
            args += (known, body)
        return [*keys, *self._shared_keys()], args

    def _shared_keys(self) -> tuple[str, ...]:
        """Return the keys of what follows from entries."""
        own = self.keys
        return own.task_index, own.names, own.pending, own.processing, own.metrics, own.about

    def _run(
        self, script: Script, calls: Sequence[tuple[list[str], list[Any]]], tells: bool = False, replicas: int = 0,
    ) -> list[list[Any]]:
        """Run a script several times in one round trip; teach Redis the script if it has forgotten it.

        Arguments:
            tells: Whether others are to be told of what it does before it is answered.
            replicas: How many replicas must have what it does before it is answered.
        """
        answers = self._try(script, calls, tells, replicas)
        raise_first(answers)
        return answers

    def _try(
        self, script: Script, calls: Sequence[tuple[list[str], list[Any]]], tells: bool = False, replicas: int = 0,
    ) -> list[Any]:
        """Return the answers of a script; an error is one."""
        answers = self._send(script.sha, calls, tells, replicas)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            self.redis.script_load(script.text)
            for at, answer in zip(unknown, self._send(script.sha, [calls[at] for at in unknown], tells, replicas)):
                answers[at] = answer
        return answers

    def _run_quickly(self, script: Script, count: int, words: bytes) -> Any:
        """Run a script for somebody who waits for it.

        Arguments:
            words: ``count`` words as they are sent: number of keys, keys, arguments.
        """
        command = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n%b" % (count + 2, script.sha.encode(), words)
        try:
            return self._wires.call(command)
        except redis.exceptions.NoScriptError:
            self.redis.script_load(script.text)
            return self._wires.call(command)

    def _send(
        self, sha: str, calls: Sequence[tuple[list[str], list[Any]]], tells: bool, replicas: int = 0,
    ) -> list[Any]:
        if len(calls) == 1 and not tells and not replicas:
            (keys, args), = calls
            try:
                return [self.redis.execute_command("EVALSHA", sha, len(keys), *keys, *args)]
            except redis.exceptions.NoScriptError as exc:
                return [exc]
        pipeline = self.redis.pipeline(transaction=False)
        if tells:
            # Redis sends what it has to say last to who had something to hear first: so whoever is told that a copy is
            # old has been told when the caller has his answer.
            pipeline.ping()
        for keys, args in calls:
            pipeline.execute_command("EVALSHA", sha, len(keys), *keys, *args)
        if replicas:
            pipeline.execute_command("WAIT", replicas, ms(REPLICA_TIMEOUT))
        answers: list[Any] = pipeline.execute(raise_on_error=False)[tells:]
        if replicas:
            _check_replicas(answers.pop(), replicas)
        return answers

    def _learn_time(self, client: Any) -> None:
        client.ping()  # to connect is no part of the round trip that is measured
        asked = time.monotonic()
        seconds, micros = client.time()
        self._learn(seconds, micros, asked)

    def _learn(self, seconds: int, micros: int, asked: float) -> None:
        self.clock.learn(int(seconds) + int(micros) / 1e6, asked, time.monotonic())


def renewal(asks: Sequence[LockAsk]) -> tuple[list[str], list[Any]]:
    """Return keys and arguments for ``lua/lock_renew.lua``, without the index."""
    args: list[Any] = [len(asks)]
    for ask in asks:
        args += (ask.holder, ask.place.path, ms(ask.ttl))
    return [ask.place.key for ask in asks], args


def raise_first(answers: Sequence[Any]) -> None:
    """Raise the first answer that is an error."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _check_replicas(answer: Any, wanted: int) -> None:
    if isinstance(answer, Exception):
        raise answer
    if int(answer) < wanted:
        raise StoreError(
            f"{int(answer)} replicas of Redis have taken note of a lock in time, and memsync_lock_replicas asks for "
            f"{wanted}; see whether they are there, and keep up")


def _parse(text: bytes | None) -> Stored | None:
    """Return an entry; foreign data reads as nothing."""
    if not text:
        return None
    try:
        return Stored.parse(text)
    except ValueError:
        return None


def _answers(pipeline: Any) -> list[Any]:
    """Return what reads in one round trip gave; what is of another type than ours reads as nothing."""
    answers = pipeline.execute(raise_on_error=False)
    for i, answer in enumerate(answers):
        if isinstance(answer, redis.ResponseError) and "WRONGTYPE" in str(answer):
            answers[i] = None
        elif isinstance(answer, Exception):
            raise answer
    return list(answers)


def _serial(done: bytes | None) -> int:
    serial = (done or b"").partition(b" ")[0]
    return int(serial) if serial.isdigit() else 0


def _split_page(page: bytes | None) -> list[bytes]:
    """Return the entries of a page, empty for empty slots; every entry is two lines."""
    lines = page.split(b"\n") if page else []
    return [b"\n".join(lines[i:i + 2]).strip(b"\n") for i in range(0, len(lines), 2)]


def _slot_of(texts: list[bytes], slot: int) -> bytes | None:
    return texts[slot - 1] if slot <= len(texts) else None


def over_at(place: float) -> float:
    """Return when a place in a list is over, in ms; see ``lua/places.lua``."""
    order, life = divmod(int(place), 256)
    return order / 10 + 500 * 1.07 ** life


def ms(seconds: float) -> int:
    """Return seconds as the whole milliseconds that Redis takes, at least one."""
    return max(1, round(seconds * 1000))


def _lock_answer(answer: bytes) -> LockAnswer:
    words, _, text = answer.partition(b"\n")
    status, fence, left = words.split()
    return LockAnswer(status.decode(), int(fence), int(left) / 1000, _parse(text))


def _restored(answer: Sequence[Any]) -> Outcome:
    status = answer[0].decode()
    return Outcome(status, error=answer[1].decode()) if status == "error" else Outcome(status, answer[1])


def outcomes_of(answer: Sequence[Any]) -> list[Outcome]:
    """Read what ``lua/entry_write.lua`` answers to one call."""
    taken_at = int(answer[0]) * 1000 + int(answer[1]) // 1000
    return [_outcome(one, taken_at) for one in answer[2:]]


def _waiters(rows: Sequence[bytes]) -> list[Stored]:
    """Read the queue of a lock, see ``lua/lock_pass.lua``; what is something else is left out."""
    found = []
    for row in rows:
        words, _, body = row.partition(b"\n")
        parts = words.split(b" ", 4)
        if len(parts) == 5:
            holder, lease_ms, _, run, worker_id = parts
            header = b" ".join((b"0", run, b"- 0 0", lease_ms, b"0", holder, worker_id))
            found.append(_parse(header + b"\n" + body))
    return [stored for stored in found if stored is not None]


def _outcome(answer: Any, taken_at: int) -> Outcome:
    if isinstance(answer, int):
        return Outcome("ok", answer, stored_at=taken_at)
    status = answer[0].decode()
    if status == "error":
        return Outcome("error", error=answer[1].decode())
    if status == "conflict":
        try:
            return Outcome("conflict", answer[1], Stored.parse(answer[2]) if len(answer) > 2 and answer[2] else None)
        except ValueError:
            return Outcome("error", error="what is stored is no entry")
    return Outcome(status, answer[1])
