"""What docstrings and the page on the inside name is there: a rename leaves no old name behind."""
from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from tests.support.paths import ROOT, found_in, tree_of

PACKAGE = ROOT / "celery_memsync"
MODULES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def classes():
    """Return the classes of the package by their names."""
    return {node.name: node for path in MODULES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}


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
        if isinstance(base, ast.Name) and base.id in classes():
            names |= attributes(classes()[base.id])
    return names


def initial(node):
    """Return the parameters of the first constructor of a class or of those that it is made of."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            return parameters(one)
    bases = [classes()[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes()]
    return set().union(*map(initial, bases)) if bases else attributes(node)


def explained_in_vain(path):
    """Return what docstrings of a module explain that is not there, with its function or class."""
    wrong = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            known = parameters(node)
            wrong += [(node.name, name) for name in section(ast.get_docstring(node) or "", "Args") if name not in known]
        elif isinstance(node, ast.ClassDef):
            text = ast.get_docstring(node) or ""
            wrong += [(node.name, name) for name in section(text, "Args") if name not in initial(node)]
            wrong += [(node.name, name) for name in section(text, "Attributes") if name not in attributes(node)]
    return wrong


def test_docstrings_explain_arguments_and_attributes_that_are_there():
    assert found_in(MODULES, explained_in_vain) == {}


def test_docstrings_refer_to_modules_that_are_there():
    def absent(path):
        named = re.findall(r":mod:`~?((?:\.|celery_memsync)[\w.]*)`", path.read_text())
        targets = [(path.parent if name.startswith(".") else ROOT) / name.lstrip(".").replace(".", "/") for name in named]
        return [target for target in targets if not (target.is_dir() or target.with_suffix(".py").is_file())]

    assert found_in(MODULES, absent) == {}


def test_the_page_on_the_inside_names_what_is_there():
    text = (ROOT / "docs" / "design.md").read_text()
    members = {name: attributes(node) for name, node in classes().items()}

    missing = [f"{owner}.{name}" for owner, name in re.findall(r"`(\w+)\.(\w+)\b[^`]*`", text)
            if owner in members and name not in members[owner]]
    files = {path.name for path in Path(PACKAGE).rglob("*")} | {path.name for path in (ROOT / "tests").rglob("*.py")}
    files |= {path.name for folder in ("benchmarks", "docs") for path in (ROOT / folder).rglob("*")}
    lost = [name for name in re.findall(r"[\w/]*?(\w+\.(?:py|lua))\b", text) if name not in files]

    assert (missing, lost) == ([], [])
