"""Entries: written, read and found."""
from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from ..exceptions import StoreUnavailable
from ..keys import SLOTS, Location
from ..models.entry import UNWRITTEN, EntryVersion, StoredEntry
from ..models.statistics import OUTCOMES, RunCounts
from .errors import PASSING, UNANSWERED, UNREACHABLE, code_in, code_of, is_lost, is_of_all, redis_call
from .pool import noted
from .push import TrackedConnection
from .script_caller import CLOCK_AGE, SCRIPT_SIZE, Call, ScriptCaller, in_chunks, ms, read_by, stored_of
from .scripts import ENTRY_PUBLISH, ENTRY_WRITE
from .statistics import NO_COUNTS, CountedLines

#: Entries of earlier runs that are kept of a task.
MAX_RUNS = 12

#: Entries of which is remembered that they could not be published.
MAX_UNPUBLISHED = 10_000

#: Code of an outcome that is stored and could not be published.
UNPUBLISHED = "UNPUBLISHED"

#: Names of the counters by the first digit of the rank of the stage that is counted.
COUNTERS = ("", "", "", *OUTCOMES)


class EntryWrite(NamedTuple):
    """One write as the script takes it; see ``store/lua/entry_write.lua``.

    Attributes:
        location: Where it goes.
        run: Its run key, see :mod:`celery_memsync.models.order`; "": the run that is stored; "-": none.
        seen: What the writer saw: ``"<version>@<ms>"`` or ``"<version>"``;
            ``"*"``: whatever is there; ``"run"``: run and rank decide.
        at: Monotonic time when it was made.
        serial: Its number in this process; a second try has the same.
        figure: Of a stage: when its task was published, or how long its run took; see there.
        parts: Of a stage: groups and workflows, and what is to be noted there, see ``store/lua/members.lua``.
        counts: Of a stage: what it adds to the statistics of its task.
    """

    location: Location
    seen: str
    run: str
    rank: str
    fence: int
    at: float
    ttl_ms: int
    serial: int
    body: bytes
    figure: int = 0
    parts: tuple[tuple[str, str], ...] = ()
    counts: RunCounts | None = None


class WriteResult(NamedTuple):
    """What became of one write.

    Attributes:
        status: ``ok``, ``again`` (it was stored by an earlier try), ``kept``
            (what is there is further along), ``conflict``, ``fenced`` or ``error``.
        version: The version that is stored now.
        stored: With ``conflict``: what is stored.
        error: With ``error``: what Redis said.
        stamp: With ``ok``: as which state of the entry it is stored, see ``store/lua/hybrid_clock.lua``.
        code: With ``error``: the first word of Redis's error, such as ``OOM``; "" if something else is stored there.
        writes: With ``again``: ids of the last writes, as in :class:`~celery_memsync.models.entry.Header`.
        is_later_run: With ``conflict``: whether the write is of a later run of the task than what is stored.
        maybe_done: With ``error``: whether it may be stored all the same.
        is_of_node: With ``error``: whether one node of a cluster takes no write at all, while others do.
    """

    status: str
    version: int = 0
    stored: StoredEntry | None = None
    error: str = ""
    stamp: EntryVersion = UNWRITTEN
    code: str = ""
    writes: str = ""
    is_later_run: bool = False
    maybe_done: bool = False
    is_of_node: bool = False

    @property
    def passes(self) -> bool:
        """Whether Redis may take later what it refuses now."""
        return self.code in PASSING

    @property
    def is_of_all(self) -> bool:
        """Whether Redis takes no write at all just now."""
        return not self.is_of_node and is_of_all(self.code, self.error)


class EntryStore(ScriptCaller):
    """What is about entries."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Places of entries that are stored and could not be published.
        self._unpublished: dict[Location, None] = {}
        #: Whether failures are counted by exception.
        self.counts_exceptions = False

    @redis_call
    def write_entries(self, writes: Iterable[EntryWrite], repeated: bool = False) -> list[WriteResult]:
        """Store, version and publish entries; what each came to, in the same order.

        What Redis refuses is an outcome, and keeps nothing else from being written.

        Args:
            writes: Read while Redis executes those before.
            repeated: Whether what is not written is sent again soon, so that it need not be waited for.
        """
        chunks: list[list[EntryWrite]] = []
        calls = map(self._entry_call, noted(in_chunks(writes, SCRIPT_SIZE), chunks))
        asked = time.monotonic()
        answers = self._try(calls, publishes=True)
        outcomes = [outcome for chunk, answer in zip(chunks, answers) for outcome in self._outcomes(chunk, answer)]
        if answers and not isinstance(answers[-1], Exception):
            self._sync_clock(answers[-1][0], answers[-1][1], asked)
        return outcomes

    def _outcomes(self, writes: Sequence[EntryWrite], answer: Any) -> list[WriteResult]:
        """Return what writes of one call came to.

        Args:
            answer: To that call.  If Redis has refused it, each write has a call of its own: so the others are made.
        """
        if not isinstance(answer, Exception):
            return self._read_answer(writes, answer)
        if not code_of(answer) or is_lost(answer):
            raise answer
        refusal = WriteResult("error", error=str(answer), code=code_of(answer))
        if len(writes) == 1 or refusal.is_of_all and refusal.code != "TRYAGAIN":
            return [refusal] * len(writes)
        answers = self._try([self._entry_call([write]) for write in writes], publishes=True)
        return [outcome for write, one in zip(writes, answers) for outcome in self._outcomes([write], one)]

    def _read_answer(self, writes: Sequence[EntryWrite], answer: Sequence[Any]) -> list[WriteResult]:
        """Return what one call answers."""
        outcomes = outcomes_of(answer)
        if len(outcomes) != len(writes):
            raise ValueError("not every write is answered")
        if len(answer) > 3:
            self._note_unpublished(writes, outcomes)
        return outcomes

    def _note_unpublished(self, writes: Sequence[EntryWrite], outcomes: Sequence[WriteResult]) -> None:
        for write, outcome in zip(writes, outcomes):
            if outcome.code == UNPUBLISHED and len(self._unpublished) < MAX_UNPUBLISHED:
                self._unpublished[write.location] = None

    @property
    def unpublished(self) -> int:
        """How many entries are stored and could not be published, for this user has lost a right."""
        return len(self._unpublished)

    @redis_call
    def publish_again(self) -> None:
        """Publish some of them, as they are stored by now; keep the others for later."""
        locations = list(self._unpublished)[:SCRIPT_SIZE]
        # If the first one may not be published, no other may.
        if locations and self._publish(locations[:1]):
            self._publish(locations[1:])

    def _publish(self, locations: Sequence[Location]) -> bool:
        """Publish entries, and return whether that is allowed."""
        answers = self._try([
            (ENTRY_PUBLISH, [location.key], [self.prefix, location.slot_or_field, location.path]) for location in locations])
        for location, answer in zip(locations, answers):
            if isinstance(answer, Exception) and not code_of(answer):
                raise answer
            # One that may not even be read is given up.
            if answer != 0:
                self._unpublished.pop(location, None)
        return answers[:1] != [0]

    def _entry_call(self, writes: Sequence[EntryWrite]) -> Call:
        ahead = self.clock.at(0.0)  # of the monotonic clock; taken once, for another thread may correct it
        keys: list[str] = []
        args: list[Any] = [
            len(writes), self.worker_id, self.token, self._index_ttl, SLOTS, MAX_RUNS,
            self.prefix, self._together, "".join(name + "," for name in COUNTERS), ms(time.monotonic() + ahead), "", "",
        ]
        lines = CountedLines(self.counts_exceptions)
        #: Numbers of words, by what they are made of.
        words: dict[tuple[Any, ...], int] = {}
        serials: list[str] = []
        for (key, slot, field, path, task_id), seen, run, rank, fence, at, ttl_ms, serial, body, figure, _, counts in writes:
            keys.append(key)
            args.append(body)
            given = (round((at + ahead) * 1000), slot, field, "" if path == key else path, task_id, seen, run, rank, fence,
                     ttl_ms, figure, NO_COUNTS if counts is None else lines.words(counts))
            serials.append(f"{serial} {words.setdefault(given, len(words) + 1)} ")
        args[10:12] = lines.text(), "".join(serials)
        args.append(len(words))
        for time_ms, slot, field, path, task_id, seen, run, rank, fence, ttl_ms, figure, counted in words:
            args.append(f"{time_ms}\n{slot or ':' + field}\n{path}\n{task_id}\n"
                        f"{seen} {run} {rank} {fence} {ttl_ms} {figure} {counted}")
        sets = self._member_sets(writes)
        args += ["\n".join((key, *members)) for key, members in sets.items()]
        shared = self._shared_keys()
        if shared:
            shared = *shared, self.keys.clock, *sets, *lines.keys(self.keys.statistics)
        return ENTRY_WRITE, [*keys, *shared], args

    def _member_sets(self, writes: Sequence[EntryWrite]) -> dict[str, dict[str, None]]:
        """Return what is to be noted of the tasks of groups and workflows, by the key of each."""
        sets: dict[str, dict[str, None]] = {}
        for group_id, line in [part for write in writes for part in write.parts]:
            sets.setdefault(self.keys.members(group_id), {})[line] = None
        return sets

    def _shared_keys(self) -> tuple[str, ...]:
        """Return the keys of what follows from entries."""
        own = self.keys
        return own.task_index, own.names, own.pending, own.processing, own.metrics, own.about, own.statistics

    @redis_call
    def read_entries(
        self, locations: Sequence[Location], source: TrackedConnection | None = None,
    ) -> list[StoredEntry | None]:
        """Return entries, None for what is not there; those that are deleted or over have a version still.

        Args:
            source: The connection to ask over.  None: any.
        """
        pages = dict.fromkeys(location.key for location in locations if location.slot)
        fields = [location for location in locations if not location.slot]
        pipeline = self._reads(source)
        for key in pages:
            pipeline.get(key)
        for location in fields:
            pipeline.hget(location.key, location.field)
        answers = self._answers(pipeline) if locations else []
        by_page = {key: split_page(page) for key, page in zip(pages, answers)}
        by_field = dict(zip(fields, answers[len(pages):]))
        return [
            self._stored(
                location.key, slot_of(by_page[location.key], location.slot) if location.slot else by_field[location])
            for location in locations
        ]

    @redis_call
    def read_entry(self, location: Location, source: TrackedConnection | None = None) -> StoredEntry | None:
        """Return the entry of a key of a user's own; see :meth:`read_entries`, of which this is the shortest way."""
        if source is None or self.clock.age > CLOCK_AGE:
            return self.read_entries([location], source)[0]
        entries = split_page(read_by(source.get(location.key)))
        return stored_of(entries[0]) if entries else None

    @redis_call
    def find_names(self, pattern: str, cursor: int) -> tuple[int, list[str]]:
        """Return users' keys whose paths match a pattern, a part of them at a time.

        Args:
            cursor: From the answer before; 0 to begin.

        Returns:
            The cursor to go on with, 0 at the end, and paths, some perhaps twice, some of keys that are gone.
        """
        return self._scan(self.keys.names, cursor, pattern)


def split_page(page: bytes | None) -> list[bytes]:
    """Return the entries of a page, empty for empty slots; every entry is two lines."""
    if not page or page.count(b"\n") == 1:
        return [page] if page else []
    lines = page.split(b"\n")
    return [b"\n".join(lines[i:i + 2]).strip(b"\n") for i in range(0, len(lines), 2)]


def slot_of(texts: list[bytes], slot: int) -> bytes | None:
    """Return the entry of a slot of a page that was split, None if the page is shorter."""
    return texts[slot - 1] if slot <= len(texts) else None


def raise_unanswered(outcomes: Iterable[WriteResult]) -> None:
    """Raise if a node of a cluster has given no answer to one of several writes."""
    for outcome in outcomes:
        if outcome.code in (UNANSWERED, UNREACHABLE):
            raise StoreUnavailable(f"A node of the cluster gave no answer ({outcome.error})", outcome.maybe_done)


def outcomes_of(answer: Sequence[Any]) -> list[WriteResult]:
    """Read what ``store/lua/entry_write.lua`` answers to one call."""
    taken_at = int(answer[0]) * 1000 + int(answer[1]) // 1000
    others = iter(answer[3:])
    stored = lru_cache(partial(_stored, taken_at))  # many are the first version
    return [stored(version) if version else _outcome(next(others)) for version in answer[2].split(b",")]


def _stored(taken_at: int, text: bytes) -> WriteResult:
    version, _, stored_at = text.partition(b"@")
    return WriteResult("ok", int(version), stamp=EntryVersion(int(stored_at or taken_at), int(version)))


def _outcome(answer: Any) -> WriteResult:
    status = answer[0].decode()
    if status == "error":
        text = answer[1].decode(errors="replace")
        return WriteResult("error", error=text, code=code_in(text))
    if status == "unpublished":
        return WriteResult("ok", answer[1], stamp=EntryVersion(int(answer[2]), answer[1]), code=UNPUBLISHED)
    if status == "again":
        return WriteResult("again", answer[1], writes=answer[2].decode(errors="replace"))
    if status == "conflict":
        try:
            stored = StoredEntry.parse(answer[2]) if len(answer) > 2 and answer[2] else None
            return WriteResult("conflict", answer[1], stored, is_later_run=len(answer) > 3)
        except ValueError:
            return WriteResult("error", error="what is stored is no entry")
    return WriteResult(status, answer[1])
