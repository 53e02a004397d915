"""`celery memsync export FILE`: each entry as a line of JSON, in a whole file or none."""
from __future__ import annotations

import json
import os
import pty
import signal
import stat
import time

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_memsync import cli
from tests.support.samples import populate
from tests.support.shell import Shell, one_line, plain
from tests.support.waiting import eventually

HEADER = f"1 - - 0 {round(time.time() * 1000)} 3600000 0 - w\n"
NESTED = "[" * 90 + "]" * 90


@pytest.fixture
def fleet(make_fleet):
    """A fleet without workers."""
    return make_fleet()


@pytest.fixture
def make_run():
    """Makes functions that run commands of a fleet in this process."""
    def make(fleet):
        context = CLIContext(fleet.producer(), no_color=True, workdir=None)
        return lambda *args: CliRunner().invoke(cli.memsync, args, obj=context)
    return make


@pytest.fixture
def run(make_run, fleet):
    return make_run(fleet)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "entries.jsonl"


def write(fleet, **values):
    for key, value in values.items():
        fleet.reader.write(key, value)
    fleet.reader.force_sync()


def rows_of(text):
    """Return what lines of strict JSON hold."""
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def hidden_files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# -- what is in it

def test_export_writes_for_every_key_what_get_prints(run, fleet, file):
    populate(fleet.reader)
    fleet.reader.force_sync()

    run("export", str(file))

    rows = {row["key"]: row for row in rows_of(file.read_text())}
    assert sorted(rows) == json.loads(run("search", "--json").stdout)
    assert rows == {key: json.loads(run("get", key, "--json").stdout) for key in rows}
    assert {key.split("/")[1] for key in rows} >= {"tasks", "workers", "coordination", "a", "é"}


def test_export_writes_each_key_once_when_there_are_thousands(run, fleet, file):
    for number in range(1500):
        fleet.reader.write(f"k{number}", number)
        fleet.reader.sync_task_state(f"t{number}", {"x": number}, ttl=7200.0)
    fleet.reader.force_sync()

    run("export", str(file))

    keys = [row["key"] for row in rows_of(file.read_text())]
    assert len(keys) == 3000
    assert sorted(keys) == json.loads(run("search", "--limit", "5000", "--json").stdout)


def test_export_writes_the_records_of_a_real_worker(run, fleet, file):
    worker = fleet.start_worker("-c", "1")
    result = fleet.send("count_to", 3)
    fleet.wait(result, "SUCCESS")
    worker.stop()

    run("export", str(file))

    values = {row["key"].partition("/")[2]: row["value"] for row in rows_of(file.read_text())}
    assert values[f"tasks/{result.id}/state"]["status"] == "SUCCESS"
    assert values[f"tasks/{result.id}/progress"]["current"] == 3
    assert values[f"workers/{worker.name}/heartbeat"]["status"] == "offline"
    assert values["coordination/metrics"]["succeeded"] == 1


def test_export_of_nothing_writes_an_empty_file(run, file):
    done = run("export", str(file))

    assert done.stdout == f"Wrote 0 entries to {file}.\n"
    assert file.read_bytes() == b""


@pytest.mark.parametrize("body, value", [
    ('"\\ud800"', "\ud800"), (NESTED, json.loads(NESTED)),
    ('"\u2028\x7f"', "\u2028\x7f"), ('{"a": 1, "a": 2}', {"a": 2}),
    (str(10 ** 400), 10 ** 400),
])
def test_export_writes_valid_json_for_a_foreign_value(run, fleet, store, body, value):
    write(fleet, a=1)
    with store.client() as client:
        client.set(f"{fleet.name}/a", HEADER + body)

    done = run("export", "-")

    (row,) = rows_of(done.stdout)
    assert (row["key"], row["worker_id"]) == (f"{fleet.name}/a", "w")
    assert row["value"] == value


@pytest.mark.parametrize("body", [
    "NaN", "-Infinity", "[1, NaN]", "text", "{", '{"a": [1e999]}', "[" * 700 + "]" * 700])
def test_export_leaves_out_what_is_not_json(run, fleet, store, body):
    write(fleet, a=1, b=2)
    with store.client() as client:
        client.set(f"{fleet.name}/a", HEADER + body)

    done = run("export", "-")

    assert [row["key"] for row in rows_of(done.stdout)] == [f"{fleet.name}/b"]


@pytest.mark.parametrize("kind", ["text", "list", "fields"])
def test_export_writes_the_other_keys_beside_foreign_data(run, fleet, store, kind):
    make = {
        "text": lambda client, key: client.set(key, b"\xff\xfe\n\n\n"),
        "list": lambda client, key: client.lpush(key, "x"),
        "fields": lambda client, key: client.hset(key, mapping={b"\xff": b"\xff", "w": HEADER}),
    }[kind]
    write(fleet, a=1, b=2)
    fleet.reader.sync_agent_coordination("t1", "coder", 1)
    fleet.reader.force_sync()
    keys = fleet.reader.runtime.store.keys
    with store.client() as client:
        for key in (keys.location("b").key, keys.task("t1"), keys.agents("t1"), keys.about):
            client.delete(key)
            make(client, key)

    done = run("export", "-")

    assert done.exit_code == 0
    assert f"{fleet.name}/a" in [row["key"] for row in rows_of(done.stdout)]


def test_export_finds_the_other_keys_beside_a_foreign_index(run, fleet, store, file):
    write(fleet, a=1)
    with store.client() as client:
        client.set(fleet.reader.runtime.store.keys.task_index, "foreign")

    done = run("export", str(file))

    assert done.exit_code == 0
    assert [row["key"] for row in rows_of(file.read_text())] == [f"{fleet.name}/a"]


# -- where it goes

def test_export_makes_a_file_that_only_its_owner_can_read(run, fleet, file):
    write(fleet, a=1, b=[2])
    file.write_text("old")
    file.chmod(0o644)

    done = run("export", str(file))

    assert done.stdout == f"Wrote 2 entries to {file}.\n"
    assert [row["value"] for row in rows_of(file.read_text())] == [1, [2]]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert hidden_files(file.parent) == []


def test_export_writes_to_the_file_to_which_a_link_points(run, fleet, file, tmp_path):
    write(fleet, a=1)
    link = tmp_path / "link"
    link.symlink_to(file)

    run("export", str(link))

    assert link.is_symlink()
    assert len(rows_of(file.read_text())) == 1


def test_export_prints_a_summary_as_json(run, fleet, file):
    write(fleet, a=1)

    done = run("export", str(file), "--json")

    assert json.loads(done.stdout) == {"entries": 1, "file": str(file)}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_export_to_standard_output_prints_only_entries(run, fleet, options):
    write(fleet, a=1)

    done = run("export", "-", *options)

    assert [row["key"] for row in rows_of(done.stdout)] == [f"{fleet.name}/a"]
    assert done.stderr == ""


@pytest.mark.parametrize("path, reason", [
    ("none/file", "No such file"), (".", "Is a directory"), ("/dev/full", "No space left"),
])
def test_export_reports_a_file_that_cannot_be_written(run, fleet, tmp_path, path, reason):
    write(fleet, a=1)

    done = run("export", str(tmp_path / path))

    assert (done.exit_code, done.stdout) == (73, "")
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert hidden_files(tmp_path) == []


# -- how it ends

def test_export_without_redis_leaves_no_file(make_fleet, make_run, own_store, file):
    fleet = make_fleet(store=own_store)
    write(fleet, a=1)
    own_store.stop()

    done = make_run(fleet)("export", str(file))

    assert (done.exit_code, done.stdout) == (69, "")
    assert "Redis" in done.stderr
    assert not file.exists() and hidden_files(file.parent) == []


@pytest.mark.parametrize("how, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_the_old_file(make_fleet, own_store, tmp_path, how, code):
    fleet, folder = make_fleet(store=own_store), tmp_path / "out"
    folder.mkdir()
    (folder / "entries.jsonl").write_text("old")
    own_store.pause()
    command = Shell(fleet.env()).start("export", str(folder / "entries.jsonl"))
    eventually(lambda: hidden_files(folder), timeout=30)

    done = command.end(how)
    own_store.resume()

    assert done.returncode in (code, 69)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert (folder / "entries.jsonl").read_text() == "old"
    assert hidden_files(folder) == []


def test_export_into_a_closed_pipe_ends_silently(fleet):
    write(fleet, **{f"k{number}": "x" * 1000 for number in range(1000)})
    command = Shell(fleet.env()).start("export", "-")
    command.process.stdout.readline()

    command.process.stdout.close()
    code = command.process.wait(20)

    assert code == 1
    assert command.process.stderr.read() == ""


def test_export_shows_a_count_on_a_terminal_beside_a_pipe(fleet):
    write(fleet, **{f"k{number}": number for number in range(50)})
    ours, theirs = pty.openpty()

    command = Shell(fleet.env()).start("export", "-", stderr=theirs)
    os.close(theirs)
    out = command.process.communicate(timeout=30)[0]
    seen = os.read(ours, 65536).decode()
    os.close(ours)

    assert "1 entries" in seen and seen.endswith("\r\x1b[K")
    assert len(rows_of(out)) == 50
    assert command.process.returncode == 0


def test_export_of_a_real_process_writes_nothing_but_lines(fleet, file):
    write(fleet, a=1)
    shell = Shell(fleet.env())

    printed, written = plain(shell.run("export", "-")), plain(shell.run("export", str(file)))
    refused = one_line(shell.run("export", str(file / "x")))

    assert printed == file.read_text()
    assert written == f"Wrote 1 entry to {file}.\n"
    assert "Not a directory" in refused
