"""What callers request of the writer's thread, and wait for."""
from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

from ..exceptions import MemSyncError, StoreUnavailable
from ..models.entry import StoredEntry
from .callers import calling_thread
from .changes import SetValue
from .unanswered import Attempt


class FencedWrite(NamedTuple):
    """A write that was refused, for a newer fence had written.

    Attributes:
        path: Of the entry.
        author: The thread that made it.
        is_reported: Whether it was reported to another thread.
    """

    path: str
    author: weakref.ref[threading.Thread] | None
    is_reported: bool = False

    def is_by(self, thread: threading.Thread) -> bool:
        """Return whether a thread made it."""
        return self.author is not None and self.author() is thread

    @property
    def has_author(self) -> bool:
        """Whether the thread that made it still runs."""
        thread = None if self.author is None else self.author()
        return thread is not None and thread.is_alive()


class FlushRequest:
    """A caller's wish that everything is written that is pending now.

    It is answered by one step that nothing can interrupt: a caller may be struck
    by an exception while it waits, and leaves no lock for the writer to wait for.

    Args:
        strict: Whether the caller wants to know if something was refused, too.

    Attributes:
        written: How many changes were written.
        error: Why they were not.
        waits: Whether it is not answered while a resolver runs.
        given_up: Whether the caller does not wait any more.
        may_be_done: Whether it may have been sent already.
        caller: The thread whose wish it is.
        fenced: What newer fences have refused, as it is reported to the caller.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = self.waits = strict
        self.written = 0
        self.error: MemSyncError | None = None
        self.given_up = False
        self.may_be_done = False
        self.caller = calling_thread()
        self.fenced: tuple[FencedWrite, ...] = ()
        self._answered = False
        self._closed = threading.Lock()
        self._closed.acquire()

    def answer(self, written: int = 0, error: MemSyncError | None = None) -> None:
        """Let the caller go on; the first answer counts."""
        if not self._answered:
            self._answered, self.written, self.error = True, written, error
            self._closed.release()

    def own(self, error: MemSyncError | None) -> MemSyncError | None:
        """Return an error of what was sent before as one of this, which was not."""
        return error

    def wait(self, timeout: float) -> bool:
        """Return whether there is an answer, as soon as there is one or after ``timeout`` seconds."""
        return self._closed.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))


class CompareAndSet(FlushRequest):
    """A caller's wish to write a value if an entry is at a version, after everything that is pending.

    Args:
        expected: The version.
        attempt: Of the call, which may have been made before.

    Attributes:
        stored: The entry as it was stored.
    """

    def __init__(self, change: SetValue, expected: int, attempt: Attempt) -> None:
        super().__init__()
        self.change = change
        self.expected = expected
        self.attempt = attempt
        self.stored: StoredEntry | None = None

    def own(self, error: MemSyncError | None) -> MemSyncError | None:
        """Return an error of what was sent before as one of this, which was not."""
        if isinstance(error, StoreUnavailable) and error.maybe_done:
            return StoreUnavailable(str(error), False, error.code)
        return error
