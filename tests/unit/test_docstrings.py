"""What docstrings and the page on the inside name is there: a rename leaves no old name behind."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "celery_memsync"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def section(docstring, title):
    """Return the names that a section of a docstring explains."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    return re.findall(r"^    (\w+):", found.group(1), re.MULTILINE) if found else []


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {one.arg for one in every if one is not None}


def attributes(node):
    """Return the names that a class, or a class of ours that it is made of, gives its objects."""
    names = set()
    for one in ast.walk(node):
        if isinstance(one, ast.AnnAssign | ast.Assign):
            for target in one.targets if isinstance(one, ast.Assign) else [one.target]:
                names |= {inner.id if isinstance(inner, ast.Name) else inner.attr for inner in ast.walk(target)
                          if isinstance(inner, ast.Name | ast.Attribute)}
        elif isinstance(one, ast.FunctionDef):
            names.add(one.name)
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            names |= attributes(CLASSES[base.id])
    return names


def initial(node):
    """Return the parameters of the first constructor of a class or of those that it is made of."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return parameters(one)
    bases = [CLASSES[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return set().union(*map(initial, bases)) if bases else attributes(node)


@pytest.mark.parametrize("path", TREES)
def test_docstrings_explain_arguments_and_attributes_that_are_there(path):
    wrong = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            known = parameters(node)
            wrong += [(node.name, name) for name in section(ast.get_docstring(node) or "", "Args") if name not in known]
        elif isinstance(node, ast.ClassDef):
            text = ast.get_docstring(node) or ""
            wrong += [(node.name, name) for name in section(text, "Args") if name not in initial(node)]
            wrong += [(node.name, name) for name in section(text, "Attributes") if name not in attributes(node)]

    assert wrong == []


@pytest.mark.parametrize("path", TREES)
def test_docstrings_refer_to_modules_that_are_there(path):
    for name in re.findall(r":mod:`~?([\w.]+)`", (PACKAGE / path).read_text()):
        parent = (PACKAGE / path).parent
        if name.startswith("."):
            target = parent / name.lstrip(".").replace(".", "/")
        elif name.startswith("celery_memsync"):
            target = ROOT / name.replace(".", "/")
        else:
            continue  # of another package
        assert target.is_dir() or target.with_suffix(".py").is_file(), name


def test_the_page_on_the_inside_names_what_is_there():
    text = (ROOT / "docs" / "design.md").read_text()
    members = {name: attributes(node) for name, node in CLASSES.items()}

    missing = [f"{owner}.{name}" for owner, name in re.findall(r"`(\w+)\.(\w+)\b[^`]*`", text)
            if owner in members and name not in members[owner]]
    files = {path.name for path in Path(PACKAGE).rglob("*")} | {path.name for path in (ROOT / "tests").rglob("*.py")}
    files |= {path.name for folder in ("benchmarks", "docs") for path in (ROOT / folder).rglob("*")}
    lost = [name for name in re.findall(r"[\w/]*?(\w+\.(?:py|lua))\b", text) if name not in files]

    assert (missing, lost) == ([], [])
