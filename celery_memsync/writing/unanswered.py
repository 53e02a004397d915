"""Calls that decide and got no answer: asking again is not doing again."""
from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

from ..exceptions import ConflictError, MemSyncError, StoreError, StoreUnavailable
from ..models.entry import StoredEntry
from .callers import CallsUnderWay, if_missed

#: Most calls that are remembered.
MAX_CALLS = 1000

#: Seconds that a call is remembered; and from when it can't be known any more whether it is done: then another call
#: with the same arguments is a new one.
MEMORY = 3600.0

UNKNOWN_MEMORY = 60.0

#: Writers that an entry remembers, see ``writes_of`` in ``store/lua/entry_write.lua``.
WRITERS = 3


class _Call(NamedTuple):
    """A call without an answer."""

    arguments: Hashable
    number: int
    until: float


@dataclass
class Attempt:
    """One try of a call that decides.

    Attributes:
        number: Of the call in this process; that of an earlier try, if there was one without an answer.
        maybe_done: Whether it may be done already.
        until: Monotonic time until which it is remembered if it gets no answer.
    """

    number: int
    maybe_done: bool
    until: float

    def conflict(self, key: str, version: int, is_certain: bool) -> MemSyncError:
        """Return what to raise where another version is stored than the expected one.

        Args:
            is_certain: Whether that version can't come from an earlier try, nor from what was written upon it.
        """
        if is_certain or not self.maybe_done:
            return ConflictError(key, version)
        self.until = min(self.until, time.monotonic() + UNKNOWN_MEMORY)
        return StoreUnavailable(
            f"it can't be known any more whether {key} was written: the answer of Redis was lost, and others have written "
            f"since (it is at version {version} now); read it again and decide anew", maybe_done=True)


class Unanswered:
    """Remembers the numbers of calls that got no answer, by their arguments.

    The next call with the same arguments has the number of the first, by which Redis knows it again.  Of several at once
    one has it, so that no two believe to have done what was done once.  No lock is taken.

    Args:
        serials: Numbers of calls, each once.
    """

    def __init__(self, serials: Iterator[int]) -> None:
        self._serials = serials
        self._calls: deque[_Call] = deque(maxlen=MAX_CALLS)
        self._under_way = CallsUnderWay()

    def __len__(self) -> int:
        return len(self._calls)

    @contextlib.contextmanager
    def attempt(self, *arguments: Hashable) -> Iterator[Attempt]:
        """Make a call; it is remembered if it ends without an answer, also by an interruption.

        What is raised in here as :exc:`StoreError` is raised as :exc:`StoreUnavailable` that may be done if an earlier try
        may be.
        """
        self._under_way.begin(arguments)
        earlier = self._take(arguments) if self._calls else None
        if earlier is None:
            attempt = Attempt(next(self._serials), False, time.monotonic() + MEMORY)
        else:
            attempt = Attempt(earlier.number, True, earlier.until)
        try:
            yield attempt
            if_missed(partial(self._note, arguments, attempt))
        except StoreError as exc:
            if not attempt.maybe_done and not getattr(exc, "maybe_done", False):
                raise
            self._note(arguments, attempt)
            if getattr(exc, "maybe_done", False):
                raise
            raise StoreUnavailable(str(exc), maybe_done=True, code=exc.code) from exc
        except MemSyncError:
            raise  # that is an answer
        except BaseException:
            self._note(arguments, attempt)
            raise

    def _note(self, arguments: Hashable, attempt: Attempt) -> None:
        self._calls.append(_Call(arguments, attempt.number, attempt.until))

    def _take(self, arguments: Hashable) -> _Call | None:
        now = time.monotonic()
        for call in list(self._calls):
            if call.arguments == arguments or call.until < now:
                with contextlib.suppress(ValueError):  # another thread has taken it
                    self._calls.remove(call)
                    if call.until >= now:
                        return call
        return None


@contextlib.contextmanager
def maybe_done_is(maybe_done: bool) -> Iterator[None]:
    """Let errors of what comes before or after a call carry whether that call may be done."""
    try:
        yield
    except StoreUnavailable as exc:
        if exc.maybe_done == maybe_done:
            raise
        raise StoreUnavailable(str(exc), maybe_done, exc.code) from exc


def digest_of(body: bytes) -> bytes:
    """Return what stands for a value, which may be large."""
    return blake2b(body, digest_size=16).digest()


def was_never_written(stored: StoredEntry | None, expected: int) -> bool:
    """Whether an entry shows that this process has not written it upon a version.

    Args:
        stored: What is stored now; this process is not among its last writers.
    """
    if stored is None:
        return False
    since = stored.header.version - expected
    return since > 0 and (since <= WRITERS or stored.header.writes.count(",") < WRITERS - 1)


def number_of(writes: str, token: str) -> int:
    """Return the number of a process's last write of an entry, 0 if the entry does not remember that.

    Args:
        writes: The entry's last writes.
        token: Of the process.
    """
    for write in writes.split(","):
        writer, _, number = write.partition(".")
        if writer == token and number.isdigit():
            return int(number)
    return 0
