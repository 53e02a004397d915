"""Workers: their heartbeats, what was recorded of them by hand, and which tasks they have."""
from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from .. import encoding
from ..deadline import bounded
from ..keys import ASSIGNMENTS, check_id, is_id
from ..models.entry import StoredEntry
from ..models.worker import GONE, WorkerRecord
from ..reading.projections import active_workers, worker_record, worker_records
from ..writing.changes import MergeFields
from .checks import check_assignments
from .entry_records import EntryRecords


class WorkerRecords:
    """Writes and reads what is recorded of workers.

    Args:
        worker_id: Name of this process.
    """

    def __init__(self, entries: EntryRecords, worker_id: str) -> None:
        self.entries = entries
        self.settings = entries.settings
        self.timeout = entries.timeout
        self.keys = entries.keys
        self.reader = entries.reader
        self.worker_id = worker_id

    # -- write

    def set(self, worker_id: str, thing: str, value: Any) -> None:
        """Record something of a worker by hand: its ``status``, or its ``capacity``."""
        self.entries.set(self.keys.worker_location(check_id(worker_id, "worker"), thing), value, owned=True)

    def record_heartbeat(self) -> None:
        """Record that this process is alive."""
        record = WorkerRecord(self.worker_id, hostname=socket.gethostname(), pid=os.getpid())
        self.entries.set(self.keys.worker_location(self.worker_id, "heartbeat"), record.as_dict(), owned=True)

    def set_assignments(self, assignments: Mapping[str, Iterable[str]]) -> None:
        """Record which tasks workers have."""
        settings, location = self.settings, self.keys.coordination_location(ASSIGNMENTS)
        fields = encoding.encode_fields(check_assignments(assignments), location.path, settings.max_value_size)
        self.entries.writer.put(MergeFields(location, fields, settings.default_ttl))

    # -- read

    @bounded
    def status(self, worker_id: str) -> Any:
        """Return the status of a worker that was recorded by hand, else its last heartbeat, or None."""
        by_hand, record = self._of(worker_id, "status")
        return by_hand if by_hand is not None else record.as_dict() if record is not None else None

    @bounded
    def capacity(self, worker_id: str) -> Any:
        """Return how many free slots a worker has, or None if that is unknown."""
        by_hand, record = self._of(worker_id, "capacity")
        return by_hand if by_hand is not None else record.capacity.get("free") if record is not None else None

    def _of(self, worker_id: str, thing: str) -> tuple[Any, WorkerRecord | None]:
        """Return what was recorded of a worker by hand, and its last heartbeat."""
        worker_id = check_id(worker_id, "worker")
        stored_records = self.reader.workers(worker_id)
        by_hand, heartbeat = (stored_records.get(f"{worker_id}/{name}") for name in (thing, "heartbeat"))
        since, ttl = self._since()
        record = None if heartbeat is None else worker_record(worker_id, heartbeat, since, ttl)
        return None if by_hand is None else by_hand.value, record

    @bounded
    def active(self) -> list[str]:
        """Return the ids of the workers that are alive now, sorted."""
        return active_workers(*self._fleet())

    @bounded
    def all(self) -> list[WorkerRecord]:
        """Return a record for every worker, sorted by id."""
        return worker_records(*self._fleet())

    def _fleet(self) -> tuple[dict[str, StoredEntry], float, float]:
        return self.reader.workers(), *self._since()

    def _since(self) -> tuple[float, float]:
        """Return Redis's time after which a worker that is alive has sent a heartbeat, and how long ago that is."""
        ttl = self.settings.worker_ttl
        return self.reader.store.clock.now() - ttl, ttl

    @bounded
    def assignments(self) -> dict[str, list[str]]:
        """Return the ids of the tasks that workers have, by worker id."""
        assignments = {
            record.worker_id: [task["id"] for task in record.running if isinstance(task, dict) and is_id(task.get("id"))]
            for record in self.all() if record.running and record.status not in GONE
        }
        by_hand = self.entries.read(self.keys.coordination_location(ASSIGNMENTS).path)
        for worker_id, ids in by_hand.items() if isinstance(by_hand, dict) else ():
            if is_id(worker_id) and isinstance(ids, list):
                assignments[worker_id] = list(filter(is_id, ids))
        return assignments
