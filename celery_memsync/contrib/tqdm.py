"""`tqdm` that reports the progress of the running task.

Usage::

    from celery_memsync.contrib.tqdm import tqdm

    for picture in tqdm(pictures, desc="resizing"):
        resize(picture)

Outside of a task it is the bar of ``tqdm.auto``.
"""
from __future__ import annotations

import os
import threading
from typing import Any

try:
    from tqdm import auto, std
except ImportError as exc:
    raise ImportError(f"{exc}; install the extra: pip install 'celery-memsync[tqdm]'", name=exc.name) from exc

from ..app import queue_progress
from ..integration.runs import ActiveRun, active_run

__all__ = ["tqdm", "trange"]

#: Which of the positional arguments of tqdm is ``file``.
FILE = 4


class Nowhere:
    """A file that keeps nothing: in a worker there is no terminal, and each redrawing would be a line of its log.

    It has no ``isatty``: tqdm disables a bar with ``disable=None`` where that returns False.
    """

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Take a text."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


NOWHERE = Nowhere()

_lock = threading.RLock()


class tqdm(auto.tqdm):  # type: ignore[type-arg] # at run time it is not generic
    """A progress bar of tqdm that reports the progress of the task that makes it.

    * It reports as often as it would be drawn: ``mininterval``, ``miniters`` and ``delay`` count.
    * The description is the message, and a postfix the field ``postfix``.
    * A bar after another one, and one that is reset, is the next phase of the task.  A bar inside of another one, which
      began earlier and has not ended, does not report.
    * In a task it draws nothing, unless it is given a ``file``; ``disable=None`` means the same there.  A bar with
      ``disable=True`` does not report.

    Arguments are those of ``tqdm.auto.tqdm``.
    """

    #: The run that it reports.  None: no task made it, or another bar reports that.
    _run: ActiveRun | None = None

    #: Number of the phase that it reports.  None: it has not begun.
    _phase: int | None = None

    #: Whether it is drawn.
    _draws = True

    #: Whether it counts an item before that is done.
    _counts_early = False

    def __new__(cls, *args: Any, **kwargs: Any) -> tqdm:
        if active_run.get() is not None:
            _use_lock_of_threads()  # a bar is made under the lock, the first one, too
        bar: tqdm = super().__new__(cls, *args, **kwargs)
        return bar

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._run = active_run.get()
        if self._run is not None:
            self._draws = len(args) > FILE or None not in (kwargs.get("file"), kwargs.get("disable", False))
            if not self._draws:
                kwargs["file"] = NOWHERE
        super().__init__(*args, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> Any:
        """Report, and draw the bar; tqdm calls this when it is due."""
        self._report()
        return super().display(*args, **kwargs) if self._draws else None

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> Any:
        """Display, and give the lock back also where that raises, as at a soft time limit: other threads wait for it."""
        if nolock or self.disable:
            return super().refresh(nolock=nolock)
        lock = self.get_lock()  # type: ignore[no-untyped-call]
        if not lock.acquire(*(lock_args or ())) and lock_args:
            return False
        try:
            return super().refresh(nolock=True)
        finally:
            lock.release()

    def close(self) -> None:
        """Report the last count, and end the bar."""
        if not getattr(self, "disable", True):
            self._report()
        super().close()

    def reset(self, total: float | None = None) -> None:
        """Begin anew, with a phase of its own."""
        self._phase = None
        super().reset(total)

    def __aiter__(self) -> tqdm:
        self._counts_early = True
        super().__aiter__()
        return self

    def _report(self) -> None:
        run = self._run
        if run is None or run.done:
            return
        begin = self._phase is None
        if begin and self._is_inside_another():
            self._run = None
        elif begin or self._phase == run.progress.phase_number:
            fields = {"postfix": self.postfix} if isinstance(self.postfix, str) and self.postfix else {}
            message = self.desc.removesuffix(": ") or None if isinstance(self.desc, str) else None
            queue_progress(run, run.progress.report(
                self.n, self.total, message, fields=fields, begin=begin, silent=True))
            self._phase = run.progress.phase_number

    def _is_inside_another(self) -> bool:
        run, present = self._run, self._run and self._run.progress.phase_number
        with self.get_lock():  # type: ignore[no-untyped-call]
            return any(isinstance(bar, tqdm) and bar._run is run and bar._phase == present and not bar._is_full()
                       for bar in self._instances if bar is not self)  # type: ignore[attr-defined]

    def _is_full(self) -> bool:
        """Whether it has come to its end, so that it was forgotten to close it."""
        try:
            return self.total is not None and bool(0 < self.total <= self.n) and not self._counts_early
        except (TypeError, ValueError):  # a total that is no number, which a bar that is not drawn does not mind
            return False


def trange(*args: Any, **kwargs: Any) -> tqdm:
    """Return ``tqdm(range(*args), **kwargs)``."""
    return tqdm(range(*args), **kwargs)


def _use_lock_of_threads() -> None:
    """Let the bars of this process wait for each other only.

    tqdm's own lock is shared by all forks, and is never released if one is killed that holds it.
    """
    for bar in (std.tqdm, tqdm):
        lock = getattr(bar, "_lock", None)
        if lock is None or isinstance(lock, std.TqdmDefaultWriteLock):  # type: ignore[attr-defined]
            bar.set_lock(_lock)


def _renew_lock() -> None:
    """Another thread of the parent process may have held it when this one was forked."""
    global _lock
    old, _lock = _lock, threading.RLock()
    for bar in (std.tqdm, tqdm):
        if getattr(bar, "_lock", None) is old:
            bar.set_lock(_lock)


os.register_at_fork(after_in_child=_renew_lock)
