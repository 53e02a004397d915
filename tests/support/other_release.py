"""Another release of this package, in an environment of its own beside the present one."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from tests.support.paths import ROOT

#: What a wheel is made of.
SOURCES = ("celery_memsync", "pyproject.toml", "setup.cfg", "README.md", "LICENSE")

VERSION = "0.0.9"


class OtherRelease:
    """A wheel of HEAD with the number of the format lowered by one, installed in a folder.

    ``MEMSYNC_OTHER_WHEEL`` names the wheel of a real release to take in its place.

    Args:
        folder: Where it goes.
    """

    def __init__(self, folder):
        self.folder = folder / "site"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wheel = os.environ.get("MEMSYNC_OTHER_WHEEL") or self._build(folder, pip)
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(self.folder), wheel], check=True)

    def _build(self, folder, pip):
        source = folder / "source"
        source.mkdir()
        if (ROOT / ".git").exists():
            archive = subprocess.run(["git", "archive", "HEAD", *SOURCES], cwd=ROOT, capture_output=True, check=True)
            subprocess.run(["tar", "x"], cwd=source, input=archive.stdout, check=True)
        else:
            for name in SOURCES:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
        self._change(source / "celery_memsync/models/formats.py", r"^FORMAT = (\d+)$",
                     lambda found: f"FORMAT = {int(found[1]) - 1}")
        self._change(source / "celery_memsync/__init__.py", r'^__version__ = ".*"$', lambda _: f'__version__ = "{VERSION}"')
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder))
        subprocess.run([*pip, "wheel", *options, str(source)], check=True)
        (wheel,) = folder.glob("*.whl")
        return str(wheel)

    def _change(self, path, pattern, make):
        text, count = re.subn(pattern, make, path.read_text(), flags=re.M)
        assert count == 1
        path.write_text(text)

    @property
    def env(self):
        """What a process needs in its environment to be one of this release."""
        return {"PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)])}

    def worker(self, fleet, *args):
        """Return a worker of this release that is not started yet."""
        worker = fleet.worker(*args)
        worker.env.update(self.env)
        worker.cwd = str(self.folder)  # the present one is in the folder of the repository
        return worker
