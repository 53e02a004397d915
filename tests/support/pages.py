"""The examples of a page of the documentation."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.celery_worker import Worker
from tests.support.paths import ROOT

#: How every page writes the address of Redis.
ADDRESS = "redis://localhost:6379"

#: First line of a block that belongs into a file.
FILE = re.compile(r"(?:#|//|<!--) ([\w/]+\.\w+)\b")

#: Languages of such blocks.
LANGUAGES = ("python", "html", "javascript")

#: What the examples read from the environment.
SECRETS = {"SIGNING_KEY": "0123456789abcdef-docs"}

COMMANDS = """
import shlex, sys
from celery.bin.celery import celery

for command in sys.argv[1:]:
    code = celery.main(shlex.split(command)[1:], prog_name="celery", standalone_mode=False)
    assert not code, (command, code)
"""


class Page:
    """The examples of one page, put where they can be run.

    A block whose first line is ``# name.py``, ``// name.js`` or ``<!-- name.html -->``
    goes into that file, after what earlier blocks put there; any other of Python is a script.
    """

    def __init__(self, path, folder, server):
        self.folder = folder
        self.text = Path(path).read_text()
        self.address = server.url.rpartition("/")[0]
        self.scripts = []
        for language in LANGUAGES:
            for code in self._blocks(language):
                self._put(language, code.replace(ADDRESS, self.address))

    def _put(self, language, code):
        name = FILE.match(code)
        if name is not None:
            (self.folder / name.group(1)).parent.mkdir(exist_ok=True)
            with open(self.folder / name.group(1), "a") as file:
                file.write(code + "\n\n")
        elif language == "python":
            self.scripts.append(code)

    def _blocks(self, language):
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    @property
    def commands(self):
        """Pairs of a ``celery memsync`` command and the output that the page shows."""
        return [
            tuple(block[2:].partition("\n")[::2]) for block in self._blocks("console")
            if re.match(r"\$ celery -A \w+ memsync ", block)
        ]

    def run(self, *command, env=None):
        """Run a command in the page's folder and return its output; it must succeed."""
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=60,
            env={**os.environ, **SECRETS, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}", **(env or {})},
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def run_script(self, code):
        """Run a block as a program of its own."""
        return self.run(sys.executable, "-c", code)

    def run_commands(self, commands):
        """Run several ``celery ...`` one after the other in one process, which takes a second to start."""
        return self.run(sys.executable, "-c", COMMANDS, *commands)

    def run_celery(self, *args):
        """Run ``celery ...``."""
        return self.run(sys.executable, "-m", "celery", *args)

    def worker(self, name):
        """Return a worker for the app of a file."""
        return Worker(name, self.folder / f"{name}.log", "-c", "2", "-n", f"{name}@%h", cwd=self.folder, env=SECRETS)
