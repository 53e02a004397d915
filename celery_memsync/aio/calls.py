"""Calls of the manager that coroutines wait for."""
from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from ..background_loop import Pause, Steps
from ..deadline import within
from ..exceptions import StoreUnavailable
from ..writing.callers import Caller
from .executor import MAX_THREADS, Executor
from .loops import LoopWakeup, inbox_of, running_loop

T = TypeVar("T")


class Outcome(NamedTuple):
    """What a call has returned or raised."""

    result: Any
    error: BaseException | None


class Call(Generic[T]):
    """One call, made in a thread of an executor for a coroutine that waits for it.

    Args:
        seconds: Most seconds that it takes, from now on.
        function: What to call.
        undo: Called with the result if the coroutine never gets it, because it was cancelled; it neither waits nor raises.
        in_any_case: Whether it is made although the coroutine was cancelled before it began.
    """

    def __init__(
        self, executor: Executor, seconds: float, function: Callable[[], T], undo: Callable[[T], object] | None = None,
        in_any_case: bool = False,
    ) -> None:
        loop = running_loop()
        self._future: asyncio.Future[T] = loop.create_future()
        self._function = function
        self._undo = undo
        self._in_any_case = in_any_case
        self._end = time.monotonic() + seconds
        self._inbox = inbox_of(loop)
        self._context = copy_context()
        self._caller = Caller()
        self._outcome: Outcome | None = None
        self._has_begun = False
        self._timer: asyncio.TimerHandle | None = None
        if not executor.submit(self._run) and seconds < float("inf"):
            self._timer = loop.call_later(seconds, self._expire, seconds)

    async def answer(self) -> T:
        """Return what the call returns."""
        try:
            return await self._future
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                if not self._future.cancel() and not self._future.cancelled():
                    self._future.exception()  # it is not wanted any more, and not to be logged
            self._caller.has_given_up = True
            self._miss()  # the answer may have come together with the cancel
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _expire(self, seconds: float) -> None:
        if not self._future.done() and not self._has_begun:
            self._future.set_exception(StoreUnavailable(
                f"A call was not begun within {seconds:g} s, because {MAX_THREADS} others of this process wait for Redis"))

    def _run(self) -> None:
        """Make the call, in a thread of the executor."""
        if self._future.done() and not self._in_any_case:
            return
        self._has_begun = True
        self._outcome = self._context.run(self._caller.run, _outcome_of, self._end, self._function)
        try:
            if self._future.done() or not self._inbox.call(self._settle):
                self._miss()
        finally:
            self._caller.end()

    def _settle(self) -> None:
        """Give the coroutine its answer, in the event loop."""
        if self._future.done() or self._outcome is None:
            self._miss()
        elif self._outcome.error is not None:
            self._future.set_exception(self._outcome.error)
        else:
            self._future.set_result(self._outcome.result)

    def _miss(self) -> None:
        """Undo what was done for a coroutine that does not get the answer."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None and outcome.error is None:
            self._caller.miss()
            if self._undo is not None:
                self._undo(outcome.result)


def _outcome_of(end: float, function: Callable[[], T]) -> Outcome:
    # Apart from the call, so that the traceback of an error does not refer to the future that holds it.
    try:
        return Outcome(within(max(0.0, end - time.monotonic()), function), None)
    except StopIteration as exc:  # no coroutine can raise it
        error = RuntimeError("a call raised StopIteration")
        error.__cause__ = exc
        return Outcome(None, error)
    except BaseException as exc:
        return Outcome(None, exc)


class _Ended(NamedTuple):
    """The end of an operation's steps."""

    result: Any


def _next_step(steps: Steps[T]) -> Pause | _Ended:
    try:
        return next(steps)
    except StopIteration as end:
        return _Ended(end.value)


async def take_steps(executor: Executor, seconds: float, steps: Steps[T], undo: Callable[[T], object]) -> T:
    """Return what an operation comes to, whose steps are calls to Redis; no thread waits in between.

    Args:
        seconds: Most seconds for all of it.
        undo: Called with the result if the coroutine never gets it; if it is cancelled before the end, the steps are closed.
    """
    end = time.monotonic() + seconds
    wakeup = LoopWakeup()

    def undo_step(step: Pause | _Ended) -> None:
        with contextlib.suppress(ValueError):  # the event loop is just closing it
            steps.close()
        if isinstance(step, _Ended) and step.result is not None:
            undo(step.result)

    try:
        while True:
            step = await Call(executor, end - time.monotonic(), partial(_next_step, steps), undo_step).answer()
            if isinstance(step, _Ended):
                result: T = step.result
                return result
            bell, pause = step
            bell.on_set = wakeup.set
            if bell.is_clear():
                await wakeup.wait(pause)
            bell.clear()
    finally:
        with contextlib.suppress(ValueError):  # a thread is in it, and closes it when it comes out
            steps.close()
