"""The one background loop of this package."""
from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from redis.backoff import EqualJitterBackoff

from .exceptions import StoreError
from .user_code import call_user_code, mark_library_thread, message_of

logger = logging.getLogger(__name__)

#: Longest pause between two tries of an action that fails, in seconds.
LONGEST_PAUSE = 2.0

#: Longest that a start waits until its thread runs, in seconds.
START_TIMEOUT = 1.0


#: Codes of errors that every call to a Redis meets alike; "" if it has not answered.
OF_EVERY_CALL = frozenset({"", "WRONGPASS", "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN"})

#: Which loop reports an outage, by the address of the Redis and its code: the others that fail because of it log nothing.
_outages: dict[tuple[str, str], BackgroundLoop] = {}

#: Address and code of a failure that concerns one loop.
NO_OUTAGE = ("", "")

os.register_at_fork(after_in_child=_outages.clear)

T = TypeVar("T")


class Wakeup:
    """Wakes one thread that waits for it.

    Unlike :class:`threading.Event`, which is Python code around a lock,
    ringing is one step that nothing can interrupt: a soft time limit may raise
    at any bytecode of a task's thread and must not leave a lock closed that
    another thread waits for.
    """

    #: Called after it was set, by the same thread: for what waits without a thread.
    on_set: Callable[[], object] | None = None

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()
        #: Returns whether it is not set.
        self.is_clear = self._closed.locked

    def set(self) -> None:
        """Wake the waiting thread, or the next that waits."""
        if self._closed.locked():
            try:
                self._closed.release()
            except RuntimeError:  # another thread has set it meanwhile
                pass
        if self.on_set is not None:
            self.on_set()

    def clear(self) -> None:
        """Forget that it was set: what it was set for is done now."""
        self._closed.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> None:
        """Return when it rings, or after ``timeout`` seconds."""
        self._closed.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))


#: What is to be waited for before the next step, and how many seconds at most.
Pause: TypeAlias = tuple[Wakeup, float]

#: An operation that does not wait itself: its caller waits, in a thread or in a coroutine, and closes it if it gives up.
Steps: TypeAlias = Generator[Pause, None, T]


def take_steps(steps: Steps[T]) -> T:
    """Return what an operation comes to; this thread waits in between."""
    try:
        while True:
            wakeup, seconds = next(steps)
            wakeup.wait(seconds)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; raise what interrupts that as it is.

    ``Thread.start`` of CPython hides a signal's exception behind a KeyError of its own, of ``del _limbo[self]``.

    Raises:
        RuntimeError: The interpreter is shutting down, or the process can have no more threads.
    """
    try:
        thread.start()
    except KeyError as exc:
        raise exc.__context__ or exc from None


class _Run:
    """One thread of a loop.

    Attributes:
        begun: Set when it runs, or has found that another one does.
        ended: Rings when it calls the action no more.
    """

    def __init__(self, target: Callable[[_Run], None], name: str) -> None:
        self.begun = Wakeup()
        self.ended = Wakeup()
        self.pid = os.getpid()
        self.thread = threading.Thread(target=target, args=(self,), name=name, daemon=True)


class BackgroundLoop:
    """Calls one action again and again, in a daemon thread of its own.

    An action that raises, whatever it is, is logged once, called again after a growing pause
    with jitter, and logged once more when it works.  If Redis is away, the first loop of the
    process that finds out logs that, and the others nothing.

    No method takes a lock: an exception that a signal raises in the middle of one leaves nothing locked.

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
        #: Returns whether it is to be woken.
        self.is_asleep = self._wanted.is_clear
        self._hurried = Wakeup()
        self._stopped = False
        #: Whether the interpreter starts no threads any more.
        self.cannot_start = False
        #: The running thread, if any; a thread enters itself by one step that nothing can interrupt.
        self._runs: dict[str, _Run] = {}
        #: Whether a caller waits for the next call.
        self._urgent = False
        self._failures = 0
        #: When the first of them was, and of which outage, if it was one.
        self._failed_at = 0.0
        self._outage = NO_OUTAGE
        self._again: float | None = None
        self._backoff = EqualJitterBackoff(cap=LONGEST_PAUSE, base=0.1)

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        # Not by is_alive(): a signal's exception in there makes Python 3.11 take the thread for ended (bpo-45274).
        run = self._runs.get(self.name)
        return run is not None and run.pid == os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether this is called in the loop's own thread, so by its action."""
        run = self._runs.get(self.name)
        return run is not None and run.thread is threading.current_thread()

    def start(self) -> None:
        """Begin, unless it has begun or was stopped; begin again if the thread has died."""
        if not self._runs and not self._stopped:
            run = _Run(self._run, self.name)
            start_thread(run.thread)
            run.begun.wait(START_TIMEOUT)

    def wake(self) -> None:
        """Ask for a call; start the thread if need be."""
        if self._runs or self._start_if_possible():
            self._wanted.set()
            if not self._runs:  # its thread has ended in between, and was not wanted then
                self._start_if_possible()

    def run_now(self) -> None:
        """Do not wait for the rest of the interval."""
        self._hurried.set()

    def call_now(self) -> None:
        """Call the action at once, even if it has just failed."""
        self._urgent = True
        self._hurried.set()
        self.wake()

    def stop(self, timeout: float | None = None) -> None:
        """Return when the action is not called any more, or the timeout (seconds) is over."""
        self._stopped = True
        run = self._runs.get(self.name)
        self._wanted.set()
        self._hurried.set()
        if run is not None and not self.is_current and run.pid == os.getpid():
            # Not by its join(): on Python 3.13 eventlet's raises when the timeout is over.
            run.ended.wait(timeout)
            run.ended.set()

    def _start_if_possible(self) -> bool:
        try:
            self.start()
            return True
        except RuntimeError:
            # No threads any more, the interpreter is shutting down: what is
            # waiting goes with the last flush, which needs none.
            self.cannot_start = True
            logger.debug("%s: no thread can be started", self.name)
            return False

    def _run(self, run: _Run) -> None:
        mark_library_thread()
        try:
            # Of several that were started at once one goes on.
            if self._runs.setdefault(self.name, run) is run:
                run.begun.set()
                self._call_again_and_again()
        except BaseException as exc:  # another thread has raised it in this one
            self._log(
                logger.error, "%s: its thread was ended by %s; the next use starts another", self.name, message_of(exc))
        finally:
            if self._runs.get(self.name) is run:
                del self._runs[self.name]
                if not self.is_asleep():  # who sees that wakes it no more
                    self.wake()
            self._end_outage()
            run.begun.set()
            run.ended.set()

    def _call_again_and_again(self) -> None:
        while not self._stopped:
            if self._on_demand:
                self._wanted.wait(self._again)
            if not self._stopped:
                self._pause()
            if not self._stopped:
                self._call()

    def _pause(self) -> None:
        # After a failure the growing pause counts alone, unless a caller waits: hurrying would defeat it.
        if self._failures:
            self._wait_stopped(self._backoff.compute(self._failures))
        elif self.interval:
            # The hurry ends with this call: the next wake waits for its interval again.
            self._hurried.wait(0 if self._urgent else self.interval)

    def _wait_stopped(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not (self._stopped or self._urgent) and (left := end - time.monotonic()) > 0:
            self._hurried.wait(left)

    def _call(self) -> None:
        self._urgent = False
        if self._on_demand:
            self._wanted.clear()
            self._hurried.clear()
        try:
            self._again = self._action()
        except BaseException as exc:  # a SystemExit, too, that a user's class has raised
            self._failed(exc)
        else:
            failures, self._failures = self._failures, 0
            if failures:
                self._log_end(failures)

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        self._wanted.set()
        if self._failures == 1:
            self._failed_at = time.monotonic()
            is_outage = isinstance(error, StoreError) and error.code in OF_EVERY_CALL and error.address
            self._outage = (error.address, error.code) if is_outage else NO_OUTAGE  # type: ignore[attr-defined]
            if not is_outage:
                self._log(logger.warning, "%s: %s; trying again until it works", self.name, message_of(error))
            elif _outages.setdefault(self._outage, self) is self:
                message = message_of(error)
                ended = message if message.endswith((".", "?")) else f"{message}."
                self._log(logger.warning, "%s Trying again until it answers", ended)

    def _log_end(self, failures: int) -> None:
        if self._outage == NO_OUTAGE:
            self._log(logger.info, "%s: works again after %d failures", self.name, failures)
        elif self._end_outage():
            seconds = time.monotonic() - self._failed_at
            self._log(logger.info, "Redis at %s answers again after %.1f s", self._outage[0], seconds)

    def _end_outage(self) -> bool:
        """Return whether this loop has reported an outage; it does so no longer."""
        return _outages.get(self._outage) is self and _outages.pop(self._outage, None) is self

    def _log(self, log: Callable[..., None], *args: object) -> None:
        # Handlers of the log are user code, too.
        call_user_code("A handler of the log", log, *args)
