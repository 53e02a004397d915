"""For whom a call is made: for its own thread, or for a coroutine in another one."""
from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

P = ParamSpec("P")

T = TypeVar("T")


class Caller:
    """A coroutine that has a call made by another thread, and may be cancelled before it gets the answer."""

    __slots__ = ("thread", "_reversals")

    def __init__(self) -> None:
        #: The thread of its event loop.
        self.thread = threading.current_thread()
        self._reversals: list[Callable[[], object]] = []

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make its call, in a context that ends with that."""
        _caller.set(self)
        return call(*args, **kwargs)

    def add(self, reversal: Callable[[], object]) -> None:
        """Have something called if it never gets the answer."""
        self._reversals.append(reversal)

    def miss(self) -> None:
        """Take note that it never gets the answer."""
        while self._reversals:
            self._reversals.pop()()


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
