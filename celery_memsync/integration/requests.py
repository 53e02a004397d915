"""What Celery knows of a task: requests of a worker, and what this package sends along with a message."""
from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from celery.exceptions import Retry
from celery.utils.time import maybe_iso8601

from ..settings import short

logger = logging.getLogger(__name__)

#: Attribute of a request whose end was recorded.
RECORDED = "memsync_recorded"

#: Name of what travels with a message and its request: when it was published, which run it became.
HEADER = "memsync"

#: The header by which a trace travels, version 00 of W3C's Trace Context: trace, span and flags.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch

#: The request that could not end and whose failure Celery handles; its signals name the task only.
failing: ContextVar[Any] = ContextVar("failing", default=None)

#: Most retries that are taken for a count.
MAX_RETRIES = 10 ** 9

#: Times to look at a set of requests that changes while one looks.
MAX_LOOKS = 10


def sent_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what this package sent along with a message; anybody may send anything under its name."""
    sent = facts.get(HEADER)
    return sent if isinstance(sent, dict) else {}


def nesting_of(facts: Mapping[str, Any]) -> Any:
    """Return how often a task was replaced, as its request or its headers have it."""
    return facts.get("replaced_task_nesting") or 0


def count_of(value: Any) -> int | None:
    """Return a count, None for anything else and for 0."""
    return value if type(value) is int and 0 < value <= MAX_RETRIES else None


def timestamp(moment: Any) -> float | None:
    """Return an ETA as it comes with a message in seconds since the epoch."""
    if moment is None:
        return None
    try:
        return float(maybe_iso8601(moment).timestamp())
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


def retry_at_of(error: BaseException, now: float) -> float | None:
    """Return when a run that is to be retried is tried again, None for any other.

    Args:
        now: Redis's time, in seconds.
    """
    when = error.when if isinstance(error, Retry) else None
    if isinstance(when, (int, float)) and not isinstance(when, bool):
        return now + max(0.0, when)
    return timestamp(when)


def trace_id_of(traceparent: Any) -> str | None:
    """Return the id of a trace, from the header ``traceparent`` of a message, or None if that is none of W3C's."""
    found = _TRACEPARENT(traceparent) if isinstance(traceparent, str) else None
    return None if found is None or not found[1].strip("0") else found[1]


def reserved_requests() -> Any:
    """Return the requests that Celery's worker has and that have not ended; an import that a producer does without."""
    from celery.worker import state

    return state.reserved_requests


def live(requests: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return requests that another thread may be adding to or taking from."""
    for _ in range(MAX_LOOKS):
        try:
            return list(requests())
        except RuntimeError:
            # The set changed while it was being read.
            continue
    return []


class UnfitIds:
    """Logs once for each task that it has ids of which nothing is recorded."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def warn(self, name: str, task_id: Any) -> None:
        """Log an id of a task that can't be a key."""
        if name not in self._names:
            self._names.add(name)
            logger.warning("Nothing is recorded of the task %s with the id %s, which can't be part of a key in Redis (no "
                           "slash, star or bracket, at most 512 bytes); it runs as any other", name, short(task_id))


class ReceivedRequests:
    """The requests that this process has received, as long as something refers to them.

    Attributes:
        by_run: By the id of the run, because one task may be delivered twice: refers to the request, and goes with it.
    """

    def __init__(self) -> None:
        self.by_run: dict[str, weakref.ref[Any]] = {}

    def unended(self) -> list[Any]:
        """Return the requests that this process has received and has not done with.

        Those that have ended may stay for long: the traceback of a failure refers to its request.
        """
        return [request for request in self._live() if not hasattr(request, RECORDED)]

    def _live(self) -> list[Any]:
        # By one step of CPython: a loop over many would never end without one that comes or goes meanwhile.
        return [request for find in list(self.by_run.values()) if (request := find()) is not None]

    def waiting(self) -> list[Any]:
        """Return the requests that have not begun."""
        return [one for one in self.unended() if one.time_start is None]

    def find(self, task_id: str, facts: Mapping[str, Any]) -> Any:
        """Return the request of the run of a task that has ended, None if this process has none."""
        request = self.by_run.get(str(sent_of(facts).get("run")), failing.get)() or failing.get()
        if request is not None and request.id == task_id:
            return request
        found = [one for one in self._live() if one.id == task_id]
        # Of several it is the one that Celery does not count as received any more.  The hard time limit is signalled twice.
        return min(found, key=lambda one: (one in reserved_requests(), hasattr(one, RECORDED)), default=None)
