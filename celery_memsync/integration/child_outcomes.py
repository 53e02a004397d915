"""Remember task results in the parent until the child has flushed them."""
from __future__ import annotations

import marshal
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, NamedTuple

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry

from ..exceptions import Skipped, TaskCancelled
from ..types import ExceptionRecord
from .runs import FACTS, ReceivedRun, exception_of

#: Seconds, beside those that a child gathers what it writes, for which its parent remembers what its tasks came to: that
#: is in Redis by then, and what follows from it in the indexes of a cluster.
FLUSH_GRACE = 3.0

#: Attribute of the Ignore of a body that has stored an end of its own by ``update_state``: that.
STORED_END = "memsync_stored_end"

#: What Celery's pool of gevent hands back of a greenlet that was killed; why, its killer knows.
KILLED = (False, None, None)

#: A monotonic time, as bytes.
_MOMENT = Struct("d")

#: What is remembered of a request: all that its record is made of, its arguments if they are shown.
_SHOWN = ("argsrepr", "kwargsrepr")
_REMEMBERED = tuple(name for name in FACTS if name not in ("delivery_info", *_SHOWN))

#: Most outcomes remembered of one child while Redis is away.
MAX_REMEMBERED = 10_000


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended, also one that was not waited for yet."""
    if pid == os.getpid():
        return False
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        os.kill(pid, 0)  # pragma: no cover - macOS before Python 3.13
        return False  # pragma: no cover
    except OSError:
        return True


class TaskOutcome(NamedTuple):
    """What a task came to in a pool child, as its parent saw it.

    Attributes:
        pid: Of the child.
        at: Monotonic time when it was seen.
        facts: What is recorded of the request.
        sent: What this package sent along with it.
        status: As a task's state has it.
        exception: What it raised.
        time_start: When it began, on this host's clock.
        runtime: Seconds that it took.
    """

    pid: int
    at: float
    task_id: str
    facts: dict[str, Any]
    sent: dict[str, Any]
    status: str
    exception: ExceptionRecord | None
    time_start: float | None
    runtime: float | None


class ChildOutcomes:
    """The last outcomes of each child; when a child has ended, its parent records what may be
    missing.

    They are kept as bytes.  Thousands of living objects would let Python's collector look at all of the process again and
    again, and with that make its own copy of every page that it shares with its children.
    """

    def __init__(self) -> None:
        #: By pid, each with when it was seen in front.
        self._by_pid: dict[int, deque[bytes]] = {}

    def remember(self, request: Any, run: ReceivedRun, outcome: Any, interval: float, connected: bool) -> None:
        """Keep what a request came to.

        Args:
            outcome: What Celery's pool hands back: failed, result or error, runtime.
            interval: Seconds for which children gather what they write.
            connected: Whether Redis is there, so that older outcomes are recorded by now.
        """
        pid = request.worker_pid
        if pid is None or pid == os.getpid():
            return
        recent = self._by_pid.get(pid)
        if recent is None:
            recent = self._by_pid[pid] = deque(maxlen=MAX_REMEMBERED)
        now = time.monotonic()
        while connected and recent and _MOMENT.unpack_from(recent[0])[0] < now - FLUSH_GRACE - interval:
            recent.popleft()
        failed, retval, runtime = outcome
        if runtime is None and request.time_start:  # Celery measures it of a success only
            runtime = max(0.0, time.time() - request.time_start)
        status, exception = verdict(retval.exception, run.services.redact) if failed else ("SUCCESS", None)
        names = (*_REMEMBERED, *_SHOWN) if run.services.settings.task_args else _REMEMBERED
        facts = list(map(run.facts.get, names))  # CPython keeps 2000 tuples of a size that come from an iterator
        row: Any = run.task_id, facts, run.sent, status, exception, request.time_start, runtime
        try:
            # Joined to a copy, for what marshal returns keeps the kilobyte that it has reserved.
            recent.append(_MOMENT.pack(now) + marshal.dumps(row))
        except ValueError:
            # A header of the message holds a type that marshal does not take, such as a time of AMQP.
            return

    def pop_dead_children(self, alive: Iterable[int]) -> list[TaskOutcome]:
        """Return, and forget, the outcomes of all children but those that are alive."""
        dead = set(self._by_pid) - set(alive)
        rows = [(pid, body) for pid in dead for body in self._by_pid.pop(pid)]
        unpacked = ((pid, *_MOMENT.unpack_from(body), *marshal.loads(body[_MOMENT.size:]))  # noqa: S302 # packed by `remember`
                    for pid, body in rows)
        return [TaskOutcome(pid, at, task_id, dict(zip((*_REMEMBERED, *_SHOWN), facts)), *rest)
                for pid, at, task_id, facts, *rest in unpacked]


def verdict(
    error: BaseException, redact: Callable[[str], str] | None = None,
) -> tuple[str, ExceptionRecord | None]:
    """Return status and exception of what came back from a child instead of a result."""
    error = unwrapped(error)
    if isinstance(error, Skipped):
        return "SKIPPED", None
    if isinstance(error, Retry):
        return "RETRY", exception_of(error, redact)
    if isinstance(error, Reject):
        return "REJECTED", exception_of(error, redact)
    if isinstance(error, Ignore):
        unstored = "REVOKED" if isinstance(error, TaskCancelled) else "IGNORED"
        return getattr(error, STORED_END, unstored), exception_of(error, redact)
    return "FAILURE", exception_of(error, redact)


def unwrapped(error: BaseException) -> BaseException:
    """Return what a child raised, which travels in a wrapper."""
    cause: BaseException = error.exc if isinstance(error, ExceptionWithTraceback) else error
    return cause
