"""Where things are."""
from __future__ import annotations

import ast
import functools
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


@functools.cache
def tree_of(path):
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


def found_in(files, find):
    """Return what a function finds in files, by their names, without those in which it finds nothing."""
    return {str(path.relative_to(ROOT)): found for path in files if (found := find(path))}
