"""A real Celery worker."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import eventually


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
        self.env = {
            **os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd or ROOT)]),
            **(env or {})}
        self.cwd = str(cwd or ROOT)
        self.ready = ready
        self.process = None

    def start(self):
        return self.launch().wait_ready()

    def launch(self):
        """Start it without waiting until it is ready, so that several start at the same time."""
        output = open(self.log, "ab")
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        output.close()
        return self

    def wait_ready(self):
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
            raise AssertionError(f"the worker did not end within {timeout} s:\n{self._kill()[-12000:]}") from None
        finally:
            self.process = None

    def _kill(self):
        """Kill all its processes; return its output, with where each of their threads was."""
        os.killpg(self.process.pid, signal.SIGABRT)
        time.sleep(1)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        return self.output()

    def signal(self, number):
        self.process.send_signal(number)

    def pause(self):
        """Stop the main process until it gets SIGCONT; return when all of its threads stand still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
