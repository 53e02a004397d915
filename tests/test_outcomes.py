from __future__ import annotations

import os
from types import SimpleNamespace

from celery_memsync.outcomes import MAX_REMEMBERED, Outcomes
from celery_memsync.records import TaskRun

RUN = TaskRun("RECEIVED", name="proj.add")


def request(task_id, pid):
    return SimpleNamespace(id=task_id, worker_pid=pid, time_start=5.0)


def test_only_the_outcomes_of_children_that_are_gone_are_given_and_only_once():
    outcomes = Outcomes()
    outcomes.remember(request("t1", 11), "k1", RUN, (False, None, 0.5), connected=True)
    outcomes.remember(request("t2", 12), "k2", RUN, (False, None, 0.5), connected=True)

    gone = outcomes.of_the_gone(alive=[12])

    assert [(one.pid, one.task_id, one.key, one.error) for one in gone] == [(11, "t1", "k1", None)]
    assert outcomes.of_the_gone(alive=[12]) == []
    assert [one.task_id for one in outcomes.of_the_gone(alive=[])] == ["t2"]


def test_what_ran_in_this_process_or_nowhere_is_not_remembered():
    outcomes = Outcomes()

    for pid in (None, os.getpid()):
        outcomes.remember(request("t1", pid), "k", RUN, (False, None, 0.5), connected=True)

    assert outcomes.of_the_gone(alive=[]) == []


def test_a_failure_is_remembered_with_its_error():
    error = ValueError("no")
    outcomes = Outcomes()

    outcomes.remember(request("t1", 11), "k", RUN, (True, SimpleNamespace(exception=error), None), connected=True)

    assert [one.error for one in outcomes.of_the_gone(alive=[])] == [error]


def test_the_memory_of_a_child_has_a_bound_while_redis_is_away():
    outcomes = Outcomes()

    for number in range(MAX_REMEMBERED + 5):
        outcomes.remember(request(f"t{number}", 11), "k", RUN, (False, None, 0.5), connected=False)

    kept = outcomes.of_the_gone(alive=[])
    assert (len(kept), kept[0].task_id) == (MAX_REMEMBERED, "t5")
