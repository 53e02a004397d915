"""The example project, run as a user runs it: `python example_project/demo.py`."""
from __future__ import annotations

import ast
import importlib.util
import json
import os
import pty
import signal
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from celery_memsync.store.embedded import PACKAGED_SERVERS
from tests.support.paths import ROOT
from tests.support.stress import stressed
from tests.support.waiting import eventually

EXAMPLE = ROOT / "example_project"
STDLIB = Path(sysconfig.get_path("stdlib"))
HAS_PACKAGED_SERVER = any(find_spec(package) for package, _ in PACKAGED_SERVERS)


class Demo:
    """Runs of the demo whose processes can be told from all others by their folder for temporary files.

    Args:
        folder: Where it is run.
    """

    def __init__(self, folder):
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.command = [sys.executable, str(EXAMPLE / "demo.py")]
        self.env = {**os.environ, "TMPDIR": str(self.temporary), "TERM": "xterm", "COLUMNS": "120"}

    def run(self, *args, **env):
        """Run it to its end, into a pipe."""
        return subprocess.run(
            [*self.command, *args], cwd=self.folder, env={**self.env, **env}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=100,
        )

    def start(self, *args, stdout=subprocess.PIPE):
        """Start it and go on."""
        return subprocess.Popen(
            [*self.command, *args], cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=stdout,
            stderr=subprocess.STDOUT,
        )

    def left(self):
        """Return the processes and files that are left of it."""
        return [*filter(None, map(self._process, Path("/proc").glob("[0-9]*"))), *self.temporary.iterdir()]

    def check_nothing_left(self):
        eventually(lambda: not self.left(), message=f"something is left: {self.left()}")

    def _process(self, entry):
        try:
            command, env = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            return None
        return command if os.fsencode(self.temporary) in command + env else None

    def census(self):
        """Return what it wrote."""
        return json.loads((self.folder / "census" / "census.json").read_text())


@pytest.fixture
def demo(tmp_path):
    """A demo of which nothing must be left when the test ends."""
    demo = Demo(tmp_path)
    yield demo
    demo.check_nothing_left()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo, and what came of running it on sixty modules; without a redis-server on the PATH if there is another."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    done = demo.run("--limit", "60", **({"PATH": str(demo.folder)} if HAS_PACKAGED_SERVER else {}))
    demo.check_nothing_left()
    return demo, done


@pytest.fixture
def survey():
    """The module of the example that measures."""
    spec = importlib.util.spec_from_file_location("survey", EXAMPLE / "proj" / "survey.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_totals(modules):
    """Return the totals of some modules, found without any code of the example."""
    totals = dict.fromkeys(
        ("modules", "unreadable", "imports", "lines", "functions", "classes", "documented", "documentable"), 0)
    for module in modules:
        totals["modules"] += 1
        source = (STDLIB / module).read_bytes()
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            totals["unreadable"] += 1
            continue
        functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        totals["lines"] += len(source.splitlines())
        totals["functions"] += len(functions)
        totals["classes"] += len(classes)
        totals["documentable"] += len(functions) + len(classes) + 1
        totals["documented"] += sum(bool(ast.get_docstring(node)) for node in [nodes[0], *functions, *classes])
        totals["imports"] += len(imported(module, nodes))
    return totals


def imported(module, nodes):
    """Return the names of the modules that a module imports, itself left out."""
    parts = module.removesuffix(".py").split("/")
    package = parts[:-1]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            names.add(".".join([*above, *([node.module] if node.module else [])]))
    return names - {".".join(package if parts[-1] == "__init__" else parts)}


def test_the_census_of_the_demo_equals_a_plain_loop(finished):
    demo, done = finished

    census = demo.census()
    modules = [one["module"] for one in census["modules"]]

    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(modules)) == 60
    assert census["totals"] == plain_totals(modules)
    assert f"| lines | {census['totals']['lines']:,} |" in (demo.folder / "census" / "report.md").read_text()
    assert "A plain loop over the same files comes to the same figures" in done.stdout


def test_the_demo_shows_progress_and_status_in_plain_lines(finished):
    _, done = finished

    middle, end = done.stdout.split("`celery -A proj memsync status` shows:")[1:]

    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert "Census: 60 of 60 modules (100 %)" in done.stdout
    assert "celery@" in middle
    assert "offline" in end and "Tasks: 62 SUCCESS" in end


@pytest.mark.acceptance
def test_the_demo_draws_bars_on_a_terminal(demo):
    pytest.importorskip("rich")
    outer, inner = pty.openpty()
    process = demo.start("--limit", "5", stdout=inner)
    os.close(inner)

    shown = read_all(outer)

    assert process.wait(10) == 0, shown
    assert "━" in shown and "\x1b[" in shown


@pytest.mark.skipif(not HAS_PACKAGED_SERVER, reason="no redis-server but the one on PATH")
def test_the_demo_needs_no_redis_server_on_the_path(finished):
    _, done = finished

    assert (done.returncode, done.stderr) == (0, "")


def test_without_any_redis_server_one_line_says_what_to_install(demo):
    hidden = demo.folder / "hidden"
    for package, _ in PACKAGED_SERVERS:
        (hidden / package).mkdir(parents=True)
        (hidden / package / "__init__.py").touch()
    path = os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH")]))

    done = demo.run("--limit", "5", PATH=str(demo.folder), PYTHONPATH=path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "apt install redis-server" in done.stderr


@pytest.mark.parametrize("number", stressed([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]))
def test_an_interrupted_demo_leaves_nothing_behind(demo, number):
    process = demo.start()
    first = process.stdout.readline().decode()
    started = b" ".join(map(bytes, demo.left()))

    process.send_signal(number)
    output, _ = process.communicate(timeout=30)

    assert first.startswith("Census:")
    assert all(word in started for word in (b"demo.py", b"embedded_supervisor.py", b"-server", b"worker"))
    assert process.returncode == 130
    assert output.decode().endswith("Interrupted; all that was started is stopped.\n")


def test_what_can_not_be_read_is_counted(survey, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "STDLIB", tmp_path)
    (tmp_path / "fine.py").write_text("import os\n")
    (tmp_path / "old.py").write_text("print 'no parentheses'\n")
    (tmp_path / "strange.py").write_bytes(b"# coding: nothing\n")
    (tmp_path / "zero.py").write_bytes(b"\0")

    result = survey.summary([survey.measure(module) for module in [*survey.modules(), "gone.py"]])

    assert (result["totals"]["modules"], result["totals"]["unreadable"]) == (5, 4)
    assert result["wanted"] == [["os", 1]]
    assert "`old.py`: SyntaxError" in survey.as_markdown(result)


@pytest.mark.parametrize("module, name, level, expected", [
    ("os.py", "sys", 0, "sys"),
    ("json/decoder.py", "scanner", 1, "json.scanner"),
    ("json/__init__.py", "decoder", 1, "json.decoder"),
    ("email/mime/text.py", "charset", 2, "email.charset"),
    ("email/mime/text.py", "", 1, "email.mime"),
])
def test_relative_imports_get_their_full_name(survey, module, name, level, expected):
    assert survey.absolute(module, name, level) == expected


def read_all(file):
    """Return what comes from a terminal until its other side is closed."""
    chunks = []
    while True:
        try:
            chunk = os.read(file, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(file)
    return b"".join(chunks).decode(errors="replace")
