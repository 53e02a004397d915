"""Help and errors of `celery memsync`, and figures of workers that are not there any more."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from celery_memsync import WorkerRecord, cli, encoding
from tests.support.paths import ROOT
from tests.support.shell import one_line, plain


@pytest.fixture
def fleet(make_fleet):
    return make_fleet()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_exit_codes_and_no_argument_among_the_options(shell, name):
    shown = plain(shell.run(name, "--help"))
    usage, _, rest = shown.partition("\n")

    assert f"  celery -A proj memsync {name}" in rest.partition("Examples:")[2]
    assert "  69  Redis is away" in rest.partition("Exit codes:")[2]
    for argument in re.findall(r"\b[A-Z_]{2,}\b", usage.replace("OPTIONS", "")):
        assert not re.search(rf"^  \[?{argument}", rest, re.M)


def test_figures_of_a_worker_that_has_left_are_not_shown(shell, fleet):
    for worker_id, leaving in (("left@h", True), ("here@h", False)):
        record = WorkerRecord(
            worker_id, "offline" if leaving else "active", capacity={"free": 2, "total": 2}, consuming=not leaving,
            depths={"celery": 7}, queues=("celery",), cpu=3.0, writer={"pending": 159, "dropped": 0, "conflicts": 0})
        fleet.reader.runtime.store.write_heartbeat(
            worker_id, encoding.dumps(record.as_dict()), 60.0, leaving, pulse=record.pulse())

    lines = {line.split()[0]: line.split()[1:] for line in plain(shell.run("workers")).splitlines()}
    status = json.loads(plain(shell.run("status", "--json")))

    assert lines["left@h"][:8] == ["offline", *["-"] * 7]
    assert lines["here@h"][2] == "2/2"
    assert status["writers"]["pending"] == 159


def test_tasks_without_a_status_are_counted_in_the_text(shell, fleet):
    fleet.reader.sync_task_progress("by-hand-without-status", 50)
    fleet.reader.force_sync()

    assert "1 without a status" in plain(shell.run("status"))


def test_command_without_an_app_explains_how_to_name_one(shell, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "celery", "memsync", "status"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert done.returncode == 64
    assert "no app is named" in one_line(done) and "celery -A proj memsync" in done.stderr
