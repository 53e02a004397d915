"""A process of uvicorn, and clients of its streams."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

from tests.support.event_streams import Parser
from tests.support.paths import ROOT
from tests.support.redis_server import free_port
from tests.support.waiting import eventually


class WebServer:
    """A real uvicorn with one process.

    Args:
        app: As uvicorn takes it.
        log: File for its output.
        env: Further environment.
    """

    def __init__(self, app, log, env, cwd=ROOT):
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", app, "--port", str(self.port), "--log-level", "warning"],
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}", **env}, cwd=cwd, stdout=output, stderr=output)

    def wait_ready(self, path="/numbers"):
        eventually(lambda: self._answers(path), timeout=30, message="uvicorn does not start")
        return self

    def _answers(self, path):
        assert self.process.poll() is None, self.output()
        try:
            with urllib.request.urlopen(self.url + path, timeout=5):
                return True
        except OSError:
            return False

    def numbers(self):
        """Return what `tests.support.progress_app` shows of its process."""
        with urllib.request.urlopen(f"{self.url}/numbers", timeout=20) as answer:
            return json.load(answer)

    def output(self):
        return self.log.read_text(errors="replace")

    def stop(self, how=signal.SIGTERM, timeout=20):
        """End it; return its exit code and the seconds that this took."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout), time.monotonic() - started
        finally:
            self.process.kill()
            self.process.wait(10)


class Client:
    """A client of one stream, which reads it to its end.

    Attributes:
        has_ended: Whether the server has closed the stream.
    """

    def __init__(self, reader, writer, reads):
        self.parser = Parser()
        self.has_ended = False
        self._reader = reader
        self._writer = writer
        self._task = asyncio.create_task(self._read()) if reads else None
        if not reads:
            writer.transport.pause_reading()

    @classmethod
    async def connect(cls, server, path, reads=True, **headers):
        """Return a client that has sent its request.

        Args:
            reads: Whether it reads what it receives.
        """
        client = cls(*await asyncio.open_connection("127.0.0.1", server.port), reads)
        lines = [f"GET {path} HTTP/1.0", "Accept: text/event-stream", *(f"{key}: {value}" for key, value in headers.items())]
        client._writer.write("\r\n".join([*lines, "", ""]).encode())
        return client

    async def _read(self):
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        while chunk := await self._reader.read(65536):
            self.parser.feed(chunk)
        self.has_ended = True

    @property
    def names(self):
        """The names of the events that have come."""
        return [event.name for event in self.parser.events]

    def close(self):
        if self._task is not None:
            self._task.cancel()
        self._writer.transport.abort()


async def until(check, timeout=20):
    """Return when ``check()`` is true, while this event loop goes on."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.02)
