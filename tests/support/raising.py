"""Exceptions that a user's code may raise, and what raises them."""
from __future__ import annotations

import asyncio

from celery.exceptions import SoftTimeLimitExceeded


class Unspeakable(BaseException):
    """Can't even be shown."""

    def __str__(self):
        raise SystemExit(3)


#: What ends a task, a thread or a process.
ENDS = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, SoftTimeLimitExceeded, Unspeakable]


def raiser(error):
    """Return a handler that raises an exception."""
    def handler(*args, **details):
        raise error

    return handler
