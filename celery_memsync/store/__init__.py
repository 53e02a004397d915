"""The only package that talks to Redis: one method per operation, mostly one round trip.

`Store` is put together of one class for each kind of data; `cluster_store.py` is the same for a cluster.  What
has to be atomic is a script in `store/lua/`; its header says what it takes and returns.  redis-py's errors become
`StoreError` in here and nowhere else.  Start reading at `script_caller.py`, then `entries.py`.
"""
from __future__ import annotations

from .cancelled import CancelStore
from .coordination import MEMORY, CoordinationChange, CoordinationResult, CoordinationStore, MetricsUpdate, QueueReplacement
from .entries import EntryStore, EntryWrite, WriteResult, outcomes_of, raise_unanswered
from .errors import UNANSWERED, UNREACHABLE, explain_code, forgotten, may_be_done, was_forgotten, was_refused
from .locks import LockAnswer, LockRequest, LockStore, renewal
from .members import GroupCounts, Members, MemberStore
from .queue_reading import LISTS
from .script_caller import SCRIPT_SIZE, TOLERATED_SKEW, Call, in_chunks, ms, raise_first
from .statistics import StatisticsStore
from .tasks import Task, TaskStore
from .workers import FIRST_HEARTBEAT, HeartbeatReply, LostWorkerClaim, WorkerStore


class Store(EntryStore, TaskStore, MemberStore, StatisticsStore, WorkerStore, CoordinationStore, CancelStore, LockStore):
    """The shared memory in one Redis."""


__all__ = [
    "FIRST_HEARTBEAT", "LISTS", "MEMORY", "SCRIPT_SIZE", "TOLERATED_SKEW", "UNANSWERED", "UNREACHABLE", "Call",
    "CoordinationChange", "CoordinationResult", "EntryWrite", "GroupCounts", "HeartbeatReply", "LockAnswer", "LockRequest",
    "LostWorkerClaim", "Members", "MetricsUpdate", "QueueReplacement", "Store", "Task", "WriteResult", "explain_code",
    "forgotten", "in_chunks", "may_be_done", "ms", "outcomes_of", "raise_first", "raise_unanswered", "renewal",
    "was_forgotten", "was_refused",
]
