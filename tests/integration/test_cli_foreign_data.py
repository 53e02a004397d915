"""Whatever somebody has told, `celery memsync ...` shows it and does not break."""
from __future__ import annotations

import json

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_memsync import cli, values

#: What nobody of ours tells.
ODD = ("yesterday\x1b[2J", 5, -1e300, 10 ** 400, True, None, ["a"], {"b": {"c": "\u202ed"}})


@pytest.fixture(scope="module")
def run(module_fleet):
    """Runs commands in this process, on a memory with tasks and workers in which each fact is something odd."""
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
        reader.store.beat_worker(f"w{number}", values.dumps(worker), 60.0)
    reader.force_sync()
    context = CLIContext(module_fleet.producer(memsync_worker_ttl=60.0), no_color=True, workdir=None)
    return lambda *args: CliRunner().invoke(cli.memsync, args, obj=context)


def shown(done):
    """Return the output of a command that did not break, and shows nothing that a terminal would act on."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1)
    assert all(letter.isprintable() or letter == "\n" for letter in done.output)
    return done.output


@pytest.mark.parametrize("command", ["status", "tasks", "workers", "queue", "metrics", "locks", "search", "doctor"])
def test_odd_facts_are_shown_in_a_list(run, command):
    assert shown(run(command))


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_task_with_odd_facts_is_shown(run, number):
    assert f"t{number}" in shown(run("task", f"t{number}"))


@pytest.mark.parametrize("number", range(len(ODD)))
def test_a_worker_with_odd_facts_is_shown(run, number):
    assert f"w{number}" in shown(run("workers", f"w{number}"))


def test_an_odd_value_is_shown_as_it_is(run):
    done = run("get", f"odd/{len(ODD) - 1}")

    assert '"c": "?d"' in shown(done)


@pytest.mark.parametrize("command", [["tasks"], ["workers"], ["metrics"], ["tasks", "--status", "5"]])
def test_odd_facts_are_kept_in_json(run, command):
    rows = json.loads(shown(run(*command, "--json")))

    assert rows
