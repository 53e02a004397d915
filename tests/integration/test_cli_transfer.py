"""`celery memsync export` and `import` as a user types them."""
from __future__ import annotations

import json
import os
import pty
import re
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


@pytest.fixture
def full_fleet(make_fleet, own_memory):
    """A fleet on a Redis of its own, in which is so much that to move it takes a while."""
    fleet = make_fleet(memory=own_memory)
    for number in range(4000):
        fleet.reader.sync_task_state(f"t{number}", {"number": number, "text": "x" * 500})
    fleet.reader.force_sync()
    return fleet


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_the_old_file_and_nothing_beside_it(make_fleet, own_memory, tmp_path, how, code):
    fleet, folder = make_fleet(memory=own_memory), tmp_path / "out"
    folder.mkdir()
    (folder / "memory.jsonl").write_text("old")
    own_memory.pause()
    command = Shell(fleet.env()).start("export", str(folder / "memory.jsonl"))
    eventually(lambda: left_beside(folder), timeout=30)

    done = command.end(how)
    own_memory.resume()

    assert done.returncode in (code, 69)  # after some seconds it gives up itself
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert (folder / "memory.jsonl").read_text() == "old"
    assert left_beside(folder) == []


def test_an_import_that_was_killed_is_ended_by_another_one(full_fleet, make_fleet, own_memory, tmp_path):
    file, copy = tmp_path / "memory.jsonl", make_fleet(memory=own_memory)
    shell = Shell(copy.env())
    plain(Shell(full_fleet.env()).run("export", str(file)))
    command = shell.start("import", str(file))
    with own_memory.client() as client:
        eventually(lambda: client.exists(copy.reader.store.keys.task_index), timeout=30)
    command.end(signal.SIGKILL)
    before = len(copy.reader.get_tasks(5000))

    shown = json.loads(plain(shell.run("import", str(file), "--json")))

    assert before > 0
    assert shown["same"] + shown["imported"] == shown["entries"] == 4000
    assert shown["same"] >= before and shown["newer"] == 0
    assert len(copy.reader.get_tasks(5000)) == 4000


def test_an_import_that_redis_has_no_room_for_says_how_far_it_came(full_fleet, make_fleet, own_memory, tmp_path):
    file, copy = tmp_path / "memory.jsonl", make_fleet(memory=own_memory)
    plain(Shell(full_fleet.env()).run("export", str(file)))
    with own_memory.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)

    done = Shell(copy.env()).run("import", str(file))

    told = re.search(r"^(\d+) of 4000 entries were looked at", done.stderr)
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    assert told and 0 < int(told.group(1)) == len(copy.reader.get_tasks(5000)) < 4000


def test_a_disk_that_is_full_is_exit_code_73(shell, fleet):
    write(fleet, a=1)

    done = shell.run("export", "/dev/full")

    assert done.returncode == 73
    assert "No space left" in one_line(done)


def test_a_pipe_that_is_closed_ends_without_a_word(full_fleet):
    command = Shell(full_fleet.env()).start("export", "-")
    command.process.stdout.readline()

    command.process.stdout.close()
    code = command.process.wait(20)

    assert code == 1
    assert command.process.stderr.read() == ""


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
