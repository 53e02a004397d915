"""What the demo starts, and stops again: a Redis and workers."""
from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from celery import Celery

from celery_memsync.store import embedded

HERE = Path(__file__).resolve().parent

CELERY = (sys.executable, "-m", "celery", "-A", "proj")

#: Seconds that a stopping worker may take to finish what it has.
WARM = 15.0


class DemoError(Exception):
    """What ends the demo early, as a text for its user."""


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Celery]:
    """Run a Redis; yield an app that has its broker, results and shared state there.

    Args:
        folder: Where its files go.
    """
    for name in ("CENSUS_BROKER", "CENSUS_RESULTS"):
        os.environ.pop(name, None)
    os.environ["CENSUS_BACKEND"] = f"embedded://{quote(str(folder))}"
    os.environ["CENSUS_SIGNING_KEY"] = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        stack.callback(stop_redis, embedded.socket_path(str(folder)))
        from proj.celery import app
        yield stack.enter_context(app)


def stop_redis(path: str) -> None:
    """Stop the Redis now; else it stops with this process, whose folder is deleted before."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"SHUTDOWN NOSAVE\r\n")
        connection.recv(1)


class Worker:
    """A worker, for a ``with`` block.

    Args:
        name: Its node name.
        folder: Where its log goes.
    """

    #: Pool processes of a worker.
    PROCESSES = 2

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.killed = False

    def __enter__(self) -> Worker:
        with self.log.open("wb") as output:
            # In a session of its own, because a Ctrl-C at the terminal is for the demo only.
            self._process = subprocess.Popen(
                [*CELERY, "worker", "-n", self.name, "-c", str(self.PROCESSES), "-l", "WARNING",
                 "--without-gossip", "--without-mingle"],
                cwd=HERE, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
                # What a killed worker leaves there is deleted with the folder.
                env={**os.environ, "TMPDIR": str(self.log.parent)},
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(WARM)
        finally:
            self.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill the worker and its pool processes, without a warning."""
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def check(self) -> None:
        """Raise DemoError if the worker has ended by itself."""
        if self._process.poll() is not None and not self.killed:
            end = self.log.read_text(errors="replace")[-3000:]
            raise DemoError(f"{self.name} has ended by itself; the end of its log:\n{end}")


@contextlib.contextmanager
def command(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of ``celery memsync``, which ends with the block at the latest."""
    with subprocess.Popen(
        [*CELERY, "memsync", *words], cwd=HERE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
