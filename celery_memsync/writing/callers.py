"""For whom a call is made: for its own thread, or for a coroutine in another one."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

from ..background_loop import Wakeup
from ..deadline import remaining
from ..exceptions import StoreUnavailable

P = ParamSpec("P")

T = TypeVar("T")


class Caller:
    """A coroutine that has a call made by another thread, and may be cancelled before it gets the answer."""

    __slots__ = ("thread", "has_given_up", "has_ended", "_reversals", "_at_end", "_ended")

    def __init__(self) -> None:
        #: The thread of its event loop.
        self.thread = threading.current_thread()
        #: Whether it does not wait any more.
        self.has_given_up = False
        self.has_ended = False
        self._reversals: list[Callable[[], object]] = []
        self._at_end: list[Callable[[], object]] = []
        self._ended = Wakeup()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make its call, in a context that ends with that."""
        _caller.set(self)
        return call(*args, **kwargs)

    def add(self, reversal: Callable[[], object]) -> None:
        """Have something called if it never gets the answer."""
        self._reversals.append(reversal)

    def miss(self) -> None:
        """Take note that it never gets the answer."""
        with contextlib.suppress(IndexError):  # its loop and the thread of the call may come here at the same time
            while True:
                self._reversals.pop()()

    def at_end(self, action: Callable[[], object]) -> None:
        """Have something called when its call has ended, and if it has given up what that did is known."""
        self._at_end.append(action)

    def raise_if_given_up(self) -> None:
        """Go on only if it waits still.

        Raises:
            StoreUnavailable: If it does not.
        """
        if self.has_given_up:
            raise StoreUnavailable("A call was given up before it was made")

    def end(self) -> None:
        """Take note that its call has ended."""
        for action in self._at_end:
            action()
        self.has_ended = True
        self._ended.set()

    def wait_ended(self, seconds: float) -> None:
        """Return when its call has ended, or after ``seconds``."""
        self._ended.wait(seconds)
        if self.has_ended:
            self._ended.set()  # others may wait, too


class CallsUnderWay:
    """Calls that coroutines have made, and may have given up.

    An equal call waits for those that were given up: what they do is remembered at their end, and is not to be done twice.
    """

    def __init__(self) -> None:
        self._calls: dict[Caller, Hashable] = {}

    def begin(self, arguments: Hashable) -> None:
        """Go on when no equal call that was given up is under way.

        Raises:
            StoreUnavailable: If this one was given up itself; an equal one may have been made since.
        """
        own = _caller.get()
        if own is not None:
            own.at_end(partial(self._calls.pop, own, None))
            self._calls[own] = arguments
            own.raise_if_given_up()  # in this order: an equal call that comes from now on waits for this one
        for other, known in list(self._calls.items()):
            if other is own:
                break  # of two that are given up while they wait here, one only waits for the other
            if known == arguments and other.has_given_up:
                other.wait_ended(remaining())
        if own is not None:
            own.raise_if_given_up()


_caller: ContextVar[Caller | None] = ContextVar("memsync_caller", default=None)


def calling_thread() -> threading.Thread:
    """Return the thread whose call is under way."""
    caller = _caller.get()
    return threading.current_thread() if caller is None else caller.thread


def if_missed(reversal: Callable[[], object]) -> None:
    """Have something called, which does not wait, if the caller never gets the answer to the call that is under way."""
    caller = _caller.get()
    if caller is not None:
        caller.add(reversal)
