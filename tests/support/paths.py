"""Where things are."""
from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

#: The folder of the repository.
ROOT = Path(__file__).resolve().parents[2]


def read_setup(section):
    """Return a section of ``setup.cfg``: the lines of each field, by its name."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return {name: value.strip().splitlines() for name, value in parser[section].items()}


def names_in(lines):
    """Return the names to which lines of ``setup.cfg`` give a value, with that value."""
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
