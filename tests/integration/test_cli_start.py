"""What every `celery` command pays for this package, and how shells complete it."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from celery_memsync.cli import COMMANDS, memsync
from tests.support.paths import ROOT
from tests.support.shell import Shell, plain
from tests.support.stress import stressed


def python(code, **env):
    """Run a program in a process of its own; return what it printed, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), **env}, cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


IMPORTED = """
import json, sys
before = set(sys.modules)
try:
    {command}
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)), file=sys.__stdout__)
"""

HELP = """
    import io
    from celery.bin.celery import celery
    sys.stdout = io.StringIO()
    celery.main(["--help"], prog_name="celery")
"""

WITHOUT_US = """
    import importlib.metadata as metadata
    found = metadata.entry_points
    metadata.entry_points = lambda **wanted: [one for one in found(**wanted) if "memsync" not in one.value]
"""


def test_celerys_help_imports_nothing_because_of_this_package():
    ours = python(IMPORTED.format(command=HELP.strip()))
    without = python(IMPORTED.format(command=(WITHOUT_US + HELP).strip()))

    more = {name for name in set(ours) - set(without) if not name.startswith("__editable__")}
    assert more == {"celery_memsync", "celery_memsync.cli"}
    assert "redis" not in ours


@pytest.mark.parametrize("name", stressed(
    ["MemSync", "MemorySyncManager", "Lock", "StoreError", "Entry", "Resolution"], ["MemSync", "StoreError"]))
def test_public_name_is_imported_when_it_is_used(name):
    found = python(f"import celery_memsync, json; from celery_memsync import {name} as one; "
                   f"print(json.dumps([one is celery_memsync.{name}, one.__name__]))")

    assert found == [True, name]


def test_all_that_is_public_is_listed():
    listed, imported = python("""
import json, celery_memsync
listed = [set(celery_memsync.__all__) <= set(dir(celery_memsync)), hasattr(celery_memsync, "nothing")]
from celery_memsync import *
print(json.dumps([listed, sorted(set(celery_memsync.__all__) - set(globals()))]))
""")

    assert listed == [True, False]
    assert imported == []


def test_worker_of_an_app_without_memsync_does_not_import_it():
    imported = python("""
import json, sys
from celery import Celery, signals
import celery.bin.celery
app = Celery("bare", broker="memory://")
class Worker: pass
worker = Worker()
worker.app = app
signals.worker_init.send(sender=worker)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("celery_memsync"))))
""")

    assert imported == ["celery_memsync", "celery_memsync.cli"]


def test_each_command_is_what_it_is_called():
    assert {name: memsync.commands[name].name for name in COMMANDS} == {name: name for name in COMMANDS}
    assert sorted(COMMANDS) == memsync.list_commands(None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_are_in_the_reference(name):
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()

    options = [one.opts[-1] for one in memsync.commands[name].params if one.opts[-1].startswith("--")]
    assert re.search(rf"^\| `memsync {name}[ `]", page, re.M)
    assert [one for one in options if f"`{one}" not in page and one != "--help"] == []


def test_the_help_fits_on_a_terminal_of_80_columns(make_fleet):
    shown = plain(Shell(make_fleet().env(COLUMNS="80")).run_process("--help", COLUMNS="80"))

    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.endswith("...") and "ARGS" not in line] == []


@pytest.fixture
def bash(tmp_path, make_fleet):
    """Returns how a bash with `celery` on its path completes a command line."""
    script = tmp_path / "celery"
    script.write_text(f"#!{sys.executable}\nfrom celery.__main__ import main\nmain()\n")
    script.chmod(0o755)
    env = {**os.environ, **make_fleet().env(), "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def complete(line):
        program = f"""
            eval "$(_CELERY_COMPLETE=bash_source celery)"
            COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
            _celery_completion celery
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return plain(done).split()

    return complete


@pytest.mark.parametrize("line, wanted", [
    *stressed([("celery mems", "memsync"), ("celery -A tests.support.proj memsync ex", "export")], []),
    ("celery -A tests.support.proj memsync tasks --stat", "--status"),
])
def test_a_shell_completes(bash, line, wanted):
    assert bash(line) == [wanted]
