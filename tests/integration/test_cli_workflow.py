"""`celery memsync workflow`, and what other commands show of groups and workflows."""
from __future__ import annotations

import json
import re

import pytest
from celery import chain, group
from celery.canvas import StampingVisitor

from tests.support.flows import FLOWS, sig
from tests.support.terminal import Terminal
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fleet(flow_fleet):
    return flow_fleet


class Tenant(StampingVisitor):
    """Stamps all tasks; without a visitor Celery leaves the body of a chord out."""

    def on_signature(self, sig, **headers):
        return {"tenant": "acme", "number": 42}


@pytest.fixture(scope="module")
def ended(fleet):
    """The result of a workflow that has ended, and its group."""
    result = chain(sig(fleet, "ok"), group(sig(fleet, "ok"), sig(fleet, "retried")), sig(fleet, "ok")).apply_async()
    fleet.wait(result, "SUCCESS")
    return result


def test_workflow_is_shown_as_a_tree_of_80_columns(shell, ended):
    done = shell.run("workflow", ended.id)

    lines = done.stdout.splitlines()
    parts = [line[:line.index("SUCCESS")].rstrip() for line in lines[1:-1]]
    assert parts[:2] == ["chain", f"  {FLOWS}.ok"]
    assert parts[2:4] == ["  chord", "    group 2/2"]
    assert sorted(parts[4:6]) == [f"      {FLOWS}.ok", f"      {FLOWS}.retried"]
    assert parts[6] == f"    {FLOWS}.ok"
    assert lines[-1] == "100%"
    assert max(map(len, lines)) <= 80
    assert done.returncode == 0


def test_workflow_is_found_by_the_begin_of_an_id(shell, ended):
    found = json.loads(shell.run("workflow", ended.id[:20], "--json").stdout)

    assert found["root"]["children"][1]["id"] == ended.id
    assert found["status"] == "SUCCESS"


def test_workflow_that_is_unknown_ends_with_1(shell, fleet):
    done = shell.run("workflow", "nothing")

    assert done.returncode == 1
    assert "Unknown task nothing" in done.stderr


def test_workflow_is_followed_to_its_end_and_no_figure_falls(shell, fleet):
    result = chain(sig(fleet, "ok"), sig(fleet, "wait", seconds=1.5), sig(fleet, "bad")).apply_async()
    fleet.wait(result, "PENDING")

    done = shell.run("workflow", result.id, "--follow", "--json", "--timeout", "60")

    found = [json.loads(line) for line in done.stdout.splitlines()]
    figures = [one["progress"] for one in found]
    assert (done.returncode, found[-1]["status"]) == (1, "FAILURE")
    assert len(figures) > 2 and figures == sorted(figures)


def test_workflow_that_does_not_end_in_time_ends_with_75(shell, fleet):
    result = chain(sig(fleet, "wait"), sig(fleet, "ok")).apply_async()
    fleet.wait(result, "PENDING")

    done = shell.run("workflow", result.id, "--follow", "--timeout", "0.1")
    result.parent.revoke(terminate=True)

    assert done.returncode == 75
    assert "has not ended in time" in done.stderr


def test_tree_is_drawn_in_place_on_a_terminal(shell, fleet):
    result = chain(sig(fleet, "wait", seconds=5.0), sig(fleet, "ok")).apply_async()
    fleet.wait(result, "PENDING")
    terminal = Terminal(shell, "workflow", result.id, "--follow")

    terminal.shows("100%")
    code = terminal.end()

    # The tree is there once, though it was shown several times.
    assert sum(line.startswith("chain ") for line in terminal.lines) == 1
    assert terminal.raw.count(b"chain ") > 1
    assert code == 0


def test_group_is_followed_as_one_bar(shell, fleet):
    result = group(*(sig(fleet, "ok") for _ in range(5)), sig(fleet, "bad")).apply_async()
    eventually(lambda: fleet.reader.get_group(result.id))

    done = shell.run("follow", result.id, "--timeout", "60")

    assert done.stdout.splitlines()[-1] == "FAILURE   100%, 6 of 6, 1 failed"
    assert done.returncode == 1


def test_tasks_of_a_group_and_of_a_workflow_are_listed(shell, ended):
    members = json.loads(shell.run("tasks", "--group", ended.parent.id, "--json").stdout)
    retried = json.loads(shell.run("tasks", "--group", ended.parent.id, "--name", "*.retried", "--json").stdout)
    whole = json.loads(shell.run("tasks", "--root", ended.parent.parent.id, "--json").stdout)
    none = shell.run("tasks", "--group", "nothing")

    assert {one["id"] for one in members} == {one.id for one in ended.parent.results}
    assert [one["state"]["name"] for one in retried] == [f"{FLOWS}.retried"]
    assert {one["id"] for one in whole} == {one["id"] for one in members} | {ended.id, ended.parent.parent.id}
    assert none.stdout == "No task is like that.\n"


def test_why_names_the_step_on_which_a_task_depends(shell, fleet):
    result = chain(sig(fleet, "ok"), sig(fleet, "wait"), sig(fleet, "ok"), sig(fleet, "ok")).apply_async()
    running = result.parent.parent
    eventually(lambda: (fleet.reader.get_task_progress(running.id) or {}).get("progress"))

    said = json.loads(shell.run("why", result.id, "--json").stdout)
    running.revoke(terminate=True)
    fleet.wait(result, "CANCELLED")
    after = json.loads(shell.run("why", result.id, "--json").stdout)

    worker = fleet.workers[0].name
    assert said["reason"] == "depends"
    assert said["answer"].startswith(f"It depends on step 2 of 4 ({FLOWS}.wait), running on {worker} for ")
    assert said["answer"].endswith("%.")
    assert after["reason"] == "never-ran"
    assert f"{FLOWS}.wait ({running.id}), before it, ended as REVOKED" in after["answer"]


def test_tasks_with_a_stamp_are_selected(shell, fleet):
    flow = chain(sig(fleet, "retried"), group(sig(fleet, "ok"), sig(fleet, "ok")), sig(fleet, "ok"))
    flow.stamp(visitor=Tenant())
    result = flow.apply_async()
    other = sig(fleet, "ok")
    other.stamp(tenant="beta")
    other = other.apply_async()
    ids = {result.id, *(one.id for one in result.parent.results), result.parent.parent.id}

    planned = eventually(lambda: fleet.state(result.id))
    fleet.wait(result, "SUCCESS")
    fleet.wait(other, "SUCCESS")

    def selected(*stamps):
        args = [part for stamp in stamps for part in ("--stamp", stamp)]
        return {task["id"]: task for task in json.loads(shell.run("tasks", "--json", *args).stdout)}

    assert planned["stamps"] == {"tenant": "acme", "number": 42}
    assert {task_id: task["state"]["stamps"] for task_id, task in selected("tenant=acme").items()} == dict.fromkeys(
        ids, {"tenant": "acme", "number": 42})
    assert set(selected("tenant=acme", "number=42")) == ids
    assert set(selected("tenant=beta")) == {other.id}
    assert selected("tenant=beta", "number=42") == selected("tenant=") == selected("Tenant=acme") == {}
    assert re.search(r"^stamps +number=42, tenant=acme$", shell.run("task", result.id).stdout, re.M)
    wrong = shell.run("tasks", "--stamp", "tenant")
    assert (wrong.returncode, "tenant is no stamp with its value" in wrong.stderr) == (64, True)


def test_parts_that_did_not_succeed_have_no_percentage(shell, fleet):
    result = chain(sig(fleet, "bad"), sig(fleet, "ok")).apply_async()
    fleet.wait(result, "FAILURE")

    fleet.wait(result.parent, "FAILURE")

    def shown():
        lines = shell.run("workflow", result.id).stdout.splitlines()
        return [line.split()[1:3] for line in lines[1:-1]], lines[-1]

    eventually(lambda: shown() == ([["FAILURE", "-"]] * 3, "Ended as FAILURE."))
