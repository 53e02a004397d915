"""Run a script of the example project as a user does, and see what is left of it."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import eventually

EXAMPLE = ROOT / "example_project"


class Demo:
    """Runs of the demo whose processes are recognised by their folder for temporary files.

    Args:
        folder: Where it is run.
        added: Code that is added to files of a copy of the example, by name.
        script: What is run.
    """

    def __init__(self, folder, added=None, script="demo.py"):
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        example = EXAMPLE
        if added:
            example = shutil.copytree(EXAMPLE, folder / "example_project")
            for name, code in added.items():
                with (example / name).open("a") as file:
                    file.write(code)
        self.command = [sys.executable, str(example / script)]
        self.env = {**os.environ, "TMPDIR": str(self.temporary), "TERM": "xterm", "COLUMNS": "120"}

    def run(self, *args, **env):
        """Run it to its end, into a pipe."""
        return subprocess.run(
            [*self.command, *args], cwd=self.folder, env={**self.env, **env}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=100,
        )

    def start(self, *args, stdout=subprocess.PIPE):
        """Start it and go on."""
        return subprocess.Popen(
            [*self.command, *args], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=subprocess.STDOUT, text=True,
        )

    def left(self):
        """Return the processes and files that are left of it."""
        return [*filter(None, map(self._process, Path("/proc").glob("[0-9]*"))), *self.temporary.iterdir()]

    def check_nothing_left(self):
        eventually(lambda: not self.left(), message=f"something is left: {self.left()}")

    def _process(self, entry):
        try:
            command, env = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            return None
        return command if os.fsencode(self.temporary) in command + env else None

    def census(self):
        """Return what it wrote."""
        return json.loads((self.folder / "census" / "census.json").read_text())
