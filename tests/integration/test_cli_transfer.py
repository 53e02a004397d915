"""`celery memsync export` and `import` as a user types them."""
from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess

import pytest

from ..helpers import eventually
from .shell import Shell, one_line, plain


@pytest.fixture
def fleet(make_fleet):
    """A fleet without workers."""
    return make_fleet()


@pytest.fixture
def shell(fleet):
    return Shell(fleet.env())


@pytest.fixture
def elsewhere(make_fleet):
    """A shell for a namespace of its own, in which there is nothing."""
    return Shell(make_fleet().env())


def write(fleet, **values):
    for key, value in values.items():
        fleet.reader.write(key, value)
    fleet.reader.force_sync()


def left_beside(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_what_a_fleet_has_told_is_put_back_after_all_was_lost(shell, fleet, tmp_path, memory):
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("count_to", 7)
    fleet.wait(result, "SUCCESS")
    worker.stop()
    task, file = fleet.reader.get_task(result.id), tmp_path / "memory.jsonl"

    exported = json.loads(plain(shell.run("export", str(file), "--json")))
    with memory.client() as client:
        client.delete(*client.scan_iter(f"{fleet.name}/*"))
    assert fleet.reader.get_task(result.id) is None
    imported = json.loads(plain(shell.run("import", str(file), "--json")))

    assert imported["imported"] == imported["entries"] == exported["entries"] > 3
    assert fleet.reader.get_task(result.id) == task
    assert [one.status for one in fleet.reader.get_workers()] == ["offline"]
    assert json.loads(plain(shell.run("tasks", "--json")))[0]["id"] == result.id


def test_every_line_is_a_document_and_the_file_is_its_owners(shell, fleet, tmp_path):
    write(fleet, a=1, b=[2])
    file = tmp_path / "memory.jsonl"

    said = plain(shell.run("export", str(file)))
    first, *rows, last = map(json.loads, file.read_text().splitlines())

    assert said == f"2 entries are in {file}.\n"
    assert (first["namespace"], last["entries"]) == (fleet.name, 2)
    assert {row["key"]: (row["value"], row["version"]) for row in rows} == {
        f"{fleet.name}/a": (1, 1), f"{fleet.name}/b": ([2], 1)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_memory_goes_through_a_pipe_into_another_namespace(shell, elsewhere, fleet):
    write(fleet, a=1, b=[2])
    source = shell.start("export", "-")

    done = subprocess.run(elsewhere._command("tests.integration.proj", ["import", "-"]), env=elsewhere.env,
                          stdin=source.process.stdout, capture_output=True, text=True, timeout=60)
    source.end()

    assert plain(done) == "2 of 2 entries were imported.\n"
    assert json.loads(plain(elsewhere.run("get", "b", "--json")))["value"] == [2]


def test_what_is_newer_stays_is_counted_and_told_by_the_exit_code(shell, fleet, tmp_path):
    write(fleet, a="old", b="old")
    file = tmp_path / "memory.jsonl"
    plain(shell.run("export", str(file)))
    write(fleet, a="new")

    done = shell.run("import", str(file))
    as_json = shell.run("import", str(file), "--json")

    assert done.returncode == as_json.returncode == 1
    assert done.stdout == "0 of 2 entries were imported, 1 were there already, 1 are newer here.\n"
    assert done.stderr == f"newer here: {fleet.name}/a\n"
    assert json.loads(as_json.stdout)["newer_keys"] == [f"{fleet.name}/a"]
    assert fleet.reader.read("a", consistent=True) == "new"


def test_of_a_file_with_bad_lines_nothing_is_imported(shell, elsewhere, fleet, tmp_path):
    write(fleet, a=1, b=2, c=3)
    file = tmp_path / "memory.jsonl"
    plain(shell.run("export", str(file)))
    lines = file.read_text().splitlines()
    lines[2], lines[3] = "{", lines[3].replace('"version":1', '"version":"\x1b[31m"')
    file.write_text("\n".join(lines) + "\n")

    done = elsewhere.run("import", str(file))

    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.splitlines() == [
        "line 3: it is no JSON", "Error: line 4: it is no JSON; nothing was imported."]
    assert elsewhere.run("search").stdout == ""


@pytest.mark.parametrize("content", ["", "hello\n", '{"format":"celery-memsync","version":1,"namespace":"x","at":1}\n'])
def test_a_file_that_is_no_archive_or_was_cut_off_is_exit_code_65(shell, tmp_path, content):
    file = tmp_path / "memory.jsonl"
    file.write_text(content)

    done = shell.run("import", str(file))

    assert done.returncode == 65
    assert one_line(done).endswith("nothing was imported.")


def test_a_file_that_is_not_there_is_exit_code_66_and_one_that_can_not_be_written_73(shell, tmp_path):
    missing, refused = shell.run("import", str(tmp_path / "none")), shell.run("export", str(tmp_path / "no" / "file"))

    assert (missing.returncode, refused.returncode) == (66, 73)
    assert "No such file" in one_line(missing) and "No such file" in one_line(refused)


def test_an_interrupted_export_leaves_the_old_file_and_nothing_beside_it(shell, make_fleet, own_memory, tmp_path):
    fleet = make_fleet(memory=own_memory)
    write(fleet, **{f"k{number}": "x" * 1000 for number in range(2000)})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "memory.jsonl").write_text("old")
    command = Shell(fleet.env()).start("export", str(folder / "memory.jsonl"))
    eventually(lambda: left_beside(folder) or command.process.poll() is not None, timeout=30)

    own_memory.pause()
    done = command.end(signal.SIGINT)
    own_memory.resume()

    if done.returncode != 0:  # else it was done before it could be interrupted
        assert done.returncode in (69, 130)
        assert (folder / "memory.jsonl").read_text() == "old"
    assert left_beside(folder) == []


def test_redis_away_in_the_middle_is_exit_code_69_and_no_file(make_fleet, own_memory, tmp_path):
    fleet = make_fleet(memory=own_memory)
    write(fleet, a=1)
    own_memory.stop()

    done = Shell(fleet.env()).run("export", str(tmp_path / "memory.jsonl"))

    assert done.returncode == 69
    assert "Redis" in one_line(done)
    assert not (tmp_path / "memory.jsonl").exists() and left_beside(tmp_path) == []


@pytest.mark.parametrize("env", [{}, {"PYTHONPATH": "without-rich"}])
def test_a_terminal_sees_how_far_it_is_and_a_pipe_does_not(shell, fleet, tmp_path, env):
    write(fleet, **{f"k{number}": number for number in range(50)})
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('rich')")
    if env:
        shell.env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{shell.env['PYTHONPATH']}"
    ours, theirs = pty.openpty()

    command = shell.start("export", "-", stderr=theirs)
    os.close(theirs)
    out = command.process.communicate(timeout=30)[0]
    seen = os.read(ours, 65536).decode()
    os.close(ours)

    assert "exported" in seen
    assert "\x1b" not in out and len(out.splitlines()) == 52
    assert command.process.returncode == 0
