"""What Redis does for us: each method is one round trip, and nothing else talks to Redis."""
from __future__ import annotations

from .calls import SCRIPT_SIZE, Call, in_chunks, ms, raise_first
from .entries import EntryCalls, EntryWrite, Outcome, outcomes_of
from .locks import LockAnswer, LockAsk, LockCalls, renewal
from .tasks import Task, TaskCalls
from .together import CoordinationCalls
from .workers import Beat, Loss, WorkerCalls


class Store(EntryCalls, TaskCalls, WorkerCalls, CoordinationCalls, LockCalls):
    """The shared memory in one Redis."""


__all__ = [
    "SCRIPT_SIZE", "Beat", "Call", "EntryWrite", "LockAnswer", "LockAsk", "Loss", "Outcome", "Store", "Task",
    "in_chunks", "ms", "outcomes_of", "raise_first", "renewal",
]
