"""The probe: how a worker is, from a file, by exit code."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from celery_memsync import probe as probe_command
from celery_memsync.fleet.probe_file import ProbeFile
from tests.support.paths import ROOT

FINE, DEAD, SILENT, IDLE, USAGE = 0, 1, 2, 3, 64


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "worker.probe")


def probe(*args):
    """Run the probe as a user does; return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "celery_memsync.probe", *args], cwd=ROOT, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout + done.stderr


def write_facts(path, **facts):
    now = time.monotonic()
    known = {"pid": os.getpid(), "round": now, "replied_at": now, "within": 15.0, "consuming": True, **facts}
    with open(path, "w") as file:
        json.dump(known, file)


def test_a_worker_that_does_all_it_should_is_fine(path):
    file = ProbeFile(path)
    file.note_reply()
    file.write(within=15.0, consuming=True)

    assert probe(path) == (FINE, "the worker is alive, sends heartbeats and consumes\n")
    assert probe("--alive", path)[0] == probe("--beating", path)[0] == FINE


@pytest.mark.parametrize("facts, code, text", [
    ({"pid": 2 ** 22 + 1}, DEAD, "has ended"),
    ({"round": time.monotonic() - 100}, DEAD, "heartbeat thread"),
    # before the host was started anew
    ({"round": time.monotonic() + 1e6}, DEAD, "heartbeat thread"),
    ({"replied_at": time.monotonic() - 100}, SILENT, "Redis has taken no heartbeat"),
    ({"replied_at": None}, SILENT, "Redis has taken no heartbeat"),
    ({"consuming": False}, IDLE, "consumes nothing"),
    ({"replied_at": None, "consuming": False}, SILENT, "Redis has taken no heartbeat"),
])
def test_probe_exit_code_shows_the_first_problem(path, facts, code, text):
    write_facts(path, **facts)

    exit_code, output = probe(path)

    assert (exit_code, text in output) == (code, True)
    assert probe("--alive", path)[0] == (DEAD if code == DEAD else FINE)
    assert probe("--beating", path)[0] == (code if code != IDLE else FINE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"pid": "x"}', "\x00", '{"pid": 1, "round": null}'])
def test_a_file_that_no_worker_wrote_is_no_sign_of_life(path, text):
    with open(path, "w") as file:
        file.write(text)

    assert probe_command.probe(path, time.monotonic()) == (DEAD, "no worker wrote this file")


def test_without_a_file_there_is_no_worker(path):
    assert probe(path)[0] == DEAD


@pytest.mark.parametrize("args", [(), ("a", "b"), ("--dead", "a"), ("--alive", "--beating", "a")])
def test_probe_refuses_a_wrong_command_line(args):
    code, output = probe(*args)

    assert code == USAGE
    assert output.startswith("usage: celery-memsync-probe")


def test_the_probe_helps():
    assert probe("--help") == (FINE, probe_command.HELP)


def test_process_of_another_user_is_found():
    assert probe_command.is_there(1)


def test_the_probe_imports_neither_celery_nor_redis_nor_an_app():
    code = "import celery_memsync.probe, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)

    loaded = {name.partition(".")[0] for name in done.stdout.split()}

    assert "celery_memsync" in loaded
    assert loaded & {"celery", "kombu", "redis", "click"} == set()


def test_the_command_is_installed():
    command = os.path.join(os.path.dirname(sys.executable), "celery-memsync-probe")

    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=20)

    assert (done.returncode, done.stdout) == (FINE, probe_command.HELP)


def test_the_file_is_replaced_as_a_whole_and_removed_at_the_end(path, tmp_path):
    file = ProbeFile(path)
    seen = []
    for _ in range(50):
        file.write(15.0, True)
        seen.append(json.load(open(path))["pid"])

    names = os.listdir(tmp_path)
    file.remove()
    file.remove()

    assert set(seen) == {os.getpid()}
    assert names == ["worker.probe"]
    assert os.listdir(tmp_path) == []


def test_unwritable_probe_file_is_logged_once(tmp_path, caplog):
    file = ProbeFile(str(tmp_path / "none" / "worker.probe"))

    for _ in range(3):
        file.write(15.0, True)

    assert [record.message for record in caplog.records] == [
        "memsync_probe_file can't be written (No such file or directory); see that its folder is there"]
