"""Reads the locks that any process holds."""
from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..exceptions import StoreRefused
from ..models.entry import StoredEntry
from ..models.lock import LockRecord, lease_length
from ..store import LockRequest, Store
from ..store.clock import UNNOTICED


class LockReader:
    """Reads locks, their holders and their waiters from Redis."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def held(self) -> list[LockRecord]:
        """Return all locks that are held, sorted by name."""
        names = sorted(self.store.read_held_locks())
        rows, now = self._read(names), self.store.clock.now()
        records = (LockRecord.of(name, stored, now, waiters)
                   for name, (stored, waiters) in zip(names, rows) if stored is not None)
        return [record for record in records if record is not None]

    def record(self, name: str) -> LockRecord | None:
        """Return the record of a held lock, or None if it is free."""
        ((stored, waiters),) = self._read([name])
        return None if stored is None else LockRecord.of(name, stored, self.store.clock.now(), waiters)

    def _read(self, names: Sequence[str]) -> list[tuple[StoredEntry | None, int]]:
        """Return locks as they are stored; cut leases that end too late, because Redis's clock was set back."""
        rows, now = self.store.read_locks(names), self.store.clock.now()
        cut = [LockRequest(self.store.keys.lock_location(name), "-", lease_length(stored), "-", b"")
               for name, (stored, _) in zip(names, rows)
               if stored is not None and not stored.deleted
               and stored.header.expires_at / 1000 - now > lease_length(stored) + UNNOTICED]
        with contextlib.suppress(StoreRefused):  # a user of Redis that may not write reads them as they are
            self.store.renew_locks(cut)
        return rows

    def awaited(self, task_id: str) -> LockRecord | None:
        """Return the record of the lock for which a task is waiting, or None if it waits for none."""
        held = [record for record in self.held() if record.waiters]
        for record, waiting in zip(held, self.store.read_waiters([record.name for record in held])):
            if any(isinstance(one.value, dict) and one.value.get("task_id") == task_id for one in waiting):
                return record
        return None
