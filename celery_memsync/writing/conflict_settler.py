"""What becomes of a change of an entry that another process has changed meanwhile."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from .. import encoding
from ..conflicts import Resolution, Resolvers
from ..models.entry import Entry, StoredEntry
from ..models.order import rank_of
from ..store.clock import UNNOTICED, Clock
from .changes import Change, MergeFields, SetValue

logger = logging.getLogger(__name__)

#: Seconds between two times that are distinguished.
MOMENT = 0.001

#: The details of the event ``conflict-resolved``: key, strategy, entries, and the values that are not in the result.
Conflict = dict[str, Any]


class Dispute(NamedTuple):
    """A conflict that a resolver has to settle.

    Attributes:
        resolve: Calls the resolver.  Returns what is to be written, or the conflict if nothing is.
        is_quick: Whether that is one of ours, and not a function of the user's, which may do anything.
    """

    resolve: Callable[[], Change | Conflict]
    is_quick: bool


class ConflictSettler:
    """Settles conflicts: by the resolver of the key what can be merged, else by time.

    Args:
        worker_id: Who writes.
        max_value_size: Largest value that a resolver may make, in bytes.
    """

    def __init__(self, clock: Clock, worker_id: str, resolvers: Resolvers, max_value_size: int) -> None:
        self.clock = clock
        self.worker_id = worker_id
        self.resolvers = resolvers
        self.max_value_size = max_value_size

    def settle(
        self, change: Change, stored: StoredEntry, before: Mapping[str, bytes],
    ) -> Change | Conflict | Dispute:
        """Return what is to be written over what another process has stored.

        Args:
            before: The fields that the writer of the change knew of.

        Returns:
            A change; a conflict, if nothing is to be written; or what is left to a resolver.
        """
        stored = self._not_ahead(stored, change)
        if isinstance(change, MergeFields):
            return self._settle_fields(change, stored, before, change.base.fields if change.base else {})
        if not isinstance(change, SetValue):
            return change
        if change.body and not stored.deleted:
            return self._dispute(change, partial(self._resolve_value, change, stored))
        return self._keep_later(change, stored)

    def _not_ahead(self, stored: StoredEntry, change: Change) -> StoredEntry:
        """Return an entry; as earlier than a change, if its time is still to come: Redis's clock was set back since."""
        header = stored.header
        if header.time <= (self.clock.now() + UNNOTICED) * 1000:
            return stored
        earlier = max(0, round(self.clock.at(change.at) * 1000) - 1)
        return StoredEntry(header._replace(time=earlier, lag=header.lag + header.time - earlier), stored.body)

    def _dispute(self, change: Change, resolve: Callable[[], Change | Conflict]) -> Dispute:
        return Dispute(resolve, self.resolvers.is_ours(change.location.path))

    def _recorded_at(self, change: SetValue, stored: StoredEntry) -> float:
        """Return the monotonic time of a change; a higher fence is later than what is stored, whatever the clocks say."""
        if change.fence <= stored.header.fence:
            return change.at
        return max(change.at, self.clock.monotonic(stored.header.time / 1000) + MOMENT)

    def _resolve_value(self, change: SetValue, stored: StoredEntry) -> Change | Conflict:
        resolved, conflict = self._resolve(change, stored, encoding.decode(change.body), self._recorded_at(change, stored))
        body = change.body if resolved is None else resolved
        if body == stored.body:
            return conflict
        settled = SetValue(change.location, body, change.ttl, change.fence)
        settled.seen = stored.header.stamp
        settled.at = max(change.at, self.clock.monotonic(stored.header.time / 1000))
        settled.conflict = conflict
        return settled

    def _keep_later(self, change: SetValue, stored: StoredEntry) -> Change | Conflict:
        """Let the later of a deletion and a value win: there is nothing that could be merged."""
        key, at = change.location.path, self.clock.at(self._recorded_at(change, stored))
        if stored.deleted and (not change.body or round(at * 1000) >= stored.header.time):
            return change  # what is gone is no conflict
        value = encoding.decode(change.body) if change.body else None
        old = stored.entry(key, None if stored.deleted else stored.value)
        new = Entry(key, value, old.version + 1, round(at, 3), self.worker_id, change.ttl)
        later = round(at, 3) >= old.timestamp
        conflict = {"key": key, "strategy": "last_write_wins", "entries": [old, new],
                    "discarded": [old.value if later else new.value]}
        if later:
            change.conflict = conflict
            return change
        return conflict

    def _settle_fields(
        self, change: MergeFields, stored: StoredEntry, base: Mapping[str, bytes], theirs: dict[str, bytes],
    ) -> Change | Dispute:
        """Let the resolver settle the fields that both have changed; the others are merged anyway."""
        mine = change.merged(theirs)
        disputed = {
            name for name in change.fields
            if name in theirs and mine[name] != theirs[name]
            and theirs[name] not in (base.get(name), *change.sent.get(name, ()))
            and not (name == "status" and _differ_in_rank(mine[name], theirs[name]))
        }
        if not disputed:
            return change
        return self._dispute(change, partial(self._resolve_fields, change, stored, mine, theirs, disputed))

    def _resolve_fields(
        self, change: MergeFields, stored: StoredEntry, mine: dict[str, bytes], theirs: dict[str, bytes],
        disputed: set[str],
    ) -> Change | Conflict:
        # The time of the entry is that of its last write, which may have been of another field.  So it does not decide:
        # to the resolver these fields come later, and where the last write wins, they do.  Of one moment the worker's id
        # would decide.
        stored_at = self.clock.monotonic(stored.header.time / 1000)
        recorded_at = max(stored_at + MOMENT, *(change.recorded_at[name] for name in disputed))
        value = encoding.decode(encoding.join_fields(mine))
        body, conflict = self._resolve(change, stored, value, recorded_at)
        fields = change.fields
        if body is not None:
            # What the resolver left as it is stored is not written: it may have changed by then.
            undisputed = {name: text for name, text in fields.items() if name not in disputed}
            resolved = {name: text for name, text in encoding.split_fields(body).items() if theirs.get(name) != text}
            fields = {**resolved, **undisputed}
        if not fields:
            return conflict
        settled = MergeFields(change.location, fields, change.ttl, change.fence, change.run_key)
        settled.at = change.at
        settled.recorded_at = {name: change.recorded_at.get(name, recorded_at) for name in fields}
        settled.late = True
        settled.base = change.base
        settled.conflict = conflict
        return settled

    def _resolve(
        self, change: Change, stored: StoredEntry, value: Any, recorded_at: float,
    ) -> tuple[bytes | None, Conflict]:
        """Return what the resolver makes of what is stored and a value to come, None if it fails; and what to report."""
        key = change.location.path
        timestamp = round(self.clock.at(recorded_at), 3)
        incoming = Entry(key, value, stored.header.version + 1, timestamp, self.worker_id, change.ttl)
        entries = [stored.entry(key), incoming]
        body = None
        try:
            resolution = self.resolvers.settle(key, entries)
            if isinstance(change, MergeFields) and not isinstance(resolution.resolved, dict):
                raise TypeError("the fields of a state are resolved to a dict")
            body = encoding.encode(resolution.resolved, key, self.max_value_size)
        except BaseException as exc:  # the user's function may raise anything
            logger.warning("The resolver of %s raised %s; the incoming write is kept", key, type(exc).__name__)
            resolution = Resolution(value, f"failed: {type(exc).__name__}", [entries[0].value])
        return body, {"key": key, "strategy": resolution.strategy, "entries": entries, "discarded": resolution.discarded}


def _differ_in_rank(one: bytes, other: bytes) -> bool:
    """Whether one of two statuses, each as JSON, is a later stage than the other."""
    return rank_of(encoding.decode(one)) != rank_of(encoding.decode(other))
