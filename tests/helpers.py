"""What tests of several modules use: servers, workers, waiting."""
from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import redis

from celery_memsync.store.embedded import find_server

ROOT = Path(__file__).resolve().parent.parent


def eventually(check, timeout=10.0, message="it did not come true"):
    """Return what ``check()`` answers as soon as that is true; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{message}: {answer!r} after {timeout} s"
        time.sleep(0.02)


#: Ports that were given away lately: who was given one may not listen there yet.
_given = deque(maxlen=200)


def free_port():
    """Return a TCP port that nobody listens on.

    It is below those that the kernel gives to clients: a server that was killed
    finds its port free when it is started again, and so does the second port of
    a node of a cluster, which is 10,000 above.  Processes of pytest-xdist have
    ports of their own.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    while True:
        port = random.SystemRandom().randrange(10_000 + process, 20_000, 8)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _given:
                _given.append(port)
                return port


class RedisServer:
    """A redis-server of the tests' own, which can be killed, paused and started again.

    Args:
        folder: Where its files go.
        keep: Whether its data survive :meth:`stop` and :meth:`start`.
        binary: The redis-server to run; None: the one that `embedded://` takes.
    """

    #: What an app has to be configured with to have it as its broker.
    conf: dict = {}

    def __init__(self, folder, *options, keep=False, binary=None):
        self.binary = binary
        self.folder = Path(folder)
        self.options = options
        self.keep = keep
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = None

    def start(self, *first):
        self.folder.mkdir(parents=True, exist_ok=True)
        save = ["--save", "3600", "1"] if self.keep else ["--save", ""]
        self.process = subprocess.Popen(
            [self.binary or find_server(), *first, "--port", str(self.port), "--bind", "127.0.0.1",
             "--dir", str(self.folder), *save, *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        eventually(self.answers, message="redis-server does not answer")
        return self

    def answers(self):
        try:
            # Another server may have been quicker to take the port.
            return self.client().info("server")["process_id"] == self.process.pid
        except redis.RedisError:
            return False

    def client(self, **options):
        return redis.Redis.from_url(self.url, socket_timeout=5, protocol=2, **options)

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(10)
            self.process = None

    def kill(self):
        self.stop(signal.SIGKILL)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)


class Worker:
    """A real ``celery worker`` in a process of its own.

    Args:
        app: Module of the app, as ``-A`` takes it.
        log: File for its output.
        args: Further arguments of the command line.
        env: Further environment.
    """

    def __init__(self, app, log, *args, env=None, cwd=None, ready="ready."):
        self.log = Path(log)
        self.command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", *args]
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd or ROOT)]), **(env or {})}
        self.cwd = str(cwd or ROOT)
        self.ready = ready
        self.process = None

    def start(self):
        output = open(self.log, "ab")
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        output.close()
        eventually(self._is_ready, timeout=30, message="the worker does not start")
        return self

    def _is_ready(self):
        assert self.process.poll() is None, self.output()
        return self.ready in self.output()

    def output(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def children(self):
        """Return the pids of its pool children."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    def stop(self, how=signal.SIGTERM, timeout=30):
        """End it and return its exit code; kill it if it does not end in time."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            raise AssertionError(f"the worker did not end within {timeout} s:\n{self.output()[-3000:]}") from None
        finally:
            self.process = None

    def signal(self, number):
        self.process.send_signal(number)
