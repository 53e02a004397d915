from __future__ import annotations

import os
from datetime import datetime
from types import SimpleNamespace

import pytest

from celery_memsync.integration import child_outcomes
from celery_memsync.integration.child_outcomes import MAX_REMEMBERED, ChildOutcomes


def services(task_args=False):
    return SimpleNamespace(redact=None, settings=SimpleNamespace(task_args=task_args))


def remember(outcomes, task_id, pid, outcome=(False, None, 0.5), connected=True, task_args=False):
    facts = {"task": "proj.add", "root_id": "root", "argsrepr": "(1, 2)", "delivery_info": {"exchange": ""}}
    run = SimpleNamespace(task_id=task_id, facts=facts, sent={"key": "k"}, services=services(task_args))
    outcomes.remember(SimpleNamespace(worker_pid=pid, time_start=5.0), run, outcome, 0.1, connected)


def test_outcomes_of_dead_children_are_returned_once():
    outcomes = ChildOutcomes()
    remember(outcomes, "t1", 11)
    remember(outcomes, "t2", 12)

    missing = outcomes.pop_dead_children(alive=[12])

    assert [(one.pid, one.task_id, one.status, one.runtime) for one in missing] == [
        (11, "t1", "SUCCESS", 0.5)]
    assert (missing[0].facts["task"], missing[0].facts["root_id"], missing[0].sent) == ("proj.add", "root", {"key": "k"})
    assert outcomes.pop_dead_children(alive=[12]) == []
    assert [one.task_id for one in outcomes.pop_dead_children(alive=[])] == ["t2"]


def test_what_ran_in_this_process_or_nowhere_is_not_remembered():
    outcomes = ChildOutcomes()

    for pid in (None, os.getpid()):
        remember(outcomes, "t1", pid)

    assert outcomes.pop_dead_children(alive=[]) == []


def test_a_failure_is_remembered_with_its_error():
    error = ValueError("no")
    outcomes = ChildOutcomes()

    remember(outcomes, "t1", 11, (True, SimpleNamespace(exception=error), None))

    assert [(one.status, one.exception) for one in outcomes.pop_dead_children(alive=[])] == [
        ("FAILURE", {"type": "ValueError", "message": "no"})]


@pytest.mark.parametrize("task_args, shown", [(True, "(1, 2)"), (False, None)])
def test_arguments_are_remembered_only_if_they_are_shown(task_args, shown):
    outcomes = ChildOutcomes()

    remember(outcomes, "t1", 11, task_args=task_args)

    (outcome,) = outcomes.pop_dead_children(alive=[])
    assert (outcome.facts.get("argsrepr"), outcome.facts.get("delivery_info")) == (shown, None)


@pytest.mark.parametrize("connected, kept", [(True, ["t3"]), (False, ["t1", "t2", "t3"])])
def test_older_outcomes_are_forgotten_while_redis_is_there(monkeypatch, connected, kept):
    monkeypatch.setattr(child_outcomes, "FLUSH_GRACE", -1.0)
    outcomes = ChildOutcomes()

    for task_id in ("t1", "t2", "t3"):
        remember(outcomes, task_id, 11, connected=connected)

    assert [one.task_id for one in outcomes.pop_dead_children(alive=[])] == kept


def test_outcome_with_a_header_of_an_odd_type_raises_nothing():
    outcomes = ChildOutcomes()
    run = SimpleNamespace(task_id="t1", facts={"root_id": datetime(2026, 1, 1)}, sent={"key": "k"}, services=services())

    outcomes.remember(SimpleNamespace(worker_pid=11, time_start=5.0), run, (False, None, 0.5), 0.1, True)

    assert outcomes.pop_dead_children(alive=[]) == []


def test_outcomes_kept_while_redis_is_away_are_bounded():
    outcomes = ChildOutcomes()

    for number in range(MAX_REMEMBERED + 5):
        remember(outcomes, f"t{number}", 11, connected=False)

    kept = outcomes.pop_dead_children(alive=[])
    assert (len(kept), kept[0].task_id) == (MAX_REMEMBERED, "t5")
