"""Terminals: whether there is one, its keys, and leaving it as it was."""
from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

#: Bytes of keys that are read at once.
PAGE_SIZE = 1024

#: Stands for keys when the terminal is gone: Ctrl-D.
GONE = "\x04"

#: What a terminal sends for arrows and their like.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.)")


def is_terminal() -> bool:
    """Whether standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "")


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let what would kill this process at once raise SystemExit, so that the terminal is left as it was."""
    former = {one: signal.signal(one, _end) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Give what returns the keys that are pressed within so many seconds, as soon as there are some."""
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    decode = codecs.getincrementaldecoder("utf-8")("ignore").decode

    def pressed(seconds: float) -> str:
        if not select.select([number], [], [], seconds)[0]:
            return ""
        try:
            data = os.read(number, PAGE_SIZE)
        except OSError:
            return GONE
        return keys_of(decode(data)) if data else GONE

    try:
        tty.setcbreak(number)
        without_stop = termios.tcgetattr(number)
        without_stop[6][termios.VSUSP] = b"\0"  # a stopped process would leave the screen as it is
        termios.tcsetattr(number, termios.TCSANOW, without_stop)
        yield pressed
    finally:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(number, termios.TCSAFLUSH, before)


def keys_of(text: str) -> str:
    """Return the keys of what a terminal has sent: letters; of arrows and their like nothing."""
    return _SEQUENCE.sub("", text)
