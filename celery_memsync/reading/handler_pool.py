"""The threads in which handlers of subscriptions run: few, however many subscriptions there are."""
from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from ..background_loop import Wakeup, start_thread
from ..user_code import call_user_code, mark_library_thread, message_of

logger = logging.getLogger(__name__)

#: Seconds after which a running job no longer counts against the limit of threads.
SLOW_AFTER = 1.0

#: Most jobs that do not count because they are slow.
MAX_SLOW = 64

#: Seconds without a job after which a thread ends.
IDLE_TIMEOUT = 10.0

#: Seconds between two runs of a job that failed.
RETRY_PAUSE = 0.2

#: Most names of handlers in one message of the log.
MAX_NAMES = 10


class Job:
    """Something that the threads of a pool do, never two of them at the same time.

    Args:
        run: Does a part of it; returns whether there is more to do.
        name: Returns what the log calls it.
        urgent: Whether it neither waits for the limit of threads nor counts against it.
    """

    def __init__(self, run: Callable[[], bool], name: Callable[[], str], urgent: bool = False) -> None:
        self.run = run
        self.name = name
        self.urgent = urgent
        #: Set when no thread is in it; for urgent jobs only.
        self.ended = Wakeup()
        #: Monotonic time before which it does not run again because it failed.
        self.not_before = 0.0
        #: Whether its last run was slow: then the next one does not count from the start.
        self.slow = False
        self.failures = 0
        self.wanted = False
        self.queued = False
        self.running = False


class _Thread:
    """One thread of a pool; ``job`` and ``slow_at`` are guarded by the pool's mutex.

    Attributes:
        slow_at: Monotonic time from which its job no longer counts.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.slow_at = 0.0
        self.given = Wakeup()


class HandlerPool:
    """Runs jobs in daemon threads, which start on demand and end when they are idle.

    At most ``limit`` threads are idle or run a job.  A job that runs for longer than a second no longer counts, as long as
    there are at most 64 of those: so a handler that blocks delays only itself.

    Only threads of this package call this, apart from :meth:`close`: a soft time limit, which raises at any bytecode of a
    task's thread, can't lose a job.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ready: deque[Job] = deque()
        self._failed: list[Job] = []
        #: The thread that was idle last comes last, and works next: so the others end.
        self._idle: list[_Thread] = []
        self._busy: set[_Thread] = set()
        self._warned = False
        self._closed = False
        self._pid = os.getpid()
        self._mutex = threading.Lock()

    def submit(self, *jobs: Job) -> None:
        """Have jobs run soon, and others that wait; one that is running runs once more afterwards."""
        idle: list[_Thread] = []
        new: list[_Thread] = []
        with self._mutex:
            for job in jobs:
                self._queue(job)
            while self._ready and (next_job := self._next()) is not None:
                threads, thread = (idle, self._idle.pop()) if self._idle else (new, _Thread())
                threads.append(thread)
                self._give(thread, next_job)
        for thread in new:
            self._start(thread)
        if self._ready or self._warned:
            self._report_delay()
        # Last, for it competes with this thread for the interpreter.
        for thread in idle:
            thread.given.set()

    def check(self) -> None:
        """Go on with what waits: for the end of a pause, or for a handler that is slow by now."""
        if not (self._failed or self._ready or self._warned):
            return
        with self._mutex:
            failed, self._failed = self._failed, []
        self.submit(*failed)

    def close(self, timeout: float) -> None:
        """Start nothing any more; wait at most ``timeout`` seconds for urgent jobs, for handlers not at all."""
        with self._mutex:
            self._closed = True
            self._ready.clear()
            self._failed.clear()
            idle, self._idle = self._idle, []
            urgent = [thread.job for thread in self._busy if thread.job is not None and thread.job.urgent]
        for thread in idle:
            thread.given.set()
        for job in urgent:
            job.ended.wait(timeout)

    # -- under the mutex

    def _queue(self, job: Job) -> None:
        if job.running or job.queued or self._closed:
            job.wanted = job.running
        elif time.monotonic() < job.not_before:
            if job not in self._failed:
                self._failed.append(job)
        else:
            job.queued = True
            (self._ready.appendleft if job.urgent else self._ready.append)(job)

    def _next(self) -> Job | None:
        """Return the next job that may run now, or None."""
        if self._closed or not (self._ready[0].urgent or len(self._busy) < self.limit or self._counted() < self.limit):
            return None
        return self._ready.popleft()

    def _slow(self) -> list[Job]:
        now = time.monotonic()
        return [thread.job for thread in self._busy
                if thread.job is not None and not thread.job.urgent and now >= thread.slow_at]

    def _counted(self) -> int:
        """Return how many of the busy threads count against the limit."""
        slow = len(self._slow())
        handlers = sum(thread.job is not None and not thread.job.urgent for thread in self._busy)
        return handlers - min(slow, MAX_SLOW)

    def _give(self, thread: _Thread, job: Job) -> None:
        job.queued, job.running, job.wanted = False, True, False
        if job.urgent:
            job.ended.clear()
        now = time.monotonic()
        thread.job, thread.slow_at = job, now if job.slow else now + SLOW_AFTER
        self._busy.add(thread)

    def _take_back(self, thread: _Thread, more: bool) -> None:
        job, thread.job = thread.job, None
        self._busy.discard(thread)
        if job is None:
            return
        job.running = False
        # One that was slow from the start shows by its time whether it still is.
        job.slow = time.monotonic() - thread.slow_at >= (SLOW_AFTER if job.slow else 0)
        if more or job.wanted:
            self._queue(job)
        if job.urgent:
            job.ended.set()

    # -- threads

    def _start(self, thread: _Thread) -> None:
        try:
            start_thread(threading.Thread(target=self._run, args=(thread,), name="memsync-handler", daemon=True))
        except RuntimeError:
            # The system, or an interpreter that shuts down, gives no more threads: it is tried again later.
            with self._mutex:
                self._take_back(thread, more=True)

    def _run(self, thread: _Thread) -> None:
        mark_library_thread()
        try:
            while thread.job is not None:
                more = self._call(thread.job)
                if os.getpid() != self._pid:  # a handler has forked, and this is the child
                    return
                if not self._go_on(thread, more):
                    self._wait(thread)
        finally:
            if os.getpid() == self._pid:
                self._end(thread)

    def _call(self, job: Job) -> bool:
        try:
            more = job.run()
        except BaseException as exc:
            job.failures += 1
            job.not_before = time.monotonic() + RETRY_PAUSE
            if job.failures == 1:
                _log(logger.warning, "Deliveries are delayed (%s): %s; trying again until it works", job.name(),
                     message_of(exc))
            return True
        if job.failures:
            _log(logger.info, "Deliveries (%s) work again after %d failures", job.name(), job.failures)
        job.failures = 0
        return more

    def _go_on(self, thread: _Thread, more: bool) -> bool:
        """Give a thread its next job; return whether there is one, or the thread has to end."""
        with self._mutex:
            self._take_back(thread, more)
            if self._ready and (job := self._next()) is not None:
                self._give(thread, job)
                return True
            # At most so many threads stay as would be allowed to run at the same time.
            idle = len(self._idle)
            if self._closed or idle + len(self._busy) >= self.limit and idle + self._counted() >= self.limit:
                return True
            self._idle.append(thread)
            return False

    def _wait(self, thread: _Thread) -> None:
        thread.given.wait(IDLE_TIMEOUT)
        if thread.job is None:
            with self._mutex:
                if thread in self._idle:
                    self._idle.remove(thread)

    def _end(self, thread: _Thread) -> None:
        with self._mutex:
            # It has a job only if another thread has raised an exception in this one.
            self._take_back(thread, more=True)
            if thread in self._idle:
                self._idle.remove(thread)
        self.submit()

    # -- too many slow handlers

    def _report_delay(self) -> None:
        with self._mutex:
            slow = self._slow()
            delayed = bool(self._ready) and len(slow) >= MAX_SLOW + self.limit
            over = self._warned and not self._ready and len(slow) <= MAX_SLOW
            first = delayed and not self._warned
            self._warned = (self._warned or delayed) and not over
        if first:
            names = Counter(job.name() for job in slow).most_common(MAX_NAMES)
            _log(logger.warning, "Deliveries of changes are delayed: %d handlers have been running for more than %g s: %s",
                 len(slow), SLOW_AFTER, ", ".join(f"{name} ({number})" for name, number in names))
        elif over:
            _log(logger.info, "Deliveries of changes are no longer delayed")


def _log(log: Callable[..., None], *args: object) -> None:
    # Handlers of the log are user code, too.
    call_user_code("A handler of the log", log, *args)
