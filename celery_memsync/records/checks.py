"""Checks of what callers give to the methods of the manager."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..exceptions import InvalidKey, InvalidValue, LockLost, ValueTooLarge
from ..keys import check_id
from ..locking.lock import Lock
from ..models.entry import MAX_FENCE
from ..models.order import is_run_key
from ..settings import MAX_SECONDS, short
from ..store import LISTS

#: Counters are whole numbers of 64 bits in Redis.
TOO_MUCH = 2 ** 63


def check_seconds(value: float, what: str, positive: bool = False) -> float:
    """Return a number of seconds.

    Args:
        positive: Whether 0 is refused.

    Raises:
        InvalidValue: If it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"{what} is a number of seconds, not {type(value).__name__}")
    if not (0 < value < MAX_SECONDS or value == 0 and not positive):
        allowed = f"{'above 0' if positive else '0 or more'} and below {MAX_SECONDS:.0e}"
        raise InvalidValue(f"{what} is {short(value)}; it must be a number of seconds {allowed}")
    return float(value)


def check_timeout(timeout: float | None) -> None:
    """See that a timeout is a number of seconds, or None."""
    if timeout is not None:
        check_seconds(timeout, "timeout")


def check_ttl(ttl: float | None, default: float) -> float:
    """Return a ttl in seconds, or the default if it is None."""
    return default if ttl is None else check_seconds(ttl, "ttl", positive=True)


def check_wait(wait: float | None) -> float:
    """Return the most seconds to wait for a lock: infinity for None."""
    return math.inf if wait is None or wait == math.inf else check_seconds(wait, "wait")


def check_lock(name: str) -> str:
    """Return the name of a lock, which may be that of a task: ``tasks/<task_id>``."""
    if isinstance(name, str) and name.startswith("tasks/"):
        check_id(name[len("tasks/"):], "task")
        return name
    return check_id(name, "lock")


def check_fence(fence: Lock | int | None) -> int:
    """Return the fence under which a value is written, 0 for none.

    Raises:
        InvalidValue: If it is neither a lock nor the fence of one.
        LockLost: If the lock was never held.
    """
    if fence is None:
        return 0
    number = fence.fence if isinstance(fence, Lock) else fence
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InvalidValue(f"fence is a lock, or the number that is its fence, not {type(fence).__name__}")
    if number == 0 and isinstance(fence, Lock):
        raise LockLost(fence.name)
    if number >= MAX_FENCE:
        raise InvalidValue("fence is larger than that of any lock")
    return number


def check_count(value: int, what: str) -> int:
    """Return a whole number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidValue(f"{what} is a whole number, 0 or more, not {short(value)}")
    return value


def check_keys(keys: Iterable[str]) -> list[str]:
    """Return several keys as a list."""
    if isinstance(keys, (str, bytes)):
        raise InvalidKey("read_many takes several keys, such as a list; for one there is read")
    return list(keys)


def check_run_key(run_key: str) -> str:
    """Return a run key, or "" for the run that is stored."""
    if run_key and not is_run_key(run_key):
        raise InvalidValue(f"{short(run_key)} is no run key")
    return run_key


def check_queue(queue: Mapping[str, Any], limit: int) -> dict[str, list[str]]:
    """Return the lists of a queue.

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
    """Return lists of task ids by worker id."""
    if not isinstance(assignments, Mapping):
        raise InvalidValue(f"assignments are a dict of lists of task ids, not {type(assignments).__name__}")
    return {
        check_id(worker_id, "worker"): _check_ids(ids, f"assignments of {worker_id}")
        for worker_id, ids in assignments.items()
    }


def check_amounts(amounts: Mapping[str, Any]) -> dict[str, float]:
    """Return what to add to counters, by name."""
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise InvalidValue(f"what is added to {name} is a number, not {type(amount).__name__}")
        if abs(amount) >= TOO_MUCH or not math.isfinite(amount):
            raise InvalidValue(f"what is added to {name} must be a number below 2 to the power of 63")
    # Numbers of other kinds, such as an IntEnum's, become plain ones.
    return {check_id(name, "metric"): amount + 0 for name, amount in amounts.items()}


def _check_ids(ids: Iterable[str], what: str) -> list[str]:
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise InvalidValue(f"{what} is a list of task ids, not {type(ids).__name__}")
    return [check_id(task_id, "task") for task_id in ids]
