"""The few threads in which calls to Redis are made for event loops."""
from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable

from ..background_loop import start_thread
from ..manager import MemorySyncManager

#: Most threads of an executor; each has one connection at a time.
MAX_THREADS = 8

#: Seconds without work after which a thread ends.
IDLE_TIMEOUT = 10.0

Work = Callable[[], None]


class Executor:
    """Daemon threads that start on demand, end when they are idle, and keep no process from ending.

    No method takes a lock: a soft time limit may raise at any bytecode of a task that runs an event loop.

    Args:
        keeps_threads: Whether a thread that is idle waits for more work.
    """

    def __init__(self, keeps_threads: bool = True) -> None:
        self._keeps_threads = keeps_threads
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        #: One for each thread that waits for work and that none is meant for yet.
        self._idle: deque[None] = deque()

    def submit(self, work: Work) -> bool:
        """Have something done that does not raise; return whether a thread is free for it now.

        Raises:
            RuntimeError: If no thread can be started.
        """
        if self._pid != os.getpid():  # a forked child has none of these threads
            self._begin()
        self._work.put(work)
        with contextlib.suppress(IndexError):
            self._idle.pop()
            return True
        return self._start()

    def close(self) -> None:
        """End the threads that are idle; more work begins anew."""
        for _ in range(len(self._idle)):
            with contextlib.suppress(IndexError):
                self._idle.pop()
                self._work.put(None)

    def _start(self) -> bool:
        if len(self._threads) >= MAX_THREADS:
            return False
        thread = threading.Thread(target=self._run, name="memsync-aio", daemon=True)
        self._threads.add(thread)
        try:
            start_thread(thread)
        except BaseException:
            self._threads.discard(thread)
            raise
        return True

    def _run(self) -> None:
        thread = threading.current_thread()
        try:
            while self._work_until_idle() and len(self._threads) < MAX_THREADS:
                self._threads.add(thread)
        finally:
            self._threads.discard(thread)

    def _work_until_idle(self) -> bool:
        """Work until this thread is to end; return whether there is work for it all the same."""
        while (work := self._next()) is not None:
            work()
            del work  # it refers to its answer
        # In this order: who brings work sees that this thread is gone, or this thread sees the work.
        self._threads.discard(threading.current_thread())
        return not self._work.empty()

    def _next(self) -> Work | None:
        """Return what to do next; None: this thread is to end."""
        with contextlib.suppress(queue.Empty):
            return self._work.get_nowait()
        if not self._keeps_threads:
            return None
        self._idle.append(None)
        with contextlib.suppress(queue.Empty):
            return self._work.get(timeout=IDLE_TIMEOUT)
        with contextlib.suppress(IndexError):
            self._idle.pop()
        return None


class Executors:
    """The executors of one manager, which all that is made of it share.

    Attributes:
        calls: For what ends within ``memsync_timeout``.
        long_calls: For what has a timeout of its own, and may wait while other calls are answered.
    """

    def __init__(self) -> None:
        self.calls = Executor()
        self.long_calls = Executor()

    def close(self) -> None:
        """End the threads that are idle; more work begins anew."""
        self.calls.close()
        self.long_calls.close()


_executors: weakref.WeakKeyDictionary[MemorySyncManager, Executors] = weakref.WeakKeyDictionary()


def executors_of(memsync: MemorySyncManager) -> Executors:
    """Return the executors of a manager."""
    return _executors.get(memsync) or _executors.setdefault(memsync, Executors())
