"""Processes that use embedded:// servers, for the tests of those."""
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from celery_memsync import StoreError
from celery_memsync.store import embedded
from tests.support.paths import ROOT
from tests.support.waiting import eventually

#: User id of an account without rights.
FOREIGN_UID = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

USER = """
import sys
from celery_memsync import MemorySyncManager
memsync = MemorySyncManager('user', sys.argv[1], batch_interval=60.0)
"""

#: Prints when the server runs, and ends when its standard input does.
STAYS = """
    memsync.write('seen', 1)
    memsync.force_sync()
    print('ready', flush=True)
    sys.stdin.read()
"""


def begin(code, url, env=None):
    """Start code in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", USER + textwrap.dedent(code), url], cwd=ROOT,
        env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)


def run(code, url, env=None):
    """Run code in a process of its own; return its output."""
    process = begin(code, url, env)
    out, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return out


def servers_of(folder):
    """Return the pids of the servers that run in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().strip() in ("redis-server", "valkey-server"):
                if os.readlink(entry / "cwd") == str(folder):
                    found.append(int(entry.name))
        except OSError:
            pass
    return found


class StayingUsers:
    """Processes that use the server of a folder until they are stopped."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []

    def start(self):
        """Start one, and return it when the server runs."""
        process = begin(STAYS, f"embedded://{self.folder}")
        self.processes.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    def stop(self):
        """Kill all, and wait for the end of the server."""
        for process in self.processes:
            process.kill()
            process.communicate()
        eventually(lambda: not servers_of(self.folder), timeout=10)


def refusal_of(path):
    """Return the error of a start in a folder."""
    with pytest.raises(StoreError) as caught:
        embedded.start(str(path))
    return str(caught.value)


def disown(path):
    """Give a file to another user."""
    os.chown(path, FOREIGN_UID, FOREIGN_UID, follow_symlinks=False)
