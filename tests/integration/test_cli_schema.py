"""The JSON of commands matches the schema of the reference, which has all of them."""
from __future__ import annotations

import json
import re

import jsonschema
import pytest

from celery_memsync.cli import memsync as group
from tests.support.paths import ROOT
from tests.support.shell import Shell

REFERENCE = ROOT / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / "commands.schema.json").read_text())

#: Commands that print no JSON.
MUTE = {"delete", "top"}

#: Id of a trace.
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def fleet(module_fleet):
    """A fleet with something to be shown of each kind."""
    worker = module_fleet.start_worker("-c", "1")
    module_fleet.done = module_fleet.send("count_to", 3, headers={"traceparent": f"00-{TRACE}-{'b' * 16}-01"})
    module_fleet.wait(module_fleet.done, "SUCCESS")
    module_fleet.busy = module_fleet.send("sleep", 60)
    module_fleet.wait(module_fleet.busy, "STARTED")
    module_fleet.wait_running(worker, module_fleet.busy)
    module_fleet.reader.sync_agent_coordination(module_fleet.busy.id, "coder", {"files": 3})
    module_fleet.reader.write("notes/1", "text")
    module_fleet.reader.force_sync()
    module_fleet.lock = module_fleet.reader.lock("printer", ttl=60)
    module_fleet.lock.acquire()
    return module_fleet


def test_state_has_the_trace_with_which_the_message_came(fleet):
    assert fleet.state(fleet.done.id)["trace_id"] == TRACE
    assert "trace_id" not in fleet.state(fleet.busy.id)


def check(printed, name):
    schema = {"$defs": SCHEMA["$defs"], **SCHEMA["properties"][name]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(printed))


@pytest.mark.parametrize("name, args", [
    ("status", []), ("tasks", []), ("task", ["BUSY"]), ("why", ["BUSY"]), ("why", ["DONE"]), ("why", ["none"]),
    ("agents", ["BUSY"]), ("follow", ["DONE"]), ("workflow", ["DONE"]), ("workers", []), ("workers ID", ["WORKER"]),
    ("locks", []), ("queue", []), ("assignments", []), ("counters", []), ("metrics", []), ("search", []),
    ("get", ["notes/1"]), ("set", ["notes/2", "1"]), ("watch", ["workers/*", "--limit", "1", "--timeout", "30"]),
    ("doctor", []),
])
def test_printed_json_matches_the_schema(fleet, name, args):
    names = {"BUSY": fleet.busy.id, "DONE": fleet.done.id, "WORKER": fleet.workers[0].name}

    done = Shell(fleet.env()).run(
        name.split()[0], *(names.get(arg, arg) for arg in args), "--json")

    assert done.stderr == "" and done.stdout
    for line in done.stdout.splitlines():
        check(line, name)


def test_export_prints_and_writes_json_of_the_schema(fleet, tmp_path):
    file = tmp_path / "entries.jsonl"

    done = Shell(fleet.env()).run("export", str(file), "--json")

    check(done.stdout, "export")
    for line in file.read_text().splitlines():
        check(line, "get")


def test_unlock_prints_json_of_the_schema(fleet):
    lock = fleet.reader.lock("plotter", ttl=60)
    lock.acquire()

    done = Shell(fleet.env()).run("unlock", "plotter", "--yes", "--json")

    check(done.stdout, "unlock")


@pytest.mark.parametrize("args", [["none"], ["none", "--reason", "why not", "--terminate"]])
def test_what_cancel_prints_is_what_the_schema_says(fleet, args):
    done = Shell(fleet.env()).run("cancel", *args, "--json")

    check(done.stdout, "cancel")


def test_an_output_with_a_field_too_many_is_refused():
    with pytest.raises(jsonschema.ValidationError):
        check('{"id": "t", "answer": "", "reason": "eta", "evidence": {}, "more": 1}', "why")


def test_every_command_is_in_the_schema_and_on_the_page():
    page = (REFERENCE / "commands.md").read_text()

    documented = set(re.findall(r"^\| `memsync ([a-z]+)", page, re.M))

    assert {name.split()[0] for name in SCHEMA["properties"]} == set(group.commands) - MUTE
    assert documented == set(group.commands)


def test_of_every_command_the_page_shows_what_it_looks_like():
    page = (REFERENCE / "commands.md").read_text()

    shown = set(re.findall(r"^\$ celery -A proj memsync ([a-z]+)", page, re.M))

    assert shown == set(group.commands)
