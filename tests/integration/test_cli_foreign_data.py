"""No command breaks on foreign data, or prints what a terminal acts on."""
from __future__ import annotations

import json
import threading
import unicodedata

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_memsync import cli, encoding
from tests.support import poison

#: Values that this package never writes.
ODD = ("yesterday\x1b[2J", 5, -1e300, 10 ** 400, True, None, ["a"], {"b": {"c": "\u202ed"}})


@pytest.fixture(scope="module")
def run(module_fleet):
    """Runs commands in this process, on a store with odd facts of tasks and workers."""
    reader = module_fleet.reader
    facts = ("status", "name", "worker", "runtime", "started_at", "finished_at", "eta", "exception", "queue")
    for number, odd in enumerate(ODD):
        reader.sync_task_state(f"t{number}", dict.fromkeys(facts, odd))
        reader.sync_agent_coordination(f"t{number}", "critic", odd)
        reader.write(f"odd/{number}", odd)
        reader.sync_metrics({f"odd-{number}": odd})
        shared = ("status", "pool", "cpu", "rss", "started_at", "round_trip", "consuming", "hostname", "sequence")
        worker = {**dict.fromkeys(shared, odd), "depths": {"q": odd}, "versions": {"celery": odd}, "queues": [odd],
                  "running": [odd, {"id": odd, "name": odd, "started_at": odd}], "capacity": {"free": odd},
                  "counters": {"total": odd}, "load": [odd]}
        reader.runtime.store.write_heartbeat(f"w{number}", encoding.dumps(worker), 60.0)
    reader.force_sync()
    return runner_of(module_fleet.producer(memsync_worker_ttl=60.0))


def runner_of(app):
    """Return a function that runs a command of an app in this process."""
    context = CLIContext(app, no_color=True, workdir=None)
    return lambda *args: CliRunner().invoke(cli.memsync, args, obj=context)


def shown(done):
    """Return the output of a command that did not break, and shows nothing that a terminal would act on."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1)
    assert all(letter.isprintable() or letter == "\n" for letter in done.output)
    return done.output


@pytest.mark.parametrize(
    "command", ["status", "tasks", "workers", "queue", "counters", "metrics", "locks", "search", "doctor"])
def test_odd_facts_are_shown_in_a_list(run, command):
    assert shown(run(command))


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_task_with_odd_facts_is_shown(run, number):
    assert f"t{number}" in shown(run("task", f"t{number}"))
    assert f"t{number}" in shown(run("workflow", f"t{number}"))


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_worker_with_odd_facts_is_shown(run, number):
    assert f"w{number}" in shown(run("workers", f"w{number}"))


def test_an_odd_value_is_shown_as_it_is(run):
    done = run("get", f"odd/{len(ODD) - 1}")

    assert '"c": "?d"' in shown(done)


@pytest.mark.parametrize("command", [["tasks"], ["workers"], ["counters"], ["metrics"], ["tasks", "--status", "5"]])
def test_odd_facts_are_kept_in_json(run, command):
    rows = json.loads(shown(run(*command, "--json")))

    assert rows


# -- raw writes past this package

POISONS = (poison.texts, poison.names, poison.kinds, poison.deep, poison.lists, poison.scalars)

#: What a shell may hand over as an argument: everything but NUL and what is no Unicode.
HOSTILE_ARGUMENT = poison.HOSTILE.replace("\0", "").replace("\ud800", "")


def commands():
    """Return command lines, each for text and for JSON; the last frees a lock."""
    listed = [
        ["status"], ["doctor"], ["tasks"], ["tasks", "--sort", "name"], ["tasks", "--name", "*"],
        ["workers"], ["workers", "w1"], ["workers", "w2"], ["locks"], ["queue"], ["assignments"],
        ["counters"], ["metrics"], ["search"], ["get", "own/1"], ["get", "workers/w1/heartbeat"],
        ["get", "coordination/assignments"], ["get", "tasks/t0/state"], ["agents", "t0"],
        *([command, f"t{number}"] for command in ("task", "why", "workflow") for number in range(4)),
        ["follow", "t0", "t1", "-t", "0"], ["watch", "-t", "0"],
        ["cancel", "t0", "--reason", "no need"], ["unlock", "printer", "--fence", "1", "--yes"],
    ]
    return [*listed, *([*command, "--json"] for command in listed), ["unlock", "printer", "--yes"]]


@pytest.fixture(scope="module", params=POISONS, ids=lambda change: change.__name__)
def poisoned(request, module_fleet):
    """Runs commands on a namespace whose every structure was poisoned in one way."""
    namespace = f"{module_fleet.name}-{request.param.__name__}"
    with module_fleet.store.client() as redis:
        poison.fill(module_fleet.manager(namespace=namespace, worker_ttl=60.0), redis)
        poison.poison(redis, namespace, request.param)
    app = module_fleet.producer(memsync_namespace=namespace, memsync_worker_ttl=60.0)
    return runner_of(app)


def harmful(text):
    """Return the characters of an output that act on a terminal, or hide in it."""
    unsafe = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {one for one in text if unicodedata.category(one) in unsafe or one == "\u3164"} - {"\n"}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_command_prints_nothing_harmful_of_poisoned_data(poisoned, command):
    done = poisoned(*command)

    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert harmful(done.output) == set()


@pytest.mark.parametrize("command", [one for one in commands() if "--json" in one], ids=" ".join)
def test_json_of_poisoned_data_is_valid_ascii_on_one_line(poisoned, command):
    done = poisoned(*command)

    assert done.stdout.isascii()
    for line in done.stdout.splitlines():
        if line.startswith(("{", "[")):
            json.loads(line, parse_constant=pytest.fail)


def test_each_command_that_reads_runs_on_poisoned_data():
    covered = {command[0] for command in commands()}

    assert set(cli.COMMANDS) - covered == {"top", "export", "set", "delete"}


@pytest.mark.parametrize("arguments", [
    [HOSTILE_ARGUMENT], [f"--{HOSTILE_ARGUMENT}"], [f"--help={HOSTILE_ARGUMENT}"],
    ["status", HOSTILE_ARGUMENT], ["status", f"--{HOSTILE_ARGUMENT}"],
    ["status", f"--json={HOSTILE_ARGUMENT}"], ["tasks", "--limit", HOSTILE_ARGUMENT],
    ["tasks", "--sort", HOSTILE_ARGUMENT], ["tasks", "--since", HOSTILE_ARGUMENT],
    ["set", "own/2", HOSTILE_ARGUMENT],
])
def test_usage_error_repeats_no_harmful_argument(run, arguments):
    done = run(*arguments)

    assert done.exit_code == 64
    assert "Error: " in done.output
    assert harmful(done.output) == set()


@pytest.mark.parametrize("arguments", [
    ["task"], ["why"], ["cancel"], ["agents"], ["get"], ["delete"], ["workers"], ["workers", "--status"],
    ["unlock", "--yes"], ["search"], ["tasks", "--status"], ["tasks", "--name"],
    ["follow", "-t", "0"], ["watch", "-t", "0"], ["set", "--expected-version", "1"],
])
@pytest.mark.parametrize("given", [HOSTILE_ARGUMENT, poison.HOSTILE_ID, "[" + HOSTILE_ARGUMENT])
def test_command_repeats_no_harmful_argument(run, arguments, given):
    command, *options = arguments

    done = run(command, *options, given, *(["5"] if command == "set" else []))

    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert harmful(done.output) == set()


def test_watch_prints_nothing_harmful_of_a_change(run, module_fleet):
    writer = threading.Timer(0.5, lambda: [
        module_fleet.reader.write(f"own/{poison.HOSTILE_ID}", {poison.HOSTILE: poison.HOSTILE}),
        module_fleet.reader.force_sync()])

    writer.start()
    done = run("watch", "own/*", "--limit", "1", "--timeout", "20")
    writer.join()

    assert done.exit_code == 0
    assert "own/" in done.output
    assert harmful(done.output) == set()
