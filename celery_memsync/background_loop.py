"""The one background loop of this package."""
from __future__ import annotations

import contextlib
import threading
import time
from typing import Callable

from celery.utils.log import get_logger
from redis.backoff import EqualJitterBackoff

logger = get_logger(__name__)

#: Longest pause between two tries of an action that fails, in seconds.
LONGEST_PAUSE = 2.0


class Wakeup:
    """Wakes one thread that waits for it.

    Unlike :class:`threading.Event`, which is Python code around a lock,
    ringing is one step that nothing can interrupt: a soft time limit may raise
    at any bytecode of a task's thread and must not leave a lock closed that
    another thread waits for.
    """

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()

    def set(self) -> None:
        """Wake the waiting thread, or the next that waits."""
        if self._closed.locked():
            with contextlib.suppress(RuntimeError):  # somebody else has rung meanwhile
                self._closed.release()

    def wait(self, timeout: float | None = None) -> None:
        """Return when it rings, or after ``timeout`` seconds."""
        self._closed.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class BackgroundLoop:
    """Calls one action again and again, in a daemon thread of its own.

    An action that raises is logged once, called again after a growing pause
    with jitter, and logged once more when it works.

    Args:
        name: Name of the thread, and what the log calls the action.
        action: What to call; with ``on_demand`` it may answer in how many
            seconds it wants to be called again unasked.
        interval: Seconds between two calls.
        on_demand: Whether to call only after :meth:`wake`: an ``interval``
            later, so that what comes in between is done by the same call.
    """

    def __init__(
        self, name: str, action: Callable[[], float | None], interval: float, *, on_demand: bool = False,
    ) -> None:
        self.name = name
        self.interval = interval
        self._action = action
        self._on_demand = on_demand
        self._wanted = Wakeup()
        self._hurried = Wakeup()
        self._ended = Wakeup()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._mutex = threading.RLock()
        #: Whether a caller waits for the next call.
        self._urgent = False
        self._failures = 0
        self._again: float | None = None
        self._backoff = EqualJitterBackoff(cap=LONGEST_PAUSE, base=0.1)

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, unless it has begun or was stopped."""
        with self._mutex:
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                thread.start()
                self._thread = thread

    def wake(self) -> None:
        """Ask for a call; start the thread if need be."""
        if self._thread is None:
            self._start_if_possible()
        self._wanted.set()

    def run_now(self) -> None:
        """Do not wait for the rest of the interval."""
        self._hurried.set()

    def call_now(self) -> None:
        """Call the action at once, even if it has just failed."""
        self._urgent = True
        self.wake()
        self._hurried.set()

    @property
    def is_current(self) -> bool:
        """Whether this is asked in the loop's own thread, so by its action."""
        return self._thread is threading.current_thread()

    def stop(self, timeout: float | None = None) -> None:
        """Return when the action is not called any more, or the timeout (seconds) is over."""
        with self._mutex:
            self._stopped = True
            thread = self._thread
        self._wanted.set()
        self._hurried.set()
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            # Not by its join(): on Python 3.13 eventlet's raises when the timeout is over.
            self._ended.wait(timeout)
            self._ended.set()

    def _start_if_possible(self) -> None:
        try:
            self.start()
        except RuntimeError:
            # No threads any more, the interpreter is shutting down: what is
            # waiting goes with the last flush, which needs none.
            logger.debug("%s: no thread can be started", self.name)

    def _run(self) -> None:
        try:
            self._call_again_and_again()
        finally:
            self._ended.set()

    def _call_again_and_again(self) -> None:
        while not self._stopped:
            if self._on_demand:
                self._wanted.wait(self._again)
            if not self._stopped:
                self._pause()
            if not self._stopped:
                self._call()
        # An interrupted start may have left a second thread, which has to hear it too.
        self._wanted.set()
        self._hurried.set()

    def _pause(self) -> None:
        # After a failure the growing pause counts alone, unless a caller waits: hurrying would defeat it.
        if self._failures:
            self._wait_stopped(self._backoff.compute(self._failures))
        elif self.interval and not self._urgent:
            self._hurried.wait(self.interval)

    def _wait_stopped(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not (self._stopped or self._urgent) and (left := end - time.monotonic()) > 0:
            self._hurried.wait(left)

    def _call(self) -> None:
        self._urgent = False
        try:
            self._again = self._action()
        except Exception as exc:
            self._failures += 1
            if self._failures == 1:
                logger.warning("%s: %s; trying again until it works", self.name, exc)
            self._wanted.set()
        else:
            if self._failures:
                logger.info("%s: works again after %d failures", self.name, self._failures)
            self._failures = 0
