"""What `make` installs."""
from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.paths import ROOT


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_demo_says_that_it_installs_only_what_it_needs(tmp_path):
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)

    # The options of a make that runs the tests are not for this one.
    options = ("MAKE", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(options)}

    def planned(target):
        command = ["make", "-n", target]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    first = planned("demo")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "demo").touch()
    second, unit = planned("demo"), planned("unit")
    (tmp_path / ".venv" / "installed").touch()
    (tmp_path / ".venv" / "demo").unlink()

    assert first.startswith('echo "Installing celery-memsync[embedded,cli] into .venv')
    assert "install" not in second
    assert 'echo "Installing celery-memsync[embedded,cli,dev,docs] into .venv' in unit
    assert planned("demo") == second
