"""A project whose tests use the pytest plugin, in a process of their own."""
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib import metadata

from tests.support.paths import ROOT

PLUGIN = "celery_memsync.contrib.pytest_plugin"

#: A module with tasks.
TASKS = """
    import os
    import time

    from celery import current_app, shared_task

    @shared_task
    def convert(pages):
        for page in current_app.memsync.track(range(pages), message="converting"):
            pass
        return os.getpid()

    @shared_task
    def hold(seconds=0.3):
        current_app.memsync.progress(4, 10, "holding")
        time.sleep(seconds)
        return os.getpid()
"""


def plugin_options():
    """Return the options of pytest that load the plugin: none where it is found by itself."""
    found = any(one.value == PLUGIN for one in metadata.entry_points(group="pytest11"))
    return [] if found else ["-p", PLUGIN]


class Project:
    """A folder with tests.

    Args:
        files: Their texts, by their names.
    """

    def __init__(self, folder, **files):
        self.folder = folder
        files = {"conftest": 'pytest_plugins = ["celery.contrib.pytest"]', **files}
        for name, text in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))

    def begin(self, *options, env=None):
        """Start pytest."""
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PYTEST_", "MEMSYNC_TEST_", "DJANGO_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-rA", *plugin_options(), *options], cwd=self.folder, text=True,
            env={**clean, "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder)]), **(env or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *options, env=None):
        """Run pytest; return what it printed."""
        return self.begin(*options, env=env).communicate(timeout=100)[0]

    def passes(self, *options, env=None, tests):
        """Run pytest, where so many tests have to pass and nothing else to happen; return what it printed."""
        output = self.run(*options, env=env)
        last = output.rstrip().splitlines()[-1]
        assert f"{tests} passed" in last and "failed" not in last and "error" not in last, output[-8000:]
        return output
