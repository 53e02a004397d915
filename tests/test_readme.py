"""Every example of README.md is run: by a real worker, real scripts and the real command line."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers import ROOT, RedisServer, Worker, eventually

#: How every page writes the address of Redis.
ADDRESS = "redis://localhost:6379"

#: First line of a block that belongs into a file.
FILE = re.compile(r"# (\w+\.py)\b")

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


#: What the examples read from the environment.
SECRETS = {"SIGNING_KEY": "0123456789abcdef-docs"}


class Page:
    """The examples of one page, put where they can be run.

    A Python block whose first line is ``# name.py`` goes into that file, after
    what earlier blocks put there; any other is a script.
    """

    def __init__(self, path, folder, server):
        self.folder = folder
        self.text = Path(path).read_text()
        self.address = server.url.rpartition("/")[0]
        self.scripts = []
        for code in self._blocks("python"):
            code = code.replace(ADDRESS, self.address)
            name = FILE.match(code)
            if name is None:
                self.scripts.append(code)
            else:
                with open(folder / name.group(1), "a") as file:
                    file.write(code + "\n\n")

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

    def run_celery(self, *args):
        """Run ``celery ...``."""
        return self.run(sys.executable, "-m", "celery", *args)

    def worker(self, name):
        """Return a worker for the app of a file."""
        return Worker(name, self.folder / f"{name}.log", "-c", "2", "-n", f"{name}@%h", cwd=self.folder, env=SECRETS)


@pytest.fixture(scope="module")
def page(tmp_path_factory, module_server):
    """README.md, beside a worker for the app of its first block."""
    page = Page(ROOT / "README.md", tmp_path_factory.mktemp("readme"), module_server)
    worker = page.worker("proj").start()
    yield page
    worker.stop()


@pytest.fixture(scope="module")
def module_server(tmp_path_factory):
    """A redis-server for all examples of one page: they use several of its databases."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


def test_every_script_runs(page):
    assert len(page.scripts) == 7

    for code in page.scripts:
        page.run_script(code)


def test_what_a_task_tells_can_be_read_as_the_readme_shows_it(page):
    shown = page.scripts[0]

    told = page.run_script(shown + """
import json, time
while memsync.get_task_progress(task_id) is None or not memsync.get_task_progress(task_id)["current"]:
    time.sleep(0.05)
print(json.dumps([memsync.get_task_state(task_id), memsync.get_task_progress(task_id)]))
""")

    for name in re.findall(r"'(\w+)':", shown):
        assert f'"{name}"' in told


def test_every_command_runs_and_prints_what_the_readme_shows(page):
    task_id = page.run_script("from proj import convert; print(convert.delay(300).id)").strip()
    eventually(lambda: "STARTED" in page.run_celery("-A", "proj", "memsync", "task", task_id), timeout=20)

    for command, shown in page.commands:
        printed = page.run_celery(*UUID.sub(task_id, command).split()[1:])

        titles = [line.split() for line in shown.splitlines() if line.isupper() and not UUID.search(line)]
        assert [words for words in titles if words not in [line.split() for line in printed.splitlines()]] == []
    assert len(page.commands) == 3


def test_a_task_that_tells_its_count_is_seen_with_its_own_fields(page):
    told = page.run_script("""
import time
from proj import load, memsync
task_id = load.delay(5).id
while (memsync.get_task_state(task_id) or {}).get("status") != "SUCCESS":
    time.sleep(0.05)
progress = memsync.get_task_progress(task_id)
print(progress["progress"], progress["table"], progress["message"])
""")

    assert told.split() == ["100.0", "orders", "loading"]


def test_a_worker_takes_part_by_the_setting_alone(tmp_path, own_server):
    page = Page(ROOT / "README.md", tmp_path, own_server)
    worker = page.worker("bare").start()
    try:
        task_id = page.run_script("from bare import add; print(add.delay(1, 2).id)").strip()

        eventually(lambda: task_id in page.run_celery("-A", "bare", "memsync", "tasks", "--status", "success"), timeout=20)
    finally:
        worker.stop()


def test_every_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", page.text)

    assert targets and [target for target in targets if not (ROOT / target).exists()] == []
