"""Calls what users have given: it may raise anything, and harms only itself."""
from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

logger = logging.getLogger(__name__)

_here = threading.local()


def _renew_here() -> None:
    """In a forked child the thread that forked is the main one."""
    global _here
    _here = threading.local()


os.register_at_fork(after_in_child=_renew_here)


def mark_library_thread() -> None:
    """Take note that the running thread belongs to this package: whatever user code raises in it ends there."""
    _here.in_library = True


def ends_here(error: BaseException) -> bool:
    """Whether an exception of user code ends where that was called.

    In a thread of this package each does.  In any other thread what ends a task or a process goes on to its caller.
    """
    if getattr(_here, "in_library", False):
        return True
    return isinstance(error, Exception) and not isinstance(error, SoftTimeLimitExceeded)


def call_user_code(what: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a user and return what it returns; None, and it is logged, if it raises.

    Args:
        what: What the log calls it, such as "A handler of changes".
        function: What to call, with the other arguments.

    Raises:
        BaseException: In a thread that is not one of this package: what ends a task or a process.
    """
    try:
        return function(*args, **kwargs)
    except BaseException as exc:
        if not ends_here(exc):
            raise
        _log(what, function, exc)
        return None


def name_of(function: object) -> str:
    """Return what a log calls a function or a callable object."""
    kind = plain_text(lambda: type(function).__qualname__, "a callable")
    return plain_text(lambda: f"{function.__module__}.{function.__qualname__}", kind)  # type: ignore[attr-defined]


def plain_text(make: Callable[[], str], otherwise: str) -> str:
    """Return a text that a user's class makes, free of that class.

    Its methods may do anything: a SystemExit from one of them must not end the worker.

    Args:
        otherwise: What to return if it raises.
    """
    try:
        return str.__str__(make())
    except BaseException:
        return otherwise


def message_of(error: BaseException) -> str:
    """Return the message of an exception, or its type if it has none or can't show it."""
    return plain_text(lambda: str(error), "") or plain_text(lambda: type(error).__qualname__, "an exception")


def _log(what: str, function: object, error: BaseException) -> None:
    try:
        logger.error("%s raised (%s)", what, name_of(function), exc_info=error)
    except BaseException as exc:  # handlers of the log are user code, too
        if not ends_here(exc):
            raise
