"""Where things are."""
from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The folder of the repository.
ROOT = Path(__file__).resolve().parents[2]


def read_project():
    """Return the metadata of the package, as ``pyproject.toml`` has them."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
