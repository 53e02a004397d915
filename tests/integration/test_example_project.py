"""The example project, run as a user runs it: `python example_project/demo.py`."""
from __future__ import annotations

import ast
import os
import pty
import re
import signal
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import celery
import pytest

from celery_memsync.store.embedded import PACKAGED_SERVERS
from tests.support.demo import Demo
from tests.support.stress import stressed

STDLIB = Path(sysconfig.get_path("stdlib"))
HAS_PACKAGED_SERVER = any(find_spec(package) for package, _ in PACKAGED_SERVERS)


@pytest.fixture
def demo(tmp_path):
    """A demo of which nothing must be left when the test ends."""
    demo = Demo(tmp_path)
    yield demo
    demo.check_nothing_left()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A demo, and its run on 48 modules; without a redis-server on the PATH if there is another."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    started = time.monotonic()
    done = demo.run("--limit", "48", **({"PATH": str(demo.folder)} if HAS_PACKAGED_SERVER else {}))
    done.seconds = time.monotonic() - started
    demo.check_nothing_left()
    return demo, done


def plain_totals(modules):
    """Return the totals of some modules, found without any code of the example."""
    totals = dict.fromkeys(
        ("modules", "unreadable", "imports", "lines", "functions", "classes", "documented", "documentable"), 0)
    for module in modules:
        source = (STDLIB / module).read_bytes()
        totals["modules"] += 1
        totals["lines"] += len(source.splitlines())
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            totals["unreadable"] += 1
            continue
        functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
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
    lines = f"{census['totals']['lines']:,}"

    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(modules)) == 48
    assert census["totals"] == plain_totals(modules)
    assert f"| lines | {lines} |" in (demo.folder / "census" / "report.md").read_text()
    assert f"the same files gives 48 modules\nwith {lines} lines, too" in done.stdout


def test_the_tasks_of_the_killed_worker_end_on_the_other_one(finished):
    _, done = finished

    steps = "are dead|marked its tasks as LOST|They run again"
    running, requeued, again = re.split(steps, done.stdout)[1:]
    lost = re.findall(r"^    (census-\d\d)  STARTED on (w[12]@demo), \d+ %$", running, re.M)
    (killed,) = {worker for _, worker in lost}
    other = {"w1@demo": "w2@demo", "w2@demo": "w1@demo"}[killed]

    assert f"kill -9: {killed} and its processes are dead" in done.stdout
    assert f"{killed} has sent no heartbeat for 3 seconds. {other} has marked" in done.stdout
    for task_id, _ in lost:
        assert f"    {task_id}  LOST on {killed}, then " in requeued
        assert re.search(rf"^    {task_id}  LOST on {killed}, then \w+ on {other}", again, re.M)
    assert f"Nothing is lost: {' and '.join(task_id for task_id, _ in lost)} ended" in again


def test_the_progress_of_the_demo_never_goes_backward_in_plain_lines(finished):
    _, done = finished

    lines = re.findall(r"^Census: (\d+) of 48 modules", done.stdout, re.M)
    progress = [int(count) for count in lines]

    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert len(progress) > 3 and progress == sorted(progress)
    assert "Census: 48 of 48 modules (100 %)" in done.stdout
    assert re.search(r"^Census: .*; census-\d\d on w[12]@demo \d+ %", done.stdout, re.M)


@pytest.mark.skipif(celery.VERSION < (5, 6), reason="workers of Celery 5.5 take tasks in advance")
def test_the_demo_shows_why_a_task_waits(finished):
    _, done = finished

    answer = re.search(r"\$ celery -A proj memsync why census-\d\d\n(.*)", done.stdout).group(1)

    assert answer.startswith("    It waits in the queue census at position ")


def test_the_demo_ends_with_the_status_of_both_workers(finished):
    _, done = finished

    status = done.stdout.split("$ celery -A proj memsync status\n")[1]
    workers = re.findall(r"^    w[12]@demo +(\w+)", status, re.M)

    assert sorted(workers) == ["active", "lost"]
    assert "Tasks: 18 SUCCESS" in status
    assert "What to try next:" in status


def test_the_demo_takes_less_than_a_minute(finished):
    _, done = finished

    assert done.seconds < 60


@pytest.mark.acceptance
def test_a_wrong_census_is_reported_and_exits_with_one(tmp_path):
    demo = Demo(tmp_path, {"proj/survey.py": """

right_summary = summary


def summary(found):
    return right_summary([*found[1:], found[-1]])
"""})

    done = demo.run("--limit", "48")

    assert done.returncode == 1
    assert re.search(r"^WRONG: \S+\.py is counted 0 times$", done.stdout, re.M)
    assert re.search(r"^WRONG: \S+\.py is counted 2 times$", done.stdout, re.M)
    assert "Nothing is lost" not in done.stdout
    demo.check_nothing_left()


@pytest.mark.acceptance
def test_the_demo_draws_bars_on_a_terminal(demo):
    pytest.importorskip("rich")
    outer, inner = pty.openpty()
    process = demo.start("--limit", "6", stdout=inner)
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


def test_a_worker_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    demo = Demo(tmp_path, {"proj/tasks.py": "\nraise RuntimeError('broken by the test')\n"})

    done = demo.run()

    assert done.returncode == 1
    assert re.match(r"demo.py: w[12]@demo has ended by itself; the end of its log:", done.stderr)
    assert "RuntimeError: broken by the test" in done.stderr
    demo.check_nothing_left()


def test_a_demo_that_is_ended_early_leaves_nothing_behind(tmp_path):
    ends = stressed(["SIGINT", "SIGTERM", "SIGHUP", "closed pipe"], ["SIGHUP"])
    demos = [Demo(tmp_path / end) for end in ends]
    processes = [demo.start("--limit", "48") for demo in demos]

    for end, demo, process in zip(ends, demos, processes):
        next(line for line in process.stdout if line.startswith("kill -9:"))
        started = b" ".join(map(bytes, demo.left()))
        for word in (b"demo.py", b"embedded_supervisor.py", b"-server", b"worker"):
            assert word in started
        if end == "closed pipe":
            process.stdout.close()
        else:
            process.send_signal(getattr(signal, end))

    for end, demo, process in zip(ends, demos, processes):
        if end == "closed pipe":
            assert process.wait(30) == 1
        else:
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 130
            assert output.endswith("Interrupted; all that was started is stopped.\n")
        demo.check_nothing_left()


def test_workflow_is_followed_and_another_one_is_cancelled(tmp_path):
    demo = Demo(tmp_path, script="workflow.py")

    done = demo.run()

    _, planned, followed, ended, cancelled, why = done.stdout.split("$ celery -A proj memsync ")
    assert (done.returncode, done.stderr) == (0, "")
    assert planned.count("proj.words.count") == ended.count("proj.words.count  SUCCESS  100%") == 4
    assert re.search(r"  proj.words.rank +PENDING  0%", planned)
    assert "SUCCESS   100%, 4 of 4" in followed
    assert cancelled.count("proj.words.count  REVOKED") == 4
    assert re.search(r"  proj.words.rank +(FAILURE|REVOKED)", cancelled)
    assert "enough" in why
    assert why.endswith("All is as it should be.\n")
    demo.check_nothing_left()


def test_tasks_are_followed_from_asyncio(tmp_path):
    demo = Demo(tmp_path, script="follow_async.py")

    done = demo.run()

    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split("  ")[0] for line in done.stdout.splitlines()[:-1]} == {f"part {number}" for number in range(1, 5)}
    assert done.stdout.endswith("All is as it should be.\n")
    demo.check_nothing_left()


@pytest.mark.acceptance
def test_workflow_with_a_wrong_end_is_reported_and_exits_with_one(tmp_path):
    demo = Demo(tmp_path, {"proj/words.py": """

def words_of(module):
    return Counter({"wrong": os.getpid()})


import os
"""}, script="workflow.py")

    done = demo.run()

    assert (done.returncode, "WRONG: a plain count finds other words" in done.stdout) == (1, True)


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
