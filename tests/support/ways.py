"""The ways to write a number and to read it."""
from __future__ import annotations

import pytest

from celery_memsync.models.task import TaskRun
from tests.support.runs import run_key


def entry_value(memsync, key):
    entry = memsync.read_entry(key)
    return None if entry is None else entry.value


def state_field(memsync, name):
    return (memsync.get_task_state("t1") or {}).get(name)


def sync_run(memsync, number):
    memsync.sync_task_run("t1", TaskRun("STARTED", pid=number), run_key(0, float(number)))


#: By name: how to write a number, and how to read it.
WAYS = {
    "read": (lambda one, n: one.write("a", n), lambda one: one.read("a")),
    "read by full name": (lambda one, n: one.write("a", n), lambda one: one.read("task-sentinel/a")),
    "read_entry": (lambda one, n: one.write("a", n), lambda one: entry_value(one, "a")),
    "read_many": (lambda one, n: one.write("a", n), lambda one: one.read_many(["a", "b"])["a"]),
    "read a state": (lambda one, n: one.sync_task_state("t1", {"x": n}),
                     lambda one: (one.read("tasks/t1/state") or {}).get("x")),
    "state": (lambda one, n: one.sync_task_state("t1", {"x": n}), lambda one: state_field(one, "x")),
    "stage": (sync_run, lambda one: state_field(one, "pid")),
    "progress": (lambda one, n: one.sync_task_progress("t1", n),
                 lambda one: (one.get_task_progress("t1") or {}).get("progress")),
    "agents": (lambda one, n: one.sync_agent_coordination("t1", f"agent-{n}", n),
               lambda one: len(one.get_task_agents("t1")) or None),
    "agent": (lambda one, n: one.sync_agent_coordination("t1", "a1", n),
              lambda one: one.get_agent_coordination("t1", "a1")),
}
ways = pytest.mark.parametrize("write, read", WAYS.values(), ids=WAYS)


def write_now(memsync, write, *args):
    """Write, and return when that is in Redis."""
    write(memsync, *args)
    memsync.force_sync()
