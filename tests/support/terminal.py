"""A real pseudo-terminal, and the screen that a user would see on it."""
from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading

import pyte

from tests.support.paths import ROOT
from tests.support.waiting import eventually


class Terminal:
    """A command on a terminal of its own.

    Args:
        shell: Where it is typed.
        args: Of `celery memsync`.
        size: Columns and lines.
    """

    def __init__(self, shell, *args, size=(80, 24), **env):
        self.ours, theirs = pty.openpty()
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        self._mutex = threading.Lock()
        self.raw = b""
        self.size = size
        self._set_size(*size)
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            shell._command("tests.support.proj", args), stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
            env={**shell.env, "TERM": "xterm-256color", "COLUMNS": "", "LINES": "", "NO_COLOR": "", **env},
            start_new_session=True, preexec_fn=_take_terminal)
        self._theirs = theirs
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _set_size(self, columns, lines):
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self):
        while True:
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                return
            if not data:
                return
            with self._mutex:
                self.raw += data
                self._stream.feed(data)

    def resize(self, columns, lines):
        with self._mutex:
            self.screen.resize(lines, columns)
            self.screen.reset()
        self._set_size(columns, lines)

    def type(self, text):
        os.write(self.ours, text.encode())

    @property
    def lines(self):
        with self._mutex:
            return [line.rstrip() for line in self.screen.display]

    @property
    def text(self):
        return "\n".join(self.lines)

    def shows(self, *texts, timeout=20):
        """Wait until all of some texts are on the screen."""
        try:
            eventually(lambda: all(text in self.text for text in texts), timeout)
        except AssertionError:
            code = self.process.poll()
            raise AssertionError(f"{texts} are not all on the screen (exit code {code}):\n{self.text}") from None
        return self

    def hides(self, text, timeout=20):
        """Wait until a text is not on the screen."""
        eventually(lambda: text not in self.text, timeout, self.text)
        return self

    def end(self, how=None, timeout=20):
        """Return its exit code once it has ended; by a signal if one is given."""
        try:
            if how is not None:
                self.process.send_signal(how)
            return self.process.wait(timeout)
        finally:
            self.close()

    def close(self):
        """End whatever still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        if self._theirs is not None:
            self.after = termios.tcgetattr(self._theirs)
            os.close(self._theirs)
            self._theirs = None
            self._reader.join(5)
            os.close(self.ours)

    @property
    def restored(self):
        """Whether a shell would find the terminal as it was: its modes, its own screen, its cursor."""
        # The last field counts what is typed; the one before are the control characters.
        return self.after == self.before and self.raw.count(b"\x1b[?1049h") == self.raw.count(b"\x1b[?1049l") and \
            self.raw.rfind(b"\x1b[?25h") >= self.raw.rfind(b"\x1b[?25l")


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
