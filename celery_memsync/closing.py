"""Close what its owner has not: what was forgotten, and what is open when the process ends."""
from __future__ import annotations

import _thread
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from multiprocessing import util as multiprocessing_util

from .background_loop import start_thread

logger = logging.getLogger(__name__)

#: Seconds that the end of a process waits for what is just being closed.
EXIT_TIMEOUT = 4.0

Close = Callable[[], object]


class Closer:
    """Closes what belongs to objects that are collected, and at the end of the process all the rest.

    Closing talks to Redis.  Python's collector runs in whatever thread there is, between any two bytecodes and with any
    mutex held, so there nothing more is done than to queue what is to be closed and to start a thread if there is none.
    No step of that waits, and it ends when nothing is left.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._start_anew()

    def _start_anew(self) -> None:
        #: Owners, and how to close what is theirs, by number.
        self._open: dict[int, tuple[weakref.ref[object], Close]] = {}
        self._forgotten: deque[Close] = deque()
        #: Held by the thread that closes what was forgotten.
        self._closing = threading.Lock()
        self._pid: int | None = None

    def add(self, owner: object, close: Close) -> int:
        """Close something when its owner is collected, or the process ends.

        Args:
            close: It must not refer to the owner.

        Returns:
            A number for :meth:`remove`.
        """
        number = next(self._numbers)
        self._open[number] = weakref.ref(owner, partial(self._on_collected, number)), close
        if self._pid != os.getpid():
            self._pid = os.getpid()
            # Children of multiprocessing run no exit handlers.
            multiprocessing_util.Finalize(None, self.close_all, exitpriority=10)
        return number

    def remove(self, number: int) -> None:
        """Leave it to the owner, who has closed it."""
        self._open.pop(number, None)

    def _on_collected(self, number: int, _: object) -> None:
        _, close = self._open.pop(number, (None, None))
        if close is None:
            return
        self._forgotten.append(close)
        if self._closing.acquire(blocking=False):
            try:
                # Not Thread.start(), which waits until the thread runs; that is done in this one.
                _thread.start_new_thread(self._start_thread, ())
            except RuntimeError:  # no threads any more: it is closed at the end of the process
                self._closing.release()

    def _start_thread(self) -> None:
        # A thread that `threading` does not know stays on its list once it has read its name.
        try:
            start_thread(threading.Thread(target=self._run, name="memsync-closing", daemon=True))
        except RuntimeError:
            self._closing.release()

    def _run(self) -> None:
        while True:
            self._close_forgotten()
            self._closing.release()
            if not self._forgotten or not self._closing.acquire(blocking=False):
                return

    def _close_forgotten(self) -> None:
        while self._forgotten:
            _close(self._forgotten.popleft())

    def close_all(self) -> None:
        """Close what is open, what was opened last first."""
        self._pid = None  # what is opened later has to be closed, too
        for number in sorted(self._open, reverse=True):
            _, close = self._open.pop(number, (None, None))
            if close is not None:
                _close(close)
        if self._closing.acquire(timeout=EXIT_TIMEOUT):
            try:
                self._close_forgotten()
            finally:
                self._closing.release()

    def forget(self) -> None:
        """Begin anew in a forked child: what is open is the parent's."""
        self._start_anew()


def _close(close: Close) -> None:
    try:
        close()
    except Exception:
        logger.exception("What was open could not be closed")


#: That of this process.
closer = Closer()

os.register_at_fork(after_in_child=closer.forget)

# Not atexit itself: weakref's handler is there before most others, so it runs after them and writes what they have recorded.
weakref.finalize(closer, closer.close_all)
