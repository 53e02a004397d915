"""Each row of the tables of task states names what a test of real workers shows."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from celery_memsync.models.order import RANKS

ROOT = Path(__file__).parents[3]

PAGE = ROOT / "docs" / "reference" / "task-states.md"

#: Which test shows a row, by its first cell.
STATES = {
    "`PENDING`": "test_brokers.py::test_task_that_no_worker_takes_is_pending",
    "`RECEIVED`": "test_brokers.py::test_a_task_with_an_eta_is_received_and_shows_it",
    "`STARTED`": "test_prefork.py::test_running_task_is_started",
    "a status of your own": "test_agreement.py::test_what_a_task_reports_by_update_state_is_seen_while_it_runs",
    "`RETRY`": "test_agreement.py::test_a_retry_that_waits_is_retry_with_its_cause_its_time_and_its_count",
    "`SUCCESS`": "test_pools.py::test_a_task_that_returns_is_a_success",
    "`FAILURE`": "test_pools.py::test_a_task_that_raises_is_a_failure",
    "`REVOKED`": "test_agreement.py::test_task_reserved_by_a_worker_is_revoked_at_once",
    "`CANCELLED`": "test_workflows.py::test_step_of_a_chain_is_known_before_it_is_sent",
    "`IGNORED`": "test_prefork.py::test_an_ignored_task_is_ignored",
    "`REJECTED`": "test_brokers.py::test_rejected_task_stays_rejected_after_celerys_failure_signal",
    "`SKIPPED`": "test_locked_flows.py::test_skipped_task_shows_the_holder_of_its_lock",
    "`LOST`": "test_exits.py::test_a_worker_that_is_killed_is_lost_after_its_ttl",
}

ENDS = {
    "a return": "test_pools.py::test_a_task_that_returns_is_a_success",
    "a return, but its callbacks": "test_agreement.py::test_a_body_whose_callback_can_not_be_sent_fails",
    "`Ignore` after `update_state": "test_agreement.py::test_an_end_that_a_body_stores_before_ignore_counts",
    "`TaskCancelled`, raised by": "test_cancel.py::test_running_task_ends_as_revoked_with_who_when_and_why",
    "an exception, the soft time limit": "test_prefork.py::test_the_soft_time_limit_is_a_failure",
    "`SystemExit`, `GeneratorExit`": "test_pools.py::test_a_body_that_raises_no_exception_is_a_failure",
    "the hard time limit": "test_prefork.py::test_the_hard_time_limit_is_a_failure",
    "its child is killed":
        "test_prefork.py::test_a_task_whose_child_is_killed_is_a_failure_within_a_second_of_celerys_knowing",
    "`revoke(terminate=True)`": "test_prefork.py::test_a_task_that_is_terminated_is_revoked",
    "`revoke(terminate=True, signal":
        "test_agreement.py::test_body_that_outlives_a_revoke_ends_by_its_own_result",
    "a cold shutdown, acknowledged early":
        "test_agreement.py::test_cold_shutdown_marks_early_acknowledged_tasks_as_lost",
    "a cold shutdown, acknowledged late":
        "test_exits.py::test_a_task_given_up_by_a_cold_shutdown_is_done_by_the_next_worker",
    "its worker is killed": "test_exits.py::test_a_worker_that_is_killed_is_lost_after_its_ttl",
    "a hook that raises before": "test_agreement.py::test_a_hook_that_raises_before_a_retry_leaves_no_run_that_goes_on",
    "a hook that raises afterwards":
        "test_agreement.py::test_hook_that_raises_leaves_one_outcome_and_the_one_of_celery",
    "`self.replace(...)`": "test_agreement.py::test_a_task_that_was_replaced_waits_until_what_replaced_it_ends",
}


def first_cells(title):
    """Return the first cells of the table whose heading begins so."""
    text = PAGE.read_text()
    table = text[text.index(f"| {title} |"):].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


@pytest.mark.parametrize("title, shown", [("status", STATES), ("it ends by", ENDS)])
def test_each_row_has_a_test(title, shown):
    cells = first_cells(title)

    assert [cell for cell in cells if not any(cell.startswith(row) for row in shown)] == []
    assert [row for row in shown if not any(cell.startswith(row) for cell in cells)] == []
    for test in shown.values():
        file, name = test.split("::")
        tree = ast.parse((ROOT / "tests" / "integration" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_each_status_that_is_recorded_has_a_row():
    rows = set(re.findall(r"`(\w+)`", " ".join(first_cells("status"))))

    assert set(RANKS) <= rows
