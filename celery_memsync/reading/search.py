"""Find entries by pattern, by way of the indexes."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from ..exceptions import InvalidKey
from ..globs import GLOB_LETTERS, is_glob, matcher
from ..keys import AGENTS, COORDINATION, METRICS, PROGRESS, QUEUE, STATE, Location
from ..models.entry import Entry
from .projections import entry_of
from .reader import READ_AT_ONCE, Parts, Reader


class Search:
    """Finds the entries of one namespace; no key of Redis is found by going through all of them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.store = reader.store
        self.writer = reader.writer
        self.keys = reader.keys

    def search(self, pattern: str, limit: int) -> list[str]:
        """Return paths that match a pattern, sorted; what this process has written is sent first."""
        self.reader.send_pending()
        now = self.store.clock.now()
        found: set[str] = set()
        for location, parts in self.survey(pattern):
            if len(found) >= limit:
                break
            if entry_of(location, parts, now) is not None:
                found.add(location.path)
        return sorted(found)[:limit]

    def iter_entries(self, pattern: str) -> Iterator[Entry]:
        """Yield the entries whose paths match a pattern, as Redis has them now."""
        for location, parts in self.survey(pattern):
            entry = self.reader.whole_entry(location, parts, self.store.clock.now())
            if entry is not None:
                self.reader.shown(location, parts)
                yield entry

    def survey(self, pattern: str) -> Iterator[tuple[Location, Parts]]:
        """Yield the places whose paths match, each once, and their parts, as Redis has them now.

        Nothing goes through all keys of Redis: tasks and users' keys are found
        by their indexes.
        """
        if not is_glob(pattern):
            yield from self._survey_paths([pattern])
            return
        root = self.keys.full("x")[:-1]
        fixed = pattern[:min(at for letter in GLOB_LETTERS if (at := pattern.find(letter)) >= 0)]
        tasks = f"{root}tasks/"
        task_ids: set[str] = set()
        if _may_meet(fixed, tasks):
            yield from self._survey_tasks(pattern, fixed[len(tasks):], tasks, task_ids)
        if _may_meet(fixed, f"{root}workers/"):
            yield from self._survey_workers(pattern)
        if _may_meet(fixed, f"{root}{COORDINATION}/"):
            things = [self.keys.coordination_location(thing) for thing in (QUEUE, METRICS)]
            yield from self._survey_locations([location for location in things if matcher(pattern)(location.path)])
        yield from self._survey_names(pattern, task_ids)

    def _survey_tasks(
        self, pattern: str, begin: str, tasks: str, known_ids: set[str],
    ) -> Iterator[tuple[Location, Parts]]:
        matches = matcher(pattern)
        agents = _may_meet(begin.partition("/")[2], AGENTS)
        task_id, slash, _ = begin.partition("/")
        if slash:
            known_ids.add(task_id)
        ids = iter([task_id]) if slash else self._task_ids(known_ids)
        while chunk := list(islice(ids, READ_AT_ONCE)):
            locations = [self.keys.task_location(task_id, slot) for task_id in chunk for slot in (STATE, PROGRESS)]
            yield from self._survey_locations([location for location in locations if matches(location.path)])
            for task_id, task in zip(chunk, self.store.read_tasks(chunk, agents=True) if agents else ()):
                for agent_id, stored in task.agents.items():
                    path = f"{tasks}{task_id}/{AGENTS}{agent_id}"
                    if matches(path):
                        yield Location(self.keys.agents(task_id), 0, agent_id, path, task_id), {0: stored}

    def _task_ids(self, known: set[str]) -> Iterator[str]:
        before: str | None = "+"
        while before:
            recent, before = self.store.read_recent_tasks(READ_AT_ONCE * 5, before)
            for task_id in recent:
                if task_id not in known:
                    known.add(task_id)
                    yield task_id

    def _survey_workers(self, pattern: str) -> Iterator[tuple[Location, Parts]]:
        matches = matcher(pattern)
        for field, stored in self.store.read_workers().items():
            worker_id, _, thing = field.rpartition("/")
            location = self.keys.worker_location(worker_id, thing)
            if matches(location.path):
                yield location, {0: stored}

    def _survey_names(self, pattern: str, task_ids: set[str]) -> Iterator[tuple[Location, Parts]]:
        known: set[str] = set()
        cursor = 0
        while True:
            cursor, names = self.store.find_names(pattern, cursor)
            new = [name for name in dict.fromkeys(names) if name not in known]
            known.update(new)
            for at in range(0, len(new), READ_AT_ONCE):
                for location, parts in self._survey_paths(new[at:at + READ_AT_ONCE]):
                    # Entries of a task that outlive the index of tasks are in both indexes.
                    if not location.task_id or location.task_id not in task_ids:
                        yield location, parts
            if not cursor:
                return

    def _survey_paths(self, paths: Sequence[str]) -> Iterator[tuple[Location, Parts]]:
        locations, foreign = [], []
        for path in paths:
            try:
                locations.append(self.keys.location(path))
            except InvalidKey:
                foreign.append(path)
        self.store.remove_names(self.keys.names, foreign)
        return self._survey_locations(locations)

    def _survey_locations(self, locations: Sequence[Location]) -> Iterator[tuple[Location, Parts]]:
        for location, parts in self.reader.stored_parts(locations).items():
            if any(stored is not None for stored in parts.values()):
                yield location, parts


def _may_meet(fixed: str, start: str) -> bool:
    """Whether a path that begins with one text may begin with the other."""
    return fixed.startswith(start) or start.startswith(fixed)
