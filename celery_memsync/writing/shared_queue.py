"""The queue that all processes share: who takes from it decides, and nothing is taken twice."""
from __future__ import annotations

import math
import threading
from itertools import count
from typing import Callable, Iterable, Mapping, TypeVar

from ..exceptions import InvalidValue, ValueTooLarge
from ..keys import check_id
from ..store import Store

#: Names of the lists of the queue.
LISTS = ("pending", "processing")

#: Counters are whole numbers of 64 bits in Redis.
TOO_MUCH = 2 ** 63

T = TypeVar("T")


class SharedQueue:
    """Puts tasks into the queue and takes them out, one round trip each.

    A change whose answer was lost is sent again under the same number by the
    next call of the same kind, so that nothing is done twice and what was taken
    meanwhile is handed out after all.

    Args:
        ttl: Seconds that a task stays in a list.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self.store = store
        self.ttl = ttl
        self._serials = count(1)
        #: What was asked and not answered, and its number, by kind.
        self._unanswered: dict[str, tuple[tuple[str, ...], int]] = {}
        self._mutex = threading.RLock()

    def enqueue(self, task_id: str) -> bool:
        """Put a task at the end of the queue, unless it is in a list already; tell whether it was put there.

        Raises:
            StoreError: If Redis is away.
        """
        return self._once("enqueue", self.store.enqueue_task, task_id)

    def dequeue(self) -> str | None:
        """Move the first task from pending to processing and return its id; None if nothing is pending.

        Raises:
            StoreError: If Redis is away.
        """
        return self._once("dequeue", self.store.dequeue_task)

    def complete(self, task_id: str) -> bool:
        """Take a task out of the queue; tell whether it was there.

        Raises:
            StoreError: If Redis is away.
        """
        return self._once("complete", self.store.complete_task, task_id)

    def _once(self, kind: str, change: Callable[..., T], *args: str) -> T:
        """Make a change, or get the answer to it if it was made already; ``change`` is of the store."""
        with self._mutex:
            for other in ("enqueue", "complete"):
                if other != kind:
                    self._unanswered.pop(other, None)  # the world has moved on
            asked, serial = self._unanswered.get(kind, (None, 0))
            if asked != args:
                serial = next(self._serials)
                self._unanswered[kind] = (args, serial)
            answer = change(serial, self.ttl, *args)
            self._unanswered.pop(kind, None)
        return answer


def check_queue(queue: Mapping[str, Iterable[str]], limit: int) -> dict[str, list[str]]:
    """Return the lists of a queue if they are fit to be shared.

    Args:
        limit: Most bytes of all ids together.
    """
    if not isinstance(queue, Mapping) or not set(queue) <= set(LISTS):
        raise InvalidValue(f"a queue is a dict of lists of task ids, named {' and '.join(LISTS)}")
    lists = {name: _check_ids(ids, name) for name, ids in queue.items()}
    size = sum(len(task_id.encode()) + 3 for ids in lists.values() for task_id in ids)
    if size > limit:
        raise ValueTooLarge("the queue", size, limit)
    return lists


def check_assignments(assignments: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return assignments if they are fit to be shared."""
    if not isinstance(assignments, Mapping):
        raise InvalidValue(f"assignments are a dict of lists of task ids, not {type(assignments).__name__}")
    return {
        check_id(worker_id, "worker"): _check_ids(ids, f"assignments of {worker_id}")
        for worker_id, ids in assignments.items()
    }


def check_steps(amounts: Mapping[str, float]) -> dict[str, tuple[bytes | None, float]]:
    """Return what to add to counters, as :class:`~celery_memsync.writing.changes.SyncMetrics` takes it."""
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise InvalidValue(f"what is added to {name} is a number, not {type(amount).__name__}")
        if abs(amount) >= TOO_MUCH or not math.isfinite(amount):
            raise InvalidValue(f"what is added to {name} must be a number below 2 to the power of 63")
    # Numbers of other kinds, such as an IntEnum's, become plain ones.
    return {check_id(name, "metric"): (None, amount + 0) for name, amount in amounts.items()}


def _check_ids(ids: Iterable[str], what: str) -> list[str]:
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise InvalidValue(f"{what} is a list of task ids, not {type(ids).__name__}")
    return [check_id(task_id, "task") for task_id in ids]
