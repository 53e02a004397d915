"""What is measured of a module and how it adds up: plain functions without Celery."""
from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

#: The folder of the standard library.
STDLIB = Path(sysconfig.get_path("stdlib"))

#: Folders in it that are left out: what is installed there, and Python's own test suite.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test"})

#: How many of the most wanted modules and longest functions are listed.
LISTED = 15

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules(limit: int | None = None) -> list[str]:
    """Return the paths of the modules below the standard library's folder, sorted.

    Args:
        limit: If given, as many of them, spread evenly over the whole.
    """
    folders = [STDLIB / name for name in os.listdir(STDLIB) if name not in LEFT_OUT]
    paths = [path for folder in folders for path in (folder, *folder.rglob("*")) if path.suffix == ".py"]
    found = sorted(path.relative_to(STDLIB).as_posix() for path in paths)
    if limit is None or limit >= len(found):
        return found
    return [found[number * len(found) // limit] for number in range(limit)]


def measure(module: str) -> dict[str, Any]:
    """Return all that the census counts in a module."""
    found = outline(module)
    return {"module": module, **sizes(found), "imports": links(module, found)}


def outline(module: str) -> dict[str, Any]:
    """Read a module; return what it defines and imports."""
    found: dict[str, Any] = {"functions": [], "classes": [], "imports": [], "lines": 0, "documented": 0}
    found["unreadable"] = None
    try:
        source = (STDLIB / module).read_bytes()
        found["lines"] = len(source.splitlines())
        tree = parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError) as exc:
        return {**found, "unreadable": f"{type(exc).__name__}: {exc}"}
    found["documented"] += ast.get_docstring(tree) is not None
    for node in ast.walk(tree):
        note(node, found)
    return found


def parse(source: bytes) -> ast.Module:
    """Return the tree of a source; warnings of the compiler are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def note(node: ast.AST, found: dict[str, Any]) -> None:
    """Add a node to the outline of its module."""
    if isinstance(node, FUNCTIONS):
        found["functions"].append([node.name, (node.end_lineno or node.lineno) - node.lineno + 1])
    elif isinstance(node, ast.ClassDef):
        found["classes"].append(node.name)
    elif isinstance(node, ast.Import):
        found["imports"] += [[alias.name, 0] for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        found["imports"].append([node.module or "", node.level])
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        found["documented"] += ast.get_docstring(node) is not None


def sizes(outline: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an outline."""
    functions, classes = outline["functions"], outline["classes"]
    return {
        "lines": outline["lines"],
        "functions": len(functions),
        "classes": len(classes),
        "longest": max(functions, key=lambda function: function[1], default=None),
        "documented": outline["documented"],
        "documentable": 0 if outline["unreadable"] else 1 + len(functions) + len(classes),
        "unreadable": outline["unreadable"],
    }


def links(module: str, outline: dict[str, Any]) -> list[str]:
    """Return the dotted names of what a module imports, sorted."""
    names = {absolute(module, name, level) for name, level in outline["imports"]}
    return sorted(names - {dotted(module)})


def dotted(module: str) -> str:
    """Return the name under which a module is imported."""
    path = PurePosixPath(module).with_suffix("")
    return ".".join(path.parts[:-1] if path.name == "__init__" else path.parts)


def absolute(module: str, name: str, level: int) -> str:
    """Return what ``from ..name import ...`` means in a module; ``level`` counts the dots."""
    if level == 0:
        return name
    package = PurePosixPath(module).parts[:-level]
    return ".".join((*package, *filter(None, [name])))


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return totals, longest functions, most wanted modules, and every module."""
    found = sorted(found, key=lambda one: one["module"])
    totals = {name: sum(one[name] for one in found)
              for name in ("lines", "functions", "classes", "documented", "documentable")}
    unreadable = sum(one["unreadable"] is not None for one in found)
    longest = [[dotted(one["module"]), *one["longest"]] for one in found if one["longest"]]
    wanted = Counter(name for one in found for name in one["imports"])
    return {
        "totals": {"modules": len(found), "unreadable": unreadable, "imports": wanted.total(), **totals},
        "longest": sorted(longest, key=lambda row: (-row[2], row))[:LISTED],
        "wanted": [list(row) for row in sorted(wanted.items(), key=lambda row: (-row[1], row))[:LISTED]],
        "modules": found,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Return the report for people."""
    totals = result["totals"]
    unreadable = [f"- `{one['module']}`: {one['unreadable']}" for one in result["modules"] if one["unreadable"]]
    sections = [
        "# A census of the standard library",
        f"Python {sysconfig.get_python_version()}, `{STDLIB}`.",
        table(["what", "how many"], [[name, f"{number:,}"] for name, number in totals.items()]),
        f"{covered(totals):.1f} % of all modules, classes and functions have a docstring.",
        "## Most wanted modules",
        table(["module", "imported by"], result["wanted"]),
        "## Longest functions",
        table(["module", "function", "lines"], result["longest"]),
    ]
    if unreadable:
        sections += ["## Not readable as Python of this version", "\n".join(unreadable)]
    return "\n\n".join(sections) + "\n"


def covered(totals: dict[str, int]) -> float:
    """Return the percentage of what could have a docstring that has one."""
    return 100 * totals["documented"] / max(1, totals["documentable"])


def table(titles: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
