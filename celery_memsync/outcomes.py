"""What the tasks of pool children came to, remembered by their parent until the children have told it for sure."""
from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, Iterable, NamedTuple

from .runs import ReceivedRun

#: Seconds, beside those that a child gathers what it writes, for which its parent remembers what its tasks came to: that
#: is in Redis by then.
REMEMBERED = 2.0

#: Most outcomes remembered of one child while Redis is away.
MAX_REMEMBERED = 10_000


def is_gone(pid: int) -> bool:
    """Whether a child of this process has ended; one that nobody has waited for yet has, too."""
    if pid == os.getpid():
        return False
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        os.kill(pid, 0)  # pragma: no cover - macOS before Python 3.13
        return False  # pragma: no cover
    except OSError:
        return True


class Outcome(NamedTuple):
    """What a task came to in a pool child, as its parent saw it.

    Attributes:
        at: Monotonic time when it was seen.
        pid: Of the child.
        run: What is known of the run.
        time_start: When it began, on this host's clock.
        error: What came back instead of a result.
    """

    at: float
    pid: int
    run: ReceivedRun
    time_start: float | None
    error: BaseException | None
    runtime: float | None


class Outcomes:
    """The last outcomes of each child; when a child is gone, its parent tells what it may not have told."""

    def __init__(self) -> None:
        self._by_pid: dict[int, deque[Outcome]] = {}

    def remember(self, request: Any, run: ReceivedRun, outcome: Any, interval: float, connected: bool) -> None:
        """Keep what a request came to.

        Arguments:
            outcome: What Celery's pool hands back: failed, result or error, runtime.
            interval: Seconds for which children gather what they write.
            connected: Whether Redis is there, so that older outcomes have been told by now.
        """
        pid = request.worker_pid
        if pid is None or pid == os.getpid():
            return
        recent = self._by_pid.get(pid)
        if recent is None:
            recent = self._by_pid[pid] = deque(maxlen=MAX_REMEMBERED)
        now = time.monotonic()
        while connected and recent and recent[0].at < now - REMEMBERED - interval:
            recent.popleft()
        failed, retval, runtime = outcome
        recent.append(Outcome(now, pid, run, request.time_start, retval.exception if failed else None, runtime))

    def of_the_gone(self, alive: Iterable[int]) -> list[Outcome]:
        """Return, and forget, the outcomes of all children but those that are alive."""
        gone = set(self._by_pid) - set(alive)
        return [outcome for pid in gone for outcome in self._by_pid.pop(pid)]
