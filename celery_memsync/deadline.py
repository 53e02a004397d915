"""One deadline for a public call, and for all that is done for it."""
from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

#: ``memsync_timeout`` unless it is set, in seconds.
DEFAULT_TIMEOUT = 3.0

_FOREVER = float("inf")

T = TypeVar("T")

P = ParamSpec("P")

F = TypeVar("F", bound=Callable[..., Any])


class Deadline:
    """The moment by which a call returns or raises.

    Args:
        seconds: From now on.
    """

    __slots__ = ("started", "end", "thread")

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.end = self.started + seconds
        #: A greenlet begins with a copy of the context of who has started it, and has nothing to do with its deadline.
        self.thread = get_ident()

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.started

    def postpone(self, seconds: float) -> None:
        """Let it come later, for a time that does not count."""
        self.end += seconds

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call that has this deadline, and no other.

        It runs in a context of its own, so there is nothing to undo: a soft time limit, which raises at any bytecode,
        can't leave a deadline behind.
        """
        context = copy_context()
        context.run(_current.set, self)
        try:
            return context.run(call, *args, **kwargs)
        finally:
            # What was started meanwhile may have a copy of the context.
            self.end = _FOREVER


_current: ContextVar[Deadline | None] = ContextVar("memsync_deadline", default=None)


def current() -> Deadline | None:
    """Return the deadline of the call that is under way in this thread, None without one."""
    deadline = _current.get()
    return deadline if deadline is not None and deadline.thread == get_ident() else None


def remaining() -> float:
    """Return the seconds that are left to the call that is under way, infinity without a deadline."""
    deadline = _current.get()
    if deadline is None or deadline.thread != get_ident():
        return _FOREVER
    left = deadline.end - time.monotonic()
    return left if left > 0 else 0.0


def raise_if_expired() -> None:
    """Go on only if there is time left to the call that is under way.

    Raises:
        TimeoutError: If there is none.
    """
    if not remaining():
        raise TimeoutError("the deadline has passed")


def is_within(seconds: float) -> bool:
    """Whether a call is under way that has a deadline and ends no later than ``seconds`` from now."""
    outer = _current.get()
    return outer is not None and outer.end <= time.monotonic() + seconds and outer.thread == get_ident()


def within(seconds: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that has a deadline; if one is under way already that has one, the earlier end counts."""
    return call(*args, **kwargs) if is_within(seconds) else Deadline(seconds).run(call, *args, **kwargs)


def bounded(method: F) -> F:
    """Let a method end within the ``timeout`` of its object, in seconds, or earlier with the call it is a part of."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return within(self.timeout, method, self, *args, **kwargs)

    return call  # type: ignore[return-value]
