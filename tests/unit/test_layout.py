"""The rules of this code that a machine can keep."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from celery_memsync.store import scripts
from tests.support.paths import ROOT, found_in, tree_of

PACKAGE = ROOT / "celery_memsync"
LUA = PACKAGE / "store" / "lua"

#: What imports what: a module or package imports from the lines above its own, and packages of one line do not know
#: each other.  Imports for a type checker and inside of functions count, too.  `docs/design.md` shows the same.
LAYERS = (
    ("types", "exceptions", "events", "urls", "signing", "deadline", "background_loop", "closing", "probe", "globs", "keys",
     "encoding", "user_code", "redaction"),
    ("models",),
    ("conflicts",),
    ("settings",),
    ("store",),
    ("writing", "locking", "fleet"),
    ("reading", "environment"),
    ("records",),
    ("runtime",),
    ("manager",),
    ("aio", "integration"),
    ("app",),
    ("activation",),
    ("spawned_child",),
    ("metrics",),
    ("cli",),
    ("contrib",),
    ("__init__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

#: The scripts that Redis is given, and what is put before them.
LOADED = {name.lower(): script for name, script in vars(scripts).items() if isinstance(script, scripts.Script)}
SCRIPTS = sorted(LOADED)
FRAGMENTS = sorted({path.stem for path in LUA.glob("*.lua")} - set(SCRIPTS))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
STORE = sorted((PACKAGE / "store").glob("*.py"))

HEADER_PARTS = ("KEYS[", "ARGV[", "Returns", "Publishes")


def place_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module_of(path: Path) -> str:
    """Return the name of a module inside of the package: "store.entries", "store" for a package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_of(path): path for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Return the modules of this package that a module imports, wherever in it."""
    package = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = ".".join(filter(None, [*package[:len(package) - node.level + 1], *(node.module or "").split(".")]))
        names = {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
        found |= (names & NAMES.keys()) | ({base} if names - NAMES.keys() else set())
    return found - {module_of(path)}


def public_definitions(tree, prefix=""):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


def is_overload(node):
    return any("overload" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))


def header_of(name: str) -> str:
    lines = (LUA / f"{name}.lua").read_text().splitlines()
    return "\n".join(line for line in lines[:next(i for i, line in enumerate(lines) if not line.startswith("--"))])


def body_of(name: str) -> str:
    return (LUA / f"{name}.lua").read_text()[len(header_of(name)):]


# -- layers

def test_module_imports_from_lower_layers_only():
    def above(path):
        own = place_of(path)
        return [name for name in imports_of(path)
                if name.split(".")[0] not in ("", own) and LEVEL[name.split(".")[0]] >= LEVEL[own] > 0]

    assert found_in(MODULES, above) == {}


def test_no_modules_import_each_other_in_a_circle():
    left = {name: {one for one in imports_of(path) if one} for name, path in NAMES.items() if name}

    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}

    assert left == {}


def test_design_shows_the_layers_and_the_packages():
    page = (ROOT / "docs" / "design.md").read_text()
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}

    rule = re.search(r"^```text\n(types, .*?)^```$", page, re.M | re.S).group(1)
    shown = [tuple(re.split(r",\s*", line.strip())) for line in " ".join(rule.split()).split(" < ")]

    assert shown == [names for names in LAYERS if names != ("__init__",)]
    assert {name for name in folders if f"{name}/" not in page} == set()


def test_contributing_names_only_files_that_exist():
    table = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for line in table for name in re.findall(r"`([\w/]+(?:\.py|\.md|/))`", line)}

    assert [name for name in named if not any((folder / name).exists() for folder in (PACKAGE, ROOT, ROOT / "tests"))] == []
    assert len(named) > 10


def test_contributing_shows_every_folder_of_tests():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    folders = [path.parent for path in (ROOT / "tests").glob("*/__init__.py")]

    assert [path.name for path in folders if f"| `tests/{path.name}/` |" not in table] == []


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: help (.*)$", text, re.M).group(1).split()

    assert [name for name in targets if f'"make {name} ' not in text] == []


def test_imports_are_found_where_there_are_some():
    assert imports_of(PACKAGE / "writing" / "progress.py") >= {"writing.changes", "store.clock", "models.task"}
    assert imports_of(PACKAGE / "cli" / "output.py") >= {"exceptions", "activation"}
    assert "store.script_caller" in imports_of(PACKAGE / "store" / "__init__.py")


def test_only_the_store_and_the_connections_talk_to_redis():
    importers = {
        place_of(path) for path in MODULES for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Import) and any(alias.name == "redis" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "redis")
    }

    assert importers - {"integration"} == {"store"}  # a worker reports the version of redis-py


def private_of_others(path):
    """Return the names with an underscore that a module takes from another one."""
    siblings = {
        alias.asname or alias.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names if any(alias.name == name.rpartition(".")[2] for name in NAMES)}
    private = [
        ast.unparse(node) for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in siblings
        and node.attr.startswith("_") and not node.attr.startswith("__")
    ]
    private += [
        alias.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    return private


def test_nothing_outside_a_module_touches_its_underscore():
    assert found_in(MODULES, private_of_others) == {}


# -- sizes

def test_no_file_is_longer_than_450_lines():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in MODULES}

    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_nine_in_ten_functions_are_shorter_than_20_lines():
    lengths = [node.end_lineno - node.lineno + 1 for tree in map(tree_of, MODULES) for node in ast.walk(tree)
               if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    assert sum(length < 20 for length in lengths) > 0.9 * len(lengths)


# -- docstrings

def test_everything_public_has_a_docstring():
    def missing(path):
        named = [("the module", tree_of(path)), *public_definitions(tree_of(path))]
        return [name for name, node in named if not ast.get_docstring(node) and not is_overload(node)]

    assert found_in(MODULES, missing) == {}


def test_a_module_begins_as_all_do():
    def first_import(path):
        imports = [node.module for node in tree_of(path).body if isinstance(node, ast.ImportFrom)]
        return [name for name in imports[:1] if name != "__future__"]

    assert found_in(MODULES, first_import) == {}


def test_nothing_is_left_to_do():
    files = [*MODULES, *LUA.glob("*.lua"), *(ROOT / "tests").rglob("*.py")]
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

    own = Path(__file__)
    assert [str(path) for path in files if path != own and marks.search(path.read_text())] == []


def test_a_file_of_tests_is_short_enough_to_be_read():
    assert found_in(TESTS, lambda path: path.read_text().splitlines()[350:]) == {}


def test_a_file_of_tests_imports_from_no_other():
    imports = re.compile(r"^ *(?:from|import) ([\w.]*\b(?:test_\w+|conftest)) ", re.M)

    assert found_in(TESTS, lambda path: imports.findall(path.read_text())) == {}


# -- output

OUTPUT = PACKAGE / "cli" / "output.py"

#: Calls that print a text as it is.  Usage errors are not among them: `Commands` makes them safe.
RAW_OUTPUT = re.compile(
    r"(.*\.)?obj\.(echo|secho|error|style)|(click\.)?(echo|secho|style|ClickException)|print|"
    r"CeleryCommandException|sys\.std(out|err)\.write(lines)?")
COMMANDS = sorted({*OUTPUT.parent.glob("*.py")} - {OUTPUT})


def calls_of(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}


def test_command_prints_through_the_functions_of_output_only():
    assert found_in(COMMANDS, lambda path: [name for name in calls_of(path) if RAW_OUTPUT.fullmatch(name)]) == {}


def test_calls_that_print_are_found_where_there_are_some():
    found = {name for name in calls_of(OUTPUT) if RAW_OUTPUT.fullmatch(name)}

    assert found == {
        "ctx.obj.echo", "ctx.obj.error", "ctx.obj.style", "print", "CeleryCommandException"}


# -- scripts

@pytest.mark.parametrize("name", SCRIPTS)
def test_script_header_documents_keys_arguments_answer_and_messages(name):
    header = header_of(name)
    positions = [header.find(f"-- {part}") for part in HEADER_PARTS]

    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
    assert re.fullmatch(r"-- [A-Z][^.]*\.", header.splitlines()[0])
    assert -1 not in positions
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_begins_with_the_scripts_that_include_it(name):
    header = " ".join(line.removeprefix("--").strip() for line in header_of(name).splitlines())
    first = re.match(r"[A-Z][^;]*; put before ((?:\w+\.lua|every script|and|,| )+)\.", header)
    text = (LUA / f"{name}.lua").read_text()

    assert first, header
    named = SCRIPTS if first.group(1) == "every script" else re.findall(
        r"(\w+)\.lua", first.group(1))
    assert sorted(named) == [one for one in SCRIPTS if text in LOADED[one].text]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_put_together_of_whole_files_only(name):
    own, *before = (LUA / f"{part}.lua" for part in (name, *FRAGMENTS))
    sizes = [len(text) for path in before if (text := path.read_text()) in LOADED[name].text]

    assert sum(sizes) + len(own.read_text()) == len(LOADED[name].text)


def test_the_header_of_an_entry_is_read_and_written_in_one_file():
    formats = re.compile(r"%-\?%d\+|%\.0f %s|- - 0")  # the lag, or a number before a text

    users = [path.name for path in sorted(LUA.glob("*.lua")) if formats.search(path.read_text())]
    assert users == ["entry_header.lua"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_uses_the_keys_and_arguments_that_it_documents(name):
    parts = [name, *(part for part in FRAGMENTS if (LUA / f"{part}.lua").read_text() in LOADED[name].text)]
    header, body = header_of(name), "".join(map(body_of, parts))

    for word in ("KEYS", "ARGV"):
        documented = set(re.findall(rf"^-- {word}\[(\d+)\]", header, re.M))
        used = set(re.findall(rf"{word}\[(\d+)\]", body))
        assert used <= documented | ({"1"} if f"{word}[1..n]" in header else set())
        assert documented <= used or f"unpack({word}" in body or f"{word}[i]" in body


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_a_name_and_a_caller_in_the_store(name):
    store = "".join(path.read_text() for path in STORE)

    assert getattr(scripts, name.upper()).text.endswith((LUA / f"{name}.lua").read_text())
    assert len(re.findall(rf"\b{name.upper()}\b", store)) >= 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_looks_into_a_body_or_takes_its_time_from_a_caller(name):
    assert not re.search(r"cjson|cmsgpack|os\.time|os\.clock", body_of(name))


def test_no_script_or_store_method_goes_through_all_keys():
    texts = [body_of(name) for name in SCRIPTS] + [path.read_text() for path in STORE]

    assert not re.search(r'"(KEYS|SCAN)"|\.keys\("|\.scan\(|scan_iter', "".join(texts))
