"""The queue that all processes share: who takes from it decides, and nothing is taken twice."""
from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TypeVar

from ..exceptions import StoreUnavailable
from ..store import MEMORY, Store, forgotten, may_be_done, was_forgotten, was_refused
from .callers import CallsUnderWay, calling_thread, if_missed

#: Most calls whose answers were lost that are remembered; beyond it no new ones are made.
MAX_UNANSWERED = 10_000

T = TypeVar("T")

#: A call: its name and its arguments.
Call = tuple[str, ...]


class Attempt:
    """A change that was sent, and is not answered (yet).

    Args:
        serial: Its number; each try has the same.

    Attributes:
        since: Monotonic time of the first try, or of the last one that Redis refused: it had done nothing until then.
        refused: Whether Redis refused the last try, so that nothing was done by it or those before.
        busy: Whether a call is under way for it now.
        outdated_for: Threads that have been given the task since: what they do with it now is something new.
    """

    __slots__ = ("busy", "outdated_for", "refused", "serial", "since", "thread", "thread_id")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.since = time.monotonic()
        thread = calling_thread()
        self.thread_id = thread.ident
        self.thread = weakref.ref(thread)
        self.outdated_for: tuple[int | None, ...] = ()
        self.refused = False
        self.busy = True

    @property
    def is_old(self) -> bool:
        """Whether Redis may have forgotten it."""
        return time.monotonic() - self.since > MEMORY

    @property
    def is_own(self) -> bool:
        """Whether it was made by the calling thread."""
        return self.thread_id == calling_thread().ident

    @property
    def is_orphan(self) -> bool:
        """Whether the thread that made it has ended."""
        thread = self.thread()
        return thread is None or not thread.is_alive()


class SharedQueue:
    """Puts tasks into the queue and takes them out, one round trip each.

    A change whose answer was lost is sent again under the same number by the
    next equal call, so that nothing is done twice; equal are calls with the same
    arguments, and of ``dequeue`` those of one thread, or of one that has ended.

    Args:
        ttl: Seconds that a task stays in a list.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self.store = store
        self.ttl = ttl
        #: Numbers for each kind of change, so that many of one are not too many of another.
        self._serials = {name: count(1) for name in ("enqueue", "dequeue", "complete")}
        self._attempts: dict[Call, list[Attempt]] = {}
        self._under_way = CallsUnderWay()
        # A signal's handler may call in the middle of a call.
        self._mutex = threading.RLock()

    def enqueue(self, task_id: str) -> bool:
        """Put a task at the end of the queue, unless it is in a list already; return whether it was put there.

        Raises:
            StoreError: If Redis is away.
        """
        return self._once(self.store.enqueue_task, "enqueue", task_id)

    def dequeue(self) -> str | None:
        """Move the first task from pending to processing and return its id; None if nothing is pending.

        Raises:
            StoreError: If Redis is away.
        """
        task_id = self._once(self.store.dequeue_task, "dequeue")
        with self._mutex:
            for attempt in self._attempts.get(("complete", task_id or ""), ()):
                attempt.outdated_for += (calling_thread().ident,)
        return task_id

    def complete(self, task_id: str) -> bool:
        """Take a task out of the queue; return whether it was there.

        Raises:
            StoreError: If Redis is away.
        """
        return self._once(self.store.complete_task, "complete", task_id)

    def _once(self, change: Callable[..., T], *call: str) -> T:
        """Make a change, or get the answer to it if it was made already.

        Args:
            change: Of the store.
            call: Name and arguments.
        """
        self._under_way.begin((*call, calling_thread()) if call[0] == "dequeue" else call)
        attempt, is_fresh = self._begin(call)
        started = time.monotonic()
        try:
            if attempt.is_old:
                raise forgotten(f"a call of {call[0]}")
            answer = change(attempt.serial, self.ttl, *call[1:])
            self._forget(call, attempt)  # in here, for an interruption is to leave it to the next equal call
            if_missed(partial(self._remember, call, attempt))
        except BaseException as exc:
            attempt.refused = was_refused(exc)
            if attempt.refused:
                attempt.since = started
            elif was_forgotten(exc) or is_fresh and not may_be_done(exc):
                self._forget(call, attempt)
            raise
        finally:
            attempt.busy = False  # not in a call, which an interruption could strike
        return answer

    def _begin(self, call: Call) -> tuple[Attempt, bool]:
        """Return the attempt that a call is to go on with, and whether it is a new one."""
        with self._mutex:
            attempts = self._attempts.get(call, ())
            known = [attempt for attempt in attempts if not attempt.busy and _continues(call, attempt)]
            attempt = min(known, key=lambda one: not one.is_own, default=None)
            if attempt is not None and not (attempt.refused and attempt.is_old):
                attempt.busy = True
                return attempt, False
            if attempt is not None:
                self._forget(call, attempt)
            if len(self._attempts) >= MAX_UNANSWERED:
                self._make_room()
            attempt = Attempt(next(self._serials[call[0]]))
            self._remember(call, attempt)
            return attempt, True

    def _remember(self, call: Call, attempt: Attempt) -> None:
        with self._mutex:
            self._attempts.setdefault(call, []).append(attempt)

    def _forget(self, call: Call, attempt: Attempt) -> None:
        """Take note that a call has its answer."""
        with self._mutex:
            others = [one for one in self._attempts.get(call, ()) if one is not attempt]
            if others:
                self._attempts[call] = others
            else:
                self._attempts.pop(call, None)

    def _make_room(self) -> None:
        """Forget calls that Redis has forgotten, too."""
        for call, attempts in list(self._attempts.items()):
            for attempt in [one for one in attempts if one.is_old and not one.busy]:
                self._forget(call, attempt)
        if len(self._attempts) >= MAX_UNANSWERED:
            raise StoreUnavailable(
                f"{MAX_UNANSWERED} changes of the queue have no answer yet; make them again before others")


def _continues(call: Call, attempt: Attempt) -> bool:
    """Whether a call of this thread is a second try of an earlier one."""
    if call[0] == "dequeue":
        return attempt.is_own or attempt.is_orphan
    return calling_thread().ident not in attempt.outdated_for
